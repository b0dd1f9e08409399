"""Golden vectors of the engines of sm_90: inputs of ``golden_hopper.cu``, and exact products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint32]
THREADS = 128
CASES = {"copy_tile": 8, "barriers": 2}  # of products: 4
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Fragments of d, and whether b stands with its columns as the rows of a tile; d is dropped, or not.
FORMS = {
    "tiles": (8, False),
    "tiles_columns": (8, True),
    "tiles_fresh": (8, False),
    "registers": (8, False),
    "registers_columns": (8, True),
    "registers_fresh": (8, False),
    "wide": (16, False),
    "wide_columns": (16, True),
}
# Words of a thread in and out.
WORDS = {"copy_tile": (32, 16), "barriers": (6, 6)} | {
    f"group_{dtype}_{form}": (4 + count // 2 + 4 * count, 4 * count)
    for dtype in TYPES
    for form, (count, _) in FORMS.items()
}


def inputs(name: str) -> Words:
    """Seeded ``[cases, 128, words]``; of products, later cases are wide, whole, infinite, NaN."""
    seed = np.random.default_rng([2509, list(WORDS).index(name)])
    words = WORDS[name][0]
    if not name.startswith("group"):
        return seed.integers(0, 2**32, (CASES[name], THREADS, words), dtype=np.uint32)
    _, dtype, form = name.split("_", 2)
    factors = 4 + FORMS[form][0] // 2
    x = seed.standard_normal((4, THREADS, factors, 2)).astype(np.float32)
    sums = seed.standard_normal((4, THREADS, words - factors)).astype(np.float32)
    x[1] *= np.exp2(seed.integers(-12, 8, x[1].shape)).astype(np.float32)
    x[2], sums[2] = seed.integers(-8, 9, x[2].shape), seed.integers(-64, 65, sums[2].shape)
    rare = seed.random(x[3].shape) < 0.002
    x[3][rare] = seed.choice(np.array([np.inf, -np.inf, np.nan], np.float32), int(rare.sum()))
    halves = torch.from_numpy(x).to(TYPES[dtype]).view(torch.int16).numpy().view(np.uint16)
    bits = halves[..., 0].astype(np.uint32) | halves[..., 1].astype(np.uint32) << 16
    return np.concatenate([bits, sums.view(np.uint32)], -1)


def matrices(name: str, given: Words) -> tuple[npt.NDArray[np.float64], ...]:
    """``a [cases, 64, 16]``, ``b [cases, 16, columns]``, ``d [cases, 64, columns]`` of the words.

    As the PTX manual has the fragments and tiles of wgmma.m64nNk16.
    """
    _, dtype, form = name.split("_", 2)
    count, columns = FORMS[form]
    factors = given[..., : 4 + count // 2]
    halves = np.stack([factors & 0xFFFF, factors >> 16], -1).astype(np.uint16).view(np.int16)
    x = torch.from_numpy(halves).view(TYPES[dtype]).double().numpy()
    cases = len(given)
    a = x[:, :, :4].reshape(cases, 64, 16)
    if not form.startswith("tiles"):
        row, t = _rows(), np.arange(THREADS) % 4
        a = np.zeros((cases, 64, 16))
        for word in range(4):
            for e in range(2):
                a[:, row + word % 2 * 8, word // 2 * 8 + 2 * t + e] = x[:, :, word, e]
    right = x[:, :, 4:].reshape(cases, -1)
    b = right.reshape(cases, 16, -1) if columns else right.reshape(cases, -1, 16).swapaxes(1, 2)
    d = np.zeros((cases, 64, 8 * count))
    sums = given[..., 4 + count // 2 :].copy().view(np.float32)
    if not form.endswith("fresh"):
        for word in range(4 * count):
            row, column = _place(word)
            d[:, row, column] = sums[..., word]
    return a, b, d


def fragments(d: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[cases, 64, columns]`` to the words of the threads."""
    places = map(_place, range(d.shape[2] // 2))
    return np.stack([d[:, row, column] for row, column in places], -1)


def _rows() -> npt.NDArray[np.int64]:
    thread = np.arange(THREADS)
    return thread // 32 * 16 + thread % 32 // 4


def _place(word: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    column = 8 * (word // 4) + 2 * (np.arange(THREADS) % 4) + word % 2
    return _rows() + word % 4 // 2 * 8, column
