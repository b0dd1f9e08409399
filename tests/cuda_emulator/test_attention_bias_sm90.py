"""The relative bias on the kernels of sm_90 in the emulator."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask, RelativeBias, log_thresholds
from tests.cuda_emulator.test_attention import few
from tests.cuda_emulator.test_attention_bias import LENGTHS, MASK
from tests.cuda_emulator.test_attention_sm90 import sm90
from tests.cuda_emulator.test_prefix_attention import pages_of_reference
from tests.ops import test_attention_bias as op
from tests.ops.test_attention import make
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("cuda", "pages_of_reference", "sm90")


def half_cases(**options):
    return op.biased_cases(**options).map(
        lambda drawn: (dataclasses.replace(drawn[0], dtype=torch.bfloat16), *drawn[1:])
    )


@pytest.mark.parametrize(
    ("dtype", "tables", "head_dim", "value_dim"),
    [
        pytest.param(torch.bfloat16, "both", 64, 64, id="bfloat16-64"),
        pytest.param(torch.float16, "both", 72, 128, id="float16-128"),
        pytest.param(torch.bfloat16, "position", 8, 13, id="position"),
        pytest.param(torch.float16, "time", 33, 8, id="time"),
    ],
)
def test_every_mask_and_gradient_equals_reference(dtype, tables, head_dim, value_dim):
    op.test_equals_reference(LENGTHS, 2, 1, head_dim, value_dim, MASK, dtype, tables)


def test_tiles_of_two_warpgroups_equal_reference():
    op.test_equals_reference([300, 7], 1, 1, 16, 16, None, torch.bfloat16, "both")


def run(times, query_times, length):
    torch.manual_seed(7)
    q, k, v, offsets = make([length], 1, 1, 16, 16, torch.bfloat16)
    bias = op.make_bias(times, query_times)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = pylum.ops.attention(*leaves, offsets, bias=bias, **op.SILU)
    return leaves, out, bias, offsets


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(lambda n: torch.randint(0, 10**9, (n,)), id="unsorted"),
        pytest.param(lambda n: torch.arange(n) * 2**52, id="aeons"),
        pytest.param(lambda n: torch.arange(n) // 70 * 2**33 + torch.arange(n), id="a-far-block"),
        pytest.param(lambda n: 2**62 - torch.arange(n) * 1000, id="backwards"),
    ],
)
def test_any_timestamps_equal_reference(times):
    (q, k, v), out, bias, offsets = run(times(200), times(200), 200)
    exact = pylum.reference.attention(q.double(), k, v, offsets, bias=bias, **op.SILU)
    assert_close(out, exact, exact.bfloat16())


def test_clocks_far_away_move_no_bit_of_others():
    """The last event's clock takes gaps of its tile and its block to 64 bits."""
    times = torch.arange(200) ** 2 * 997
    near = run(times, times + 5, 200)
    far_times = times.clone()
    far_times[-1] += 2**40
    far = run(far_times, far_times + 5, 200)
    dout = torch.randn(200, 1, 16).bfloat16()
    dout[-1] = 0
    assert torch.equal(near[1][:-1], far[1][:-1])
    assert not torch.equal(near[1][-1], far[1][-1])
    gradients = [
        torch.autograd.grad(out, [*leaves, *op.tables_of(bias)], dout)
        for leaves, out, bias, _ in (near, far)
    ]
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


def test_every_bucket_begins_at_its_threshold():
    """Rows that see themselves alone; neighbouring buckets give 0 and 8."""
    thresholds = log_thresholds()
    gaps = torch.cat([thresholds - 1, thresholds, thresholds + 1, torch.tensor([0, 1])])
    gaps = gaps[gaps < 2**29].sort()[0]
    n = len(gaps)
    table = torch.arange(len(thresholds) + 1) % 2 * 8.0
    bias = RelativeBias(None, table, thresholds, gaps, torch.zeros(n, dtype=torch.int64))
    zeros = torch.zeros(n, 1, 8).bfloat16()
    out = pylum.ops.attention(
        zeros, zeros, zeros + 1, torch.tensor([0, n]), Mask(window=1), bias=bias,
        score="silu", score_scale=1.0,
    )  # fmt: skip
    expected = table[torch.bucketize(gaps, thresholds, right=True)]
    assert torch.equal(out[:, 0, 0] > 4, expected > 4)


@pytest.mark.parametrize("thresholds", [[0, 0, 32, 33, 34, 35, 36, 37, 50], [2**31, 2**32, 2**33]])
def test_thresholds_of_any_place(thresholds):
    """Several in one cell, and beyond the gaps of 32 bits."""
    q, k, v, offsets = make([90], 1, 1, 8, 8, torch.bfloat16)
    times = torch.arange(90) * 5
    table = torch.randn(len(thresholds) + 1)
    bias = RelativeBias(None, table, torch.tensor(thresholds), times, times + 1)
    out = pylum.ops.attention(q, k, v, offsets, bias=bias, **op.SILU)
    exact = pylum.reference.attention(q.double(), k, v, offsets, bias=bias, **op.SILU)
    assert_close(out, exact, exact.bfloat16())


test_packed_equals_alone_and_run_twice = few(
    op.test_packed_equals_alone_and_run_twice, half_cases(most_history=140), examples=3
)
test_an_unseen_row_of_nan_moves_nothing = few(
    op.test_an_unseen_row_of_nan_moves_nothing,
    half_cases(most_history=140),
    st.randoms(use_true_random=False),
    examples=3,
)
test_history_appended_in_chunks_equals_the_whole = few(
    op.test_history_appended_in_chunks_equals_the_whole,
    half_cases(most_history=140),
    st.data(),
    examples=4,
)

__all__ = ["pages_of_reference", "sm90"]
