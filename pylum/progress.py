"""A bar for work that can be counted, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counted(verb: str, noun: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how much more is done.

    Args:
        verb, noun: such as ``"reading"`` and ``"behaviours"``.
        total: how much there is.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn(verb),
        BarColumn(),
        TextColumn(f"{{task.completed:,}} {noun}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
