"""The library on ``device="cuda"``, on three devices: a second device that only checks where
tensors are; the same with the CUDA kernels on the emulator; and a GPU where one is.
"""

from contextlib import nullcontext

import pytest
import torch

import pylum
from pylum.cache import user_cache
from tests.cuda_emulator.emulated import Emulated, emulating
from tests.cuda_emulator.library.worlds import Device
from tests.second_device import SecondDevice
from tests.serving.tape import Tape

DEVICES = ["second", "emulated"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("gpu", marks=pytest.mark.cuda))


def tapes(device):
    return Tape if device.type == "cuda" else None


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    if request.param == "gpu":
        yield Device(nullcontext, None, True)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cache, "graphs_of", tapes)
        if request.param == "second":
            with SecondDevice() as second:
                yield Device(nullcontext, second.waits, False)
            return
        emulated = Emulated(request.getfixturevalue("emulated_module"), pylum._C)
        with emulating(emulated), SecondDevice() as second:
            yield Device(emulated.resting, second.waits, True)
        assert emulated.calls, "no test of this module ran a CUDA kernel"
