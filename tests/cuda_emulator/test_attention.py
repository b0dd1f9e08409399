"""The CUDA kernels of attention in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask
from tests.ops import test_attention as op
from tests.ops import test_attention_interface as interface
from tests.ops.packed import Case, cases
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), op.CASES
)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score):
    op.test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score)


def few(test, *strategies, examples=6):
    """A test of the op over fewer examples: the emulator runs one thread at a time."""
    inner = test.hypothesis.inner_test
    return settings(deadline=None, max_examples=examples)(given(*strategies)(inner))


randoms = st.randoms(use_true_random=False)
test_every_mask_equals_reference = few(op.test_every_mask_equals_reference, cases(), examples=10)
test_an_unseen_row_of_nan_moves_nothing = few(
    op.test_an_unseen_row_of_nan_moves_nothing, cases(), randoms, examples=10
)
test_an_unseen_row_of_nan_moves_no_gradient = few(
    op.test_an_unseen_row_of_nan_moves_no_gradient, cases(), randoms
)
test_grouped_equals_alone_in_any_order = few(
    op.test_grouped_equals_alone_in_any_order, cases(most_history=80, visible=False), randoms
)
test_large_scores_stay_finite = op.test_large_scores_stay_finite
test_scale_and_score_scale_rows = op.test_scale_and_score_scale_rows
test_packed_equals_alone_and_run_twice = few(
    op.test_packed_equals_alone_and_run_twice, cases(), examples=4
)
test_another_user_of_nan_moves_nothing = few(
    op.test_another_user_of_nan_moves_nothing, cases(), randoms, examples=4
)
test_double_backward_is_an_error = interface.test_double_backward_is_an_error
test_opcheck = interface.test_opcheck
test_autocast_gives_q_k_v_one_dtype = interface.test_autocast_gives_q_k_v_one_dtype
test_compiles_as_one_graph_and_exports = interface.test_compiles_as_one_graph_and_exports
test_errors_name_what_is_wrong = interface.test_errors_name_what_is_wrong
test_mask_checks_its_fields = interface.test_mask_checks_its_fields
test_meta_tensors_give_shapes_and_other_arrays_an_error = (
    interface.test_meta_tensors_give_shapes_and_other_arrays_an_error
)


LONG = Case([530, 3, 70], [0, 1, 2], [[1] * 66, [2], []], None, None, None, heads=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_across_chunks_and_blocks_in_any_order(dtype, cuda):
    case = Case(**{**vars(LONG), "dtype": dtype})
    q, k, v = case.qkv()
    _, results = op.run(case, q, k, v)
    exact = pylum.reference.attention(q.double(), k, v, case.offsets, case.mask(), **case.options)
    assert_close(results[0], exact, exact.to(dtype))
    _, alone = op.run(case, q, k, v, [2])
    rows = torch.arange(case.offsets[2], case.offsets[3])
    assert all(torch.equal(x[rows], y) for x, y in zip(results, alone, strict=True))
    if hasattr(cuda, "module"):
        cuda.module.set_backwards(True)
        try:
            _, again = op.run(case, q, k, v)
        finally:
            cuda.module.set_backwards(False)
        assert all(torch.equal(x, y) for x, y in zip(results, again, strict=True))


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [72, 200])
def test_an_infinite_gradient_of_one_row_moves_what_it_saw(dim, dtype, score):
    case = Case(
        [70, 9], [0, 2], [[2, 1], []], None, 20, None, 2, 1, dim, dim, score=score, dtype=dtype
    )
    leaves = [x.contiguous().requires_grad_() for x in case.qkv()]
    out = pylum.ops.attention(*leaves, case.offsets, case.mask(), **case.options)
    dout = torch.randn_like(out)
    clean = torch.autograd.grad(out, leaves, dout, retain_graph=True)
    row, column = 40, dim - 3
    dout[row, 1, column] = torch.inf
    dq, dk, dv = torch.autograd.grad(out, leaves, dout)
    own = torch.arange(len(dq)) == row
    seen = (torch.arange(len(dq)) > row - 20) & (torch.arange(len(dq)) <= row)
    assert torch.equal(dq[~own], clean[0][~own]) and torch.equal(dq[own, 0], clean[0][own, 0])
    assert not dq[own, 1].isfinite().any()
    assert torch.equal(dk[~seen], clean[1][~seen]) and not dk[seen].isfinite().any()
    assert dv[seen, 0, column].isinf().all()
    dv[seen, 0, column] = clean[2][seen, 0, column]
    assert torch.equal(dv, clean[2])


def test_rows_of_any_alignment():
    fused = torch.randn(40, 3 * 24 + 1).bfloat16()
    q, k, v = fused[:, 1:].unflatten(1, (3, 24)).split(1, 1)
    offsets = torch.tensor([0, 40])
    out = pylum.ops.attention(q, k, v, offsets)
    assert torch.equal(out, pylum.ops.attention(*(x.clone() for x in (q, k, v)), offsets))


@pytest.mark.parametrize(
    ("offsets", "mask", "bits"),
    [
        pytest.param([0, 5, 4, 6], None, 2, id="decreasing"),
        pytest.param([0, 4, 5], None, 2, id="short"),
        pytest.param([1, 6], None, 2, id="late"),
        pytest.param([0, 4, 6], Mask(num_targets=[5, 0]), 2, id="targets"),
        pytest.param([0, 4, 6], Mask(num_context=[0, 3]), 2, id="context"),
        pytest.param([0, 4, 6], Mask(num_targets=[2, 0], visible=[1, 3]), 16, id="visible"),
        pytest.param(
            [0, 4, 6], Mask(num_targets=[1, 1], group_offsets=[0, 2]), 16, id="group-spans-two"
        ),
    ],
)
def test_what_contradicts_itself_is_nan_and_noted(offsets, mask, bits, cuda):
    q = torch.randn(6, 2, 8)
    out = pylum.ops.attention(q, q, q, torch.tensor(offsets), mask)
    assert cuda.take_errors() == bits
    bad = out.isnan().all(2).all(1)
    assert bad.all() if bits == 2 else bad.sum() == 1
