"""How surprised a model is by what came: nats of each target in the full catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import OOV_ROW
from pylum.data.interactions import Interactions
from pylum.evaluate.scoring import questions_of, targets_of
from pylum.generation.catalogue import catalogue
from pylum.generation.prefixes import answer_prefixes, plan
from pylum.generation.request import BATCH_TOKENS
from pylum.model.base import UserModel

CHUNK_LOGITS = 1 << 24  # held at once


def cross_entropy(
    model: UserModel,
    test: Interactions,
    *,
    conditions: str | Sequence[str] = "true",
    query_time: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> npt.NDArray[np.float64]:
    """``-log p(item | history, condition)`` of each target, over all items of the vocabulary.

    Its mean is the log-perplexity. Unlike InfoNCE it does not depend on batch or negatives, so
    runs compare, and scaling laws are fitted on it (section 5 of arXiv 2208.08489).

    Args:
        model: unit answers and items; their cosine over ``model.temperature`` is the logit.
        test: a part of a split, or any data; its targets are scored.
        conditions: as for :func:`pylum.evaluate`.
        query_time: whether the model may read the time of the target.
        batch_tokens: tokens encoded at a time.

    Returns:
        ``[targets]`` float64 nats, in row order; NaN where the model does not know the item.
    """
    scored = targets_of(test)
    events = test.histories().encode(model.vocabs, model.schema)
    targets = events.items[scored.index]
    questions = questions_of(model, events, scored, conditions, query_time)
    vectors = catalogue(model)[1:].float()
    out = np.full(len(targets), np.nan)
    step = max(1, CHUNK_LOGITS // max(1, len(vectors)))
    for index, answers in answer_prefixes(
        model, events, questions, plan(model, questions, batch_tokens)
    ):
        for some, queries in zip(index.split(step), answers.float().split(step), strict=True):
            logits = (queries @ vectors.T / model.temperature).double().cpu()
            goal = targets[some]
            known = goal != OOV_ROW
            own = logits.gather(1, (goal - 1).clamp_min(0)[:, None])[:, 0]
            nats = torch.logsumexp(logits, 1) - own
            out[some[known].numpy()] = nats[known].numpy()
    return out
