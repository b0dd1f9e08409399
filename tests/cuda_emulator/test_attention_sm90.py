"""The kernels of sm_90 in the emulator: they must keep every promise of the others."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st

import pylum
from tests.cuda_emulator.test_attention import few
from tests.cuda_emulator.test_prefix_attention import pages_of_reference
from tests.ops import test_attention as op
from tests.ops import test_prefix_attention as prefix_op
from tests.ops.packed import Case, cases, filled_prefix, split

pytestmark = pytest.mark.usefixtures("cuda", "pages_of_reference", "sm90")


@pytest.fixture(scope="module")
def sm90(cuda):
    if not hasattr(cuda, "module"):
        yield
        return
    before = cuda.module.copied_tiles()
    cuda.module.set_sm90(True)
    yield
    cuda.module.set_sm90(False)
    assert cuda.module.copied_tiles() > before


half_cases = st.builds(
    lambda case, dtype: dataclasses.replace(case, dtype=dtype), cases(), st.just(torch.bfloat16)
)
randoms = st.randoms(use_true_random=False)
MASK = dataclasses.replace(
    op.FULL,
    num_targets=[2, 1, 10, 40, 33, 20],
    group_offsets=[0, 2, 3, 13, 20, 40, 53, 86, 90, 106],
    visible=[*op.FULL.visible[:86].tolist(), *[70] * 4, *[79] * 16],
)
LENGTHS = [5, 1, 64, 65, 33, 300]


@pytest.mark.parametrize(
    ("dtype", "score", "head_dim", "value_dim"),
    [
        pytest.param(torch.bfloat16, "softmax", 64, 64, id="bfloat16-64"),
        pytest.param(torch.float16, "silu", 24, 40, id="float16-narrow"),
        pytest.param(torch.float16, "softmax", 128, 72, id="float16-128"),
        pytest.param(torch.bfloat16, "silu", 33, 128, id="bfloat16-unaligned"),
    ],
)
def test_every_mask_equals_reference(dtype, score, head_dim, value_dim):
    q, k, v, offsets = op.make(LENGTHS, 2, 1, head_dim, value_dim, dtype)
    options = {"score": score, "score_scale": 0.01 if score == "silu" else None}
    with torch.no_grad():
        for mask in (None, MASK):
            out = pylum.ops.attention(q, k, v, offsets, mask, **options)
            exact = pylum.reference.attention(q.double(), k, v, offsets, mask, **options)
            op.assert_close(out, exact, exact.to(dtype))


@pytest.mark.parametrize(("dtype", "score"), [(torch.bfloat16, "softmax"), (torch.float16, "silu")])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"),
    [case for case in op.CASES if case.id != "largest-head"],
)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score):
    op.test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score)


@pytest.mark.parametrize(
    ("dtype", "score", "heads", "head_dim", "value_dim", "mask"),
    [
        pytest.param(torch.bfloat16, "softmax", 4, 64, 64, MASK, id="bfloat16-64"),
        pytest.param(torch.float16, "silu", 1, 128, 128, None, id="float16-silu-128"),
        pytest.param(torch.bfloat16, "silu", 2, 33, 128, MASK, id="bfloat16-silu-unaligned"),
        pytest.param(torch.float16, "softmax", 2, 128, 72, MASK, id="float16-128"),
    ],
)
def test_gradients_equal_reference(dtype, score, heads, head_dim, value_dim, mask):
    op.test_equals_reference(LENGTHS, heads, 1, head_dim, value_dim, mask, dtype, score)


def test_gradients_of_a_group_that_sees_little():
    """As the forward pass of spared rows: a warpgroup skips what the other one meets."""
    mask = pylum.ops.Mask(window=20, min_full=40, num_context=[70])
    op.test_equals_reference([768], 1, 1, 16, 16, mask, torch.bfloat16, "softmax")


test_packed_equals_alone_and_run_twice = few(
    op.test_packed_equals_alone_and_run_twice, half_cases, examples=3
)
test_another_user_of_nan_moves_nothing = few(
    op.test_another_user_of_nan_moves_nothing, half_cases, randoms, examples=3
)
test_an_unseen_row_of_nan_moves_nothing = few(
    op.test_an_unseen_row_of_nan_moves_nothing, half_cases, randoms, examples=5
)
test_an_unseen_row_of_nan_moves_no_gradient = few(
    op.test_an_unseen_row_of_nan_moves_no_gradient, half_cases, randoms, examples=5
)
test_history_appended_in_chunks_equals_the_whole = few(
    prefix_op.test_history_appended_in_chunks_equals_the_whole, half_cases, st.data(), examples=5
)


def test_rows_of_any_alignment():
    """The copy engine takes the one, threads copy the other; either's gradient is the same."""
    fused = torch.randn(200, 3 * 24 + 1).bfloat16()
    q, k, v = fused[:, 1:].unflatten(1, (3, 24)).split(1, 1)
    dout = torch.randn(200, 25).bfloat16()[:, None, 1:]
    offsets = torch.tensor([0, 200])

    def run(*parts):
        leaves = [x.detach().requires_grad_() for x in parts[:3]]
        out = pylum.ops.attention(*leaves, offsets)
        return [out.detach(), *torch.autograd.grad(out, leaves, parts[3])]

    for narrow, wide in zip(
        run(q, k, v, dout), run(*(x.clone() for x in (q, k, v, dout))), strict=True
    ):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize("score", ["softmax", "silu"])
def test_either_order_of_threads_gives_the_same_bits(score, both_orders):
    case = Case([200, 3], [5, 0], [[1] * 9, [2]], None, None, None, score=score)
    case = dataclasses.replace(case, dtype=torch.bfloat16)
    q, k, v = case.qkv()
    both_orders(lambda: op.run(case, q, k, v)[1])


@pytest.mark.parametrize(
    ("length", "context"), [pytest.param(700, 0, id="first"), pytest.param(768, 70, id="between")]
)
def test_a_group_that_sees_little_does_not_run_ahead(length, context):
    """Spared rows see the whole history, those before them 20 tokens and the context: one group
    skips blocks, before all others or after the first."""
    q, k, v, offsets = op.make([length], 1, 1, 16, 16, torch.bfloat16)
    mask = pylum.ops.Mask(window=20, min_full=40, num_context=[context])
    with torch.no_grad():
        out = pylum.ops.attention(q, k, v, offsets, mask)
        exact = pylum.reference.attention(q.double(), k, v, offsets, mask)
    op.assert_close(out, exact, exact.bfloat16())


def test_a_page_outside_the_pool_is_nan_and_noted(cuda):
    case = Case([70, 65], [0, 0], [[], []], None, None, None, dtype=torch.bfloat16)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    prefix.table[1, 1] = 99
    parts = [history for history, _ in split(case, q)]
    rows = torch.cat([part[0][-2:] for part in parts])
    out = pylum.ops.prefix_attention(
        rows, k[:0], v[:0], torch.tensor([0, 2, 4]), prefix, case.mask(), **case.options
    )
    assert cuda.take_errors() == 8
    assert out[:3].isfinite().all()
    assert out[3].isnan().all()


__all__ = ["pages_of_reference"]
