"""What the emulator is for: every planted bug is reported, with file and line, and only those."""

import pytest
import torch

from tests.cuda_emulator.emulated import SANITIZE

KERNELS = {
    "missing_barrier": "race: (read after a write|write after a read) by thread",
    "missing_second_barrier": "race: (read after a write|write after a read) by thread",
    "missing_wait": "access to a copy in flight",
    "wait_without_barrier": "race: (read after a write|write after a read) by thread",
    "wait_for_the_wrong_group": "access to a copy in flight",
    "divergent_barrier": "threads of a block wait at different places; threads .* wait at",
    "off_by_one": "out of bounds: read of 4 bytes",
    "past_shared_memory": "out of bounds: read of 4 bytes",
    "past_an_array": "out of bounds: index 4",
    "overflow": r"undefined: an overflow of \+",
    "long_shift": "undefined: a shift beyond the type",
    "misaligned": "misaligned: access",
    "wrong_lane": "a shuffle reads a lane that takes no part",
    "wrong_mask": "threads of a block wait at different places",
    "blocks_race": "race: write after a write by another block",
    "barrier_of_others": "race: (read after a write|write after a read) by thread",
    "arrival_of_one_lane": "race: read after a write by thread",
    "early_overwrite": "race: (read after a write|write after a read) by thread",
    "lanes_race": "race: (read after a write|write after a read) by thread",
}


@pytest.fixture
def x(emulated_module):
    values = torch.arange(64.0)
    emulated_module.clear_memory()
    emulated_module.add_memory(values.data_ptr(), 256, "x")
    yield values
    emulated_module.set_backwards(False)


@pytest.mark.skipif(SANITIZE, reason="a sanitizer ends the process where it finds a bug")
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", KERNELS)
def test_planted_bug_is_reported_with_its_place(emulated_module, x, name, backwards):
    emulated_module.set_backwards(backwards)
    with pytest.raises(RuntimeError, match=KERNELS[name]) as error:
        emulated_module.planted(name, True, x.data_ptr(), 64)
    assert "planted.cu:" in str(error.value) or "numeric.h:" in str(error.value)
    assert "block 0, 0, 0" in str(error.value) or name == "blocks_race"


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_same_without_the_bug_runs(emulated_module, x, name, backwards):
    emulated_module.set_backwards(backwards)
    emulated_module.planted(name, False, x.data_ptr(), 64)
    assert x.isfinite().all()
