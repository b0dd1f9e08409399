"""The checked-in table of kernels, and what a build may not do beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.cuda_build.resources import Kernel, Key

PATH = Path(__file__).with_name("kernels.tsv")
SOURCES = Path(__file__).parent.parent.parent / "csrc"
COLUMNS = "arch\tfile\tkernel\tregisters\tstack\tshared\tlocal\twide\tmatrix"

# Kernels that may use local memory, by name, and why; the table holds how much.
WHY = {
    r"cuda::backward_kernel<float, 128,": "one word of a thread beside 255 registers: 2 of 4,806 "
    "instructions for each block of keys, 3 of 6,330 for each of queries; fewer pairs at a time "
    "would read the rows' factors more often",
    r"cuda::forward_kernel<float, 128,": "two words of a thread beside 255 registers: 4 of 7,376 "
    "instructions for each block of keys",
    r"cuda::backward_sm90_kernel<": "dk and dv of 128 columns with a bias: a stage's parity and "
    "two words of the threads that bring rows, 9 of 11,824 instructions; the sums of a tile fill "
    "the registers, smaller tiles would repeat products",
    r"cuda::own_keys_kernel<float,": "two words of a target's state, once a target",
    r"sampled_softmax::pass_kernel<float, 256": "two words of a thread beside 255 registers: "
    "float32 as three tf32 products holds every factor twice",
}


def why(kernel: Kernel) -> str:
    """Why its local memory pays; "" where nobody says so."""
    return next((text for pattern, text in WHY.items() if re.match(pattern, kernel.name)), "")


def read(text: str) -> tuple[str, dict[Key, Kernel]]:
    """Version of nvcc, and the rows."""
    first, header, *lines = text.splitlines()
    assert header == COLUMNS, f"the columns must be {COLUMNS.split()}"
    rows = {}
    for line in lines:
        arch, file, name, *numbers, wide, matrix = line.split("\t")
        kernel = Kernel(arch, file, name, *map(int, numbers), wide == "wide", matrix)
        rows[kernel.key] = kernel
    return first.removeprefix("# nvcc "), rows


def written(toolkit: str, kernels: Iterable[Kernel]) -> str:
    """The text :func:`read` takes."""
    lines = [f"# nvcc {toolkit}", COLUMNS]
    for k in sorted(kernels, key=lambda kernel: kernel.key):
        numbers = map(str, (k.registers, k.stack, k.shared, k.local))
        lines.append("\t".join([*k.key, *numbers, "wide" if k.wide else "-", k.matrix]))
    return "\n".join(lines) + "\n"


def recorded(
    old: dict[Key, Kernel], kernels: list[Kernel], sources: Path = SOURCES
) -> list[Kernel]:
    """Rows of a build; of architectures and files of ``sources`` that it left out, the old ones."""
    built = {(kernel.arch, kernel.file) for kernel in kernels}
    left = [kernel for kernel in old.values() if (kernel.arch, kernel.file) not in built]
    return [kernel for kernel in left if (sources / kernel.file).exists()] + kernels


def failures(rows: dict[Key, Kernel], kernels: list[Kernel]) -> list[str]:
    """What a build does that the table does not allow, a line each."""
    found = []
    built = {kernel.arch for kernel in kernels}
    missing = set(rows) - {kernel.key for kernel in kernels}
    for key in sorted(key for key in missing if key[0] in built):
        found.append(f"{' '.join(key)}: in the table, but not in the build")
    for kernel in kernels:
        name = " ".join(kernel.key)
        if "sm90" in kernel.name and kernel.arch == "sm_90a" and kernel.matrix != "HGMMA":
            found.append(f"{name}: named after wgmma, but has no HGMMA")
        if (kernel.local or kernel.stack) and not why(kernel):
            found.append(f"{name}: local memory ({kernel.local} bytes of accesses) without a why")
        row = rows.get(kernel.key)
        if row is None:
            found.append(f"{name}: not in the table")
            continue
        for column in ("registers", "stack", "shared", "local"):
            now, most = getattr(kernel, column), getattr(row, column)
            if now > most:
                found.append(f"{name}: {column} {now}, the table says {most}")
        if row.wide and not kernel.wide:
            found.append(f"{name}: no 128-bit access of global memory any more")
        if row.matrix != kernel.matrix:
            found.append(f"{name}: matrix unit {kernel.matrix}, the table says {row.matrix}")
    return found
