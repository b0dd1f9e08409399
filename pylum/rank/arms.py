"""What a user model's knowledge adds to rankers: the same rows, seeds and draws for every arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.interactions import Interactions
from pylum.evaluate.floors import mean_floors
from pylum.evaluate.impressions import METRICS, Comparison, compare
from pylum.evaluate.intervals import SAMPLES
from pylum.evaluate.report import aligned, signed
from pylum.knowledge import Knowledge
from pylum.rank.ranker import Ranker
from pylum.rank.schema import Schema

# What each arm reads of the knowledge.
ARMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "+ e_i": ("item",),
    "+ direct": ("item", "direct"),
    "+ matching": ("item", "matching"),
    "+ both": ("item", "direct", "matching"),
    "+ both, shuffled": ("item", "direct", "matching"),
}
# On the rows the user model was trained on too: what the same data does without one, and what it
# does where knowledge is left out for those rows.
ALL, BOTH_ALL = "base, all rows", "+ both, all rows"
# The ranker of the arm with everything, asked when nothing is known.
MISSING = "+ both, all missing"
BASE, ITEM, DIRECT, BOTH, SHUFFLED = "base", "+ e_i", "+ direct", "+ both", "+ both, shuffled"
MEANING = {
    ITEM: "the user model's vector of the item",
    "+ direct": "that, and its answers to every condition",
    "+ matching": "the vector, and how similar the item is to each answer",
    BOTH: "all three",
    SHUFFLED: "another user's answers, a control: must not beat + e_i",
    MISSING: "trained on all three, asked when nothing is known: the base",
    ALL: "no knowledge, but also trained on the user model's own rows",
    BOTH_ALL: "the same rows, knowledge left out for the user model's own",
}
# The differences that say something, beside each arm over the base.
QUESTIONS = ((BOTH, ITEM), (BOTH, DIRECT), (SHUFFLED, ITEM), (BOTH, ALL), (BOTH_ALL, ALL))


@dataclass(frozen=True, eq=False)
class Arms:
    """Scores of the test rows.

    Args:
        title: what was scored, in a line.
        labels, users: ``[N]`` of the test rows.
        scores: by contestant ``[S, N]``; a ranker's arm is called ``"<ranker> <arm>"``.
        floors: contestants whose scores are no probabilities.
    """

    title: str
    labels: npt.NDArray[np.float64]
    users: npt.NDArray[Any]
    scores: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    floors: tuple[str, ...] = ()

    def comparison(self, samples: int = SAMPLES) -> Comparison:
        """Values, each arm's gain over its base, and the differences of :data:`QUESTIONS`."""
        pairs: list[tuple[str, str]] = []
        for ranker in [n.removesuffix(f" {BASE}") for n in self.scores if n.endswith(f" {BASE}")]:
            present = [arm for arm in ARMS if f"{ranker} {arm}" in self.scores]
            present += [a for a in (MISSING, ALL, BOTH_ALL) if f"{ranker} {a}" in self.scores]
            asked = [(arm, BASE) for arm in present if arm != BASE]
            asked += [(a, b) for a, b in QUESTIONS if a in present and b in present]
            pairs += [(f"{ranker} {a}", f"{ranker} {b}") for a, b in asked]
        return compare(
            self.labels,
            self.users,
            self.scores,
            over=pairs,
            only_order=self.floors,
            samples=samples,
        )


def rows_of(rows: pa.Table, part: Interactions) -> pa.Table:
    """The rows of :func:`pylum.rank.impressions` whose event is a target of ``part``."""
    assert part.whole_rows is not None
    events, mask = part.whole_rows, part.events.targets
    chosen = events if mask is None else events[mask.numpy()]
    return rows.filter(pa.array(np.isin(rows["event"].to_numpy(), chosen)))


def shuffled(knowledge: Knowledge, seed: int = 0) -> Knowledge:
    """Every moment gets the answers of another user's, drawn by ``seed``.

    As many inputs of the same distribution, and nothing about the user: a control for capacity.

    Raises:
        ValueError: it is of one user alone.
    """
    _, users = np.unique(np.asarray(knowledge.users, dtype=object).astype(str), return_inverse=True)
    if len(users) and users.max() == 0:
        raise ValueError("knowledge must be of two users at least to be shuffled across users")
    random = np.random.default_rng(seed)
    order = random.permutation(len(users))
    while (same := np.flatnonzero(users[order] == users)).size:
        # Those that met their own user swap with moments drawn anew.
        other = random.integers(len(order), size=len(same))
        for a, b in zip(same.tolist(), other.tolist(), strict=True):
            order[a], order[b] = order[b], order[a]
    return replace(knowledge, vectors=knowledge.vectors[torch.from_numpy(order)])


def _forgotten(knowledge: Knowledge) -> Knowledge:
    """The same user model, asked about nobody and no item."""
    return replace(
        knowledge,
        vectors=knowledge.vectors[:1],
        users=knowledge.users[:1],
        times=torch.full((1,), torch.iinfo(torch.int64).max),
        seen=knowledge.seen[:1],
        items=knowledge.items[:0],
        item_vectors=knowledge.item_vectors[:1],
    )


