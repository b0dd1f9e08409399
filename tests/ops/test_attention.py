"""attention against its reference, and the equalities that hold to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask
from pylum.ragged import lengths_to_offsets
from tests.ops.packed import (
    Case,
    cases,
    first_sequence,
    regrouped,
    spoil_a_row,
    spoil_a_sequence,
)
from tests.tolerance import assert_close

FULL = Mask(
    num_context=[2, 0, 3, 5, 0, 1],
    num_targets=[2, 1, 10, 40, 33, 100],
    window=20,
    min_full=7,
    group_offsets=[0, 2, 3, 13, 20, 40, 53, 86, 100, 186],
    visible=[1] * 2 + [0] + [51] * 10 + [3] * 7 + [10] * 20 + [20] * 13 + [0] * 33 + [70] * 14
    + [99] * 86,
)  # fmt: skip
LENGTHS = [5, 1, 64, 65, 33, 200]
CASES = [
    pytest.param([5, 0, 1, 63, 64, 65, 200], 4, 4, 32, 32, None, id="causal"),
    pytest.param([0, 0], 2, 1, 8, 8, None, id="empty-sequences"),
    pytest.param([], 2, 1, 8, 8, None, id="empty-batch"),
    pytest.param([33, 31], 4, 2, 50, 17, None, id="unaligned-grouped-heads"),
    pytest.param([70], 1, 1, 256, 256, None, id="largest-head"),
    pytest.param(LENGTHS, 4, 2, 24, 40, FULL, id="every-mask"),
    pytest.param([90, 3], 2, 1, 16, 16, Mask(num_targets=[70, 3]), id="targets-alone"),
]


def make(lengths, heads, kv_heads, head_dim, value_dim, dtype):
    total = sum(lengths)
    q = torch.randn(total, heads, head_dim, dtype=dtype, requires_grad=True)
    k = torch.randn(total, kv_heads, head_dim, dtype=dtype, requires_grad=True)
    v = torch.randn(total, kv_heads, value_dim, dtype=dtype, requires_grad=True)
    return q, k, v, lengths_to_offsets(torch.tensor(lengths, dtype=torch.int64))


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), CASES)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score):
    q, k, v, offsets = make(lengths, heads, kv_heads, head_dim, value_dim, dtype)
    options = {"score": score, "score_scale": 0.01 if score == "silu" else None}
    out = pylum.ops.attention(q, k, v, offsets, mask, **options)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = pylum.reference.attention(*exact_inputs, offsets, mask, **options)
    plain = pylum.reference.attention(q, k, v, offsets, mask, **options)
    assert out.dtype == dtype
    assert_close(out, exact, plain)
    if out.numel() == 0:
        return
    dout = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    expected = torch.autograd.grad(exact, exact_inputs, dout.double())
    plainly = torch.autograd.grad(plain, (q, k, v), dout)
    for actual, reference, other in zip(gradients, expected, plainly, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, reference, other)


def run(case, q, k, v, sequences=None):
    """Output and gradients of the case, or of some of its sequences packed alone."""
    if sequences is None:
        sequences = list(range(len(case.history)))
    bounds = case.offsets.tolist()
    rows = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in sequences])
    offsets = lengths_to_offsets(torch.tensor([case.lengths[b] for b in sequences]))
    leaves = [x[rows].detach().requires_grad_() for x in (q, k, v)]
    out = pylum.ops.attention(*leaves, offsets, case.mask(sequences), **case.options)
    dout = torch.cos(out.detach().float() * 100).to(out.dtype)
    return rows, [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@settings(deadline=None, max_examples=60)
@given(cases())
def test_packed_equals_alone_and_run_twice(case):
    q, k, v = case.qkv()
    _, packed = run(case, q, k, v)
    for b in range(len(case.history)):
        rows, alone = run(case, q, k, v, [b])
        for whole, part in zip(packed, alone, strict=True):
            assert torch.equal(whole[rows], part)
    _, again = run(case, q, k, v)
    assert all(torch.equal(x, y) for x, y in zip(packed, again, strict=True))


@settings(deadline=None, max_examples=30)
@given(cases(), st.randoms(use_true_random=False))
def test_another_user_of_nan_moves_nothing(case, random):
    q, k, v = case.qkv()
    _, clean = run(case, q, k, v)
    spoilt = spoil_a_sequence(case, random, q, k, v)
    _, dirty = run(case, q, k, v)
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x[~spoilt], y[~spoilt])


@settings(deadline=None, max_examples=60)
@given(cases(visible=False), st.randoms(use_true_random=False))
def test_grouped_equals_alone_in_any_order(case, random):
    case = first_sequence(case)
    q, k, v = case.qkv()
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    for rows, part in regrouped(case, random):
        alone = pylum.ops.attention(
            q[rows], k[rows], v[rows], part.offsets, part.mask(), **case.options
        )
        assert torch.equal(alone, out[rows])


@settings(deadline=None, max_examples=30)
@given(cases())
def test_every_mask_equals_reference(case):
    q, k, v = case.qkv()
    args = (k, v, case.offsets, case.mask())
    out = pylum.ops.attention(q, *args, **case.options)
    plain = pylum.reference.attention(q, *args, **case.options)
    exact = pylum.reference.attention(q.double(), *args, **case.options)
    assert_close(out, exact, plain)


SPREAD = [
    pytest.param([700, 3, 90], [[1] * 50, [2], []], 4, 1, id="one-long-among-short"),
    pytest.param([1000], [[]], 1, 1, id="one-head"),
    pytest.param([300], [[150, 1, 1]], 6, 2, id="more-heads-than-keys"),
    pytest.param([90] * 40, [[1]] * 40, 2, 1, id="many-short"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("history", "groups", "heads", "kv_heads"), SPREAD)
def test_threads_change_nothing(history, groups, heads, kv_heads, dtype):
    context = [3] * len(history)
    case = Case(history, context, groups, None, None, None, heads, kv_heads, dtype=dtype)
    tensors = case.qkv()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            results.append(run(case, *tensors)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@settings(deadline=None, max_examples=30)
@given(cases(), st.randoms(use_true_random=False))
def test_an_unseen_row_of_nan_moves_nothing(case, random):
    q, k, v = case.qkv()
    clean = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    _, see_it, _ = spoil_a_row(case, random, q, k, v)
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    assert torch.equal(out[~see_it], clean[~see_it])
    assert out[see_it].isnan().flatten(1).all()


@settings(deadline=None, max_examples=60)
@given(cases(), st.randoms(use_true_random=False))
def test_an_unseen_row_of_nan_moves_no_gradient(case, random):
    q, k, v = case.qkv()
    _, clean = run(case, q, k, v)
    _, see_it, are_seen = spoil_a_row(case, random, q, k, v)
    _, dirty = run(case, q, k, v)
    # A query's gradient is of its own row, a key's of every row that sees it.
    for x, y, moved in zip(clean, dirty, (see_it, see_it, are_seen, are_seen), strict=True):
        assert torch.equal(x[~moved], y[~moved])
        assert y[moved].isnan().flatten(1).any(1).all()


def test_large_scores_stay_finite():
    q, k, v, offsets = make([40], 1, 1, 8, 8, torch.float32)
    with torch.no_grad():
        out = pylum.ops.attention(q * 1e3, k * 1e3, v, offsets)
        exact = pylum.reference.attention(q.double() * 1e3, k.double() * 1e3, v, offsets)
    assert out.isfinite().all()
    assert (out - exact).abs().max() < 1e-2  # scores of 1e6 carry errors of 1e-1


def test_scale_and_score_scale_rows():
    q, k, v, offsets = make([10, 20], 2, 2, 8, 8, torch.float32)
    factor = torch.rand(30)
    options = {"score": "silu", "scale": 0.3, "score_scale": factor}
    out = pylum.ops.attention(q, k, v, offsets, **options)
    exact = pylum.reference.attention(q.double(), k, v, offsets, **options)
    assert_close(out, exact, exact.float())
