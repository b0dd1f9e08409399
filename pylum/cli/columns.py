"""The options that say which column is what, shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylum.data import Interactions

if TYPE_CHECKING:
    from pylum.model import UserModel

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
    for path in (events, items):
        if path is not None and not path.exists():
            raise ValueError(f"no such file or directory: {path}")
    return Interactions.from_parquet(
        str(events),
        user=user,
        item=item,
        time=time,
        condition=condition or None,
        event=event or None,
        items=None if items is None else str(items),
    )


def unread(model: UserModel, data: Interactions) -> None:
    """Say which fields the model reads that no option has named: they are as if unknown."""
    options = []
    for option, mine, theirs in (
        ("condition", model.schema.conditions, data.schema.conditions),
        ("event", model.schema.outcomes, data.schema.outcomes),
    ):
        given = {f.name for f in theirs}
        options += [f"--{option} {f.name}" for f in mine if f.name not in given]
    if options:
        typer.echo(
            f"pylum: the model also reads what is behind {', '.join(options)}: without these "
            "options it is unknown to it here",
            err=True,
        )
