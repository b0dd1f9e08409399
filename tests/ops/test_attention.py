"""attention against its reference."""

import pytest
import torch

import pylum
from pylum.ops import Mask
from pylum.ragged import lengths_to_offsets
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
    assert out.dtype == dtype
    assert_close(out, exact, exact.to(dtype))
    if out.numel() == 0:
        return
    dout = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    expected = torch.autograd.grad(exact, exact_inputs, dout.double())
    for actual, reference in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, reference, reference.to(dtype))
