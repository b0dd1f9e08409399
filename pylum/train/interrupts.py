"""Ctrl-C between what is done whole or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, Ctrl-C waits; at the end it does what it would have done at once."""
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread is interrupted, and only a handler that Python knows can be put back.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    arrived: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *call: arrived.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        if callable(before):
            before(*arrived[0])
        elif before == signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)
