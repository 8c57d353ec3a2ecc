"""`tunewright graders`: run a grader on an answer, or check one, in the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tunewright.cli.options import Commands, Remote, examples, on_service
from tunewright.cli.output import number


class JsonObject(click.ParamType[dict[str, Any]]):
    """An object, as a JSON text or as @FILE, a file with one."""

    name = "JSON|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        text = str(value)
        try:
            parsed = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
        except (OSError, ValueError) as error:
            self.fail(f"{text[:60]!r} is no JSON object: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f"{text[:60]!r} is no JSON object", param, ctx)
        return parsed


@click.group(cls=Commands)
def graders() -> None:
    """Run and check graders, which score the answers of models."""


@graders.command(
    epilog=examples(
        "tunewright graders run @grader.json 'The answer is 42.' --item '{\"answer\": \"42\"}'",
        "tunewright graders run @grader.json 42 --item @row.json --json | jq .metadata.errors",
    )
)
@click.argument("grader", type=JsonObject())
@click.argument("answer")
@click.option("--item", type=JsonObject(), help="The row that the grader's texts refer to as item.")
@on_service
def run(remote: Remote, grader: dict[str, Any], answer: str, item: dict[str, Any] | None) -> int:
    """Print the reward that GRADER, a JSON object or @FILE, gives to ANSWER. Exits with 1 where the grader failed."""
    found = remote.client.graders.run(grader, answer, item)
    failures = found.metadata.failures
    if remote.out.as_json:
        remote.out.json(found)
    else:
        remote.out.fields(
            [
                ("reward", number(found.reward)),
                *((name, number(reward)) for name, reward in found.sub_rewards.items()),
                ("errors", ", ".join(failures) or None),
                ("tokens", found.metadata.token_usage),
            ]
        )
    return 1 if failures else 0


@graders.command(epilog=examples("tunewright graders validate @grader.json"))
@click.argument("grader", type=JsonObject())
@on_service
def validate(remote: Remote, grader: dict[str, Any]) -> None:
    """Say whether GRADER, a JSON object or @FILE, can work in this service."""
    checked = remote.client.graders.validate(grader)
    if remote.out.as_json:
        remote.out.json(checked)
    else:
        click.echo(f"{checked['name']}: a {checked['type']} grader without faults")
