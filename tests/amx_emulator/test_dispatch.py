"""Which ISA is chosen, on CPUs and kernels of the test's making."""

import errno
import os
import subprocess

import pytest

from tests.amx_emulator.emulated import BUILD

AVX512 = "avx2 fma avx512f avx512bw avx512dq avx512vl"
PAIRS = f"{AVX512} avx512bf16"
TILES = f"{PAIRS} amx-tile amx-bf16"
REFUSED = "the kernel refuses the permission for tiles: "

pytestmark = pytest.mark.usefixtures("emulated_module")


def choose(cpu: str, wish: str = "", refusal: int = 0) -> str:
    chosen = {"FAKE_CPU": cpu, "FAKE_ERRNO": str(refusal), "PYLUM_ISA": wish}
    done = subprocess.run(
        [BUILD / "dispatch"], env=os.environ | chosen, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("cpu", "wish", "refusal", "expected"),
    [
        pytest.param(TILES, "", 0, "amx amx amx avx512 1", id="granted"),
        pytest.param(TILES, "amx", 0, "amx amx amx avx512 1", id="asked-for"),
        pytest.param(TILES, "avx512", 0, "amx avx512 avx512 avx512 1", id="overridden"),
        pytest.param(
            TILES, "avx512_bf16", 0, "amx avx512_bf16 avx512_bf16 avx512 1", id="pairs-asked-for"
        ),
        pytest.param(
            PAIRS,
            "",
            0,
            "avx512 avx512 avx512 avx512 0 this CPU has no amx-bf16",
            id="no-tiles",
        ),
        pytest.param(
            f"{PAIRS} amd",
            "",
            0,
            "avx512_bf16 avx512_bf16 avx512_bf16 avx512 0 this CPU has no amx-bf16",
            id="amd",
        ),
        *[
            pytest.param(
                TILES,
                "",
                refusal,
                f"avx512 avx512 avx512 avx512 1 {REFUSED}{os.strerror(refusal)}",
                id=errno.errorcode[refusal],
            )
            for refusal in (errno.ENOSPC, errno.EINVAL, errno.EPERM)
        ],
        pytest.param(
            TILES,
            "amx",
            errno.EPERM,
            "PYLUM_ISA=amx was asked for, but this machine and build offer at most avx512 "
            f"({REFUSED}{os.strerror(errno.EPERM)})",
            id="asked-for-and-refused",
        ),
        pytest.param(
            AVX512,
            "amx2",
            0,
            "PYLUM_ISA must be base, avx2, avx512, avx512_bf16 or amx, got amx2",
            id="unknown",
        ),
    ],
)
def test_the_isa_chosen(cpu, wish, refusal, expected):
    assert choose(cpu, wish, refusal) == expected
