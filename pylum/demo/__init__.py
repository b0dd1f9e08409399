"""The main job on small data, in a minute: train, ask, check, compare."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pylum.data import ANY, Histories, Interactions
from pylum.demo.accuracy import K, Row, table
from pylum.demo.case import Case, ml_100k, parquet, synthetic
from pylum.demo.cost import Cost, Exactness, cost, exactness
from pylum.demo.plot import plot
from pylum.demo.show import one_user
from pylum.train import pretrain

__all__ = ["Case", "ml_100k", "parquet", "run", "synthetic"]


def run(case: Case, out: Path, *, seed: int = 0) -> None:
    """Train on ``case``, print what the model knows and costs, write model and plot to ``out``."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{case.name}[/bold]")
    console.print(repr(case.data), markup=False, soft_wrap=True)
    train, valid, test = case.data.split(case.protocol)
    fitted = train.merged(valid)
    epochs: list[dict[str, Any]] = []
    begin = time.perf_counter()
    model = pretrain(case.config, fitted, seed=seed, on_epoch=epochs.append, **case.options)
    seconds = time.perf_counter() - begin
    trained = fitted.num_targets * len(epochs)
    console.print(
        f"trained {sum(p.numel() for p in model.parameters()):,} parameters on "
        f"{trained:,} choices in {seconds:.0f} s ({trained / seconds:,.0f} a second, "
        f"{torch.get_num_threads()} threads)"
    )
    one_user(console, case, model, test)
    rows = table(case, model, fitted, test)
    _print_accuracy(console, case, rows, test)
    histories = _some(test)
    conditions = _conditions(case, test)
    _print_exactness(console, exactness(model, histories, conditions), histories, conditions)
    costs = cost(model, histories, conditions)
    _print_cost(console, costs)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out / "model")
    drawn = plot(out / "demo.png", f"pylum demo: {case.name}", rows, costs, epochs)
    console.print(f"\nwrote {out / 'model'}" + (f" and {out / 'demo.png'}" if drawn else ""))
    _print_own(console, case, out)


def _print_accuracy(console: Console, case: Case, rows: list[Row], test: Interactions) -> None:
    console.print(
        f"\n[bold]Recall@{K}[/bold] on {test.num_targets:,} test events ({case.protocol})"
    )
    known = any(row.best is not None for row in rows)
    grid = Table(box=None, header_style="dim", pad_edge=False)
    grid.add_column("")
    grid.add_column(f"recall@{K}", justify="right")
    if known:
        grid.add_column("best possible", justify="right")
        grid.add_column("share", justify="right")
    for row in rows:
        more = []
        if known:
            more = (
                ["", ""]
                if row.best is None
                else [f"{row.best:.3f}", f"{row.recall / row.best:.0%}"]
            )
        grid.add_row(row.name, f"{row.recall:.3f}", *more)
    console.print(grid)
    if case.oracle:
        console.print(
            f"[dim]{case.condition} is read off the item that is looked for, so asking it is an "
            "oracle: it shows control, not foresight.[/dim]"
        )


def _print_exactness(
    console: Console, found: Exactness, histories: Histories, conditions: list[Any]
) -> None:
    console.print(
        f"\n[bold]Exactness[/bold]: {len(histories)} users, {len(conditions)} conditions in one "
        "pass; largest difference of an element"
    )
    console.print(f"  grouped - alone     {found.alone:.1e}")
    console.print(f"  grouped - shuffled  {found.shuffled:.1e}")
    console.print(f"  grouped - cached    {found.cached:.1e}")


def _print_cost(console: Console, costs: list[Cost]) -> None:
    console.print("\n[bold]Cost[/bold] of these questions, the same weights")
    grid = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("", "tokens", "ms", "faster"):
        grid.add_column(name, justify="right" if name else "left")
    for each in costs:
        grid.add_row(
            each.name, f"{each.tokens:,}", f"{each.ms:.1f}", f"{costs[0].ms / each.ms:.1f}x"
        )
    console.print(grid)


def _print_own(console: Console, case: Case, out: Path) -> None:
    if case.world is None:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    events = out / "events.parquet"
    temporary = events.with_name(f".{events.name}.{os.getpid()}")
    batches = list(case.world.record_batches())
    pq.write_table(pa.Table.from_batches(batches), temporary)
    temporary.replace(events)
    names = batches[0].schema.names
    columns = " ".join(f"--{n} {n}" for n in ("user", "item", "time") if n in names)
    console.print("\n[bold]On your own Parquet[/bold], the same command:")
    console.print(f"  pylum demo --data {events} {columns} --condition {case.condition}")


def _some(test: Interactions, users: int = 64) -> Histories:
    """The first users' histories."""
    return test.histories(test.users[:users])


def _conditions(case: Case, test: Interactions) -> list[Any]:
    """Every value of the condition, at most eight, and ANY."""
    if case.condition is None:
        return [ANY]
    vocab = test.vocabs.conditions[case.condition]
    values = vocab.values(torch.arange(vocab.reserved, len(vocab)).numpy())
    return [*values[:8], ANY]
