"""``pylum demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    data: Annotated[
        str, typer.Option(help="synthetic, ml-100k, or a Parquet file or directory of your own.")
    ] = "synthetic",
    user: Annotated[str, typer.Option(help="Column of user ids, for your own data.")] = "user",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item",
    time: Annotated[str, typer.Option(help="Column of times.")] = "time",
    condition: Annotated[
        str | None, typer.Option(help="Column known before the choice; none: no condition.")
    ] = None,
    users: Annotated[int, typer.Option(help="Users of the synthetic data.")] = 3000,
    epochs: Annotated[int, typer.Option(help="Passes over the data; 0: as fits the data.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of the model and the plot.")] = Path("demo"),
) -> None:
    """Train a small model and show what it knows: one user, recall, exactness, cost, a plot.

    Example: [bold]pylum demo --data events.parquet --user uid --item iid --time ts
    --condition scene[/bold]
    """
    from pylum import demo as demos

    if data == "synthetic":
        case = demos.synthetic(users, epochs or 6)
    elif data == "ml-100k":
        case = demos.ml_100k(epochs or 30)
    else:
        case = demos.parquet(Path(data), user, item, time, condition, epochs or 10)
    demos.run(case, out, seed=seed)
