"""Calls that find all histories in pages, answered by recordings of their sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from pylum.cache.pages.pool import Pool
from pylum.cache.warm.graphs import Graph
from pylum.cache.warm.hstu import HSTURecording
from pylum.cache.warm.lum import LUMRecording
from pylum.cache.warm.recording import Call, Recording, Size
from pylum.model import LUM, UserModel

# Larger calls are bound by their arithmetic, not by the launches of their kernels.
LARGEST = 1024
RECORDINGS = 64


class WarmQuestions:
    """Answers calls that ask and keep nothing, by a recording of their size.

    The first call of a size records it. Sizes grow in steps of a third or a half, so that there are
    few; calls beyond ``LARGEST`` questions or users, and sizes beyond ``RECORDINGS``, are not
    recorded, nor anything after a recording has failed, which is announced. Recordings hold the
    addresses of the weights: where one has moved, all are made anew.

    Args:
        model, pool: of the cache.
        make: makes graphs.
    """

    def __init__(self, model: UserModel, pool: Pool, make: Callable[[], Graph]) -> None:
        self.model, self.pool = model, pool
        self._kind: type[Recording] = LUMRecording if isinstance(model, LUM) else HSTURecording
        self._make: Callable[[], Graph] | None = make
        self._recordings: dict[Size, Recording] = {}
        self._weights: tuple[int, ...] = ()
        self.counts = {"recordings": 0, "replays": 0}

    def answer(self, call: Call) -> torch.Tensor | None:
        """``[Q, D]`` on the model's device; None: this call is not recorded."""
        recording = self._recording(call)
        if recording is None:
            return None
        try:
            out = recording.answer(call)
        except BaseException as error:
            # A recording that has been broken off cannot be made again.
            self._recordings.pop(recording.size, None)
            if not isinstance(error, RuntimeError):
                raise
            self._make = None
            self._recordings.clear()
            warnings.warn(
                "questions on a warm cache are answered without CUDA graphs, since one could not "
                f"be recorded: {error}",
                stacklevel=2,
            )
            return None
        self.counts["replays"] += 1
        return out

    def _recording(self, call: Call) -> Recording | None:
        users, rows = len(call.tables), len(call.questions)
        if self._make is None or not rows or max(rows, users) > LARGEST:
            return None
        size = self._kind.size_of(self.model, call)
        if size is None or torch.is_autocast_enabled(self.pool.device.type):
            return None
        weights = tuple(tensor.data_ptr() for tensor in self._kind.state(self.model))
        if weights != self._weights:
            self._recordings.clear()
            self._weights = weights
        if size not in self._recordings and len(self._recordings) < RECORDINGS:
            graph = self._make()
            self._recordings[size] = self._kind(self.model, self.pool, size, graph)
            self.counts["recordings"] += 1
        return self._recordings.get(size)
