"""`tunewright webhooks`: addresses that are told of events, what was sent to them, and what has failed."""

from __future__ import annotations

import click

from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright_client import WebhookDelivery, WebhookEndpoint, WebhookEndpointWithSecret

_ID, _DELIVERY = "webhook-Zk3mP0aYc7vTqLw9XnB2sR8d", "delivery-XnB2sR8dZk3mP0aYc7vTqLw9"
_STATES = ("pending", "delivered", "dead_letter")


@click.group(cls=Commands)
def webhooks() -> None:
    """Tell other services of the ends of jobs, and of other events."""


@webhooks.command(
    epilog=examples(
        "tunewright webhooks create https://ci.example.com/hooks --event fine_tuning.job.succeeded",
        "tunewright webhooks create https://ci.example.com/hooks --all-events --name CI",
    )
)
@click.argument("address", metavar="URL")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="An event; repeat for more.")
@click.option("--all-events", is_flag=True, help="All events that there are now.")
@click.option("--name", help="What lists call it.  [default: the URL]")
@on_service
def create(remote: Remote, address: str, events: tuple[str, ...], all_events: bool, name: str | None) -> None:
    """Tell URL of events from now on, and print its secret, which is not shown again."""
    if bool(events) == all_events:
        raise click.UsageError("Give the events with --event, or --all-events.")
    wanted = list(remote.client.webhooks.event_types()) if all_events else list(events)
    _print_secret(remote, remote.client.webhooks.create(name or address[:256], address, wanted))


@webhooks.command(epilog=examples("tunewright webhooks events"))
@on_service
def events(remote: Remote) -> None:
    """List the types of events."""
    found = remote.client.webhooks.event_types()
    if remote.out.as_json:
        remote.out.json({"data": list(found)})
        return
    for one in found:
        remote.out.line(one)


@webhooks.command(name="list", epilog=examples("tunewright webhooks list"))
@limit_option(100)
@on_service
def list_endpoints(remote: Remote, limit: int) -> None:
    """List the endpoints, newest first."""
    remote.out.listing(
        remote.client.webhooks.list(limit=page_size(limit)),
        limit,
        ["ID", "NAME", "URL", "EVENTS", "CREATED"],
        lambda e: (e.id, e.name, e.url, len(e.event_types), when(e.created_at)),
    )


@webhooks.command(epilog=examples(f"tunewright webhooks show {_ID}"))
@click.argument("id")
@on_service
def show(remote: Remote, id: str) -> None:
    """Show one endpoint."""
    _print_endpoint(remote, remote.client.webhooks.retrieve(id))


@webhooks.command(
    epilog=examples(f"tunewright webhooks update {_ID} --endpoint-url https://ci.example.com/hooks/2")
)
@click.argument("id")
@click.option("--endpoint-url", metavar="URL", help="Where its events are sent; also those that are pending.")
@click.option("--name", help="What lists call it.")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="All of its events; repeat for more.")
@on_service
def update(
    remote: Remote, id: str, endpoint_url: str | None, name: str | None, events: tuple[str, ...]
) -> None:
    """Change an endpoint."""
    types = list(events) if events else None
    _print_endpoint(remote, remote.client.webhooks.update(id, name=name, url=endpoint_url, event_types=types))


@webhooks.command(
    name="rotate-secret", epilog=examples(f"tunewright webhooks rotate-secret {_ID} --keep-old")
)
@click.argument("id")
@click.option("--keep-old", is_flag=True, help="The secret before signs too for 24 hours.")
@on_service
def rotate_secret(remote: Remote, id: str, keep_old: bool) -> None:
    """Give an endpoint another secret, and print it: it is not shown again."""
    _print_secret(
        remote, remote.client.webhooks.rotate_secret(id, keep_old_secret_active_for_24_hours=keep_old)
    )


@webhooks.command(epilog=examples(f"tunewright webhooks test {_ID}"))
@click.argument("id")
@click.option("--event", metavar="TYPE", default="fine_tuning.job.succeeded", show_default=True)
@on_service
def test(remote: Remote, id: str, event: str) -> int:
    """Send an endpoint an event about an object `test`, and print the status of its answer."""
    found = remote.client.webhooks.test(id, event_type=event)
    if remote.out.as_json:
        remote.out.json(found)
    else:
        remote.out.line(f"{id} answered with {found.status_code}")
    return 0 if 200 <= found.status_code < 300 else 1


