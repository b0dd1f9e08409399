"""The only tolerances of the test suite.

Floats are compared with a float64 reference. A kernel may err at most twice as much as plain
PyTorch does in the same dtype, plus a floor; NaN and infinities must stand in the same places.
"""

from __future__ import annotations

import torch

# Relative to the largest reference magnitude: a few units in the last place of the output dtype.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# A whole model on unit-norm answers: grouped, cached, packed, shuffled or alone.
MODEL = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2 / 8}

# What hardware may err, relative to the sum of the absolute values added (the matrix unit keeps at
# least 24 bits of each sum and cuts the rest) and to the result (the PTX manual's figures of
# ex2.approx.ftz, rcp.approx.ftz and tanh.approx, and half a unit of the emulator's own rounding).
MATRIX_UNIT = 2**-20
SPECIAL_FUNCTIONS = {"exp2": 2**-22 + 2**-24, "reciprocal": 2**-23 + 2**-24, "tanh": 2**-11}


def assert_close(actual: torch.Tensor, reference: torch.Tensor, plain: torch.Tensor) -> None:
    """``actual`` against the float64 ``reference``, no worse than twice ``plain`` PyTorch.

    Args:
        actual: the kernel's output.
        reference: the same in float64.
        plain: plain PyTorch's output in the dtype of ``actual``.
    """
    assert actual.shape == reference.shape, f"{list(actual.shape)} != {list(reference.shape)}"
    assert plain.shape == reference.shape, f"{list(plain.shape)} != {list(reference.shape)}"
    finite = reference.isfinite()
    assert torch.equal(actual.isnan(), reference.isnan()), "NaN positions differ"
    assert torch.equal(actual.isposinf(), reference.isposinf()), "inf positions differ"
    assert torch.equal(actual.isneginf(), reference.isneginf()), "-inf positions differ"
    if not bool(finite.any()):
        return
    exact = reference[finite].double()
    error = (actual[finite].double() - exact).abs().max()
    allowed = 2 * (plain[finite].double() - exact).abs().max()
    allowed = allowed + FLOOR[actual.dtype] * exact.abs().max().clamp_min(1e-30)
    assert error <= allowed, f"error {error:.3e} exceeds {allowed:.3e}"
