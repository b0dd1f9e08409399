"""A second device without a second device: what code does with tensors on a GPU, seen on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)

# Calls that wait for the device and bring a value to the host.
_WAITS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("numpy", "__array__", "cpu", "equal", "is_nonzero", "allclose"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
}

_MAY_MIX = {"copy_", "_has_compatible_shallow_copy_type"}


class SecondDevice(TorchFunctionMode):
    """Inside, tensors asked for on ``"cuda"`` stay in the host's memory and are remembered.

    They say ``x.device == cuda:0``, what is computed from them is on that device too, and a call
    that mixes them with tensors of the host is an error, as it is on a GPU. ``waits`` counts, by
    name, the calls for which the host would wait for the GPU.

    Autograd's own calls are not seen: a gradient is where its tensor is. Streams are names: what is
    given to one is done at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._patches = ExitStack()

    def __enter__(self) -> SecondDevice:
        calls = {"Stream": _Stream, "Event": _Event, "stream": _on, "current_stream": _current}
        self._patches.enter_context(mock.patch.multiple(torch.cuda, **calls))
        self._patches.enter_context(mock.patch.object(torch.Tensor, "record_stream", _record))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return CUDA if _is_second(args[0]) else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return _is_second(args[0])
        if func == torch.Tensor.is_cpu.__get__:
            return not _is_second(args[0])
        name = getattr(func, "__name__", str(func))
        kwargs.pop("pin_memory", None)
        if name in ("to", "cpu", "cuda", "pin_memory") and isinstance(args[0], torch.Tensor):
            return self._move(name, args, kwargs)
        if name == "__deepcopy__":
            # What it has copied so far may be anywhere.
            return _mark(func(*args, **kwargs)) if _is_second(args[0]) else func(*args, **kwargs)
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        second = [x for x in given if _is_second(x)]
        if second:
            self._check(name, func, args, kwargs, given)
        wanted = kwargs.get("device")
        there = bool(second)
        if wanted is not None:
            there = torch.device(wanted).type == "cuda"
            kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        if func == torch.Tensor.data.__set__ and second:
            args[0]._second = _is_second(args[1])
            return out
        return tree_map(_mark, out) if there else out

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        x, *rest = args
        target = {"cpu": "cpu", "cuda": "cuda"}.get(name)
        kept = []
        for value in [*rest, kwargs.pop("device", None)]:
            if isinstance(value, (str, torch.device)):
                target = torch.device(value).type
            elif isinstance(value, torch.Tensor):
                target = "cuda" if _is_second(value) else "cpu"
                kept.append(value.dtype)
            elif isinstance(value, torch.dtype):
                kept.append(value)
        kwargs.pop("non_blocking", None)
        before = "cuda" if _is_second(x) else "cpu"
        target = target or before
        if before == "cuda" and target == "cpu":
            self.waits["cpu"] += 1
        dtype = kept[0] if kept else kwargs.pop("dtype", None) or x.dtype
        copy = before != target or kwargs.pop("copy", False)
        out = x.to(dtype, copy=copy)
        return _mark(out) if target == "cuda" else out

    def _check(self, name: str, func: Any, args: Any, kwargs: Any, given: Any) -> None:
        hosts = [x for x in given if not _is_second(x) and x.dim() > 0]
        may_mix = name in _MAY_MIX or func == torch.Tensor.data.__set__
        if hosts and not may_mix:
            shapes = ", ".join(str(list(x.shape)) for x in hosts)
            raise RuntimeError(f"{name} mixes tensors on cuda:0 with tensors on cpu {shapes}")
        if name in ("numpy", "__array__"):
            raise TypeError("a tensor on cuda:0 has no numpy array: copy it to the host first")
        waits = name in _WAITS
        if name == "repeat_interleave":
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            by_tensor = len(tensors) > 1 or len(args) == 1
            waits = by_tensor and kwargs.get("output_size") is None
        if name in ("__getitem__", "__setitem__"):
            places = tree_flatten(args[1])[0]
            waits = any(isinstance(p, torch.Tensor) and p.dtype == torch.bool for p in places)
        if name == "where":
            waits = len(args) == 1
        if waits:
            self.waits[name] += 1


@contextmanager
def trainable() -> Iterator[None]:
    """What training asks of CUDA itself, answered by the host: a generator of random numbers, and
    autocast."""
    calls = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "current_device": lambda: 0,
        "default_generators": (torch.default_generator,),
    }
    with (
        mock.patch.multiple(torch.cuda, **calls),
        mock.patch.object(torch, "autocast", partial(_autocast, torch.autocast)),
    ):
        yield


@contextmanager
def _autocast(real: Any, kind: str, dtype: torch.dtype) -> Iterator[None]:
    # Tensors that stand for the device's are dispatched as the host's.
    with real(kind, dtype), real("cpu", dtype):
        yield


class _Stream:
    def __init__(self, device: torch.device) -> None:
        assert device == CUDA

    def synchronize(self) -> None:
        """All it has been given is done."""


class _Event:
    """Waits for what a stream has been given."""

    def __init__(self) -> None:
        self.recorded = False

    def record(self, stream: _Stream) -> None:
        assert isinstance(stream, _Stream)
        self.recorded = True

    def wait(self, stream: _Stream) -> None:
        assert self.recorded and isinstance(stream, _Stream)


def _record(x: torch.Tensor, stream: _Stream) -> None:
    assert x.device == CUDA and isinstance(stream, _Stream)


_STREAMS = [_Stream(CUDA)]


@contextmanager
def _on(stream: _Stream) -> Any:
    _STREAMS.append(stream)
    try:
        yield
    finally:
        _STREAMS.pop()


def _current(device: torch.device) -> _Stream:
    assert device == CUDA
    return _STREAMS[-1]


def _is_second(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and getattr(x, "_second", False)


def _mark(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        x._second = True  # type: ignore[attr-defined]
    return x
