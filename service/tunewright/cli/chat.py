"""`tunewright chat`: one question, or a conversation at the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from tunewright.cli.options import Remote, examples, on_service
from tunewright.cli.output import for_terminal
from tunewright_client import TunewrightError

Message = dict[str, str]


@click.command(
    epilog=examples(
        "tunewright chat tunewright-tiny 'What color is the sky?'",
        "tunewright chat ft:tunewright-tiny:pirate:Zk3mP0aY        a conversation; Ctrl-D ends it",
        "cat letter.txt | tunewright chat my-base --system 'Summarise in one sentence.'",
    )
)
@click.argument("model")
@click.argument("message", required=False)
@click.option("--system", help="A system prompt.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the likeliest token.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.")
@on_service
def chat(
    remote: Remote,
    model: str,
    message: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
) -> None:
    """Ask a model. The answer is shown as it is made.

    Without a MESSAGE, it is read from stdin; at a terminal, a conversation begins. With --json, the whole
    answer is one object.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    params: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system is not None else []
    if message is None:
        if sys.stdin.isatty():
            if remote.out.as_json:
                raise click.UsageError("--json needs a MESSAGE")
            _converse(remote, model, messages, params)
            return
        message = sys.stdin.read().strip()
    if not message:
        raise click.UsageError("the message is empty")
    messages.append({"role": "user", "content": message})
    if remote.out.as_json:
        remote.out.json(remote.client.chat.create(model, messages, stream=False, **params))
    else:
        _answer(remote, model, messages, params)


def _answer(remote: Remote, model: str, messages: list[Message], params: dict[str, Any]) -> str:
    """Print an answer while it is generated, and return it."""
    text, reason = "", None
    try:
        with remote.client.chat.create(model, messages, stream=True, **params) as stream:
            for chunk in stream:
                text += chunk.text
                click.echo(for_terminal(chunk.text), nl=False)
                sys.stdout.flush()
                reason = next((c.finish_reason for c in chunk.choices if c.finish_reason), reason)
    finally:
        if text and not text.endswith("\n"):
            click.echo()
    if reason == "length":
        remote.out.note("[stopped at the token limit]")
    return text


def _converse(remote: Remote, model: str, start: list[Message], params: dict[str, Any]) -> None:
    """Hold a conversation until Ctrl-D. Questions whose answer failed or was stopped by Ctrl-C are not kept in it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    remote.out.note(f"Talking with {model}. Ctrl-D ends it, /new starts a new one, Ctrl-C stops an answer.")
    messages = list(start)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if question in ("/exit", "/quit"):
            return
        if question == "/new":
            messages = list(start)
            remote.out.note("[a new conversation]")
        elif question:
            asked = [*messages, {"role": "user", "content": question}]
            try:
                answer = _answer(remote, model, asked, params)
            except KeyboardInterrupt:
                remote.out.note("[stopped]")
            except TunewrightError as error:
                remote.out.note(f"error: {error}")
            else:
                messages = [*asked, {"role": "assistant", "content": answer}]
