"""The emulator makes of golden vectors what a GPU made of them; recording itself runs here too."""

import re

import numpy as np
import pytest
import torch

from tests.cuda_emulator import golden
from tests.cuda_emulator import golden_hopper as hopper


@pytest.fixture(scope="module")
def emulator(emulated_module):
    """The emulator in the place of a GPU."""

    def run(name, given, words):
        given = np.ascontiguousarray(given)
        out = np.full((*given.shape[:2], words), 0xFFFFFFFF, dtype=np.uint32)
        emulated_module.clear_memory()
        for array, label in ((given, "in"), (out, "out")):
            emulated_module.add_memory(array.ctypes.data, array.nbytes, label)
        emulated_module.golden(name, given.ctypes.data, out.ctypes.data, len(given))
        return out

    return run


@pytest.fixture(scope="module")
def recorded(emulator, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    golden.record(emulator, path, "emulator")
    return np.load(path)


@pytest.mark.parametrize("name", golden.WORDS)
def test_a_recording_is_what_runs_again(emulator, recorded, name):
    given, out = recorded[f"{name}.in"], recorded[f"{name}.out"]
    assert np.array_equal(given, golden.inputs(name))
    assert not golden.differences(name, given, out, emulator(name, given, out.shape[-1]))


@pytest.mark.parametrize("name", golden.WORDS)
def test_a_changed_bit_is_found(recorded, name):
    given, out = recorded[f"{name}.in"], recorded[f"{name}.out"]
    finite = np.isfinite(out.view(np.float32)) & (np.abs(out.view(np.float32)) > 1e-30)
    place = tuple(
        np.argwhere(finite if name.startswith(("mult", "group", "func", "conv")) else out >= 0)[5]
    )
    changed = out.copy()
    changed[place] ^= np.uint32(1 << 21)
    assert golden.differences(name, given, out, changed)


@pytest.mark.parametrize(
    ("name", "of", "classes"),
    [(n, golden, slice(16, 20)) for n in golden.WORDS if n.startswith("multiply")]
    + [(n, hopper, slice(3, 4)) for n in hopper.WORDS if n.startswith("group")],
)
def test_products_are_those_of_the_manual(recorded, name, of, classes):
    """The fragments' layout, a warp's and a warpgroup's, against matrix products of numpy.

    ``classes`` are the cases that have infinities and NaN.
    """
    given, out = recorded[f"{name}.in"], recorded[f"{name}.out"].view(np.float32)
    a, b, d = of.matrices(name, given)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = of.fragments(a @ b + d)
        usual = np.isfinite(exact) & (np.abs(exact) < 3e38)
        error = np.abs(np.where(usual, out - exact, 0.0))
    assert usual[: classes.start].all() and not usual[classes].all()
    assert (error <= golden.MATRIX_UNIT * golden.magnitudes(name, given) + 2.0**-126).all()
    assert np.array_equal(np.isnan(out), np.isnan(exact))


def test_boxes_are_those_of_the_manual(recorded):
    """Rows of 128 bytes, their 16-byte chunks permuted by the row's number; zeros outside."""
    given, out = recorded["copy_tile.in"], recorded["copy_tile.out"]
    halves = given.reshape(-1).view(np.uint16)
    rows = len(halves) // 160
    whole = halves[: rows * 160].reshape(rows, 2, 80)
    for case, found in enumerate(out):
        wanted = np.zeros((64, 64), np.uint16)
        for row in range(64):
            z, y, x = 50 * case - 3 + row, case % 3, 32 * (case % 4) - 16
            if 0 <= z < rows and y < 2:
                columns = np.arange(max(x, 0), min(x + 64, 80))
                wanted[row, columns - x] = whole[z, y, columns]
        chunks = wanted.reshape(64, 8, 8)
        order = np.arange(8) ^ np.arange(64)[:, None] % 8
        chunks = np.take_along_axis(chunks, order[..., None], 1)
        assert np.array_equal(found.reshape(-1).view(np.uint16), chunks.reshape(-1))


def test_words_come_in_the_turn_they_were_sent(recorded):
    given, out = recorded["barriers.in"], recorded["barriers.out"]
    assert not out[:, :64].any()
    assert np.array_equal(out[:, 64:], given[:, 63::-1])


def test_matrices_are_those_of_the_manual(recorded):
    """Row l / 4 of matrix i in lane l, and its column where it is transposed."""
    for name in ("load_matrices", "load_matrices_transposed"):
        rows = recorded[f"{name}.in"][:, np.arange(32) * 5 % 32].copy().view(np.uint16)
        matrix = rows.reshape(-1, 4, 8, 8)
        matrix = matrix.swapaxes(2, 3) if name.endswith("transposed") else matrix
        lanes = np.ascontiguousarray(matrix).reshape(-1, 4, 32, 2).view(np.uint32)[..., 0]
        assert np.array_equal(recorded[f"{name}.out"], lanes.swapaxes(1, 2))


def test_every_wrapper_is_recorded():
    for header, program in (("ptx.h", "golden.cu"), ("ptx_hopper.h", "golden_hopper.cu")):
        text = (golden.ROOT / "csrc/common/cuda" / header).read_text()
        wrappers = set(re.findall(r"__forceinline__ \w+ (\w+)(?:<\w+>)?\(", text))
        source = (golden.HERE / program).read_text()
        assert wrappers
        wrappers -= {"shared_address"}
        assert not {w for w in wrappers if not re.search(rf"\b{w}(?:<[^;]*>)?\(", source)}


@pytest.mark.skipif(not golden.PATH.exists(), reason="no GPU has recorded golden.npz yet")
@pytest.mark.parametrize("name", golden.WORDS)
def test_emulator_equals_the_gpu_that_was_recorded(emulator, name):
    kept = np.load(golden.PATH)
    if f"{name}.in" not in kept:
        pytest.skip(f"{kept['about']}, whose vectors these are, has no engines of sm_90")
    given, out = kept[f"{name}.in"], kept[f"{name}.out"]
    assert not golden.differences(name, given, out, emulator(name, given, out.shape[-1]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", golden.WORDS)
def test_emulator_equals_this_gpu(emulator, name):
    if name in hopper.WORDS and not golden.has_engines():
        pytest.skip("this GPU has no engines of sm_90")
    given = golden.inputs(name)
    out = golden.gpu(golden.build_library())(name, given, golden.WORDS[name][1])
    assert not golden.differences(name, given, out, emulator(name, given, out.shape[-1]))
