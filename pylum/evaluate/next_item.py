"""Score a model on events it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pylum.data.interactions import Interactions
from pylum.evaluate import floors, metrics
from pylum.evaluate.intervals import SAMPLES, Interval, bootstrap
from pylum.evaluate.ranking import RankingReport, evaluate_ranking
from pylum.evaluate.report import Report
from pylum.evaluate.scoring import (
    MISSED,
    exclusion,
    model_ranks,
    repeated_targets,
    seen_items,
    targets_of,
    training_part,
)
from pylum.generation.request import BATCH_TOKENS
from pylum.model import HSTU, UserModel
from pylum.modes import on_host

PROTOCOLS = ("loo-full", "global-time")
RANKING = (*PROTOCOLS, "rest-auc", "din-auc")


@on_host
def evaluate(
    model: UserModel | Sequence[UserModel],
    test: Interactions,
    *,
    k: int = 10,
    conditions: str | Sequence[str] = "true",
    exclude: Literal["auto", "history", "none"] = "auto",
    query_time: bool = False,
    allow_in_sample: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Report | RankingReport:
    """Next-item accuracy in the full catalogue, with floors and intervals.

    Each target event of ``test`` is ranked after the earlier events of its user, in row order.
    The user's seen items are removed, so a target that was seen before can only be missed; so can
    one the model does not know. Both are counted.

    An HSTU trained for ranking is scored on its tasks instead: what it says of each target event at
    its own time and under its own conditions, beside what came of it.

    Args:
        model: a model, or one for each seed; the intervals are then over seeds and users.
        test: a part made by ``Interactions.split("loo-full")`` or ``("global-time")``, for ranking
            also ``("rest-auc")`` or ``("din-auc")``.
        k: cut of HR and NDCG.
        conditions: what is asked of each event. ``"true"``: its own conditions, an oracle where a
            condition is derived from the item; ``"any"``: none; a list of fields: its own values
            of these, ANY for the others.
        exclude: seen items: ``"history"`` removes them, ``"none"`` does not; ``"auto"`` does unless
            more than 5 % of the training events repeat one.
        query_time: whether the model may read the time of the target.
        allow_in_sample: also score events the model was trained on.
        samples, seed: of the bootstrap.
        batch_tokens: tokens of one pass.

    Returns:
        HR@k, NDCG@k and MRR of the model and of popularity, overall and per condition, each with
        a 95 % interval from a bootstrap over users, and the model's paired gain over each floor.
        For ranking a :class:`RankingReport`: of each yes or no AUC, GAUC, log loss and NE, of each
        number MSE and MAE. ``k``, ``conditions``, ``exclude`` and ``query_time`` are of the next
        item and then not read.

    Raises:
        ValueError: ``test`` is no part of a known protocol or has no target; the model was trained
            on one of its targets; an argument is not as above.
        TypeError: ``test`` is no Interactions, ``model`` no LUM or HSTU.
    """
    if not isinstance(model, (UserModel, Sequence)):
        raise TypeError(f"model must be a pylum.LUM or pylum.HSTU, got {type(model).__name__}")
    models = [model] if isinstance(model, UserModel) else list(model)
    for each in models:
        if not isinstance(each, UserModel):
            raise TypeError(f"model must be a pylum.LUM or pylum.HSTU, got {type(each).__name__}")
    if not models:
        raise ValueError("model must be at least one model, got none")
    rankers = [m for m in models if isinstance(m, HSTU) and m.config.task == "ranking"]
    if rankers and len(rankers) < len(models):
        raise ValueError("model must be models for ranking or models for retrieval, got both")
    measures = _metrics(k)
    _check(test, models, RANKING if rankers else PROTOCOLS, allow_in_sample)
    scored = targets_of(test)
    if rankers:
        return evaluate_ranking(
            rankers, test, scored, samples=samples, seed=seed, batch_tokens=batch_tokens
        )
    whole = test.whole
    assert whole is not None
    train = training_part(test)
    exclude = exclusion(exclude, train)
    seen = seen_items(test.events, scored) if exclude == "history" else None
    target_rows = test.events.items[scored.index]
    repeated = repeated_targets(seen, target_rows)
    results, unknown = [], 0
    for each in models:
        ranks, missing = model_ranks(
            each, test, scored, conditions, seen is not None, repeated, query_time, batch_tokens
        )
        results.append(ranks)
        unknown = max(unknown, missing)
    items = len(test.vocabs.items)
    bases = {"popularity": floors.popularity(train.events, items, target_rows, seen)}
    for field in test.schema.conditions:
        if field.kind == "category":
            asked = test.events.conditions[field.name][scored.index]
            bases[f"popularity by {field.name}"] = floors.popularity_by_condition(
                train.events, items, field.name, target_rows, asked, seen
            )
    users = scored.users.numpy()
    ours_name = type(models[0]).__name__
    ranks_of = {ours_name: np.stack(results)}
    for name, base in bases.items():
        alike = base.masked_fill(repeated, MISSED).numpy()
        ranks_of[name] = np.broadcast_to(alike, ranks_of[ours_name].shape)
    values: dict[str, dict[str, Interval]] = {}
    gains: dict[str, dict[str, Interval]] = {}
    for metric, of in measures.items():
        ours = of(ranks_of[ours_name])
        for name, of_name in ranks_of.items():
            theirs = of(of_name)
            interval = bootstrap(theirs, users, samples=samples, seed=seed)
            values.setdefault(name, {})[metric] = interval
            if name != ours_name:
                gain = bootstrap(ours, users, against=theirs, samples=samples, seed=seed)
                gains.setdefault(name, {})[metric] = gain
    return Report(
        protocol=str(test.protocol),
        part=str(test.part),
        conditions=conditions if isinstance(conditions, str) else ", ".join(conditions),
        exclude=exclude,
        query_time=query_time,
        seeds=len(models),
        users=len(np.unique(users)),
        events=len(users),
        items=items - 1,
        unknown_targets=unknown,
        repeated_targets=int(repeated.sum()),
        values=values,
        gains=gains,
    )


def _metrics(k: int) -> dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]]:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    return {
        f"HR@{k}": lambda ranks: metrics.hit_rate(ranks, k),
        f"NDCG@{k}": lambda ranks: metrics.ndcg(ranks, k),
        "MRR": metrics.reciprocal_rank,
    }


def _check(
    test: Interactions,
    models: Sequence[UserModel],
    protocols: Sequence[str],
    allow_in_sample: bool,
) -> None:
    if not isinstance(test, Interactions):
        raise TypeError(f"test must be Interactions, got {type(test).__name__}")
    if test.whole is None or test.protocol not in protocols:
        raise ValueError(
            f"test must be a part made by split({' or '.join(map(repr, protocols))}), "
            f"got {test.protocol or 'a whole data set'}"
        )
    if not test.num_targets:
        raise ValueError("test must have at least one target, got none")
    if allow_in_sample:
        return
    hashes = test.event_hashes()
    for model in models:
        inside = int(model.record.seen(hashes).sum())
        if inside:
            raise ValueError(
                f"model was trained on {inside} of the {len(hashes)} events of test: score another "
                "part, or pass allow_in_sample=True"
            )
