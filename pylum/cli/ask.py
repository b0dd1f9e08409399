"""``pylum generate``, ``pylum score`` and ``pylum query``."""

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

    The model is a LUM, or an HSTU for the next item, which takes no conditions.
    """
    import pyarrow.parquet as pq

    import pylum
    from pylum.model import load_model

    lum = load_model(model)
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


def score(
    model: Annotated[Path, typer.Argument(help="Directory of an HSTU trained for ranking.")],
    events: columns.Events,
    candidates: Annotated[
        Path, typer.Argument(help="Parquet file of what is shown: user, item, conditions.")
    ],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
) -> None:
    """How candidates would do with each user: their rows, and a column for each task.

    Example: [bold]pylum score my-ranker events.parquet shown.parquet scores.parquet --user uid
    --item iid --time ts --event rating[/bold]

    Each candidate is scored as the user's next choice. A user without events is new, and has an
    empty history; so the candidates' order and number of rows are kept.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    import pylum
    from pylum.model import HSTU, load_model

    hstu = load_model(model)
    if not isinstance(hstu, HSTU):
        raise ValueError(f"model must be an HSTU, got a {type(hstu).__name__}")
    data = columns.read(events, user, item, time, condition, event, None)
    if not candidates.exists():
        raise ValueError(f"no such file or directory: {candidates}")
    shown = pq.read_table(candidates)
    fields = [f.name for f in hstu.schema.conditions if f.name in shown.column_names]
    missing = [name for name in (user, item) if name not in shown.column_names]
    if missing:
        raise ValueError(f"{candidates} must have the columns {user} and {item}, lacks {missing}")
    owners = shown[user].combine_chunks().dictionary_encode()
    if owners.null_count:
        raise ValueError(f"{candidates} must name the user of every row, got nulls in {user}")
    rank = owners.indices.to_numpy()
    order = np.argsort(rank, kind="stable")
    counts = np.bincount(rank, minlength=len(owners.dictionary))
    offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
    ordered = shown.take(pa.array(order))
    conditions = {name: pylum.Ragged(ordered[name].to_pylist(), offsets) for name in fields}
    scores = pylum.score(
        hstu,
        data.histories(owners.dictionary.to_pylist()),
        pylum.Ragged(ordered[item].combine_chunks(), offsets),
        conditions or None,
    )
    values = np.empty((len(order), len(hstu.config.tasks)), np.float32)
    values[order] = scores.values.reshape(values.shape).numpy()
    for place, task in enumerate(hstu.config.tasks):
        if task.name in shown.column_names:
            raise ValueError(f"{candidates} must not have a column {task.name!r}, that of a task")
        shown = shown.append_column(task.name, pa.array(values[:, place]))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(shown, temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    typer.echo(f"wrote {out}: {shown.num_rows:,} rows")


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
