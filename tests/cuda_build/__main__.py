"""Holds the kernels of a CUDA build against the checked-in table.

python -m tests.cuda_build check build/cuda     what .ci/run does
python -m tests.cuda_build record build/cuda    writes the rows of what was built anew
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.cuda_build.resources import kernels_of, toolkit_of
from tests.cuda_build.table import PATH, failures, read, recorded, written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["check", "record"])
    parser.add_argument("build", type=Path, help="CMake build folder, such as build/cuda")
    chosen = parser.parse_args()
    toolkit, kernels = toolkit_of(chosen.build), kernels_of(chosen.build)
    known, rows = read(PATH.read_text()) if PATH.exists() else (toolkit, {})
    if chosen.what == "record":
        new = recorded(rows, kernels)
        aside = PATH.with_suffix(".tmp")
        aside.write_text(written(toolkit, new))
        aside.replace(PATH)
        rows = {kernel.key: kernel for kernel in kernels}
    elif known != toolkit:
        print(f"kernels are not compared: the table is of nvcc {known}, the build of {toolkit}")
        return 0
    wrong = failures(rows, kernels)
    for line in wrong:
        print(line, file=sys.stderr)
    local = sum(kernel.local > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels, {local} with local memory, {len(wrong)} beyond the table")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
