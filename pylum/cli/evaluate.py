"""``pylum evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pylum.cli import columns, outputs


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="Directory of a trained model.")] = None,
    events: Annotated[
        Path | None, typer.Argument(help="Parquet file or directory of behaviours.")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="global-time or loo-full; of an HSTU for ranking, and with --table of ml-100k, "
            "also rest-auc or din-auc."
        ),
    ] = "",
    k: Annotated[int, typer.Option("-k", help="Items per answer.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write the report to; a table's may be .parquet, its plot is beside."
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Rankers with and without a user model, instead.")
    ] = False,
    data: Annotated[str, typer.Option(help="With --table: synthetic or ml-100k.")] = "synthetic",
    path: Annotated[
        Path | None,
        typer.Option(help="With --table, of ml-100k: its zip, folder or wheel; none: downloaded."),
    ] = None,
    rankers: Annotated[
        str,
        typer.Option(help="With --table: wide_deep, dlrm, din, sim_rank, HSTU, SASRec; none: all."),
    ] = "",
    seeds: Annotated[int, typer.Option(help="With --table: seeds of each ranker.")] = 2,
    users: Annotated[int, typer.Option(help="With --table: users of the synthetic world.")] = 1500,
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
) -> None:
    """Score the test part of a protocol, with floors and intervals.

    Example: [bold]pylum evaluate my-model events.parquet --user uid --item iid --time ts
    --condition scene[/bold]

    A LUM and an HSTU are ranked in the full catalogue; an HSTU trained for ranking is scored on its
    tasks: [bold]pylum evaluate my-ranker events.parquet --event rating[/bold]

    With [bold]--table[/bold]: what a user model adds to each ranker, with HSTU and SASRec trained
    on the same rows beside them. It trains all of them, which takes minutes;
    [bold]pylum evaluate --table --rankers dlrm[/bold] is one of four, without the other two.
    """
    if out is not None:
        outputs.writable(out)
    if table:
        if model is not None:
            raise ValueError("model must be left out with --table, which trains its own")
        _table(data, protocol, path, rankers, seeds, users, out)
        return
    if path is not None:
        raise ValueError("path must be left out without --table")
    if model is None or events is None:
        raise ValueError("model and events must both be given, or --table")
    if out is not None and out.suffix == ".parquet":
        raise ValueError(f"out must be a JSON file without --table, got {out}")
    import pylum
    from pylum.model import HSTU, load_model

    asked = load_model(model)
    behaviours = columns.read(events, user, item, time, condition, event, None)
    columns.unread(asked, behaviours)
    report = pylum.evaluate(
        asked,
        behaviours.split(protocol or "global-time")[2],
        k=k,
        conditions="any" if isinstance(asked, HSTU) else "true",
    )
    typer.echo(str(report))
    if out is not None:
        with outputs.renamed(out) as aside:
            aside.write_text(report.to_json() + "\n")


def _table(
    data: str,
    protocol: str,
    path: Path | None,
    rankers: str,
    seeds: int,
    users: int,
    out: Path | None,
) -> None:
    from pylum.demo import rankers as demo
    from pylum.demo.rankers_plot import plot
    from pylum.demo.sequence import SEQUENCE
    from pylum.rank.arms import table
    from pylum.rank.ranker import Ranker

    known = (*demo.RANKERS, *SEQUENCE)
    names = [name.strip() for name in rankers.split(",") if name.strip()] or [*known]
    strangers = [name for name in names if name not in known]
    if strangers:
        raise ValueError(f"rankers must be among {', '.join(known)}, got {strangers}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if data == "synthetic":
        for name, given in (("protocol", protocol), ("path", path)):
            if given:
                raise ValueError(f"{name} must be left out for synthetic data, got {given!r}")
        stage = demo.synthetic(users)
    elif data == "ml-100k":
        stage = demo.ml_100k(protocol or "rest-auc", path=path)
    else:
        raise ValueError(f"data must be synthetic or ml-100k, got {data!r}")

    def fitted(name: str, seed: int, ranker: Ranker) -> None:
        typer.echo(f"trained {name}, seed {seed}", err=True)

    arms = stage.run(
        rankers=[name for name in names if name in demo.RANKERS],
        sequence=[name for name in names if name in SEQUENCE],
        seeds=range(seeds),
        on_fit=fitted,
    )
    found = arms.comparison()
    typer.echo(table(arms.title, found))
    if out is not None:
        if out.suffix == ".parquet":
            import pyarrow.parquet as pq

            with outputs.renamed(out) as aside:
                pq.write_table(found.to_arrow(), aside)
        else:
            text = json.dumps({"title": arms.title, **found.to_dict()}, indent=1)
            with outputs.renamed(out) as aside:
                aside.write_text(text + "\n")
        picture = out.with_suffix(".png")
        drawn = plot(picture, arms.title, found)
        typer.echo(f"wrote {out}" + (f" and {picture}" if drawn else ""))
