"""The relative bias of both attention ops: the reference, and what holds to the bit."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask, RelativeBias, log_thresholds
from pylum.ragged import lengths_to_offsets
from tests.ops.biased import (
    SILU,
    biased_cases,
    exactly,
    make_bias,
    sorted_times,
    tables_of,
)
from tests.ops.packed import (
    Case,
    empty_prefix,
    filled_prefix,
    first_sequence,
    regrouped,
    split,
    spoil_a_row,
    spoil_a_sequence,
)
from tests.ops.test_attention import CASES, make
from tests.tolerance import assert_close

TABLES = {"positions": torch.randn(79), "times": torch.randn(129)}


@pytest.mark.parametrize("tables", ["both", "position", "time"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), CASES)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, tables):
    q, k, v, offsets = make(lengths, heads, kv_heads, head_dim, value_dim, dtype)
    times = sorted_times(lengths)
    bias = make_bias(times, times + torch.randint(0, 10**5, times.shape), tables)
    out = pylum.ops.attention(q, k, v, offsets, mask, bias=bias, **SILU)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact_bias = exactly(bias)
    exact = pylum.reference.attention(*exact_inputs, offsets, mask, bias=exact_bias, **SILU)
    plain = pylum.reference.attention(q, k, v, offsets, mask, bias=bias, **SILU)
    assert_close(out, exact, plain)
    if out.numel() == 0:
        return
    dout = torch.randn_like(out)
    leaves = (q, k, v, *tables_of(bias))
    gradients = torch.autograd.grad(out, leaves, dout)
    expected = torch.autograd.grad(exact, (*exact_inputs, *tables_of(exact_bias)), dout.double())
    plainly = torch.autograd.grad(plain, leaves, dout)
    for leaf, actual, reference, other in zip(leaves, gradients, expected, plainly, strict=True):
        assert actual.dtype == leaf.dtype and actual.shape == leaf.shape
        assert_close(actual, reference, other)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(lambda n: torch.randint(0, 10**9, (n,)), id="unsorted"),
        pytest.param(lambda n: torch.full((n,), 7), id="one-second"),
        pytest.param(lambda n: torch.arange(n) * 2**52, id="aeons"),
        pytest.param(lambda n: torch.arange(n).flip(0) * 1000, id="backwards"),
    ],
)
def test_any_timestamps_equal_reference(times):
    q, k, v, offsets = make([150, 70], 2, 2, 8, 8, torch.float32)
    bias = make_bias(times(220), times(220))
    out = pylum.ops.attention(q, k, v, offsets, bias=bias, **SILU)
    exact = pylum.reference.attention(q.double(), k, v, offsets, bias=bias, **SILU)
    assert_close(out, exact, exact.float())


def test_every_bucket_begins_at_its_threshold():
    thresholds = log_thresholds()
    gaps = torch.cat([thresholds - 1, thresholds, thresholds + 1, torch.tensor([0, 2**62])])
    table = torch.arange(1.0, 130.0)
    n = len(gaps)
    zeros = torch.zeros(n, 1, 1)
    bias = RelativeBias(None, table, thresholds, gaps, torch.zeros(n, dtype=torch.int64))
    out = pylum.ops.attention(
        zeros, zeros, zeros + 1, torch.arange(n + 1), bias=bias, score="silu", score_scale=1.0
    )
    expected = table[torch.bucketize(gaps, thresholds, right=True)]
    assert torch.allclose(out.flatten(), torch.nn.functional.silu(expected), rtol=1e-6)
    assert thresholds[0] == 2 and len(thresholds) == 128
    few = gaps[gaps < 10**9].clamp_min(1)
    floor = (few.double().log() / 0.301).floor().long()
    assert torch.equal(torch.bucketize(few, thresholds, right=True), floor)


def run(case, times, query_times, q, k, v, sequences=None):
    """Output and gradients of the case, or of some of its sequences packed alone."""
    if sequences is None:
        sequences = list(range(len(case.history)))
    bounds = case.offsets.tolist()
    rows = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in sequences])
    offsets = lengths_to_offsets(torch.tensor([case.lengths[b] for b in sequences]))
    bias = RelativeBias(
        TABLES["positions"], TABLES["times"], log_thresholds(), times[rows], query_times[rows]
    )
    leaves = [x[rows].detach().requires_grad_() for x in (q, k, v)]
    tables = [t.clone().requires_grad_() for t in tables_of(bias)]
    bias = dataclasses.replace(bias, position_table=tables[0], time_table=tables[1])
    out = pylum.ops.attention(*leaves, offsets, case.mask(sequences), bias=bias, **case.options)
    dout = torch.cos(out.detach().float() * 100).to(out.dtype)
    dq, dk, dv, *dtables = torch.autograd.grad(out, [*leaves, *tables], dout)
    return rows, [out.detach(), dq, dk, dv], dtables


@settings(deadline=None, max_examples=40)
@given(biased_cases())
def test_packed_equals_alone_and_run_twice(drawn):
    case, times, query_times = drawn
    tensors = case.qkv()
    _, packed, dtables = run(case, times, query_times, *tensors)
    totals = [torch.zeros_like(d, dtype=torch.float64) for d in dtables]
    for b in range(len(case.history)):
        rows, alone, parts = run(case, times, query_times, *tensors, sequences=[b])
        for whole, part in zip(packed, alone, strict=True):
            assert torch.equal(whole[rows], part)
        for total, part in zip(totals, parts, strict=True):
            total += part
    for total, d in zip(totals, dtables, strict=True):
        assert_close(d, total, total.float())
    _, again, dagain = run(case, times, query_times, *tensors)
    for x, y in zip([*packed, *dtables], [*again, *dagain], strict=True):
        assert torch.equal(x, y)


@settings(deadline=None, max_examples=20)
@given(biased_cases(), st.randoms(use_true_random=False))
def test_another_user_of_nan_moves_nothing(drawn, random):
    case, times, query_times = drawn
    q, k, v = case.qkv()
    _, clean, _ = run(case, times, query_times, q, k, v)
    spoilt = spoil_a_sequence(case, random, q, k, v)
    times[spoilt] = 2**60
    _, dirty, _ = run(case, times, query_times, q, k, v)
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x[~spoilt], y[~spoilt])


@settings(deadline=None, max_examples=20)
@given(biased_cases(), st.randoms(use_true_random=False))
def test_an_unseen_row_of_nan_moves_nothing(drawn, random):
    case, times, query_times = drawn
    q, k, v = case.qkv()
    bias = make_bias(times, query_times)
    clean = pylum.ops.attention(q, k, v, case.offsets, case.mask(), bias=bias, **case.options)
    row, see_it, _ = spoil_a_row(case, random, q, k, v)
    times[row] += 12345
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), bias=bias, **case.options)
    assert torch.equal(out[~see_it], clean[~see_it])
    assert out[see_it].isnan().flatten(1).all()


@settings(deadline=None, max_examples=30)
@given(biased_cases(visible=False), st.randoms(use_true_random=False))
def test_grouped_equals_alone_in_any_order(drawn, random):
    case, times, query_times = drawn
    case = first_sequence(case)
    q, k, v = case.qkv()
    times, query_times = times[: len(q)], query_times[: len(q)]
    if len(times) < len(q):
        times = query_times = torch.zeros(len(q), dtype=torch.int64)
    bias = make_bias(times, query_times)
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), bias=bias, **case.options)
    for rows, part in regrouped(case, random):
        theirs = dataclasses.replace(bias, timestamps=times[rows], query_times=query_times[rows])
        alone = pylum.ops.attention(
            q[rows], k[rows], v[rows], part.offsets, part.mask(), bias=theirs, **case.options
        )
        assert torch.equal(alone, out[rows])


@settings(deadline=None, max_examples=30)
@given(biased_cases())
def test_every_mask_equals_reference(drawn):
    case, times, query_times = drawn
    q, k, v = case.qkv()
    bias = make_bias(times, query_times)
    args = (k, v, case.offsets, case.mask())
    out = pylum.ops.attention(q, *args, bias=bias, **case.options)
    plain = pylum.reference.attention(q, *args, bias=bias, **case.options)
    exact = pylum.reference.attention(q.double(), *args, bias=bias, **case.options)
    assert_close(out, exact, plain)


@settings(deadline=None, max_examples=40)
@given(biased_cases(), st.data())
def test_history_appended_in_chunks_equals_the_whole(drawn, data):
    case, times, query_times = drawn
    q, k, v = case.qkv()
    case = dataclasses.replace(case, min_full=None)  # depends on the length a history has reached
    bias = make_bias(times, query_times)
    whole = pylum.ops.attention(q, k, v, case.offsets, case.mask(), bias=bias, **case.options)
    prefix = empty_prefix(case, k, v)
    parts = split(case, q, k, v, whole, times, query_times)
    # Context tokens see each other, so they come all at once.
    cuts = [data.draw(st.integers(c, h)) for c, h in zip(case.context, case.history, strict=True)]
    lengths = torch.zeros(len(case.history), dtype=torch.int64)
    for last in (False, True):
        starts, lengths = lengths, torch.tensor(case.history if last else cuts)
        new = [
            [x[int(starts[b]) : int(lengths[b])] for x in history]
            for b, (history, _) in enumerate(parts)
        ]
        pylum.ops.append_pages(
            prefix,
            torch.cat([rows[1] for rows in new]),
            torch.cat([rows[2] for rows in new]),
            lengths_to_offsets(lengths - starts),
            starts=starts,
        )
        prefix = dataclasses.replace(prefix, lengths=lengths)
        targets = [part if last else [x[:0] for x in part] for _, part in parts]
        keys = [
            torch.cat([history[4][: int(lengths[b])], targets[b][4]])
            for b, (history, _) in enumerate(parts)
        ]
        rows = [
            [torch.cat([a[i], t[i]]) for i in (0, 3, 5)] for a, t in zip(new, targets, strict=True)
        ]
        out = pylum.ops.prefix_attention(
            torch.cat([r[0] for r in rows]),
            torch.cat([t[1] for t in targets]),
            torch.cat([t[2] for t in targets]),
            lengths_to_offsets(torch.tensor([len(r[0]) for r in rows])),
            prefix,
            case.mask() if last else Mask(num_context=case.context, window=case.window),
            bias=dataclasses.replace(
                bias, timestamps=torch.cat(keys), query_times=torch.cat([r[2] for r in rows])
            ),
            **case.options,
        )
        assert torch.equal(out, torch.cat([r[1] for r in rows]))


def test_targets_over_pages_equal_reference():
    case = Case([1100, 3], [0, 0], [[1] * 40, [1]], None, None, None, score="silu")
    q, k, v = case.qkv()
    times = sorted_times(case.lengths)
    prefix = filled_prefix(case, k, v)
    parts = [part for _, part in split(case, q, k, v, times)]
    q, k, v, asked = (torch.cat([part[i] for part in parts]) for i in range(4))
    bias = make_bias(times, asked + 50, length=2000)
    offsets = lengths_to_offsets(torch.tensor(case.targets))
    args = (q, k, v, offsets, prefix, case.mask())
    out = pylum.ops.prefix_attention(*args, bias=bias, **case.options)
    exact = pylum.reference.prefix_attention(q.double(), *args[1:], bias=bias, **case.options)
    assert_close(out, exact, exact.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copies", [30, 1], ids=["many-sequences", "few-sequences"])
def test_threads_change_nothing(copies, dtype):
    history, groups = [700, 3, 90] * copies, [[1] * 5, [2], []] * copies
    case = Case(history, [0, 1, 2] * copies, groups, None, None, None)
    case = dataclasses.replace(case, score="silu", kv_heads=2, dtype=dtype)
    times = sorted_times(case.lengths)
    tensors = case.qkv()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            _, outs, dtables = run(case, times, times + 5, *tensors)
            results.append([*outs, *dtables])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
