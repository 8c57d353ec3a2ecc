"""`tunewright batches`: files of requests, answered by a service below its live traffic."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tunewright.cli.create import FILE
from tunewright.cli.job_commands import BATCHES, action_command, events_command, logs_command, pairs, steps
from tunewright.cli.options import Commands, KeyValue, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright.cli.watch import print_created, watch_command
from tunewright_client import Batch, BatchResult

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


@click.group(cls=Commands)
def batches() -> None:
    """Have files of requests answered, below live traffic."""


@batches.command(
    epilog=examples(
        "tunewright batches create --file requests.jsonl --watch",
        "tunewright batches create --file requests.jsonl --endpoint /v1/completions --window 7d --json | jq -r .id",
    )
)
@click.option(
    "--file", "-f", "file", type=FILE, required=True,
    help="The requests, a line each with custom_id, method, url and body: a file here, which is uploaded, or an "
    "uploaded file's id.",
)  # fmt: skip
@click.option(
    "--endpoint", type=click.Choice(ENDPOINTS), default=ENDPOINTS[0], show_default=True, help="The url of all of them."
)  # fmt: skip
@click.option(
    "--window", default="24h", show_default=True, metavar="TIME",
    help="Hours or days, such as 24h or 7d. Requests that are not answered then are in the error file.",
)  # fmt: skip
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the batch; may be repeated.")
@click.option("--watch", is_flag=True, help="Show its progress until it has ended, as `batches watch` does.")
@on_service
def create(
    remote: Remote,
    *,
    file: str | Path,
    endpoint: str,
    window: str,
    metadata: tuple[tuple[str, str], ...],
    watch: bool,
) -> int:
    """Start a batch and print its id.

    Its lines are checked first: one that is wrong fails the batch. docs/how-to/answer-batches.md describes them.
    """
    batch = remote.client.batches.create(
        file, endpoint, completion_window=window, metadata=dict(metadata) or None
    )
    return print_created(remote, BATCHES, batch, watch)


batches.add_command(watch_command(BATCHES, "tunewright files download $FILE --output -"))


@batches.command(
    name="list", epilog=examples("tunewright batches list", "tunewright batches list --limit 3 --json")
)
@limit_option(20)
@on_service
def list_batches(remote: Remote, limit: int) -> None:
    """List the batches, newest first."""

    def row(batch: Batch) -> tuple[object, ...]:
        return (
            batch.id, batch.status, batch.model or None, steps(batch), batch.request_counts.failed,
            when(batch.created_at), when(batch.expires_at),
        )  # fmt: skip

    remote.out.listing(
        remote.client.batches.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "MODEL", "DONE", "FAILED", "CREATED", "EXPIRES"],
        row,
    )


@batches.command(epilog=examples(BATCHES.example_of("show")))
@click.argument("batch_id")
@on_service
def show(remote: Remote, batch_id: str) -> None:
    """Show one batch: its request, its counts, its files, or why it has failed."""
    batch = remote.client.batches.retrieve(batch_id)
    if remote.out.as_json:
        remote.out.json(batch)
        return
    counts = batch.request_counts
    remote.out.fields(
        [
            ("id", batch.id),
            ("status", batch.status),
            ("file", batch.input_file_id),
            ("endpoint", batch.endpoint),
            ("model", batch.model or None),
            ("requests", counts.total or None),
            ("completed", counts.completed),
            ("failed", counts.failed),
            ("answers", batch.output_file_id),
            ("errors", batch.error_file_id),
            *[("fault", str(fault)) for fault in batch.faults],
            ("metadata", pairs(batch.metadata)),
            ("created", when(batch.created_at)),
            ("started", when(batch.in_progress_at)),
            ("expires", when(batch.expires_at)),
            ("finished", when(batch.finished_at)),
        ]
    )


@batches.command(
    epilog=examples(
        BATCHES.example_of("results"),
        BATCHES.example_of("results", "--json | jq -r .response.body.choices[0].message.content"),
    )
)
@click.argument("batch_id")
@click.option("--errors", "only_errors", is_flag=True, help="Only the requests without an answer.")
@on_service
def results(remote: Remote, batch_id: str, only_errors: bool) -> None:
    """Print the results of a batch that has ended, one a line: the answers, then the errors.

    With --json they are the lines of the files of results.
    """
    batch = remote.client.batches.retrieve(batch_id)
    if not batch.is_final:
        raise click.ClickException(
            f"{batch.id} is {batch.status}: its results are there when it has ended ({BATCHES.example_of('watch')})"
        )
    for result in batch.results():
        if only_errors and result.is_answered:
            continue
        if remote.out.as_json:
            remote.out.json(result)
        else:
            remote.out.line(f"{result.custom_id}  {_told(result)}")


def _told(result: BatchResult) -> str:
    """The text of an answer, or why there is none, in one line."""
    if result.response is None:
        return f"error: {(result.error or {}).get('message')}"
    body = result.response.body
    if not result.is_answered:
        return f"error {result.response.status_code}: {(body.get('error') or {}).get('message')}"
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        return json.dumps(body)
    return json.dumps(text, ensure_ascii=False)


batches.add_command(logs_command(BATCHES, "Print the log of the batch's process."))
batches.add_command(events_command(BATCHES, "step"))
batches.add_command(
    action_command(BATCHES, "cancel", "End batches with what is answered until then; the answers are kept.")
)
