"""Golden vectors: what a GPU makes of given bits, which the emulator must make of them too.

    python -m tests.cuda_emulator.golden record     on a machine with a GPU and nvcc

runs every kernel of ``golden.cu`` on seeded inputs and keeps inputs and outputs in ``golden.npz``,
on a GPU of sm_90 those of ``golden_hopper.cu`` too.
``--library`` takes a library built elsewhere by ``build``, for a machine without nvcc.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tests.cuda_emulator import golden_hopper as hopper
from tests.tolerance import MATRIX_UNIT, SPECIAL_FUNCTIONS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PATH = HERE / "golden.npz"
LIBRARY = ROOT / "build" / "golden" / "golden.so"
CASES = 24

Words = npt.NDArray[np.uint32]
# Runs a kernel by name: inputs [cases, 32, words in], words out -> [cases, 32, words out].
Device = Callable[[str, Words, int], Words]

# Words of a lane in and out.
WARP_WORDS = {
    "copy_async16": (12, 8),
    "load_matrices": (4, 4),
    "load_matrices_transposed": (4, 4),
    "multiply_bfloat16": (10, 4),
    "multiply_float16": (10, 4),
    "multiply_tf32": (10, 4),
    "functions": (1, 3),
    "conversions": (1, 4),
    "shuffles": (2, 6),
    "votes": (1, 7),
}
WORDS = WARP_WORDS | hopper.WORDS
# Numbers where rounding, flushing or a class of its own may differ.
EDGES = np.array(
    [
        *(0.0, 1.0, 1 + 2**-8, 1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-11, 1 + 3 * 2**-11, 1 - 2**-24),
        *(65504.0, 65519.9, 65520.0, 3.3e38, 3.4028235e38, 2.0**127, np.inf, np.nan),
        *(
            2**-14,
            2**-15,
            2**-24,
            2**-25,
            1.5 * 2**-25,
            2**-126,
            2**-127,
            2**-133,
            2**-134,
            2**-149,
        ),
        *(126.5, 127.5, 127.99999, 128.0, 126.0, 149.0, 150.0, 0.1, 10.0, 20.0, 88.0, 1e-3),
    ],
    dtype=np.float32,
)


def inputs(name: str) -> Words:
    """Seeded, with the edges of the formats among them."""
    if name in hopper.WORDS:
        return hopper.inputs(name)
    seed = np.random.default_rng([2508, list(WARP_WORDS).index(name)])
    shape = (CASES, 32, WORDS[name][0])
    words = seed.integers(0, 2**32, shape, dtype=np.uint32)
    if name == "copy_async16":
        words[..., 8:] &= 1
    elif name in ("functions", "conversions"):
        numbers = seed.standard_normal(shape).astype(np.float32)
        numbers *= np.exp2(seed.integers(-24, 8, shape)).astype(np.float32)
        numbers.reshape(-1)[: 2 * len(EDGES)] = np.r_[EDGES, -EDGES]
        words = numbers.view(np.uint32)
    elif name == "votes":
        words[0] = 0
        words[1] |= 1
        words[2] = [[1 << lane] for lane in range(32)]
    elif name.startswith("multiply"):
        words = _factors(name, seed)
    return words


def _factors(name: str, seed: np.random.Generator) -> Words:
    """a, b and d of every lane; later cases have wide exponents, subnormals, infinities, NaN."""
    count = 1 if name == "multiply_tf32" else 2  # of a word
    factors = seed.standard_normal((CASES, 32, 6, count)).astype(np.float32)
    sums = seed.standard_normal((CASES, 32, 4)).astype(np.float32)
    least = {"multiply_float16": -24, "multiply_bfloat16": -133, "multiply_tf32": -136}[name]
    spread = seed.integers(-12, 12, factors.shape)
    factors[4:12] *= np.exp2(spread[4:12]).astype(np.float32)
    sums[8:12] *= np.float32(2**20)
    # Subnormal factors on one side, so that their products are not: then on both.
    tiny = np.exp2(seed.integers(least, least + 9, factors.shape)).astype(np.float32)
    factors[12:14, :, :4] = tiny[12:14, :, :4]
    sums[12:14] = 0.0
    factors[14:16] = tiny[14:16]
    sums[14:16] = 2.0**-149
    classes = np.array([np.inf, -np.inf, np.nan, 0.0], dtype=np.float32)
    rare = seed.random(factors[16:20].shape) < 0.02
    factors[16:20][rare] = classes[seed.integers(0, 4, int(rare.sum()))]
    # Positive and too large for float32 in all: infinity, whatever the order of the sum.
    if name != "multiply_float16":
        factors[20:22] = np.float32(2.0**120) * (1 + np.abs(factors[20:22]) / 8)
    # Whole numbers: exact in every order.
    factors[22:24] = seed.integers(-8, 9, factors[22:24].shape)
    sums[22:24] = seed.integers(-64, 65, sums[22:24].shape)
    if name == "multiply_tf32":
        bits = factors.view(np.uint32)[..., 0]
    else:
        dtype = torch.bfloat16 if name == "multiply_bfloat16" else torch.float16
        halves = torch.from_numpy(factors).to(dtype).view(torch.int16).numpy().view(np.uint16)
        bits = halves[..., 0].astype(np.uint32) | halves[..., 1].astype(np.uint32) << 16
    return np.concatenate([bits, sums.view(np.uint32)], -1)


def record(device: Device, path: Path, about: str, names: Iterable[str] = WORDS) -> None:
    """Run these kernels and write inputs and outputs."""
    arrays = {"about": np.array(about)}
    for name in names:
        given, out = inputs(name), WORDS[name][1]
        arrays[f"{name}.in"], arrays[f"{name}.out"] = given, device(name, given, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(aside, **arrays)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def differences(name: str, given: Words, golden: Words, found: Words) -> list[str]:
    """Where the emulator's outputs are not the golden ones, a line for each kind.

    Moved bits and conversions are equal to the bit. A matrix unit sums in an order and a width of
    its own, and special functions are approximations: these are equal within their documented
    error, with NaN and infinities in the same places.
    """
    if not name.startswith(("multiply", "group", "functions", "conversions")):
        return _count(name, golden != found)
    golden, found = golden.view(np.float32), found.view(np.float32)
    lines = _count(f"{name}: NaN", np.isnan(golden) != np.isnan(found))
    infinite = np.isinf(golden) | np.isinf(found)
    lines += _count(f"{name}: infinities", infinite & ~_same(golden, found))
    finite = np.isfinite(golden) & np.isfinite(found)
    if name == "conversions":
        return lines + _count(name, finite & ~_same(golden, found))
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.where(finite, np.abs(golden.astype(np.float64) - found), 0.0)
        if name == "functions":
            bounds = np.array([SPECIAL_FUNCTIONS[f] for f in ("exp2", "reciprocal", "tanh")])
            allowed = bounds * np.abs(golden.astype(np.float64))
        else:
            allowed = MATRIX_UNIT * magnitudes(name, given)
    return lines + _count(name, finite & (error > allowed + 2.0**-126))


def _same(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return (x == y) | (np.isnan(x) & np.isnan(y))


def _count(what: str, wrong: npt.NDArray[np.bool_]) -> list[str]:
    if not wrong.any():
        return []
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return [f"{what}: {int(wrong.sum())} of {wrong.size} differ, first at case, lane, word {first}"]


def matrices(name: str, given: Words) -> tuple[npt.NDArray[np.float64], ...]:
    """``a [cases, 16, depth]``, ``b [cases, depth, 8]``, ``d [cases, 16, 8]`` of the lanes' words.

    As the PTX manual has the fragments of mma.m16n8k16 and m16n8k8.
    """
    tf32 = name == "multiply_tf32"
    g, t = np.arange(32) // 4, np.arange(32) % 4
    if tf32:
        numbers = (given[..., :6] & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    else:
        dtype = torch.bfloat16 if name == "multiply_bfloat16" else torch.float16
        halves = np.stack([given[..., :6] & 0xFFFF, given[..., :6] >> 16], -1).astype(np.uint16)
        numbers = torch.from_numpy(halves.view(np.int16)).view(dtype).float().numpy()
    per_word, depth = numbers.shape[-1], 8 * numbers.shape[-1]
    a, b = np.zeros((len(given), 16, depth)), np.zeros((len(given), depth, 8))
    d = np.zeros((len(given), 16, 8))
    for word in range(4):
        for e in range(per_word):
            a[:, g + word % 2 * 8, per_word * t + e + word // 2 * depth // 2] = numbers[
                :, :, word, e
            ]
        d[:, g + word // 2 * 8, 2 * t + word % 2] = given[:, :, 6 + word].view(np.float32)
    for word in range(2):
        for e in range(per_word):
            b[:, per_word * t + e + word * depth // 2, g] = numbers[:, :, 4 + word, e]
    return a, b, d


def fragments(d: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[cases, 16, 8]`` to the words of the lanes."""
    g, t = np.arange(32) // 4, np.arange(32) % 4
    return np.stack([d[:, g + word // 2 * 8, 2 * t + word % 2] for word in range(4)], -1)


def magnitudes(name: str, given: Words) -> npt.NDArray[np.float64]:
    """``[cases, 32, 4]`` sums of the absolute values of what each element of d is the sum of.

    Of products of a warpgroup: ``[cases, 128, words]``.
    """
    if name in hopper.WORDS:
        a, b, d = (np.nan_to_num(np.abs(x), posinf=0.0) for x in hopper.matrices(name, given))
        return hopper.fragments(a @ b + d)
    a, b, d = (np.nan_to_num(np.abs(x), posinf=0.0) for x in matrices(name, given))
    return fragments(a @ b + d)


def build_library(path: Path = LIBRARY) -> Path:
    """Compile ``golden.cu`` and ``golden_hopper.cu`` with nvcc where they are newer."""
    cuda = ROOT / "csrc" / "common" / "cuda"
    compiled = [HERE / "golden.cu", HERE / "golden_hopper.cu", cuda / "tensor_map.cu"]
    sources = [*compiled, *cuda.glob("*.h")]
    if path.exists() and all(path.stat().st_mtime > s.stat().st_mtime for s in sources):
        return path
    if shutil.which("nvcc") is None:
        raise RuntimeError(f"nvcc was not found, and {path} is missing or older than its sources")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = ("sm_80", "sm_90a", "compute_80")
    codes = [f"arch=compute_{code.split('_')[1]},code={code}" for code in wanted]
    targets = [word for code in codes for word in ("-gencode", code)]
    flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", "-Werror=all-warnings"]
    include = f"-I{ROOT / 'csrc'}"
    defined = ["-DPYLUM_CUDA=1", '-DPYLUM_CUDA_ARCHITECTURES="90a"']
    command = ["nvcc", *flags, *targets, include, *defined, "-o", str(path)]
    subprocess.run([*command, *map(str, compiled)], check=True)
    return path


def gpu(library: Path) -> Device:
    """This machine's GPU."""
    function = ctypes.CDLL(str(library)).pylum_golden
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def run(name: str, given: Words, words: int) -> Words:
        x = torch.from_numpy(given.view(np.int32)).cuda()
        out = torch.full((*given.shape[:2], words), -1, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()
        message = function(name.encode(), x.data_ptr(), out.data_ptr(), len(given))
        if message:
            raise RuntimeError(message.decode())
        torch.cuda.synchronize()
        return out.cpu().numpy().view(np.uint32)

    return run


def has_engines() -> bool:
    """This machine's GPU runs the kernels of ``golden_hopper.cu``."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "record"])
    parser.add_argument("--library", type=Path, default=None, help="as made by build")
    parser.add_argument("--out", type=Path, default=PATH)
    chosen = parser.parse_args()
    library = build_library() if chosen.library is None else chosen.library
    if chosen.what == "record":
        if not torch.cuda.is_available():
            raise SystemExit("recording needs a GPU, and torch finds none")
        names = WORDS if has_engines() else WARP_WORDS
        record(gpu(library), chosen.out, torch.cuda.get_device_name(), names)
    print(library if chosen.what == "build" else chosen.out)


if __name__ == "__main__":
    main()
