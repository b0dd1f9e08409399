"""The command line: Parquet in, Parquet out.

Exit codes: 0 done, 1 a wrong input or a failure (the message says which), 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from pylum.cli import ask, bench, train
from pylum.cli.demo import demo
from pylum.cli.evaluate import evaluate
from pylum.cli.scaling import scaling

app = typer.Typer(
    name="pylum",
    help="Large User Model: pre-train on behaviours, ask under many conditions, feed a ranker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def info() -> None:
    """What was built, what this machine offers and what was chosen; for bug reports."""
    from pylum import show_config

    typer.echo(show_config())


app.command()(demo)
app.command()(train.pretrain)
app.command()(ask.generate)
app.command()(ask.score)
app.command()(ask.query)
app.command()(evaluate)
app.add_typer(bench.app, name="bench")
app.command()(scaling)


def main() -> None:
    """Entry point of the ``pylum`` command."""
    with warnings.catch_warnings():
        warnings.showwarning = _said
        try:
            app()
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            sys.exit(130)
        except FAILURES as error:
            typer.echo(f"pylum: {error}", err=True)
            sys.exit(1)


# What a wrong input or a full machine raises; anything else is a bug, and shows where it is.
FAILURES = (
    *(ValueError, TypeError, OSError, ImportError, NotImplementedError),
    *(ArithmeticError, MemoryError),
)


def _said(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"pylum: {message}", err=True)
