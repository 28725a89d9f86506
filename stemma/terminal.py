"""What commands share at a terminal: answers on standard output, bars and notes on standard error, exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.exceptions import TyperException

from stemma.errors import StemmaError

INTERRUPTED = 130
VERDICT_STYLES = {
    "identical": "green",
    "benign": "green",
    "manipulated": "red",
    "spliced": "red",
    "inconclusive": "yellow",
    "unknown": "dim",
}


def notes() -> Console:
    """The console for everything that is not the answer."""
    return Console(stderr=True)


def run(function: Callable[..., int | None], argv: list[str], *, name: str) -> int:
    """Run a command function with its arguments: typed options by typer, one clean line for a refusal."""
    # Ray starts its processes by fork and exec at once, which is safe; the table library warns of any fork
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=name)(function)
    try:
        code = typer.main.get_command(app).main(argv, prog_name=f"stemma {name}", standalone_mode=False)
    except StemmaError as error:
        where = f" [{error.subject}]" if error.subject else ""
        notes().print(f"[red]stemma {name}:[/red] {escape(error.detail)}{escape(where)}", highlight=False)
        return 2
    except typer.Exit as exit_:
        return _stopped(name) if exit_.exit_code == INTERRUPTED else exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _stopped(name)
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = f" [{error.filename}]" if error.filename else ""
        notes().print(f"[red]stemma {name}:[/red] {escape(f'{error.strerror or error}{what}')}", highlight=False)
        return 2
    except TyperException as error:  # an unknown option, a missing argument, a value of the wrong type
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        notes().print(f"[red]stemma {name}:[/red] {escape(message)}", highlight=False)
        return 2
    return int(code or 0)


def _stopped(name: str) -> int:
    notes().print(f"[yellow]stemma {name}: stopped; what was committed is kept, ask again to complete it[/yellow]")
    return INTERRUPTED


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes(), transient=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
