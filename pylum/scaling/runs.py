"""Models of several sizes, lengths and amounts of data, measured on one fixed test set."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pylum.data.interactions import Interactions
from pylum.data.protocols import part
from pylum.evaluate import Report, evaluate
from pylum.evaluate.likelihood import cross_entropy
from pylum.model import LUM, LUMConfig
from pylum.train import pretrain


@dataclass(frozen=True)
class Setting:
    """A point of a sweep.

    Args:
        config: of the model.
        share: of the users whose behaviours are trained on, drawn by seed; a smaller share is a
            part of a larger one.
    """

    config: LUMConfig
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")


def sweep(
    settings: Sequence[Setting],
    train: Interactions,
    valid: Interactions,
    test: Interactions,
    *,
    lrs: Sequence[float] = (3e-3,),
    seeds: Sequence[int] = (0,),
    epochs: int | str = "auto",
    k: int = 10,
    out: str | os.PathLike[str] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    **training: Any,
) -> list[dict[str, Any]]:
    """Train each setting and measure it.

    The learning rate is tuned for each setting on ``valid``: one rate for all sizes would bend the
    curve. Every setting is measured on the same targets of ``test``.

    Args:
        settings: what is varied.
        train, valid, test: of one split.
        lrs: learning rates tried for each setting with the first seed; the one with the lowest
            cross-entropy on ``valid`` is taken for all seeds.
        seeds: of weights and order.
        epochs: as for :func:`pylum.pretrain`, which stops early on ``valid`` by default.
        k: cut of recall.
        out: a JSON-lines file: finished runs are read from it and not repeated.
        report: called with each run.
        training: further arguments of :func:`pylum.pretrain`.

    Returns:
        A row a setting and seed: ``setting`` (its place), ``seed``, ``lr``, ``parameters`` (of the
        transformer, without tables), ``table_parameters``, ``length`` (behaviours the model sees),
        ``events`` trained on, ``valid_nats``, ``nats`` (of a test target in the full catalogue),
        ``recall`` at ``k``, ``seconds`` of training.

    Raises:
        ValueError: nothing to vary, or ``out`` holds another sweep.
        FloatingPointError: a setting's training diverges at every learning rate; one that does so
            at some is left to the others, with a warning.
    """
    if not settings or not lrs or not seeds:
        raise ValueError("settings, lrs and seeds must each hold at least one, got none")
    about = {
        "settings": [[each.config.to_json(), each.share] for each in settings],
        "data": train.fingerprint,
        "epochs": epochs,
        "k": k,
        "training": {name: repr(value) for name, value in sorted(training.items())},
    }
    runs = _Runs(out, about)

    def run(place: int, lr: float, seed: int) -> dict[str, Any]:
        found = runs.get(place, lr, seed)
        if found is None:
            found = _run(settings[place], place, train, valid, test, lr, seed, epochs, k, training)
            runs.add(found)
        if report is not None:
            report(found)
        return found

    rows = []
    for place in range(len(settings)):
        tried = []
        for lr in lrs:
            try:
                tried.append(run(place, lr, seeds[0]))
            except FloatingPointError as error:
                warnings.warn(f"setting {place} is left out at lr {lr}: {error}", stacklevel=2)
        if not tried:
            raise FloatingPointError(f"setting {place} came to no end at any lr of {list(lrs)}")
        best = min(tried, key=lambda row: row["valid_nats"])
        rows += [best, *(run(place, best["lr"], seed) for seed in seeds[1:])]
    return rows


def shrunk(train: Interactions, share: float, seed: int = 0) -> Interactions:
    """The behaviours of a share of the users; each smaller share is part of the larger ones."""
    if share == 1:
        return train
    whole = train.whole
    if whole is None or train.whole_rows is None:
        raise ValueError("train must be a part of a split")
    order = np.random.default_rng(seed).permutation(len(whole.users))
    kept = np.zeros(len(whole.users), bool)
    kept[order[: max(1, round(share * len(order)))]] = True
    mine = np.repeat(kept, whole.events.lengths.numpy())
    visible = np.zeros(whole.events.total, bool)
    visible[train.whole_rows] = True
    targets = visible.copy()
    if train.events.targets is not None:
        targets[train.whole_rows] = train.events.targets.numpy()
    return part(whole, visible & mine, targets & mine, train.protocol or "", train.part or "train")


def _run(
    setting: Setting,
    place: int,
    train: Interactions,
    valid: Interactions,
    test: Interactions,
    lr: float,
    seed: int,
    epochs: int | str,
    k: int,
    training: dict[str, Any],
) -> dict[str, Any]:
    mine = shrunk(train, setting.share)
    begin = time.perf_counter()
    model = pretrain(
        setting.config,
        mine,
        valid=valid,
        epochs=epochs,
        lr=lr,
        seed=seed,
        **{"progress": False, **training},
    )
    seconds = time.perf_counter() - begin
    known = cross_entropy(model, valid)
    known = known[~np.isnan(known)]
    if not len(known):
        raise FloatingPointError("no validation target has a probability")
    inner, tables = _sizes(model)
    measured = evaluate(model, test, k=k, samples=1)
    assert isinstance(measured, Report)
    return {
        "setting": place,
        "seed": seed,
        "lr": lr,
        "parameters": inner,
        "table_parameters": tables,
        "length": setting.config.max_length,
        "events": mine.num_targets,
        "valid_nats": float(known.mean()),
        "nats": float(np.nanmean(cross_entropy(model, test))),
        "recall": measured[f"HR@{k}"].value,
        "seconds": round(seconds, 2),
    }


def _sizes(model: LUM) -> tuple[int, int]:
    """Parameters of the transformer, and of everything else."""
    inner = sum(p.numel() for p in model.user_encoder.parameters())
    return inner, sum(p.numel() for p in model.parameters()) - inner


class _Runs:
    """Finished runs, in a file where there is one: its first line says of what sweep."""

    def __init__(self, path: str | os.PathLike[str] | None, about: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[tuple[int, float, int], dict[str, Any]] = {}
        if self.path is None:
            return
        if not self.path.exists():
            self.path.write_text(json.dumps(about) + "\n")
            return
        try:
            lines = self.path.read_text().splitlines()
            held = json.loads(lines[0]) if lines else None
        except ValueError:  # not text, or not JSON
            held = None
        if held != json.loads(json.dumps(about)):
            raise ValueError(f"out holds another sweep, or none: {path}; choose another path")
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # the run that was interrupted while it was written
            self.rows[row["setting"], row["lr"], row["seed"]] = row
        # Without what was half written, so that the next line stands alone.
        whole = [lines[0], *map(json.dumps, self.rows.values())]
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        aside.write_text("\n".join(whole) + "\n")
        os.replace(aside, self.path)

    def get(self, place: int, lr: float, seed: int) -> dict[str, Any] | None:
        return self.rows.get((place, lr, seed))

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["setting"], row["lr"], row["seed"]] = row
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
