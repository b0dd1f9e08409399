from pathlib import Path

import pytest

import pylum
from tests.amx_emulator.emulated import Emulated, build, emulating

NATIVE = pylum._C.build_info()["isa"] == "amx"


@pytest.fixture(scope="session")
def emulated_module():
    """The kernels compiled for emulated tiles."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx512_bf16" not in cpu.read_text():
        pytest.skip("all but the tiles runs on the CPU itself, which has no AVX512-BF16")
    return build()


@pytest.fixture(scope="module", params=["emulated", *(["native"] if NATIVE else [])])
def amx(request):
    """``pylum.ops`` on AMX, for a module of tests: on emulated tiles, and on real ones if here."""
    if request.param == "native":
        yield pylum._C
        return
    with emulating(Emulated(request.getfixturevalue("emulated_module"), pylum._C)) as running:
        yield running
    assert running.calls, "no test of this module ran a kernel for AMX"
