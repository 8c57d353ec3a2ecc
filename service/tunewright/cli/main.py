"""`tunewright`: the commands, and the conversion of failures to a line on stderr and an exit code.

Exit codes: 0 success, also where the reader of the output ends early; 1 failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from tunewright import __version__
from tunewright.cli.groups import INTERRUPTED, Commands, examples

COMMANDS = {
    name: name
    for name in (
        "demo", "status", "plan", "jobs", "exports", "files", "data", "cleanings", "syntheses", "evals", "batches",
        "bench", "graders", "adapters", "models", "aliases", "deployments", "webhooks", "projects", "keys", "usage",
        "audit", "chat", "backup",
    )
} | {"restore": "backup"}  # fmt: skip
"""The module of each command beside `serve`. It is imported for this command alone: the types of the SDK, which all
of them use, take a third of a second."""


class _Top(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["serve", *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            # all for a name that does not exist, so that click finds similar ones
            for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
                self.add_command(getattr(importlib.import_module(f"tunewright.cli.{COMMANDS[name]}"), name))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Top,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "tunewright demo                          see everything once, on this machine",
        "tunewright serve                         start a service",
        "tunewright status                        is it ready?",
        "tunewright jobs create --model tunewright-tiny --file train.jsonl --suffix pirate --watch",
        "tunewright chat ft:tunewright-tiny:pirate:Zk3mP0aY 'What color is the sky?'",
    ),
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def commands() -> None:
    """Fine-tune language models on your own machines and serve the results.

    `tunewright COMMAND --help` describes a command.
    """


@commands.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Start the service.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> int:
    """Start the service; its own parser reads the options (`tunewright serve --help`)."""
    gc.disable()  # the collector would look at all that is imported, again and again
    from tunewright.serve import main as serve_main  # loads the service, which other commands do not need

    gc.freeze()
    gc.enable()
    return serve_main(list(options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without a character must not make a command fail
    try:
        result = commands.main(
            args=None if argv is None else list(argv), prog_name="tunewright", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except BrokenPipeError:
        # The reader has ended, as in `Commands`. The interpreter's last flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from tunewright.cli.failures import explain

        return _fail(explain(error))


def _fail(message: str, code: int = 1) -> int:
    from tunewright.cli.output import plain

    click.echo(f"error: {plain(message)}", err=True)
    return code
