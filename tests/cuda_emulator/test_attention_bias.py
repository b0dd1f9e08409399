"""The relative bias of both attention ops in the emulator."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st

import pylum
from pylum.ops import RelativeBias
from pylum.ragged import lengths_to_offsets
from tests.cuda_emulator.test_attention import few
from tests.cuda_emulator.test_prefix_attention import pages_of_reference
from tests.ops import test_attention_bias as op
from tests.ops import test_attention_bias_interface as interface
from tests.ops.packed import Case, filled_prefix, split
from tests.ops.test_attention import FULL
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("cuda", "pages_of_reference")

LENGTHS = [5, 1, 64, 65, 33, 100]
MASK = dataclasses.replace(
    FULL,
    num_targets=[2, 1, 10, 40, 33, 20],
    group_offsets=[0, 2, 3, 13, 20, 40, 53, 86, 90, 106],
    visible=[*FULL.visible[:86].tolist(), *[70] * 4, *[79] * 16],
)


# As those of the op, shorter.
CASES = [
    pytest.param([5, 0, 1, 63, 64, 65], 2, 2, 32, 32, None, id="causal"),
    *op.CASES[1:4],
    pytest.param([66], 1, 1, 256, 256, None, id="largest-head"),
    pytest.param(LENGTHS, 2, 1, 24, 40, MASK, id="every-mask"),
    op.CASES[6],
]


@pytest.mark.parametrize("tables", ["both", "position", "time"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), CASES)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, tables):
    op.test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, tables)


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [
        pytest.param(torch.float16, 24, id="float16"),
        pytest.param(torch.bfloat16, 72, id="wide"),
    ],
)
def test_every_mask_and_gradient_equals_reference(dtype, head_dim):
    op.test_equals_reference(LENGTHS, 2, 1, head_dim, 40, MASK, dtype, "both")


randoms = st.randoms(use_true_random=False)
short = op.biased_cases(most_history=70)
test_any_timestamps_equal_reference = op.test_any_timestamps_equal_reference
test_targets_over_pages_equal_reference = op.test_targets_over_pages_equal_reference
test_every_mask_equals_reference = few(op.test_every_mask_equals_reference, short, examples=4)
test_grouped_equals_alone_in_any_order = few(
    op.test_grouped_equals_alone_in_any_order,
    op.biased_cases(most_history=70, visible=False),
    randoms,
    examples=3,
)
test_another_user_of_nan_moves_nothing = few(
    op.test_another_user_of_nan_moves_nothing, short, randoms, examples=2
)
test_packed_equals_alone_and_run_twice = few(
    op.test_packed_equals_alone_and_run_twice, short, examples=3
)
test_an_unseen_row_of_nan_moves_nothing = few(
    op.test_an_unseen_row_of_nan_moves_nothing, short, randoms, examples=3
)
test_history_appended_in_chunks_equals_the_whole = few(
    op.test_history_appended_in_chunks_equals_the_whole, short, st.data(), examples=4
)
test_opcheck = interface.test_opcheck
test_compiles_as_one_graph = interface.test_compiles_as_one_graph
test_errors_name_what_is_wrong = interface.test_errors_name_what_is_wrong
test_needs_a_table = interface.test_needs_a_table


def test_every_bucket_begins_at_its_threshold():
    thresholds = pylum.ops.log_thresholds()
    n = len(thresholds)
    gaps = torch.cat([thresholds + i % 3 - 1 for i in range(n)]).view(n, n).diagonal()
    table = torch.arange(1.0, n + 2)
    bias = RelativeBias(None, table, thresholds, gaps.contiguous(), torch.zeros_like(gaps))
    zeros, v = torch.zeros(n, 1, 1), torch.randn(n, 1, 1)
    options = {"score": "silu", "score_scale": 1.0, "bias": bias}
    out = pylum.ops.attention(zeros, zeros, v, torch.tensor([0, n]), **options)
    exact = pylum.reference.attention(zeros.double(), zeros, v, torch.tensor([0, n]), **options)
    assert_close(out, exact, exact.float())


def run_with_thresholds(thresholds):
    n = 12
    q, k, v = (torch.randn(n, 1, 8, requires_grad=True) for _ in range(3))
    times = torch.arange(n) * 5
    table = torch.randn(len(thresholds) + 1, requires_grad=True)
    bias = RelativeBias(None, table, torch.tensor(thresholds), times, times + 1)
    out = pylum.ops.attention(q, k, v, torch.tensor([0, n]), bias=bias, **op.SILU)
    return out, q, k, v, bias


def test_several_thresholds_in_one_cell():
    out, q, k, v, bias = run_with_thresholds([0, 0, 32, 33, 34, 35, 36, 37, 50])
    exact = pylum.reference.attention(q.double(), k, v, torch.tensor([0, 12]), bias=bias, **op.SILU)
    assert_close(out, exact, exact.float())
    table = op.exactly(bias).time_table
    bias64 = dataclasses.replace(bias)
    object.__setattr__(bias64, "time_table", table)
    exact = pylum.reference.attention(
        q.double(), k, v, torch.tensor([0, 12]), bias=bias64, **op.SILU
    )
    (expected,) = torch.autograd.grad(exact.sum(), table)
    (actual,) = torch.autograd.grad(out.sum(), bias.time_table)
    assert_close(actual, expected, expected.float())


def test_thresholds_that_decrease_are_nan_and_noted(cuda):
    out, *_ = run_with_thresholds([3, 2])
    assert cuda.take_errors() == 32
    assert out.isnan().all()


def test_a_gradient_that_is_not_finite_makes_the_tables_nan():
    out, *_, bias = run_with_thresholds([3, 9])
    dout = torch.ones_like(out)
    dout[5] = torch.inf
    assert torch.autograd.grad(out, bias.time_table, dout, retain_graph=True)[0].isnan().all()
    assert torch.autograd.grad(out.sum(), bias.time_table)[0].isfinite().all()


def test_tables_of_any_magnitude():
    out, *_, bias = run_with_thresholds([3, 9, 40])
    (ones,) = torch.autograd.grad(out.sum(), bias.time_table, retain_graph=True)
    for factor in (2.0**-90, 2.0**90):
        (scaled,) = torch.autograd.grad(out.sum() * factor, bias.time_table, retain_graph=True)
        assert torch.equal(scaled, ones * factor)


def test_times_of_another_number_than_the_keys_are_nan_and_noted(cuda):
    case = Case([70], [0], [[1]], None, None, None, score="silu")
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    times = torch.zeros(70, dtype=torch.int64)
    bias = op.make_bias(times, times[:1])
    _, (q, k, v) = split(case, q, k, v)[0]
    out = pylum.ops.prefix_attention(
        q, k, v, lengths_to_offsets(torch.tensor([1])), prefix, case.mask(), bias=bias, **op.SILU
    )
    assert cuda.take_errors() == 2
    assert out.isnan().all()


__all__ = ["pages_of_reference"]
