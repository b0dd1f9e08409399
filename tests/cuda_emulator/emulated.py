"""Builds the CUDA kernels for the emulator and lets ``pylum.ops`` run on them.

Host tensors stand for the device's: the emulated module takes them for CUDA tensors, and its
kernels may touch exactly the tensors of the call.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import pylum.ops
from pylum.ops._library import RunOn
from tests import emulator_build

ROOT = Path(__file__).parent.parent.parent
# With ASan instead of the emulator's own checks of memory: for a run of the tests under it,
#   LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
#   ASAN_OPTIONS=detect_leaks=0 PYLUM_EMULATOR_SANITIZE=1
#   python -m pytest --capture=sys tests/cuda_emulator
# ASan must find the function that throws when it starts, and ends the process where it finds a bug.
SANITIZE = os.environ.get("PYLUM_EMULATOR_SANITIZE", "0") == "1"
BUILD = ROOT / "build" / ("emulator-sanitized" if SANITIZE else "emulator")
# A module, the name of one of its attributes, and a value of it.
Attribute = tuple[Any, str, Any]
# DLPack's type codes and bits.
DTYPES = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int64: (0, 64),
    torch.int32: (0, 32),
    torch.bool: (6, 8),
}


def build() -> Any:
    """The emulated module, configured and compiled where its sources are newer."""
    return emulator_build.build(
        Path(__file__).parent, BUILD, "_emulated", f"-DPYLUM_SANITIZE={SANITIZE:d}"
    )


class Emulated:
    """``pylum._C`` with emulated kernels; what has no CUDA kernel is that of the CPU."""

    def __init__(self, module: Any, cpu: Any) -> None:
        self.module = module
        self.cpu = cpu
        self.errors = torch.zeros(1, dtype=torch.int32)
        self.calls = 0
        self.swapped: list[Attribute] = []

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Ops run on the CPU again, inside :func:`emulating`."""
        emulated = [(module, name, getattr(module, name)) for module, name, _ in self.swapped]
        try:
            _set(self.swapped)
            yield
        finally:
            _set(emulated)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self.module, name):
            return getattr(self.cpu, name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            self.module.clear_memory()
            return getattr(self.module, name)(*[self._device(a) for a in arguments])

        return call

    def _device(self, value: Any) -> Any:
        if isinstance(value, RunOn):
            self._allow(self.errors, "the error word")
            return RunOn(1, 0, self.errors.data_ptr())
        if isinstance(value, list):
            return [self._device(x) for x in value]
        if not isinstance(value, torch.Tensor):
            return value
        self._allow(value, f"a tensor {list(value.shape)} {value.dtype}")
        shape, strides = list(value.shape), list(value.stride())
        return self.module.HostAsCuda(value.data_ptr(), shape, strides, *DTYPES[value.dtype])

    def _allow(self, x: torch.Tensor, name: str) -> None:
        if x.numel():
            last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
            self.module.add_memory(x.data_ptr(), (last + 1) * x.element_size(), name)

    def take_errors(self) -> int:
        """The error word, which is cleared."""
        found = int(self.errors)
        self.errors.zero_()
        return found


@contextmanager
def emulating(emulated: Emulated) -> Iterator[Emulated]:
    """Every op of ``pylum.ops`` calls ``emulated`` instead of ``pylum._C``.

    Pages then hold rows, as on a GPU.
    """
    modules = [
        module
        for info in pkgutil.iter_modules(pylum.ops.__path__)
        if hasattr(module := importlib.import_module(f"pylum.ops.{info.name}"), "_C")
    ]
    replaced = [(module, "_C", emulated) for module in modules]
    for name in ("pylum.ops.pages", "pylum.reference.append_pages"):
        module = sys.modules[name]
        replaced += [(module, order, _rows) for order in ("key_order", "value_order")]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    emulated.swapped = before
    try:
        _set(replaced)
        yield emulated
    finally:
        _set(before)


def _set(values: list[Attribute]) -> None:
    for module, name, value in values:
        setattr(module, name, value)


def _rows(pool: torch.Tensor) -> torch.Tensor:
    elements = torch.arange(pool.shape[2] * pool.shape[3], device=pool.device)
    return elements.view(pool.shape[2:])
