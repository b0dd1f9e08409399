"""Models on the CPU and on the device, and what they are asked."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tests.serving.worlds import SCENES, history, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}
LENGTHS = [0, 3, 33, 70]


@dataclass
class Device:
    """What the library may do on a GPU.

    Args:
        host: a context in which ops on the CPU run on the CPU.
        waits: counts of a second device; None on a GPU.
        pages_are_of_cuda: whether pages are written by CUDA kernels.
    """

    host: Callable[[], AbstractContextManager[None]]
    waits: Counter[str] | None
    pages_are_of_cuda: bool


@functools.cache
def pair(**changes):
    """A model on the CPU and its copy on the device."""
    return model(**changes), there(model(**changes))


def there(made):
    return copy.deepcopy(made).to("cuda")


def histories():
    return {f"u{n}": history(n, seed=n) for n in LENGTHS}


def same(found, expected):
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=CLOSE, rtol=0)
    assert found.users == expected.users
