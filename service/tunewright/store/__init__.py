"""The durable state of the service: tables, transitions, desired state. Database only; no files, no HTTP."""
