"""Builds the kernels for AMX on emulated tiles and lets ``pylum.ops`` run on them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import pylum.ops
from tests import emulator_build

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "amx_emulator"
# The functions of ``pylum._C`` that have kernels for AMX, for bfloat16.
KERNELS = {
    "attention_forward",
    "attention_backward",
    "prefix_attention_forward",
    "sampled_softmax_forward",
    "sampled_softmax_workspace",
    "topk_forward",
    "topk_workspace",
}


def build() -> Any:
    """The emulated module, configured and compiled where its sources are newer."""
    return emulator_build.build(Path(__file__).parent, BUILD, "_amx_emulated")


class Emulated:
    """``pylum._C`` with emulated kernels for bfloat16; ``calls`` counts theirs."""

    def __init__(self, module: Any, cpu: Any) -> None:
        self.module = module
        self.cpu = cpu
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        if name not in KERNELS:
            return getattr(self.cpu, name)

        def call(*arguments: Any) -> Any:
            first = next(a for a in arguments if isinstance(a, torch.Tensor))
            if first.dtype != torch.bfloat16:
                return getattr(self.cpu, name)(*arguments)
            self.calls += 1
            result = getattr(self.module, name)(*arguments)
            if fault := self.module.take_fault():
                raise AssertionError(f"{name}: {fault}")
            return result

        return call


@contextmanager
def emulating(emulated: Emulated) -> Iterator[Emulated]:
    """Every op of ``pylum.ops`` calls ``emulated`` instead of ``pylum._C``."""
    modules = [
        module
        for info in pkgutil.iter_modules(pylum.ops.__path__)
        if hasattr(module := importlib.import_module(f"pylum.ops.{info.name}"), "_C")
    ]
    before = [module._C for module in modules]
    try:
        for module in modules:
            module._C = emulated
        yield emulated
    finally:
        for module, value in zip(modules, before, strict=True):
            module._C = value
