"""The table of kernels: what the tools print is understood, and what gets worse is a failure."""

from dataclasses import replace

import pytest

from tests.cuda_build.resources import Kernel, plain_name, read_code, read_usage
from tests.cuda_build.table import PATH, WHY, failures, read, recorded, why, written

USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z3onev:
  REG:64 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:496 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z3twov:
  REG:255 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:672 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
Fatbin elf code:
================
arch = sm_80
\tcode for sm_80
\t\tFunction : _Z3onev
\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   MOV R1, c[0x0][0x28] ;         /* 0x00000a0000017a02 */
                                                                  /* 0x000fe20000000f00 */
        /*00c0*/              @!P0 STL.64 [R1+0x8], R2 ;          /* 0x000000ff02008986 */
        /*00d0*/                   LDL R4, [R1+0x8] ;             /* 0x000000ff04008986 */
        /*00e0*/                   LDG.E.64 R10, [R6.64] ;        /* 0x00000008060a7981 */
\t\tFunction : _Z3twov
        /*0000*/              @UP1 LDGSTS.E.BYPASS.128 [R7], [R8.64] ; /* 0x00000008060a7981 */
        /*0010*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ; /* 0x00000008060a7981 */
"""


def test_what_the_tools_print():
    kernels = read_usage(USAGE.splitlines(), "a/cuda/run.cu")
    one, two = read_code(CODE.splitlines(), kernels)
    assert one == Kernel("sm_80", "a/cuda/run.cu", "_Z3onev", 64, 16, 0, 12, False, "-")
    assert two == Kernel("sm_80", "a/cuda/run.cu", "_Z3twov", 255, 0, 1024, 0, True, "HMMA")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        pytest.param(
            "void pylum::rotary::(anonymous namespace)::run_kernel<__nv_bfloat16, true>"
            "(pylum::rotary::Params)",
            "rotary::run_kernel<bfloat16, true>",
            id="template",
        ),
        pytest.param(
            "void pylum::cuda::backward_kernel<float, 64, false, (pylum::cuda::Gradient)2>"
            "(pylum::cuda::AttentionGradients, bool)",
            "cuda::backward_kernel<float, 64, false, 2>",
            id="enum",
        ),
        pytest.param("pylum::(anonymous namespace)::scan(pylum::Keys)", "scan", id="no-template"),
    ],
)
def test_plain_name(name, plain):
    assert plain_name(name) == plain


GOOD = Kernel("sm_80", "a/cuda/run.cu", "run<float>", 40, 0, 0, 0, True, "HMMA")


def rows_of(*kernels):
    return {kernel.key: kernel for kernel in kernels}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"registers": 41}, "registers 41, the table says 40", id="registers"),
        pytest.param({"shared": 16}, "shared 16, the table says 0", id="shared"),
        pytest.param({"local": 8}, "local 8, the table says 0", id="local"),
        pytest.param({"stack": 8}, "without a why", id="no-why"),
        pytest.param({"wide": False}, "no 128-bit access", id="narrow"),
        pytest.param({"matrix": "-"}, "matrix unit -, the table says HMMA", id="no-matrix"),
        pytest.param({"name": "run<half>"}, "not in the table", id="new"),
    ],
)
def test_worse_is_a_failure(change, message):
    assert not failures(rows_of(GOOD), [GOOD])
    assert any(message in line for line in failures(rows_of(GOOD), [replace(GOOD, **change)]))


def test_what_a_build_lacks_is_a_failure_for_its_architectures_only():
    other = replace(GOOD, name="walk")
    hopper = replace(GOOD, arch="sm_90a")
    found = failures(rows_of(GOOD, other, hopper), [GOOD])
    assert found == ["sm_80 a/cuda/run.cu walk: in the table, but not in the build"]


def test_sm90_kernels_use_wgmma():
    kernel = replace(GOOD, arch="sm_90a", name="forward_sm90<half>")
    assert failures(rows_of(kernel), [kernel])
    kernel = replace(kernel, matrix="HGMMA")
    assert not failures(rows_of(kernel), [kernel])


def test_recording_keeps_what_was_not_built(tmp_path):
    (tmp_path / "walk.cu").touch()
    hopper = replace(GOOD, arch="sm_90a", file="walk.cu")
    walk, gone = replace(GOOD, file="walk.cu"), replace(GOOD, file="gone.cu")
    old = rows_of(GOOD, walk, hopper, gone, replace(GOOD, name="run<half>"))
    new = recorded(old, [replace(GOOD, local=4)], tmp_path)
    toolkit, rows = read(written("13.0", new))
    assert toolkit == "13.0"
    assert rows == rows_of(walk, hopper, replace(GOOD, local=4))


def test_local_memory_has_a_reason():
    """Every reason is of a kernel of the table, and every kernel that needs one has one."""
    _, rows = read(PATH.read_text())
    assert rows
    users = [kernel for kernel in rows.values() if kernel.local or kernel.stack]
    assert all(map(why, users))
    assert {why(kernel) for kernel in users} == set(WHY.values())
