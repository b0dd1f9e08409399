"""Conditions asked of a LUM: tokens, layers and answers are one recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from pylum import ops
from pylum.cache.pages.pool import Pool
from pylum.cache.warm.graphs import Graph
from pylum.cache.warm.recording import Call, Recording, Size, bucket
from pylum.generation.packing import Questions, gaps
from pylum.model import LUM, UserModel


class LUMRecording(Recording):
    """A pass of :class:`pylum.LUM`; arguments as for :class:`Recording`."""

    def __init__(self, model: LUM, pool: Pool, size: Size, graph: Graph) -> None:
        self.model = model
        super().__init__(model, pool, size, graph)

    @classmethod
    def size_of(cls, model: UserModel, call: Call) -> Size | None:
        assert isinstance(call.questions, Questions)
        if call.questions.visible is not None:
            return None
        users, pages = len(call.tables), max(map(len, call.tables))
        timed = call.questions.times is not None
        return Size(bucket(users) + 1, bucket(max(8, len(call.questions))), bucket(pages), timed)

    @staticmethod
    def state(model: UserModel) -> Iterator[torch.Tensor]:
        assert isinstance(model, LUM)
        yield from Recording.state(model)
        yield from (model.user_encoder.cos, model.user_encoder.sin)

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        users, rows = self.size.users, self.size.rows
        integers: dict[str, tuple[int, ...]] = {
            "offsets": (users + 1,),
            "counts": (users,),
            "lengths": (users,),
            "table": (users, self.size.pages),
            "positions": (rows,),
        }
        if self.size.timed:
            integers |= {"gaps": (rows,), "times": (rows,)}
        floats: dict[str, tuple[int, ...]] = {}
        for f in self.model.schema.conditions:
            shape = (rows, f.dim) if f.kind == "vector" else (rows,)
            (integers if f.kind == "category" else floats)[f"condition.{f.name}"] = shape
        return integers, floats

    def values(self, call: Call) -> dict[str, torch.Tensor]:
        events, questions = call.events, call.questions
        assert isinstance(questions, Questions)
        asked = questions.offsets.diff()
        offsets = torch.full((self.size.users + 1,), self.size.rows)
        offsets[: len(asked) + 1] = questions.offsets
        values = {
            "offsets": offsets,
            "counts": self.counts(asked),
            "lengths": self.pool.tokens(1) * events.lengths,
            "table": self.table(call),
            "positions": events.lengths.repeat_interleave(asked),
        }
        values |= {f"condition.{name}": column for name, column in questions.columns.items()}
        since = gaps(events, questions)
        if since is not None and questions.times is not None:
            values |= {"gaps": since, "times": questions.times}
        return values

    def run(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
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
