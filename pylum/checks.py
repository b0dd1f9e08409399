"""Ranges of settings: each message names the field, what was wanted and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def at_least(settings: Any, least: float, *names: str) -> None:
    for name, value in _values(settings, names):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def at_most(settings: Any, most: float, *names: str) -> None:
    for name, value in _values(settings, names):
        if value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}")


def positive(settings: Any, *names: str) -> None:
    for name, value in _values(settings, names):
        # NaN is not positive either.
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def finite(settings: Any, *names: str) -> None:
    for name, value in _values(settings, names):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def shares(settings: Any, *names: str) -> None:
    for name, value in _values(settings, names):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def one_of(settings: Any, known: Sequence[str], *names: str) -> None:
    for name, value in _values(settings, names):
        if value not in known:
            raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")


def _values(settings: Any, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, getattr(settings, name)) for name in names]
