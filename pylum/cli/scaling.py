"""``pylum scaling``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from pylum.cli import columns, outputs

AXES = {"width": "parameters", "length": "length", "share": "events"}


def scaling(
    events: columns.Events,
    vary: Annotated[str, typer.Option(help="width, length or share (of the users).")],
    values: Annotated[str, typer.Option(help="Its values, with commas: 16,32,64,128.")],
    out: Annotated[
        Path, typer.Option(help="JSON-lines file of the runs; finished ones are not repeated.")
    ] = Path("scaling.jsonl"),
    plot: Annotated[Path | None, typer.Option(help="PNG or SVG of runs and curve.")] = None,
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
    items: columns.Items = None,
    split: Annotated[str, typer.Option(help="Protocol: global-time or loo-full.")] = "global-time",
    lrs: Annotated[str, typer.Option(help="Learning rates tried for each value.")] = "1e-3,3e-3",
    seeds: Annotated[int, typer.Option(help="Seeds of each value.")] = 1,
    epochs: Annotated[int, typer.Option(help="Passes; 0 stops early by validation.")] = 0,
    form: Annotated[
        str, typer.Option(help="Curve: power_floor, power or log; none where too few values.")
    ] = "power_floor",
) -> None:
    """Train models of several sizes, lengths or amounts of data, and fit the curve.

    Example: [bold]pylum scaling events.parquet --vary width --values 16,32,64,128,256 --user uid
    --item iid --time ts[/bold]
    """
    import numpy as np

    from pylum import LUMConfig
    from pylum.scaling import FORMS, Setting, fit_scaling, sweep

    if vary not in AXES:
        raise ValueError(f"vary must be one of {', '.join(AXES)}, got {vary!r}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    numbers, rates = _numbers("values", values), _numbers("lrs", lrs)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if plot is not None:
        outputs.writable(plot, "plot")
        if plot.suffix not in (".png", ".svg"):
            raise ValueError(f"plot must be a .png or .svg file, got {plot}")
    outputs.writable(out)
    settings = [_setting(Setting, LUMConfig, vary, each) for each in numbers]
    data = columns.read(events, user, item, time, condition, event, items)
    train, valid, test = data.split(split)
    typer.echo(
        f"{vary:>10} {'seed':>5} {'lr':>8} {AXES[vary]:>12} {'nats':>8} {'HR@10':>7} {'s':>7}"
    )

    def report(row: dict[str, Any]) -> None:
        typer.echo(
            f"{numbers[row['setting']]:10g} {row['seed']:5} {row['lr']:8g} {row[AXES[vary]]:12,} "
            f"{row['nats']:8.4f} {row['recall']:7.4f} {row['seconds']:7.1f}"
        )

    rows = sweep(
        settings,
        train,
        valid,
        test,
        lrs=rates,
        seeds=range(seeds),
        epochs=epochs or "auto",
        out=out,
        report=report,
    )
    x = [rows[i * seeds][AXES[vary]] for i in range(len(settings))]
    y = np.array([row["nats"] for row in rows]).reshape(len(settings), seeds).T
    needed = len(FORMS[form][0]) + 1
    if len(set(x)) < needed:
        unplotted = "" if plot is None else f", and no {plot}"
        typer.echo(f"no curve{unplotted}: {form} needs {needed} values, got {len(set(x))}")
        return
    fit = fit_scaling(x, y, form)
    typer.echo(f"nats of a test item in {AXES[vary]}: {fit}")
    if plot is not None:
        from pylum.scaling.plot import save_plot

        save_plot(plot, x, y.mean(0), fit, xlabel=AXES[vary], ylabel="nats per choice")
        typer.echo(f"wrote {plot}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be numbers with commas between, got {text!r}")
    return found


def _setting(make: Any, config: Any, vary: str, value: float) -> Any:
    if vary == "share":
        return make(config.preset("tiny"), value)
    if value < 1 or value != int(value):
        raise ValueError(f"values of {vary} must be whole numbers from 1 on, got {value:g}")
    changes = {"width": int(value)} if vary == "width" else {"max_length": int(value)}
    return make(config.preset("tiny", **changes))
