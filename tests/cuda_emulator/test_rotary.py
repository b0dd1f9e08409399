"""The CUDA kernel of rotary in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch

import pylum
from tests.ops import test_rotary as op
from tests.ops.test_rotary import (  # noqa: F401
    test_equals_reference,
    test_errors,
    test_opcheck_and_compile,
    test_turning_back_is_exact_for_right_angles,
)
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize(("total", "heads", "kv_heads", "head_dim"), op.SHAPES)
def test_float16_equals_reference(total, heads, kv_heads, head_dim):
    x, *rest = op.make(total, heads, kv_heads, head_dim, torch.float16)
    options = {"heads": heads, "kv_heads": kv_heads}
    found = pylum.ops.rotary(x, *rest, **options)
    exact = pylum.reference.rotary(x.double(), *rest, **options)
    for out, reference in zip(found, exact, strict=True):
        assert out.dtype == torch.float16
        assert_close(out, reference, reference.half())


def test_a_position_past_the_table_is_nan_and_noted(cuda):
    x, positions, cos, sin = op.make(5, 2, 1, 8, torch.float32)
    expected = pylum.ops.rotary(x, positions, cos, sin, heads=2, kv_heads=1)
    positions[3] = 9
    positions[1] = -1
    found = pylum.ops.rotary(x, positions, cos, sin, heads=2, kv_heads=1)
    assert cuda.take_errors() == 1
    for out, good in zip(found[:2], expected[:2], strict=True):
        assert out[[1, 3]].isnan().all()
        assert torch.equal(out[[0, 2, 4]], good[[0, 2, 4]])
    assert torch.equal(found[2], expected[2])