def run_arms(
    title: str,
    schema: Schema,
    train: pa.Table,
    valid: pa.Table,
    test: pa.Table,
    knowledge: Knowledge,
    *,
    rankers: Mapping[str, Mapping[str, Any]],
    on_all: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    arms: Sequence[str] = (*ARMS, ALL, BOTH_ALL),
    earlier: pa.Table | None = None,
    more: Mapping[str, npt.NDArray[np.float64]] | None = None,
    allow_in_sample: bool = False,
    on_fit: Callable[[str, int, Ranker], None] | None = None,
) -> Arms:
    """Fit every ranker with every arm and seed.

    Args:
        title: of the result.
        schema: of the rows.
        train, valid, test: rows; the epoch is chosen on ``valid``.
        knowledge: as of all of them.
        rankers: by name, settings.
        on_all: by name, settings of :data:`ALL` and :data:`BOTH_ALL` over these: more rows may
            want others.
        seeds: of the rankers.
        arms: some of :data:`ARMS`, :data:`ALL` and :data:`BOTH_ALL`.
        earlier: the rows the user model was trained on: floors are the means of these and
            ``train``, and :data:`ALL` and :data:`BOTH_ALL` are fitted on both; None: neither is.
        more: scores of the test rows to print beside, such as the best possible.
        allow_in_sample: as for :meth:`Ranker.fit`.
        on_fit: called with the contestant's name, seed and ranker.
    """
    whole = train if earlier is None else pa.concat_tables([earlier, train])
    later = np.arange(len(whole)) >= len(whole) - len(train)
    columns = {
        name: (whole[column].to_numpy(), test[column].to_numpy())
        for name, column in (("user", schema.user), ("item", schema.item))
    }
    labels = test[schema.label].to_numpy().astype(np.float64)
    means = mean_floors(
        whole[schema.label].to_numpy(),
        *(columns[name][0] for name in ("user", "item")),
        *(columns[name][1] for name in ("user", "item")),
    )
    scores = {name: line[None] for name, line in {**means, **(more or {})}.items()}
    other = shuffled(knowledge)
    for name, settings in rankers.items():
        bases: dict[tuple[str, int], Ranker] = {}
        for arm in arms:
            everything = arm in (ALL, BOTH_ALL)
            if everything and earlier is None:
                continue
            parts = ARMS[BOTH] if arm == BOTH_ALL else ARMS.get(arm, ())
            given = None if not parts else other if arm == SHUFFLED else knowledge
            lines: list[npt.NDArray[np.float64]] = []
            missing: list[npt.NDArray[np.float64]] = []
            for seed in seeds:
                inputs = {"inputs": parts} if parts else {}
                chosen = {**settings, **((on_all or {}).get(name, {}) if everything else {})}
                ranker = Ranker(name, schema, given, **inputs, **{**chosen, "seed": seed})
                # An arm's answer without knowledge is its base: it is trained once.
                base = bases.get((ALL if everything else BASE, seed)) if parts else None
                ranker.fit(
                    whole if everything else train,
                    valid=valid,
                    init=base,
                    known=later if arm == BOTH_ALL else None,
                    only_knowledge=base is not None,
                    allow_in_sample=allow_in_sample,
                )
                if not parts:
                    bases[arm, seed] = ranker
                lines.append(ranker.predict(test).astype(np.float64))
                if arm == BOTH:
                    nothing = ranker.predict(test, knowledge=_forgotten(knowledge))
                    missing.append(nothing.astype(np.float64))
                if on_fit is not None:
                    on_fit(f"{name} {arm}", seed, ranker)
            scores[f"{name} {arm}"] = np.stack(lines)
            if missing:
                scores[f"{name} {MISSING}"] = np.stack(missing)
    return Arms(title, labels, test[schema.user].to_numpy(), scores, (*means, *(more or {})))


def table(title: str, found: Comparison) -> str:
    """Values of every contestant, the gain of each arm over its base, and the differences."""
    heads = ["", *METRICS, "AUC over its base"]
    lines = [heads]
    over = {name: row for (name, base), row in found.gains.items() if base.endswith(f" {BASE}")}
    for name, row in found.values.items():
        if name.endswith(f" {BASE}"):
            lines.append([""] * len(heads))
        cells = [f"{row[m].value:.4f}" if m in row else "" for m in METRICS]
        if "AUC" in row:
            cells[0] = str(row["AUC"])
        lines.append([name, *cells, signed(over[name]["AUC"]) if name in over else ""])
    rest = {pair: row for pair, row in found.gains.items() if not pair[1].endswith(f" {BASE}")}
    out = [
        f"{title}: {found.rows:,} rows of {found.users:,} users, {found.rate:.1%} positive, "
        f"{found.seeds} {'seed' if found.seeds == 1 else 'seeds'}",
        *aligned(lines),
    ]
    if rest:
        asked = [["", "AUC"]]
        for (name, base), row in rest.items():
            ranker = next(r for r in rankers_of(found) if base.startswith(f"{r} "))
            asked.append([f"{name} over {base.removeprefix(ranker + ' ')}", signed(row["AUC"])])
        out += ["", *aligned(asked)]
    out.append("Brackets: 95 % intervals, paired bootstrap over users and seeds.")
    shown = [[n, text] for n, text in MEANING.items() if any(c.endswith(f" {n}") for c in over)]
    return "\n".join([*out, *(aligned(shown) if shown else [])])


def rankers_of(found: Comparison) -> list[str]:
    """Names of the rankers that were compared."""
    return [name.removesuffix(f" {BASE}") for name in found.values if name.endswith(f" {BASE}")]
