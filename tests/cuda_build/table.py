"""The checked-in table of kernels, and what a build may not do beyond it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_build.resources import Kernel, Key

PATH = Path(__file__).with_name("kernels.tsv")
COLUMNS = [
    *("arch", "file", "kernel", "registers", "stack", "shared", "local"),
    *("wide", "matrix", "why"),
]


@dataclass(frozen=True)
class Row:
    """A kernel, and why its local memory pays; "" where it has none."""

    kernel: Kernel
    why: str


def read(text: str) -> tuple[str, dict[Key, Row]]:
    """Version of nvcc, and the rows."""
    first, header, *lines = text.splitlines()
    assert header.split("\t") == COLUMNS, f"the columns must be {COLUMNS}"
    rows = {}
    for line in lines:
        arch, file, name, *numbers, wide, matrix, why = line.split("\t")
        kernel = Kernel(arch, file, name, *map(int, numbers), wide == "wide", matrix)
        rows[kernel.key] = Row(kernel, why)
    return first.removeprefix("# nvcc "), rows


def written(toolkit: str, rows: Iterable[Row]) -> str:
    """The text :func:`read` takes."""
    lines = [f"# nvcc {toolkit}", "\t".join(COLUMNS)]
    for row in sorted(rows, key=lambda row: row.kernel.key):
        k = row.kernel
        numbers = map(str, (k.registers, k.stack, k.shared, k.local))
        wide = "wide" if k.wide else "-"
        lines.append("\t".join([k.arch, k.file, k.name, *numbers, wide, k.matrix, row.why]))
    return "\n".join(lines) + "\n"


def recorded(old: dict[Key, Row], kernels: list[Kernel]) -> list[Row]:
    """Rows of a build; those of architectures it was not made for, and every reason, are kept."""
    built = {kernel.arch for kernel in kernels}
    kept = [row for row in old.values() if row.kernel.arch not in built]
    new = []
    for kernel in kernels:
        before = old.get(kernel.key)
        uses = kernel.local > 0 or kernel.stack > 0
        new.append(Row(kernel, before.why if before is not None and uses else ""))
    return kept + new


def failures(rows: dict[Key, Row], kernels: list[Kernel]) -> list[str]:
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
        row = rows.get(kernel.key)
        if row is None:
            found.append(f"{name}: not in the table")
            continue
        for column in ("registers", "stack", "shared", "local"):
            now, most = getattr(kernel, column), getattr(row.kernel, column)
            if now > most:
                found.append(f"{name}: {column} {now}, the table says {most}")
        if (kernel.local or kernel.stack) and not row.why:
            found.append(f"{name}: local memory ({kernel.local} bytes of accesses) without a why")
        if row.kernel.wide and not kernel.wide:
            found.append(f"{name}: no 128-bit access of global memory any more")
        if row.kernel.matrix != kernel.matrix:
            found.append(f"{name}: matrix unit {kernel.matrix}, the table says {row.kernel.matrix}")
    return found
