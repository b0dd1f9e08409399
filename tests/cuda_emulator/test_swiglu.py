"""The CUDA kernels of swiglu in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch

from tests.ops import test_swiglu as op
from tests.ops.test_swiglu import (  # noqa: F401
    test_equals_reference,
    test_extreme_gates,
    test_opcheck_and_compile,
)

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize(("rows", "width"), op.SHAPES)
def test_float16_equals_reference(rows, width):
    op.test_equals_reference(rows, width, torch.float16)
