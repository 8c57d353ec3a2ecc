"""Webhooks: events of the outbox (`store.outbox`) are sent to the endpoints that want them, by a process of its own,
which the scheduler starts when there is something to send."""
