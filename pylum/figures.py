"""Pictures as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def save(figure: Any, path: str | os.PathLike[str], dpi: int) -> None:
    """Write a figure of matplotlib under another name, rename it and close it.

    Args:
        path: its ending says the format; folders above it are made.
    """
    import matplotlib.pyplot as plt

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        figure.savefig(aside, dpi=dpi)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
        plt.close(figure)
