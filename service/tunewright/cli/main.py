"""`tunewright`: the commands, and the conversion of failures to a line on stderr and an exit code.

Exit codes: 0 success, also where the reader of the output ends early; 1 failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

import click

from tunewright import __version__
from tunewright.cli.adapters import adapters
from tunewright.cli.aliases import aliases
from tunewright.cli.audit import audit
from tunewright.cli.backup import backup, restore
from tunewright.cli.batches import batches
from tunewright.cli.bench import bench
from tunewright.cli.chat import chat
from tunewright.cli.cleanings import cleanings
from tunewright.cli.data import data
from tunewright.cli.demo import demo
from tunewright.cli.deployments import deployments
from tunewright.cli.evals import evals
from tunewright.cli.exports import exports
from tunewright.cli.files import files
from tunewright.cli.graders import graders
from tunewright.cli.jobs import jobs
from tunewright.cli.keys import keys
from tunewright.cli.models import models
from tunewright.cli.options import INTERRUPTED, Commands, examples
from tunewright.cli.output import plain
from tunewright.cli.plan import plan
from tunewright.cli.projects import projects
from tunewright.cli.status import status
from tunewright.cli.syntheses import syntheses
from tunewright.cli.usage import usage
from tunewright.cli.webhooks import webhooks
from tunewright_client import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    JobFailedError,
    TunewrightError,
)


@click.group(
    cls=Commands,
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
    from tunewright.serve import main as serve_main  # loads the service, which other commands do not need

    return serve_main(list(options))


for command in (
    demo, status, plan, jobs, exports, files, data, cleanings, syntheses, evals, batches, bench, graders, adapters,
    models, aliases, deployments, webhooks, projects, keys, usage, audit, chat, backup, restore,
):  # fmt: skip
    commands.add_command(command)


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
    except TunewrightError as error:
        return _fail(explain(error))
    except BrokenPipeError:
        # The reader has ended, as in `Commands`. The interpreter's last flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"
        return _fail(f"this is a bug, please report it: {type(error).__name__}: {error} ({place})")


def explain(error: TunewrightError) -> str:
    """The message of an SDK error, with advice."""
    if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError):
        return (
            f"cannot reach the service: {error}. Start it with `tunewright serve`, or give its address with"
            " --url or TUNEWRIGHT_BASE_URL."
        )
    if isinstance(error, AuthenticationError):
        return f"{error}. Give the service's key in TUNEWRIGHT_API_KEY or with --api-key."
    if isinstance(error, JobFailedError):
        return f"{error.job.id} failed: {error}" + (f" ({error.code})" if error.code else "")
    return str(error)


def _fail(message: str, code: int = 1) -> int:
    click.echo(f"error: {plain(message)}", err=True)
    return code
