"""What a user model adds to four rankers: step 3 end to end, on data whose protocol is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data import Field, Interactions, Synthetic, Vocab, movielens_100k
from pylum.data.protocols import core, one_by_one, stages
from pylum.demo.sequence import ONLY_ORDER, Sequences
from pylum.knowledge import Knowledge, query
from pylum.model import LUM, LUMConfig, Task
from pylum.ragged import Ragged
from pylum.rank.arms import ALL, ARMS, BOTH_ALL, Arms, rows_of, run_arms
from pylum.rank.as_of import impression_schema, impressions
from pylum.rank.schema import Schema
from pylum.rank.utilisation import matching
from pylum.train import pretrain

RANKERS = ("wide_deep", "dlrm", "din", "sim_rank")
LIKED = 4  # stars and more
# Chosen for the base alone, on the validation rows.
SYNTHETIC: dict[str, dict[str, Any]] = {
    "wide_deep": {"epochs": 5},
    "dlrm": {"dim": 32, "lr": 3e-3, "epochs": 8},
    "din": {"dim": 32, "lr": 3e-3, "epochs": 6},
    "sim_rank": {"dim": 32, "lr": 3e-3, "epochs": 8},
}
ML_100K: dict[str, dict[str, Any]] = {
    "wide_deep": {"lr": 5e-3, "epochs": 6, "dropout": 0.5, "ftrl_l1": 3.0},
    "dlrm": {"lr": 3e-3, "epochs": 6, "weight_decay": 1e-3},
    "din": {"lr": 3e-3, "epochs": 5, "weight_decay": 1e-3},
    "sim_rank": {"lr": 3e-3, "epochs": 5, "weight_decay": 1e-3},
}
# The same for the base on the user model's rows too: twice as many want less weight decay.
ML_100K_ALL: dict[str, dict[str, Any]] = {
    "dlrm": {"epochs": 12, "weight_decay": 3e-4},
    "din": {"epochs": 12, "weight_decay": 3e-4},
    "sim_rank": {"epochs": 12, "weight_decay": 3e-4},
}

SEQUENCE_SYNTHETIC: dict[str, dict[str, Any]] = {
    "HSTU": {
        "dim": 64,
        "layers": 2,
        "dropout": 0.0,
        "initial_scale": 0.2,
        "run": {"epochs": 8, "lr": 3e-3, "schedule": "cosine"},
    },
    "SASRec": {
        "dim": 64,
        "layers": 2,
        "dropout": 0.0,
        "initial_scale": 0.2,
        "run": {"epochs": 8, "lr": 3e-3, "schedule": "cosine"},
    },
}
SEQUENCE_ML_100K: dict[str, dict[str, Any]] = {
    "HSTU": {"dim": 64, "layers": 2, "dropout": 0.4, "run": {"epochs": 6, "lr": 2e-3}},
    "SASRec": {"dim": 64, "layers": 2, "dropout": 0.4, "run": {"epochs": 20, "lr": 3e-3}},
}


@dataclass(frozen=True, eq=False)
class Stage3:
    """Rows and knowledge, ready for the rankers.

    Args:
        title: data and protocol.
        schema: of the rows.
        parts: train, valid and test.
        earlier: the rows the user model was trained on, which a ranker without one could be too.
        knowledge: as of every row, from weights that were not fitted on any of them.
        more: scores of the test rows to print beside.
        settings: by ranker.
        on_all: by ranker, what it has instead on the user model's rows too.
        sequences: for the sequence models.
    """

    title: str
    schema: Schema
    parts: tuple[pa.Table, pa.Table, pa.Table]
    earlier: pa.Table
    knowledge: Knowledge
    more: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    on_all: dict[str, dict[str, Any]] = field(default_factory=dict)
    sequences: Sequences | None = None

    def run(
        self,
        *,
        rankers: Sequence[str] = RANKERS,
        sequence: Sequence[str] = (),
        arms: Sequence[str] = (*ARMS, ALL, BOTH_ALL),
        seeds: Sequence[int] = (0, 1, 2),
        changes: dict[str, Any] | None = None,
        on_fit: Callable[..., None] | None = None,
    ) -> Arms:
        """Every ranker, arm and seed, and sequence models trained on the same rows.

        Args:
            sequence: which of those, of :data:`pylum.demo.sequence.SEQUENCE`.
            changes: settings of all rankers, over their own; ``epochs`` of sequence models too.
        """
        arms_of = run_arms(
            self.title,
            self.schema,
            *self.parts,
            self.knowledge,
            rankers={r: {**self.settings.get(r, {}), **(changes or {})} for r in rankers},
            on_all={r: {**self.on_all.get(r, {}), **(changes or {})} for r in rankers},
            seeds=seeds,
            arms=arms,
            earlier=self.earlier,
            more=self.more,
            # It was made of other targets than these rows, which a cut in time cannot tell where
            # the stages are cut by user.
            allow_in_sample=True,
            on_fit=on_fit,
        )
        given = {"epochs": changes["epochs"]} if changes and "epochs" in changes else {}
        for name in sequence if self.sequences is not None else ():
            assert self.sequences is not None
            lines = [self.sequences.scores(name, self.parts[2], seed, **given) for seed in seeds]
            arms_of.scores[name] = np.stack(lines)
        return replace(arms_of, floors=(*arms_of.floors, *ONLY_ORDER))


def synthetic(users: int = 3000, *, epochs: int = 8, negatives: int = 1, seed: int = 0) -> Stage3:
    """The seeded world: was this item chosen, or drawn among those on sale?

    Every choice is a row with label 1, and beside it stand as many items as ``negatives``. Cuts at
    the 40 %, 80 % and 90 % quantiles of time. The model is asked for every scene; each row knows
    its own scene, the last 20 choices, counts and rates. The best possible order of the rows
    follows from the exact posterior of the user's type.

    Args:
        epochs: of the user model.
        seed: of the user model and the items drawn.
    """
    world = Synthetic(users=users)
    data = world.interactions()
    rows = impressions(
        data,
        np.ones(data.events.total, bool),
        order="time",
        negatives=negatives,
        seed=seed,
    )
    config = LUMConfig(dim=64, layers=2, dropout=0.0, initial_scale=0.2)
    user_model, *later = stages(data, "time")
    model = pretrain(config, user_model, epochs=epochs, lr=3e-3, seed=seed, progress=False)
    parts = _parts(model, rows, later)
    scenes = data.vocabs.conditions["scene"].ids.to_pylist()
    names = np.asarray(world.names)
    order = np.argsort(names)
    place = order[np.searchsorted(names[order], parts[2]["item"].to_numpy().astype(str))]
    chances = world.chances_of(data, parts[2]["event"].to_numpy(), place)
    knowledge = query(model, data, scenes, at="each")
    schema = impression_schema(data, negatives=negatives, condition="scene")
    return Stage3(
        f"synthetic, {users:,} users, two stages by time",
        schema,
        parts,
        rows_of(rows, user_model),
        knowledge,
        {
            # Items are drawn evenly: the odds of a choice are as its probability.
            "best possible": np.log(np.maximum(chances, 1e-30)),
            "LUM alone": matching(knowledge, parts[2], schema)[:, -1].numpy(),
        },
        SYNTHETIC,
        sequences=Sequences(
            data.beside(_drawn(rows, negatives)),
            lambda whole: stages(whole, "time"),
            Task("chosen", "item"),
            settings=SEQUENCE_SYNTHETIC,
        ),
    )


def ml_100k(
    protocol: str = "rest-auc",
    *,
    path: str | os.PathLike[str] | None = None,
    epochs: int = 40,
    seed: int = 0,
    in_sample: bool = False,
) -> Stage3:
    """MovieLens 100K: are there four stars or more? Nothing is sampled.

    The user model reads whether each film was liked as its condition, and is asked for both, so
    that a row's own label is in no question. Its data is ``rest-auc``: the first 40 % of each
    user's events; ``din-auc``: half of the training users.

    Args:
        protocol: ``"rest-auc"`` or ``"din-auc"``.
        path: as for :func:`pylum.data.movielens_100k`.
        epochs, seed: of the user model.
        in_sample: train the user model on the rankers' training rows too, which is wrong: it shows
            what that does.
    """
    if protocol not in ("rest-auc", "din-auc"):
        raise ValueError(f"protocol must be 'rest-auc' or 'din-auc', got {protocol!r}")
    films = movielens_100k(path=path)
    films = one_by_one(core(films) if protocol == "rest-auc" else films)
    by = "user" if protocol == "rest-auc" else "users"
    liked = films.events.outcomes["rating"].numpy() >= LIKED
    rows = impressions(films, liked)
    told = with_condition(films, "liked", liked)
    user_model, *later = stages(told, by)
    fitted = user_model.merged(later[0]) if in_sample else user_model
    config = LUMConfig(dim=64, layers=2, dropout=0.4, max_length=200)
    model = pretrain(
        config,
        fitted,
        epochs=epochs,
        lr=3e-3,
        batch_tokens=8192,
        schedule="cosine",
        seed=seed,
        progress=False,
    )
    parts = _parts(model, rows, later, in_sample)
    knowledge = query(model, told, [True, False], at="each")
    schema = impression_schema(films, user_id=protocol == "rest-auc")
    liked_or_not = matching(knowledge, parts[2], schema)
    return Stage3(
        f"MovieLens 100K, {protocol}, two stages" + (", user model in-sample" * in_sample),
        schema,
        parts,
        rows_of(rows, user_model),
        knowledge,
        # Both answers are logits of the film: their difference is a log odds.
        {"LUM alone": (liked_or_not[:, 0] - liked_or_not[:, 1]).numpy()},
        ML_100K,
        ML_100K_ALL,
        Sequences(
            _with("outcomes", films, "liked", liked),
            lambda whole: stages(whole, by),
            Task("liked", "liked", (True,)),
            liked,
            SEQUENCE_ML_100K,
        ),
    )


def _drawn(rows: pa.Table, negatives: int) -> Ragged:
    """The items that stand behind each event's own in the rows of :func:`impressions`."""
    places = np.arange(len(rows))
    drawn = rows["item"].take(pa.array(places[places % (1 + negatives) > 0])).combine_chunks()
    return Ragged(drawn, torch.arange(len(drawn) // max(1, negatives) + 1) * negatives)


def with_condition(data: Interactions, name: str, values: Any) -> Interactions:
    """The same events with a categorical condition more."""
    return _with("conditions", data, name, values)


def _with(group: str, data: Interactions, name: str, values: Any) -> Interactions:
    """The same events with a category more among the conditions or the outcomes."""
    vocabs = data.vocabs.copy()
    vocab = getattr(vocabs, group)[name] = Vocab(any=group == "conditions")
    rows = torch.from_numpy(vocab.grow(values, name))
    fields = (*getattr(data.schema, group), Field(name))
    columns = {**getattr(data.events, group), name: rows}
    return replace(
        data,
        schema=replace(data.schema, **{group: fields}),
        vocabs=vocabs,
        events=replace(data.events, **{group: columns}),  # type: ignore[arg-type]
    )


def _parts(
    model: LUM, rows: pa.Table, later: Sequence[Interactions], in_sample: bool = False
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rows of the rankers, after a look whether the user model was fitted on one of them."""
    for part in later[1:] if in_sample else later:
        inside = int(model.record.seen(part.event_hashes()).sum())
        if inside:
            raise ValueError(f"the user model was trained on {inside} events of {part.part}")
    train, valid, test = (rows_of(rows, part) for part in later)
    return train, valid, test
