"""Relative biases for the tests of the attention ops, and their tables' gradients by PyTorch."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import strategies as st

from pylum.ops import RelativeBias, log_thresholds
from pylum.reference.attention import positions, sequence_mask
from tests.ops.packed import cases

SILU = {"score": "silu", "score_scale": 0.01}


def sorted_times(lengths: list[int], spread: int = 10**6) -> torch.Tensor:
    """Bursts and pauses; several events of one second."""
    return torch.cat(
        [torch.randint(-spread, spread, (n,)).sort()[0] // 7 * 7 for n in lengths]
        + [torch.empty(0, dtype=torch.int64)]
    )


def make_bias(timestamps, query_times, tables="both", length=40) -> RelativeBias:
    position_table = torch.randn(2 * length - 1, requires_grad=True)
    time_table = torch.randn(129, requires_grad=True)
    if tables == "position":
        return RelativeBias(position_table)
    return RelativeBias(
        position_table if tables == "both" else None,
        time_table,
        log_thresholds(),
        timestamps,
        query_times,
    )


def tables_of(bias):
    return [t for t in (bias.position_table, bias.time_table) if t is not None]


def exactly(bias):
    """With float64 tables that have gradients of their own."""
    copies = {
        name: getattr(bias, name).detach().double().requires_grad_()
        for name in ("position_table", "time_table")
        if getattr(bias, name) is not None
    }
    out = dataclasses.replace(bias)
    for name, table in copies.items():
        object.__setattr__(out, name, table)
    return out


def plain_gradients(q, k, v, offsets, mask, bias, dout):
    """Of the tables, by PyTorch in float32."""
    tables = [t.detach().clone().requires_grad_() for t in tables_of(bias)]
    sums = []
    for b, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        part = slice(begin, end)
        targets = 0 if mask is None else int(mask.num_targets[b])
        at = positions(mask, b, end - begin - targets, targets)
        asked = [x[part].detach().float() for x in (q, k, v)]
        repeat = q.shape[1] // k.shape[1]
        asked[1:] = [x.repeat_interleave(repeat, 1) for x in asked[1:]]
        scores = torch.einsum("qhd,khd->hqk", *asked[:2])
        places = iter(tables)
        if bias.position_table is not None:
            n = (len(bias.position_table) + 1) // 2
            scores = scores + next(places)[(at - at[:, None] + n - 1).clamp(0, 2 * n - 2)]
        if bias.time_table is not None:
            gap = (bias.query_times[part, None] - bias.timestamps[part]).abs()
            scores = scores + next(places)[torch.bucketize(gap, bias.thresholds, right=True)]
        sees = sequence_mask(mask, b, end - begin - targets, targets)
        weights = torch.nn.functional.silu(scores).masked_fill(~sees, 0.0) * 0.01
        out = torch.einsum("hqk,khd->qhd", weights, asked[2])
        sums.append((out * dout[part].float()).sum())
    return torch.autograd.grad(torch.stack(sums).sum(), tables)


def biased(draw, case):
    """The case with SiLU, and the times of its rows."""
    case = dataclasses.replace(case, score="silu")
    spread = draw(st.sampled_from([3, 1000, 10**9]))
    times = sorted_times(case.lengths, spread)
    return case, times, times + torch.randint(0, spread, times.shape)


@st.composite
def biased_cases(draw, **options):
    return biased(draw, draw(cases(**options)))
