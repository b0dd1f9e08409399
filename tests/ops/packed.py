"""Packed batches, masks and paged prefixes for the tests of the attention ops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import torch
from hypothesis import assume
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets
from pylum.reference.attention import sequence_mask


@dataclass
class Case:
    """Sequences of ``history[b] + targets[b]`` tokens; the mask is cut from these lists."""

    history: list[int]
    context: list[int]
    groups: list[list[int]]  # sizes of each sequence's groups of targets
    visible: list[list[int]] | None  # of each group
    window: int | None
    min_full: int | None
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    value_dim: int = 16
    score: str = "softmax"
    dtype: torch.dtype = torch.float32

    @property
    def targets(self) -> list[int]:
        return [sum(groups) for groups in self.groups]

    @property
    def lengths(self) -> list[int]:
        return [h + t for h, t in zip(self.history, self.targets, strict=True)]

    @property
    def offsets(self) -> torch.Tensor:
        return lengths_to_offsets(torch.tensor(self.lengths, dtype=torch.int64))

    @property
    def options(self) -> dict:
        return {"score": self.score, "score_scale": 0.01 if self.score == "silu" else None}

    def mask(self, sequences: list[int] | None = None) -> Mask:
        if sequences is None:
            sequences = list(range(len(self.history)))
        sizes = [size for b in sequences for size in self.groups[b]]
        visible = None
        if self.visible is not None:
            visible = [
                seen
                for b in sequences
                for size, seen in zip(self.groups[b], self.visible[b], strict=True)
                for _ in range(size)
            ]
        return Mask(
            num_context=[self.context[b] for b in sequences],
            num_targets=[self.targets[b] for b in sequences],
            group_offsets=lengths_to_offsets(torch.tensor(sizes, dtype=torch.int64)),
            visible=visible,
            window=self.window,
            min_full=self.min_full,
        )

    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of one fused projection."""
        widths = [
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
            self.kv_heads * self.value_dim,
        ]
        fused = torch.randn(sum(self.lengths), sum(widths)).to(self.dtype)
        q, k, v = fused.split(widths, dim=1)
        return (
            q.unflatten(1, (self.heads, self.head_dim)),
            k.unflatten(1, (self.kv_heads, self.head_dim)),
            v.unflatten(1, (self.kv_heads, self.value_dim)),
        )


@st.composite
def cases(draw, most_history: int = 150, visible: bool = True) -> Case:
    batch = draw(st.integers(1, 4))
    edges = st.sampled_from([0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129])
    history = [draw(edges | st.integers(0, most_history)) for _ in range(batch)]
    context = [draw(st.integers(0, min(h, 5))) for h in history]
    groups = [draw(st.lists(st.integers(1, 4), max_size=6)) for _ in range(batch)]
    seen = None
    if visible and draw(st.booleans()):
        seen = [
            sorted(draw(st.integers(0, h - c)) for _ in g)
            for h, c, g in zip(history, context, groups, strict=True)
        ]
    window = draw(st.none() | st.integers(1, 100))
    min_full = draw(st.none() | st.integers(1, 40)) if window else None
    kv_heads = draw(st.sampled_from([1, 2]))
    return Case(
        history,
        context,
        groups,
        seen,
        window,
        min_full,
        heads=kv_heads * draw(st.sampled_from([1, 2])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([1, 8, 13, 16, 50])),
        value_dim=draw(st.sampled_from([1, 12, 16, 33])),
        score=draw(st.sampled_from(["softmax", "silu"])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )


def split(case: Case, *tensors: torch.Tensor) -> list[tuple[list[torch.Tensor], list]]:
    """Each tensor's rows by sequence: (history, targets) of every sequence."""
    bounds = case.offsets.tolist()
    return [
        (
            [x[bounds[b] : bounds[b] + h] for x in tensors],
            [x[bounds[b] + h : bounds[b + 1]] for x in tensors],
        )
        for b, h in enumerate(case.history)
    ]


def empty_prefix(case: Case, k: torch.Tensor, v: torch.Tensor) -> PagedPrefix:
    """NaN-filled pages for all of the case's history, shuffled, and lengths of 0."""
    pages = [(h + 63) // 64 for h in case.history]
    width = max([*pages, 1])
    order = torch.randperm(sum(pages) + 2)
    table = torch.full((len(pages), width), -7, dtype=torch.int64)
    used = 0
    for b, count in enumerate(pages):
        table[b, :count] = order[used : used + count]
        used += count
    k_pages, v_pages = pylum.ops.pages_like(k, v, len(order))
    k_pages.fill_(torch.nan)
    v_pages.fill_(torch.nan)
    return PagedPrefix(k_pages, v_pages, table, torch.zeros(len(pages), dtype=torch.int64))


def filled_prefix(case: Case, k: torch.Tensor, v: torch.Tensor) -> PagedPrefix:
    """The case's history in pages."""
    prefix = empty_prefix(case, k, v)
    parts = split(case, k, v)
    lengths = torch.tensor(case.history, dtype=torch.int64)
    pylum.ops.append_pages(
        prefix,
        torch.cat([history[0] for history, _ in parts]),
        torch.cat([history[1] for history, _ in parts]),
        lengths_to_offsets(lengths),
        starts=torch.zeros_like(lengths),
    )
    return PagedPrefix(prefix.k, prefix.v, prefix.table, lengths)


def first_sequence(case: Case) -> Case:
    """It alone, with a target at least."""
    return replace(
        case, history=case.history[:1], context=case.context[:1], groups=[case.groups[0] or [1]]
    )


def regrouped(case: Case, random: Random) -> Iterator[tuple[list[int], Case]]:
    """Every group of the only sequence's targets alone, and all in some order: rows, their case."""
    history, sizes = case.history[0], case.groups[0]
    starts = [history + sum(sizes[:g]) for g in range(len(sizes))]
    for order in [*([g] for g in range(len(sizes))), random.sample(range(len(sizes)), len(sizes))]:
        rows = list(range(history))
        for g in order:
            rows += range(starts[g], starts[g] + sizes[g])
        yield rows, replace(case, groups=[[sizes[g] for g in order]])


def spoil_a_sequence(case: Case, random: Random, *tensors: torch.Tensor) -> torch.Tensor:
    """Fills some sequence's rows of the tensors with NaN; ``[total]``, true in them."""
    victim = random.randrange(len(case.history))
    spoilt = torch.zeros(sum(case.lengths), dtype=torch.bool)
    spoilt[case.offsets[victim] : case.offsets[victim + 1]] = True
    for x in tensors:
        x[spoilt] = torch.nan
    return spoilt


def spoil_a_row(
    case: Case, random: Random, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Some row of NaN and infinity: the row; ``[total]``, true in rows that see it, or are it;
    and true in rows that one of those sees."""
    filled = [b for b, length in enumerate(case.lengths) if length]
    assume(filled)
    b = random.choice(filled)
    place = random.randrange(case.lengths[b])
    first = int(case.offsets[b])
    q[first + place] = torch.nan
    k[first + place] = torch.nan
    v[first + place] = torch.inf
    sees = sequence_mask(case.mask(), b, case.history[b], case.targets[b])
    see_it = sees[:, place].clone()
    see_it[place] = True
    result = torch.zeros(2, len(q), dtype=torch.bool)
    result[0, first : first + case.lengths[b]] = see_it
    result[1, first : first + case.lengths[b]] = sees[see_it].any(0)
    return first + place, result[0], result[1]
