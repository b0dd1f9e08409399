"""The caller's modes of torch, set aside where a result must not depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, wraps
from types import FunctionType
from typing import Any, TypeVar

import torch

CPU, META = torch.device("cpu"), torch.device("meta")
Made = TypeVar("Made", bound=Callable[..., Any])


@contextmanager
def autocast_off(device: torch.device = CPU) -> Iterator[None]:
    """Dtypes inside are those of the tensors."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if on else nullcontext():
        yield


@contextmanager
def learning(device: torch.device = CPU) -> Iterator[None]:
    """Gradients are taken and nothing is rounded, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), autocast_off(device):
        yield


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """torch's random numbers on the host and on ``device`` begin at a seed; behind it, and on other
    devices all the time, they go on as the caller left them."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            index = torch.cuda.current_device() if each.index is None else each.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def on_host(made: Made) -> Made:
    """A function, or a class with its public methods, that makes tensors on the host where it names
    no device, whatever :func:`torch.set_default_device` says: data is read and packed there."""
    if not isinstance(made, type):
        return _on_host(made)
    for name, value in list(vars(made).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, classmethod | staticmethod):
            setattr(made, name, type(value)(_on_host(value.__func__)))
        elif isinstance(value, property):
            setattr(made, name, property(_on_host(value.fget)))
        elif isinstance(value, cached_property):
            value.func = _on_host(value.func)
        elif isinstance(value, FunctionType):
            setattr(made, name, _on_host(value))
    return made


def on_host_or_meta(made: Made) -> Made:
    """As :func:`on_host`, but where the default device is meta: who asks for a model there wants to
    know its sizes, and may not have the memory for it."""
    return _on_host(made, (CPU, META))


def _on_host(call: Any, left: tuple[torch.device, ...] = (CPU,)) -> Any:
    @wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.get_default_device() in left:
            return call(*args, **kwargs)
        with CPU:
            return call(*args, **kwargs)

    return called
