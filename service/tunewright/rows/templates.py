"""Chat templates as text: reading that of a model folder, and checking whether a template can be used.

`python -m tunewright.rows.templates` renders the template on its standard input, within limits: `check_template` runs
it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SECONDS = 3
_MEMORY = 512 * 2**20
_MOST_RENDERED = 2**20
_TOO_LONG = 3
"""Exit code of a template that renders more than `_MOST_RENDERED` characters."""
_CONVERSATION = [{"role": "user", "content": "Hello."}]


class _Generation(Extension):
    """The `{% generation %}` block that marks the assistant's tokens (transformers)."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def folder_template(folder: Path) -> str | None:
    """The chat template in a model's folder: `chat_template.jinja`, else the one in its tokenizer's config."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):  # named templates; the default one is used
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def check_template(text: str) -> str | None:
    """The reason why `text` is not a chat template, or None. transformers and vLLM render it, sandboxed.

    Takes 0.2 s, or up to `_SECONDS` for a template that does not end.
    """
    try:
        _environment().parse(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"
    if "messages" not in text:
        return "it never mentions `messages`, the conversation it should render"
    return _why_not_rendered(text)


def _why_not_rendered(text: str) -> str | None:
    """Render a short conversation in a process with limits: a template may loop, or make text without end."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tunewright.rows.templates"],
            input=text.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=_SECONDS * 2,
        )
    except subprocess.TimeoutExpired:
        return f"rendering a short conversation takes more than {_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode == _TOO_LONG:
        return f"it renders a short conversation as more than {_MOST_RENDERED} characters"
    return f"rendering a short conversation takes more than {_SECONDS} s, or {_MEMORY // 2**20} MiB of memory"


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )


def main() -> int:
    """Render the template on the standard input within limits of time and memory."""
    text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    rendered = 0
    try:
        template = _environment().from_string(text, globals={"raise_exception": _refuse, "strftime_now": str})
        for piece in template.generate(
            messages=_CONVERSATION, add_generation_prompt=True, bos_token="", eos_token=""
        ):
            rendered += len(piece)
            if rendered > _MOST_RENDERED:
                return _TOO_LONG
    except MemoryError:
        return 1
    except Exception:  # it refuses this conversation, or needs more than a short check has
        return 0
    return 0


def _refuse(message: str) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    sys.exit(main())
