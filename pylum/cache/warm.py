"""Questions to a LUM whose histories are cached: one recording for all calls of a size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pylum import ops
from pylum.cache.graphs import Graph
from pylum.cache.pool import Pool
from pylum.data.events import Events
from pylum.generation.packing import Questions, gaps
from pylum.model import LUM
from pylum.transfer import moved

# Larger calls are bound by their arithmetic, not by the launches of their kernels.
LARGEST = 1024
RECORDINGS = 64


def bucket(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... that is no less than ``count``."""
    size = 1
    while size < count:
        size = size * 4 // 3 if size % 3 == 0 else size + max(1, size // 2)
    return size


@dataclass(frozen=True)
class Size:
    """What a recording is made for.

    Args:
        users: histories, at least one more than are asked.
        rows: questions.
        pages: width of the table.
        timed: whether the questions have a time.
    """

    users: int
    rows: int
    pages: int
    timed: bool

    @classmethod
    def of(cls, users: int, rows: int, pages: int, timed: bool) -> Size:
        """The smallest that holds a call."""
        return cls(bucket(users) + 1, bucket(max(8, rows)), bucket(pages), timed)


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


class Recording:
    """A pass over the questions of one size; its inputs and its answers stay where they are.

    Rows that are too many are asked of one more history, an empty one behind the others, and
    further histories are not asked: nobody reads their answers, and no kernel lets one sequence's
    result depend on another.

    Args:
        model, pool: read when the pass is recorded and whenever it is replayed.
        size: of the pass.
        graph: to record to.
    """

    def __init__(self, model: LUM, pool: Pool, size: Size, graph: Graph) -> None:
        self.model, self.pool, self.size, self.graph = model, pool, size, graph
        users, rows = size.users, size.rows
        integers: dict[str, tuple[int, ...]] = {
            "offsets": (users + 1,),
            "counts": (users,),
            "lengths": (users,),
            "table": (users, size.pages),
            "positions": (rows,),
        }
        if size.timed:
            integers |= {"gaps": (rows,), "times": (rows,)}
        floats: dict[str, tuple[int, ...]] = {}
        for f in model.schema.conditions:
            shape = (rows, f.dim) if f.kind == "vector" else (rows,)
            (integers if f.kind == "category" else floats)[f"condition.{f.name}"] = shape
        self._integers = _Inputs(integers, torch.int64, pool.device)
        self._floats = _Inputs(floats, torch.float32, pool.device)
        self._out: torch.Tensor | None = None

    def answer(
        self, tables: Sequence[Sequence[int]], events: Events, questions: Questions
    ) -> torch.Tensor:
        """``[Q, D]`` as :func:`pylum.generation.packing.answer` gives them.

        Raises:
            RuntimeError: the pass cannot be recorded.
        """
        self._fill(tables, events, questions)
        if self._out is None:
            self._out = self.graph.record(self._pass)
        self.graph.replay()
        return self._out[: len(questions)].clone()

    def _fill(self, tables: Sequence[Sequence[int]], events: Events, questions: Questions) -> None:
        asked, behaviours = questions.offsets.diff(), events.lengths
        users, rows = len(asked), len(questions)
        offsets = torch.full((self.size.users + 1,), self.size.rows)
        offsets[: users + 1] = questions.offsets
        table = torch.zeros(users, self.size.pages, dtype=torch.int64)
        for row, pages in enumerate(tables):
            table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int64)
        columns = {f"condition.{name}": c for name, c in questions.columns.items()}
        values = {
            "offsets": offsets,
            "counts": torch.cat([asked, torch.tensor([self.size.rows - rows])]),
            "lengths": self.pool.tokens(1) * behaviours,
            "table": table,
            "positions": behaviours.repeat_interleave(asked),
            **columns,
        }
        since = gaps(events, questions)
        if since is not None and questions.times is not None:
            values |= {"gaps": since, "times": questions.times}
        self._integers.fill(values)
        self._floats.fill(values)

    def _pass(self) -> torch.Tensor:
        given = {**self._integers.named, **self._floats.named}
        names = [f.name for f in self.model.schema.conditions]
        tokens = self.model.query_tokens(
            {name: given[f"condition.{name}"] for name in names},
            given.get("gaps"),
            given.get("times"),
            count=self.size.rows,
        )
        table, lengths = given["table"], given["lengths"]
        prefixes = [ops.PagedPrefix(k, v, table, lengths) for k, v in self.pool.layers]
        mask = ops.Mask(num_targets=given["counts"])
        where = (given["offsets"], given["positions"])
        return self.model.answers(self.model.user_encoder.ask(tokens, *where, prefixes, mask))


class WarmQuestions:
    """Answers calls that ask and append nothing, by a recording of their size.

    The first call of a size records it. Sizes grow in steps of a third or a half, so that there are
    few; calls beyond ``LARGEST`` questions or users, and sizes beyond ``RECORDINGS``, are not
    recorded, nor anything after a recording has failed, which is announced. Recordings hold the
    addresses of the weights: where one has moved, all are made anew.

    Args:
        model, pool: of the cache.
        make: makes graphs.
    """

    def __init__(self, model: LUM, pool: Pool, make: Callable[[], Graph]) -> None:
        self.model, self.pool = model, pool
        self._make: Callable[[], Graph] | None = make
        self._recordings: dict[Size, Recording] = {}
        self._weights: tuple[int, ...] = ()
        self.counts = {"recordings": 0, "replays": 0}

    def answer(
        self, tables: Sequence[Sequence[int]], events: Events, questions: Questions
    ) -> torch.Tensor | None:
        """``[Q, D]`` on the model's device; None: this call is not recorded."""
        recording = self._recording(tables, questions)
        if recording is None:
            return None
        try:
            out = recording.answer(tables, events, questions)
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

    def _recording(self, tables: Sequence[Sequence[int]], questions: Questions) -> Recording | None:
        users, rows, device = len(tables), len(questions), self.pool.device
        if self._make is None or not rows or max(rows, users) > LARGEST:
            return None
        if torch.is_autocast_enabled(device.type):
            return None
        encoder = self.model.user_encoder
        state = (*self.model.parameters(), *self.model.buffers(), encoder.cos, encoder.sin)
        weights = tuple(tensor.data_ptr() for tensor in state)
        if weights != self._weights:
            self._recordings.clear()
            self._weights = weights
        size = Size.of(users, rows, max(map(len, tables)), questions.times is not None)
        if size not in self._recordings and len(self._recordings) < RECORDINGS:
            graph = self._make()
            self._recordings[size] = Recording(self.model, self.pool, size, graph)
            self.counts["recordings"] += 1
        return self._recordings.get(size)
