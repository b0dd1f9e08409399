"""The CUDA kernels of attention in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask
from tests.ops import test_attention as op
from tests.ops.packed import Case, cases
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), op.CASES
)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score):
    q, k, v, offsets = op.make(lengths, heads, kv_heads, head_dim, value_dim, dtype)
    options = {"score": score, "score_scale": 0.01 if score == "silu" else None}
    with torch.no_grad():
        out = pylum.ops.attention(q, k, v, offsets, mask, **options)
        exact = pylum.reference.attention(q.double(), k, v, offsets, mask, **options)
    assert out.dtype == dtype
    assert_close(out, exact, exact.to(dtype))


def few(test, *strategies, examples=6):
    """A test of the op over fewer examples: the emulator runs one thread at a time."""
    inner = test.hypothesis.inner_test
    return settings(deadline=None, max_examples=examples)(given(*strategies)(inner))


randoms = st.randoms(use_true_random=False)
test_every_mask_equals_reference = few(op.test_every_mask_equals_reference, cases(), examples=10)
test_an_unseen_row_of_nan_moves_nothing = few(
    op.test_an_unseen_row_of_nan_moves_nothing, cases(), randoms, examples=10
)
test_grouped_equals_alone_in_any_order = few(
    op.test_grouped_equals_alone_in_any_order, cases(most_history=80, visible=False), randoms
)
test_large_scores_stay_finite = op.test_large_scores_stay_finite
test_scale_and_score_scale_rows = op.test_scale_and_score_scale_rows
test_autocast_gives_q_k_v_one_dtype = op.test_autocast_gives_q_k_v_one_dtype


LONG = Case([600, 3, 90], [0, 1, 2], [[1] * 70, [2], []], None, None, None, heads=2)


def forward(case, q, k, v, sequences=None):
    rows, offsets = part(case, sequences)
    with torch.no_grad():
        return rows, pylum.ops.attention(
            q[rows], k[rows], v[rows], offsets, case.mask(sequences), **case.options
        )


def part(case, sequences):
    sequences = range(len(case.history)) if sequences is None else sequences
    bounds = case.offsets.tolist()
    rows = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in sequences])
    lengths = torch.tensor([0] + [case.lengths[b] for b in sequences])
    return rows, lengths.cumsum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_across_chunks_and_packed_equals_alone(dtype, cuda):
    case = Case(**{**vars(LONG), "dtype": dtype})
    q, k, v = case.qkv()
    _, whole = forward(case, q, k, v)
    exact = pylum.reference.attention(q.double(), k, v, case.offsets, case.mask(), **case.options)
    assert_close(whole, exact, exact.to(dtype))
    for b in range(3):
        rows, alone = forward(case, q, k, v, [b])
        assert torch.equal(alone, whole[rows])
    if hasattr(cuda, "module"):
        cuda.module.set_backwards(True)
        try:
            assert torch.equal(forward(case, q, k, v)[1], whole)
        finally:
            cuda.module.set_backwards(False)


def test_another_user_of_nan_moves_nothing():
    case = Case([70, 66], [0, 3], [[1, 2], [3]], None, 50, None, dtype=torch.bfloat16)
    q, k, v = case.qkv()
    _, clean = forward(case, q, k, v)
    for x in (q, k, v):
        x[73:] = torch.nan
    _, dirty = forward(case, q, k, v)
    assert torch.equal(clean[:73], dirty[:73])
    assert dirty[73:].isnan().all()


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


def test_gradient_and_bias_are_clear_errors():
    q = torch.randn(6, 2, 8, requires_grad=True)
    offsets = torch.tensor([0, 6])
    with pytest.raises(NotImplementedError, match="the gradient of attention has no CUDA kernel"):
        pylum.ops.attention(q, q, q, offsets).sum().backward()
    bias = pylum.ops.RelativeBias(position_table=torch.zeros(11))
    with pytest.raises(NotImplementedError, match="bias has no CUDA kernel"):
        pylum.ops.attention(q, q, q, offsets, score="silu", score_scale=1.0, bias=bias)
