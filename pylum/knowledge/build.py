"""Ask a model about users as of moments."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pylum.cache.users.digest import event_bytes
from pylum.conditions import Conditions, normalise
from pylum.data.events import Events
from pylum.data.histories import OnUnknown
from pylum.generation.catalogue import catalogue
from pylum.generation.inputs import coded_histories
from pylum.generation.prefixes import Plan, PrefixQuestions, answer_prefixes, plan, spans
from pylum.generation.request import BATCH_TOKENS
from pylum.knowledge import store
from pylum.knowledge.as_of import Moments, moments, visible_before
from pylum.knowledge.knowledge import Knowledge
from pylum.model import LUM
from pylum.modes import on_host
from pylum.progress import counted

PART_QUESTIONS = 1 << 18  # answers of a file, at least


@on_host
def query(
    model: LUM,
    data: Any,
    conditions: Any = None,
    *,
    at: Any = "end",
    delay: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    on_unknown: OnUnknown = "oov",
    batch_tokens: int = BATCH_TOKENS,
) -> Knowledge:
    """What users want under conditions, as of moments (section 3.2 of arXiv 2502.08309).

    As of t, a question sees the events with a time less than t - ``delay``, so never the event it
    is asked for. All prefixes of a user are answered in one causal pass, each question being a
    target that sees its own number of behaviours. A prefix that outgrows the model's window sees
    the window of its own, as it would alone: prefixes with different windows are computed apart.

    Args:
        model: a trained model.
        data: :class:`~pylum.Interactions`, :class:`~pylum.Histories` or a dict of lists of events
            by user.
        conditions: ``N``, asked at every moment: None for ``[ANY]``, a flat list, or a dict or
            DataFrame of fields.
        at: ``"end"``, after all events: one second after the last of the data; ``"each"``, at the
            time of every event; or a table with columns ``user`` and ``time``, such as the rows a
            ranker is trained on. Condition fields it has beside, which ``conditions`` does not
            name, are asked at that row together with ``conditions``; other columns are ignored.
        delay: seconds an event takes to be known.
        out: folder of Parquet files. Finished parts are kept where the work is interrupted.
        resume: go on with what ``out`` holds of this query; False: begin anew.
        dtype: of the vectors kept.
        on_unknown, batch_tokens: as for :func:`pylum.generate`.

    Returns:
        Vectors in the order of users, events or rows of the table.

    Raises:
        ValueError, TypeError: an argument is not as above; ``out`` holds another query.
    """
    if isinstance(delay, bool) or not isinstance(delay, (int, np.integer)) or delay < 0:
        raise ValueError(f"delay must be a number of seconds, at least 0, got {delay!r}")
    delay = int(delay)
    if dtype not in store.DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(store.DTYPES)}, got {dtype!r}")
    if not isinstance(model, LUM):
        raise TypeError(f"model must be a pylum.LUM, got {type(model).__name__}")
    users, events, _ = coded_histories(model, data, None, on_unknown)
    fields = [f.name for f in model.schema.conditions]
    when = moments(at, events, users, fields)
    shared = normalise(conditions, 1, model.schema.conditions, model.vocabs.conditions)
    # Users without a history are one user more, with none.
    events = replace(events, offsets=torch.cat([events.offsets, events.offsets[-1:]]))
    rows = torch.where(when.users < 0, len(users), when.users)
    seen = visible_before(events, rows, when.times - delay)
    count = len(shared)
    questions = PrefixQuestions(
        rows.repeat_interleave(count),
        seen.repeat_interleave(count),
        _columns(model, when, shared, conditions is None),
        when.times.repeat_interleave(count),
    )
    places = when.users.tolist()
    names = [users[u] if u >= 0 else when.names[row] for row, u in enumerate(places)]
    vectors = torch.empty(0, count, model.dim, dtype=store.DTYPES[dtype])
    items = model.vocabs.items.ids.to_pylist()
    knowledge = Knowledge(
        vectors,
        names,
        when.times,
        seen,
        shared.values(),
        items,
        catalogue(model)[1 : 1 + len(items)].to("cpu", store.DTYPES[dtype], copy=True),
        model.temperature,
        model.record.cut,
        delay,
        model.fingerprint(),
    )
    steps = plan(model, questions, batch_tokens)
    if out is None:
        vectors = torch.empty(len(when), count, model.dim, dtype=vectors.dtype)
        with counted("querying", "answers", len(questions)) as advance:
            for index, answers in answer_prefixes(model, events, questions, steps):
                vectors.view(-1, model.dim)[index] = answers.to(vectors.dtype).cpu()
                advance(len(index))
        return replace(knowledge, vectors=vectors)
    request = {
        "fingerprint": knowledge.fingerprint,
        "data": _digest(events, questions, names),
        "conditions": knowledge.about({}, 0)["conditions"],
        "delay": delay,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
    }
    return _written(Path(out), model, events, questions, steps, knowledge, request, resume)


def _written(
    folder: Path,
    model: LUM,
    events: Events,
    questions: PrefixQuestions,
    steps: Plan,
    knowledge: Knowledge,
    request: dict[str, Any],
    resume: bool,
) -> Knowledge:
    """Write the parts that are missing, and read all."""
    store.begin(folder, request, resume)
    count, dtype = len(knowledge.conditions), knowledge.vectors.dtype
    bounds = steps.questions[torch.tensor(steps.passes)]
    parts = spans(bounds.diff(), PART_QUESTIONS)
    with counted("querying", "answers", len(questions)) as advance:
        for number, (first, last) in enumerate(pairwise(parts)):
            total = int(bounds[last] - bounds[first])
            path = folder / store.part_name(number)
            if path.exists():
                advance(total)
                continue
            index, answers = [], []
            mine = replace(steps, passes=steps.passes[first : last + 1])
            for part, vectors in answer_prefixes(model, events, questions, mine):
                index.append(part)
                answers.append(vectors.to(dtype).cpu())
                advance(len(part))
            # The questions of one moment stand together.
            rows = torch.cat(index)[::count] // count
            names = [knowledge.users[row] for row in rows.tolist()]
            flat = torch.cat(answers).reshape(len(rows), -1)
            table = store.part_table(rows, names, knowledge.times[rows], knowledge.seen[rows], flat)
            store.write_table(path, table)
    knowledge.finish(folder, request, len(parts) - 1)
    return Knowledge.load(folder)


def _columns(
    model: LUM, when: Moments, shared: Conditions, unasked: bool
) -> dict[str, torch.Tensor]:
    """Condition columns of ``R * N`` questions."""
    count, total = len(shared), len(when)
    columns = {
        name: column.repeat(total, *[1] * (column.dim() - 1))
        for name, column in shared.columns.items()
    }
    if when.table is None or not when.table.column_names:
        return columns
    asked = () if unasked else shared.raw
    given = [name for name in when.table.column_names if name not in asked]
    if not given:
        return columns
    lists = {name: when.table[name].to_pylist() for name in given}
    coded = normalise(lists, 1, model.schema.conditions, model.vocabs.conditions)
    for name in given:
        columns[name] = coded.columns[name].repeat_interleave(count, 0)
    return columns


def _digest(events: Events, questions: PrefixQuestions, names: list[Any]) -> str:
    """Of everything the answers depend on, beside the model."""
    digest = hashlib.sha256(repr(names).encode())
    digest.update(events.offsets.numpy().tobytes())
    digest.update(event_bytes(events).data)
    columns = [questions.users, questions.visible, *questions.columns.values()]
    for column in columns + ([] if questions.times is None else [questions.times]):
        digest.update(column.contiguous().numpy().tobytes())
    return digest.hexdigest()
