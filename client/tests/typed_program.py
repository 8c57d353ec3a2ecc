"""A program of a user, for type checkers in strict mode. It is checked, not run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright, types


def show(event: tw.JobEvent) -> None:
    metrics = event.metrics
    print(event.message, None if metrics is None else metrics.train_loss)


def changed(deployment: tw.Deployment) -> None:
    print(deployment.state, [adapter.model for adapter in deployment.adapters])


def fine_tune(client: Tunewright) -> str:
    client.wait_ready(timeout=300)
    job: tw.Job = client.jobs.create(
        model="base",
        training_file=Path("train.jsonl"),
        tuning=tw.Tuning(type="lora", rank=16, alpha="auto"),
        metadata={"team": "a"},
    )
    try:
        job = job.wait(timeout=3600, progress=True, on_event=show)
    except tw.JobFailedError as error:
        raise SystemExit(f"{error.code}: {error.message}") from error
    except tw.WaitTimeoutError as error:
        raise SystemExit(f"{error.job.id} is still {error.job.status}") from error
    with job.stream_events() as events:
        for event in events:
            show(event)
    for checkpoint in job.checkpoints(limit=5):
        loss: float | None = checkpoint.metrics.valid_loss
        print(checkpoint.step_number, loss)
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def generate(client: Tunewright, model: str) -> str:
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    answer: tw.ChatCompletion = client.chat.create(model, messages, temperature=0)
    with client.chat.create(model, messages, stream=True) as chunks:
        streamed = "".join(chunk.text for chunk in chunks)
    stream: tw.Stream[tw.CompletionChunk] = client.completions.create(model, "Where", stream=True)
    first: tw.CompletionChunk = next(stream)
    stream.close()
    return answer.text + streamed + first.text


def export(client: Tunewright, model: str) -> None:
    made: tw.Export = client.exports.create(
        models={model: 0.7, "other": 0.3}, format="adapter", combine="ties"
    )
    made = client.exports.create(model, format="awq", group_size="largest").wait(on_event=show)
    if made.report is not None and made.report.quality is not None:
        rows: list[tuple[str, float | None]] = [(row.name, row.kl) for row in made.report.quality.models]
        print(rows)
    client.deployments.create(model, {"max_loras": 2}).wait(on_change=changed)
    alias: tw.Alias = client.aliases.set("bot", [tw.AliasTarget(model=model), "other"], shadow="third")
    print(alias.targets[0].weight, client.aliases.history("bot").data[0].who)


def clean(client: Tunewright) -> str | None:
    cleaning: tw.Cleaning = client.cleanings.create(
        Path("train.jsonl"), ["html", {"type": "leaks", "against": Path("valid.jsonl")}]
    ).wait(progress=True)
    report: tw.CleaningReport | None = cleaning.report
    if report is not None:
        removed: dict[str, int] = {step.step: step.removed for step in report.steps}
        print(report.rows_after, removed)
    return cleaning.cleaned_file


def make_rows(client: Tunewright) -> str | None:
    synthesis: tw.Synthesis = client.syntheses.create(
        "teacher", Path("train.jsonl"), {"type": "answers", "n": 4}, temperature=0.9
    ).wait()
    report: tw.SynthesisReport | None = synthesis.report
    if report is not None:
        dropped: dict[str, int] = {reason: one.rows for reason, one in report.dropped.items()}
        print(report.rows_made, dropped, synthesis.teacher.content if synthesis.teacher else None)
    return synthesis.made_file


def manage(client: Tunewright) -> None:
    page: tw.Page[tw.File] = client.files.list(limit=10)
    while (following := page.next_page()) is not None:
        page = following
    uploaded: tw.File = client.files.upload(b"{}", filename="a.jsonl")
    deleted: tw.Deleted = client.files.delete(uploaded.id)
    adapter: tw.Adapter = client.adapters.register(Path("adapter"), base="base")
    lineage: types.Lineage | None = adapter.lineage
    names: list[str] = [model.id for model in client.models.list()]
    archive: Path = client.adapters.download(adapter.id, ".")
    print(deleted.deleted, lineage, names, archive, page.has_more)
    try:
        client.with_options(timeout=httpx2.Timeout(5), max_retries=0).jobs.cancel("ftjob-1")
    except tw.APIStatusError as error:
        print(error.status_code, error.code, error.retry_after)


async def follow(event: tw.JobEvent) -> None:
    print(event.message)


async def with_asyncio() -> None:
    async with AsyncTunewright("http://127.0.0.1:8000", http_client=httpx2.AsyncClient()) as client:
        job: tw.AsyncJob = await client.jobs.create("base", Path("train.jsonl"))
        async with job.stream_events() as events:
            async for event in events:
                show(event)
        job = await job.wait(on_event=follow)
        job = await job.wait(on_event=show)
        page: tw.AsyncPage[tw.File] = await client.files.list()
        names: list[str] = [model.id async for model in client.models.list()]
        stream: tw.AsyncStream[tw.ChatCompletionChunk] = await client.chat.create(
            names[0], [{"role": "user", "content": "Hello"}], stream=True
        )
        async with stream:
            text: str = "".join([chunk.text async for chunk in stream])
        cleaned: tw.AsyncCleaning = await client.cleanings.create("file-1", ["duplicates"])
        print((await cleaned.wait()).cleaned_file)
        made: tw.AsyncExport = await client.exports.create(names[0], format="merged")
        deployment: tw.AsyncDeployment = await client.deployments.create(names[0])
        print(
            page.data[0].filename, text, (await made.refresh()).exported_model, await deployment.logs(tail=9)
        )


if __name__ == "__main__":
    with Tunewright() as blocking:
        name = fine_tune(blocking)
        print(generate(blocking, name))
        export(blocking, name)
        print(clean(blocking))
        manage(blocking)
    asyncio.run(with_asyncio())
