"""``pylum pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pylum.cli import columns


def pretrain(
    events: columns.Events,
    out: Annotated[Path, typer.Argument(help="Directory of the model to write.")],
    user: columns.User = "user",
    item: columns.Item = "item",
    time: columns.Time = "time",
    condition: columns.Condition = None,
    event: columns.Event = None,
    items: columns.Items = None,
    split: Annotated[
        str, typer.Option(help="Protocol whose training part is used: global-time or loo-full.")
    ] = "global-time",
    preset: Annotated[str, typer.Option(help="Size of the model: tiny ... 7b.")] = "tiny",
    max_length: Annotated[int, typer.Option(help="Behaviours the model looks back.")] = 200,
    epochs: Annotated[
        int, typer.Option(help="Passes over the data; 0 stops early by the validation part.")
    ] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    dropout: Annotated[float, typer.Option(help="Of embeddings and residuals.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory of checkpoints; an existing one is resumed.")
    ] = None,
) -> None:
    """Train a user model on a table of behaviours.

    Example: [bold]pylum pretrain events.parquet my-model --user uid --item iid --time ts
    --condition scene[/bold]
    """
    import pylum

    data = columns.read(events, user, item, time, condition, event, items)
    typer.echo(repr(data))
    train, valid, _ = data.split(split)
    config = pylum.LUMConfig.preset(preset, max_length=max_length, dropout=dropout)
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    model = pylum.pretrain(
        config,
        train,
        valid=valid,
        epochs=epochs or "auto",
        lr=lr,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
    )
    model.save_pretrained(out)
    typer.echo(f"wrote {out}")