@webhooks.command(epilog=examples(f"tunewright webhooks delete {_ID}"))
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@on_service
def delete(remote: Remote, ids: tuple[str, ...]) -> None:
    """Delete endpoints with their deliveries."""
    for id in ids:
        deleted = remote.client.webhooks.delete(id)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")


@webhooks.command(
    epilog=examples(
        "tunewright webhooks deliveries --state dead_letter",
        f"tunewright webhooks deliveries --endpoint {_ID} --limit 100",
    )
)
@click.option("--endpoint", metavar="ID", help="Only those to this endpoint.")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--event", metavar="TYPE", help="Only those of events of this type.")
@limit_option(20)
@on_service
def deliveries(
    remote: Remote, endpoint: str | None, state: str | None, event: str | None, limit: int
) -> None:
    """List what was sent, or is to be, newest first; --state dead_letter: what has failed for good."""
    remote.out.listing(
        remote.client.webhooks.deliveries.list(
            webhook_endpoint_id=endpoint, state=state, event_type=event, limit=page_size(limit)
        ),
        limit,
        ["ID", "EVENT", "ABOUT", "STATE", "ATTEMPTS", "NEXT", "ENDPOINT", "LAST ERROR"],
        lambda d: (
            d.id, d.event.type, d.event.data.get("id"), d.state, len(d.attempts), when(d.next_attempt_at),
            d.webhook_endpoint_id, d.attempts[-1].error if d.attempts else None,
        ),
    )  # fmt: skip


@webhooks.command(epilog=examples(f"tunewright webhooks delivery {_DELIVERY}"))
@click.argument("id")
@on_service
def delivery(remote: Remote, id: str) -> None:
    """Show one delivery with its attempts."""
    _print_delivery(remote, remote.client.webhooks.deliveries.retrieve(id))


@webhooks.command(
    epilog=examples(
        f"tunewright webhooks replay {_DELIVERY}",
        f"tunewright webhooks replay --dead-letters --endpoint {_ID}",
    )
)
@click.argument("ids", metavar="DELIVERY...", nargs=-1)
@click.option("--dead-letters", is_flag=True, help="All that have failed for good.")
@click.option("--endpoint", metavar="ID", help="With --dead-letters: only those to this endpoint.")
@on_service
def replay(remote: Remote, ids: tuple[str, ...], dead_letters: bool, endpoint: str | None) -> None:
    """Send deliveries again, now, each with the same `webhook-id`."""
    if bool(ids) == dead_letters or (endpoint and not dead_letters):
        raise click.UsageError("Give deliveries, or --dead-letters, which may have --endpoint.")
    found = remote.client.webhooks.deliveries
    if dead_letters:
        listed = found.list(webhook_endpoint_id=endpoint, state="dead_letter", limit=1000)
        ids = tuple(one.id for one in listed)
    for id in ids:
        replayed = found.replay(id)
        if remote.out.as_json:
            remote.out.json(replayed)
        else:
            remote.out.line(f"{replayed.id} {replayed.state}")


def _print_secret(remote: Remote, endpoint: WebhookEndpointWithSecret) -> None:
    if remote.out.as_json:
        remote.out.json(endpoint)
        return
    remote.out.fields([("id", endpoint.id), ("url", endpoint.url), ("secret", endpoint.signing_secret)])
    remote.out.note("Keep the secret now: it is not shown again.")


def _print_endpoint(remote: Remote, endpoint: WebhookEndpoint) -> None:
    if remote.out.as_json:
        remote.out.json(endpoint)
        return
    remote.out.fields(
        [
            ("id", endpoint.id),
            ("name", endpoint.name),
            ("url", endpoint.url),
            *[("event", one) for one in endpoint.event_types],
            ("secret", endpoint.signing_secret_hint),
            ("created", when(endpoint.created_at)),
            ("changed", when(endpoint.updated_at)),
        ]
    )


def _print_delivery(remote: Remote, delivery: WebhookDelivery) -> None:
    if remote.out.as_json:
        remote.out.json(delivery)
        return
    remote.out.fields(
        [
            ("id", delivery.id),
            ("state", delivery.state),
            ("endpoint", delivery.webhook_endpoint_id),
            ("webhook-id", delivery.event.id),
            ("event", delivery.event.type),
            ("about", delivery.event.data.get("id")),
            ("created", when(delivery.created_at)),
            ("ended", when(delivery.ended_at)),
            ("next attempt", when(delivery.next_attempt_at)),
            *[(f"attempt {when(one.created_at)}", one.error or one.status_code) for one in delivery.attempts],
        ]
    )
