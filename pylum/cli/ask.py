"""``pylum generate``, ``pylum score`` and ``pylum query``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pylum.cli import columns, outputs, values

Model = Annotated[Path, typer.Argument(help="Directory of a trained model.")]
Conditions = Annotated[
    str,
    typer.Option(
        help="Values to ask under, separated by commas; none: no particular condition. Of a model "
        "with several conditions, scene=home+hour=3."
    ),
]


def generate(
    model: Model,
    events: columns.Events,
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    conditions: Conditions = "",
    k: Annotated[int, typer.Option("-k", help="Items per answer.")] = 10,
    users: Annotated[str, typer.Option(help="User ids, separated by commas; none: all.")] = "",
    exclude: Annotated[
        str,
        typer.Option(
            help="Items not to answer: history, none, or auto: history, unless users choose the "
            "same items again."
        ),
    ] = "auto",
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

    outputs.writable(out)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    lum = load_model(model)
    data = columns.read(events, user, item, time, condition, event, None)
    columns.unread(lum, data)
    wanted = values.typed(values.words(users), data.user_vocab, "users") or None
    asked = values.conditions(conditions, lum)
    parts = pylum.generate_batches(lum, data.histories(wanted), asked, k=k, exclude=exclude)
    rows = 0
    with outputs.renamed(out) as aside:
        table = next(parts).to_arrow()
        with pq.ParquetWriter(aside, table.schema) as writer:
            writer.write_table(table)
            rows += table.num_rows
            for part in parts:
                table = part.to_arrow()
                writer.write_table(table)
                rows += table.num_rows
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
    from pylum.data.tables import as_table
    from pylum.model import HSTU, load_model

    outputs.writable(out)
    hstu = load_model(model)
    if not isinstance(hstu, HSTU):
        raise ValueError(f"model must be an HSTU, got a {type(hstu).__name__}")
    if not candidates.exists():
        raise ValueError(f"no such file or directory: {candidates}")
    data = columns.read(events, user, item, time, condition, event, None)
    columns.unread(hstu, data)
    shown = as_table(candidates, "candidates")
    fields = [f.name for f in hstu.schema.conditions if f.name in shown.column_names]
    missing = [name for name in (user, item) if name not in shown.column_names]
    if missing:
        raise ValueError(f"{candidates} must have the columns {user} and {item}, lacks {missing}")
    taken = [task.name for task in hstu.config.tasks if task.name in shown.column_names]
    if taken:
        raise ValueError(f"{candidates} must not have a column {taken[0]!r}, that of a task")
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
    found = np.empty((len(order), len(hstu.config.tasks)), np.float32)
    found[order] = scores.values.reshape(found.shape).numpy()
    for place, task in enumerate(hstu.config.tasks):
        shown = shown.append_column(task.name, pa.array(found[:, place]))
    with outputs.renamed(out) as aside:
        pq.write_table(shown, aside)
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
    import pylum
    from pylum.data.tables import as_table

    lum = pylum.LUM.from_pretrained(model)
    if at not in ("end", "each") and not Path(at).exists():
        raise ValueError(f"at must be end, each or a Parquet file, got {at}")
    moments = at if at in ("end", "each") else as_table(at, "at")
    asked = values.conditions(conditions, lum)
    data = columns.read(events, user, item, time, condition, event, None)
    columns.unread(lum, data)
    knowledge = pylum.query(lum, data, asked, at=moments, delay=delay, out=out)
    typer.echo(f"wrote {out}: {len(knowledge):,} query vectors")
