"""Relative biases for the tests of the attention ops."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import strategies as st

from pylum.ops import RelativeBias, log_thresholds
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


def biased(draw, case):
    """The case with SiLU, and the times of its rows."""
    case = dataclasses.replace(case, score="silu")
    spread = draw(st.sampled_from([3, 1000, 10**9]))
    times = sorted_times(case.lengths, spread)
    return case, times, times + torch.randint(0, spread, times.shape)


@st.composite
def biased_cases(draw, **options):
    return biased(draw, draw(cases(**options)))
