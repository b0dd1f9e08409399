"""Copies beside the caller's work: two CUDA streams, or nothing where there is one queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch

# "out" copies to the host, "back" from it: a link between them carries both ways at once.
Name = Literal["out", "back"]


class Mark(Protocol):
    """A point of a lane, or of the caller's stream, that work reaches."""

    def wait(self) -> None:
        """The caller's stream goes on once the mark is reached; the host does not wait."""


class Lanes(Protocol):
    """Two queues beside the caller's stream. Work of one lane runs in its order."""

    def here(self) -> Mark:
        """What the caller's stream has been given so far."""

    def run(self, lane: Name, work: Callable[[], None], after: Iterable[Mark] = ()) -> Mark:
        """Queue ``work`` behind ``after``, and behind nothing of the caller's that is not in it."""

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Keep the memory of tensors that lanes use until their work with them is over."""


class _Reached:
    def wait(self) -> None:
        pass


class Inline:
    """Lanes of a device whose work is over when a call returns."""

    def here(self) -> Mark:
        return _Reached()

    def run(self, lane: Name, work: Callable[[], None], after: Iterable[Mark] = ()) -> Mark:
        work()
        return _Reached()

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        pass


class _Event:
    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.device, self.event = device, torch.cuda.Event()
        self.event.record(stream)

    def wait(self) -> None:
        self.event.wait(torch.cuda.current_stream(self.device))


class Streams:
    """Two streams of a GPU.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._made: dict[str, torch.cuda.Stream] = {}

    def here(self) -> Mark:
        return _Event(self.device, torch.cuda.current_stream(self.device))

    def run(self, lane: Name, work: Callable[[], None], after: Iterable[Mark] = ()) -> Mark:
        stream = self._streams[lane]
        # Tensors made by ``work`` belong to the lane: their memory is used again in its order.
        with torch.cuda.stream(stream):
            for mark in after:
                mark.wait()
            work()
        return _Event(self.device, stream)

    @property
    def _streams(self) -> dict[str, torch.cuda.Stream]:
        if not self._made:
            self._made = {name: torch.cuda.Stream(self.device) for name in ("out", "back")}
        return self._made

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            for stream in self._streams.values():
                tensor.record_stream(stream)


def lanes_of(device: torch.device) -> Lanes:
    return Streams(device) if device.type == "cuda" else Inline()
