"""A pass over the questions of one size, recorded once and replayed for every call of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pylum.cache.pages.pool import Pool
from pylum.cache.warm.graphs import Graph
from pylum.data.events import Events
from pylum.generation.packing import Asking
from pylum.model import UserModel
from pylum.transfer import moved


def bucket(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... that is no less than ``count``."""
    size = 1
    while size < count:
        size = size * 4 // 3 if size % 3 == 0 else size + max(1, size // 2)
    return size


@dataclass(frozen=True)
class Call:
    """Questions to histories whose keys and values are in pages.

    Args:
        tables: pages of each history.
        events: histories within the model's window, on the host like the questions.
        questions: of each.
    """

    tables: Sequence[Sequence[int]]
    events: Events
    questions: Asking


@dataclass(frozen=True)
class Size:
    """What a recording is made for.

    Args:
        users: histories, at least one more than are asked.
        rows: questions.
        pages: width of the table.
        timed: whether the questions have a time, where that is another pass.
        new: history tokens that every pass writes again, one of each user who is asked.
        keys: clocks of histories and questions, where the pass reads them all; else 0.
    """

    users: int
    rows: int
    pages: int
    timed: bool = False
    new: int = 0
    keys: int = 0


class _Inputs:
    """Named tensors of one dtype that lie side by side and are filled by one copy."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shapes = shapes
        self._all = torch.zeros(sum(map(math.prod, shapes.values())), dtype=dtype, device=device)
        self.named = self._views(self._all)

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([math.prod(shape) for shape in self._shapes.values()])
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def fill(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put values at the beginning of their tensors and zeros behind them."""
        host = torch.zeros(len(self._all), dtype=self._all.dtype)
        for name, there in self._views(host).items():
            there[tuple(map(slice, values[name].shape))] = values[name]
        self._all.copy_(moved(host, self._all.device))


class Recording(ABC):
    """A pass over the questions of one size; its inputs and its answers stay where they are.

    Rows that are too many are asked of one more history, an empty one behind the others, and
    further histories are not asked: nobody reads their answers, and no kernel lets one sequence's
    result depend on another.

    Args:
        model, pool: read when the pass is recorded and whenever it is replayed.
        size: of the pass.
        graph: to record to.
    """

    def __init__(self, model: UserModel, pool: Pool, size: Size, graph: Graph) -> None:
        self.pool, self.size, self.graph = pool, size, graph
        integers, floats = self.shapes()
        self._integers = _Inputs(integers, torch.int64, pool.device)
        self._floats = _Inputs(floats, torch.float32, pool.device)
        self._out: torch.Tensor | None = None

    @classmethod
    @abstractmethod
    def size_of(cls, model: UserModel, call: Call) -> Size | None:
        """The smallest size that holds a call; None: there is none."""

    @staticmethod
    def state(model: UserModel) -> Iterator[torch.Tensor]:
        """What the pass reads of the model, whose addresses are recorded."""
        yield from model.parameters()
        yield from model.buffers()

    @abstractmethod
    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Of the inputs: integers and floats."""

    @abstractmethod
    def values(self, call: Call) -> dict[str, torch.Tensor]:
        """Of the inputs, as far as they are not zero; here what else the pass reads is put in its
        place."""

    @abstractmethod
    def run(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The pass, ``[rows, D]``, which reads no value on the host."""

    def fill(self, call: Call) -> None:
        """Put a call in the place of the one before."""
        values = self.values(call)
        self._integers.fill(values)
        self._floats.fill(values)

    def work(self) -> torch.Tensor:
        """The pass over what has been filled in, kernel by kernel."""
        return self.run({**self._integers.named, **self._floats.named})

    def answer(self, call: Call) -> torch.Tensor:
        """``[Q, D]`` as :func:`pylum.generation.packing.answer` gives them.

        Raises:
            RuntimeError: the pass cannot be recorded.
        """
        self.fill(call)
        if self._out is None:
            self._out = self.graph.record(self.work)
        self.graph.replay()
        return self._out[: len(call.questions)].clone()

    def table(self, call: Call) -> torch.Tensor:
        """``[users, pages]`` of those who are asked."""
        table = torch.zeros(len(call.tables), self.size.pages, dtype=torch.int64)
        for row, pages in enumerate(call.tables):
            table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int64)
        return table

    def counts(self, asked: torch.Tensor) -> torch.Tensor:
        """``[users + 1]`` questions to each history, and to the one behind them."""
        return torch.cat([asked, self.size.rows - asked.sum()[None]])
