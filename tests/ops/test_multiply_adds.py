"""The probe of a processor's multiply-adds does what it is timed for."""

import pytest

from pylum import _C


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_every_step_is_computed_and_counted(bfloat16, steps):
    total, flops = _C.multiply_adds(bfloat16, steps)
    # A pair of bfloat16 adds twice a step, where the ISA has products of pairs.
    pairs = bfloat16 and _C.build_info()["isa"] == "avx512_bf16"
    assert total == steps * (2 if pairs else 1)
    unit = _C.multiply_adds(bfloat16, 1)[1]
    assert unit > 0 and flops == unit * steps
