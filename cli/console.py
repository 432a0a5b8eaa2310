"""What every command shares: where text goes, and how an error becomes one line and an exit status."""

import os
import sys
from typing import Any, NoReturn

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console

from bestofn.service.core.errors import BestOfNError, SetupError
from bestofn.service.core.field_errors import explain
from bestofn.service.core.settings import Settings, variable_of
from bestofn.service.host.packages import can_draw_here

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

# Results go to stdout, for pipes; everything that is for eyes goes to stderr.
err = Console(stderr=True, highlight=False, soft_wrap=True)
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, which some versions of typer carry inside


def say(message: str) -> None:
    """One line for the person at the terminal."""
    err.print(message, markup=False)


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """End the program with one line on stderr."""
    say(f"bestofn: {' '.join(message.split())}")
    raise SystemExit(status)


def check_text(text: str, what: str) -> None:
    """Raises typer.BadParameter if the argument is not UTF-8, which neither JSON nor a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"character {error.start + 1} of the {what} is not UTF-8") from error


def need_packages(subject: str) -> None:
    """Raise SetupError unless the worker's packages are installed; `subject` needs them, such as "training needs"."""
    if not can_draw_here():
        raise SetupError(f"{subject} the worker's packages: pip install 'bestofn[worker]'")


def run(program: typer.Typer) -> NoReturn:
    """Run the command line: exit status 0 on success, 1 on failure, 2 on wrong usage, 130 on Ctrl-C."""
    if sys.stdout is None:  # a caller closed it; no other file may get its descriptor
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))  # until a service sets up logs
        status = typer.main.get_command(program)(standalone_mode=False)
    except BestOfNError as error:
        fail(error.detail)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except _UsageError as error:
        _show_usage(error)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, *rest = map(str, first["loc"])
        if error.title != "Settings":
            fail(explain(first, ".".join([name, *rest])))
        what = ".".join([f"setting {variable_of(name)}", *rest])
        if first["type"] == "string_pattern_mismatch" and (field := Settings.model_fields.get(name)):
            fail(f"{what}: not of this form: {field.description}")  # without the value, which may be a secret
        fail(explain(first, what))
    except Exception as error:
        # The models and the judge have error trees of their own, whose roots are ValueErrors with the fix in them.
        if not isinstance(error, ValueError):
            raise
        fail(str(error))
    if status == INTERRUPTED:  # typer turns Ctrl-C into this status, without a word
        fail("interrupted", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _show_usage(error: Any) -> NoReturn:
    if not error.message:  # no command was named: the message is the help, which typer has printed
        raise SystemExit(USAGE)
    path = error.ctx.command_path if error.ctx else "bestofn"
    fail(f"{error.format_message()} (see {path} --help)", USAGE)
