"""The options that say which column is what, shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pylum.data import Interactions

Events = Annotated[Path, typer.Argument(help="Parquet file or directory of behaviours.")]
User = Annotated[str, typer.Option(help="Column of user ids.")]
Item = Annotated[str, typer.Option(help="Column of item ids.")]
Time = Annotated[str, typer.Option(help="Column of times: seconds or timestamps.")]
Condition = Annotated[
    list[str] | None,
    typer.Option(help="Column known before the choice (scene, query, category); repeatable."),
]
Event = Annotated[
    list[str] | None,
    typer.Option(help="Column known only after it (rating, dwell); repeatable."),
]
Items = Annotated[
    Path | None, typer.Option(help="Parquet file of item features; its id column is called --item.")
]


def read(
    events: Path,
    user: str,
    item: str,
    time: str,
    condition: list[str] | None,
    event: list[str] | None,
    items: Path | None,
) -> Interactions:
    """The behaviours of a command, with a clear error where the file is not there."""
    if not events.exists():
        raise ValueError(f"no such file or directory: {events}")
    return Interactions.from_parquet(
        str(events),
        user=user,
        item=item,
        time=time,
        condition=condition or None,
        event=event or None,
        items=None if items is None else str(items),
    )
