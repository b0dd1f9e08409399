from pathlib import Path

import pytest
import torch

import pylum
from pylum.ops import _library
from tests.cuda_emulator.emulated import Emulated, build, emulating
from tests.cuda_emulator.left_out import reasons

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    """Without the op's tests that are left out here."""
    left = {True: [], False: []}
    for item in items:
        op = item.path.stem.removeprefix("test_")
        left[item.path.parent == HERE and bool(reasons(op, item.name))].append(item)
    config.hook.pytest_deselected(items=left[True])
    items[:] = left[False]


@pytest.fixture(scope="session")
def emulated_module():
    """The kernels compiled for the emulator."""
    return build()


class Device:
    """A real GPU, where new tensors are made."""

    def take_errors(self) -> int:
        word = _library._error_word(torch.cuda.current_device())
        found = int(word)
        word.zero_()
        return found


DEVICES = ["emulated"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("gpu", marks=pytest.mark.cuda))


@pytest.fixture(scope="module", params=DEVICES)
def cuda(request):
    """``pylum.ops`` on CUDA, for a module of tests: on the emulator, and on a GPU if one is here.

    Its ``take_errors()`` gives the error word and clears it.
    """
    if request.param == "gpu":
        torch.set_default_device("cuda")
        yield Device()
        torch.set_default_device(None)
        return
    with emulating(Emulated(request.getfixturevalue("emulated_module"), pylum._C)) as running:
        yield running
    assert running.calls, "no test of this module ran a CUDA kernel"


@pytest.fixture
def both_orders(cuda):
    """Calls twice, with blocks and warps in ascending and in descending order: the same bits."""

    def check(call):
        results = []
        for backwards in (False, True):
            if hasattr(cuda, "module"):
                cuda.module.set_backwards(backwards)
            try:
                results.append(call())
            finally:
                if hasattr(cuda, "module"):
                    cuda.module.set_backwards(False)
        first, again = results
        assert len(first) and len(first) == len(again)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    return check
