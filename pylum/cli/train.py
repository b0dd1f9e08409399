"""``pylum pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pylum.cli import columns

if TYPE_CHECKING:
    from pylum.data import Interactions
    from pylum.model import HSTUConfig, LUMConfig, Task


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
    model: Annotated[str, typer.Option(help="lum or hstu.")] = "lum",
    variant: Annotated[
        str, typer.Option(help="hstu: research or production; none: research.")
    ] = "",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="hstu: what ranking predicts: liked=rating:4,5 asks for values of a column of "
            "--event, spent=seconds for a number; repeatable. None: the next item."
        ),
    ] = None,
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

    An HSTU that ranks: [bold]pylum pretrain events.parquet my-ranker --model hstu --event rating
    --task liked=rating:4,5 --task loved=rating:5[/bold]
    """
    import pylum
    from pylum.model.files import replaceable

    replaceable(out)
    data = columns.read(events, user, item, time, condition, event, items)
    typer.echo(repr(data))
    train, valid, _ = data.split(split)
    sizes = pylum.LUMConfig.preset(preset, max_length=max_length, dropout=dropout)
    config = _config(model, sizes, variant, task or [], data)
    resume = checkpoint if checkpoint is not None and checkpoint.exists() else None
    trained = pylum.pretrain(
        config,
        train,
        valid=valid,
        epochs=epochs or "auto",
        lr=lr,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
    )
    trained.save_pretrained(out)
    typer.echo(f"wrote {out}")


def _config(
    model: str, sizes: LUMConfig, variant: str, tasks: list[str], data: Interactions
) -> LUMConfig | HSTUConfig:
    from pylum.model import HSTUConfig

    if model not in ("lum", "hstu"):
        raise ValueError(f"model must be lum or hstu, got {model!r}")
    if model == "lum":
        for name, given in (("variant", variant), ("task", tasks)):
            if given:
                raise ValueError(f"{name} must be left out for lum, got {given}")
        return sizes
    asked = tuple(_task(text, data) for text in tasks)
    shared = ("dim", "width", "layers", "heads", "max_length", "dropout")
    return HSTUConfig(
        variant=variant or "research",
        task="ranking" if asked else "retrieval",
        tasks=asked,
        **{name: getattr(sizes, name) for name in shared},
    )


def _task(text: str, data: Interactions) -> Task:
    """``name=field`` or ``name=field:value,value``."""
    from pylum.model import Task

    name, equals, rest = text.partition("=")
    field, _, listed = rest.partition(":")
    if not (name and equals and field):
        raise ValueError(f"task must be NAME=COLUMN or NAME=COLUMN:VALUE,VALUE, got {text!r}")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    vocab = data.vocabs.outcomes.get(field)
    if values and vocab is None:
        raise ValueError(f"task {name!r} must ask a column of --event with values, got {field!r}")
    # Values are of the column's type: "4" of the text is 4, "true" is True.
    ids = [] if vocab is None else vocab.ids.to_pylist()
    known = {str(v).lower() if isinstance(v, bool) else str(v): v for v in ids}
    strangers = [value for value in values if value not in known]
    if strangers:
        raise ValueError(
            f"task {name!r} must have values that {field!r} takes ({', '.join([*known][:10])}), "
            f"got {strangers}"
        )
    return Task(name, field, tuple(known[value] for value in values))
