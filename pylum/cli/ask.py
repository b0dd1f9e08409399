"""``pylum generate`` and ``pylum query``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pylum.cli import columns

Model = Annotated[Path, typer.Argument(help="Directory of a trained model.")]
Conditions = Annotated[
    str,
    typer.Option(help="Values to ask under, separated by commas; none: no particular condition."),
]


def _values(conditions: str) -> list[str] | None:
    return [value.strip() for value in conditions.split(",") if value.strip()] or None


def generate(
    model: Model,
    events: columns.Events,
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    conditions: Conditions = "",
    k: Annotated[int, typer.Option("-k", help="Items per answer.")] = 10,
    users: Annotated[str, typer.Option(help="User ids, separated by commas; none: all.")] = "",
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
) -> None:
    """What each user wants under each condition: rows of user, condition, rank, item, score.

    Example: [bold]pylum generate my-model events.parquet top.parquet --conditions search,home
    --user uid --item iid --time ts --condition scene[/bold]
    """
    import pyarrow.parquet as pq

    import pylum

    lum = pylum.LUM.from_pretrained(model)
    data = columns.read(events, user, item, time, condition, event, None)
    wanted: list[Any] | None = [v.strip() for v in users.split(",") if v.strip()] or None
    if wanted and data.users and not isinstance(data.users[0], str):
        wanted = [int(value) for value in wanted]
    histories = data.histories(wanted)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for part in pylum.generate_batches(lum, histories, _values(conditions), k=k):
            table = part.to_arrow()
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            rows += table.num_rows
        if writer is None:
            raise ValueError("no user was asked for")
        writer.close()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    typer.echo(f"wrote {out}: {rows:,} rows")


def query(
    model: Model,
    events: columns.Events,
    out: Annotated[Path, typer.Argument(help="Directory of the Parquet data set to write.")],
    conditions: Conditions = "",
    at: Annotated[
        str, typer.Option(help="end, each (before every event), or a Parquet file of user, time.")
    ] = "end",
    delay: Annotated[int, typer.Option(help="Seconds an event takes to become known.")] = 0,
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
) -> None:
    """Query and item vectors for a ranker, as of each row's time; resumes where it stopped.

    Example: [bold]pylum query my-model events.parquet knowledge --conditions search,home
    --at impressions.parquet[/bold]
    """
    import pyarrow.parquet as pq

    import pylum

    lum = pylum.LUM.from_pretrained(model)
    data = columns.read(events, user, item, time, condition, event, None)
    moments = at if at in ("end", "each") else pq.read_table(at)
    knowledge = pylum.query(lum, data, _values(conditions), at=moments, delay=delay, out=out)
    typer.echo(f"wrote {out}: {len(knowledge):,} query vectors")
