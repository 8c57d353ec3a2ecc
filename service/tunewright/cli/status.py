"""`tunewright status`."""

from __future__ import annotations

import click

from tunewright.cli.options import Remote, examples, on_service


@click.command(
    epilog=examples("tunewright status", "tunewright status --json", "tunewright status && echo ready")
)
@on_service
def status(remote: Remote) -> int:
    """Show whether the service is ready, by component.

    The exit code is 0 when all of them are ready, else 1.
    """
    state = remote.client.with_options(max_retries=0).ready()
    if remote.out.as_json:
        remote.out.json(state)
    else:
        rows = [
            (name, "ready" if part.ready else part.state or "not ready", part.reason)
            for name, part in state.components.items()
        ]
        remote.out.table(["COMPONENT", "STATE", "REASON"], rows)
        verdict = "ready" if state.ready else "not ready"
        remote.out.note(f"{remote.client.base_url} is {verdict}")
    return 0 if state.ready else 1
