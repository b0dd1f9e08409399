"""Files that commands write: looked at before the work, renamed into place after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writable(out: Path, name: str = "out") -> None:
    """That a file may be written at ``out``; asked before work that would be lost.

    Raises:
        ValueError: its directory is not there or not writable, or it is a directory itself.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{name} must be in a directory that is there, got {out}")
    if out.is_dir():
        raise ValueError(f"{name} must be a file, got the directory {out}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"{name} must be in a directory that can be written to, got {out}")


@contextmanager
def renamed(out: Path) -> Iterator[Path]:
    """Another name to write under, which becomes ``out`` where all went well."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
