"""The next item, or candidates, asked of an HSTU: its layers and answers are one recording.

Tokens are looked up before it: an item may have any number of categories, and a recording has
shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pylum import ops
from pylum.cache.pages.pool import PAGE, Pool
from pylum.cache.warm.graphs import Graph
from pylum.cache.warm.recording import Call, Recording, Size, bucket
from pylum.generation.hstu import candidate_scores
from pylum.generation.packing import Candidates, Questions, asked_of
from pylum.model import HSTU, UserModel
from pylum.model.hstu_batch import make_batch
from pylum.model.hstu_cached import Cached, cached_rows
from pylum.model.hstu_places import Clock


class HSTURecording(Recording):
    """A pass of :class:`pylum.HSTU`; arguments as for :class:`Recording`.

    A user who is shown candidates has one history token that each pass writes again, the action
    that passed last; nobody else may write, so that such sizes hold so many users and not more.

    Clocks that are too many belong to the histories that are not asked, and to the one behind the
    others, whose rows see nothing of it.
    """

    def __init__(self, model: HSTU, pool: Pool, size: Size, graph: Graph) -> None:
        self.model = model
        width, dtype = model.config.width, pool.dtype
        self.x = torch.zeros(size.new + size.rows, width, dtype=dtype, device=pool.device)
        super().__init__(model, pool, size, graph)

    @classmethod
    def size_of(cls, model: UserModel, call: Call) -> Size | None:
        assert isinstance(model, HSTU)
        ranked, users = isinstance(call.questions, Candidates), len(call.tables)
        if isinstance(call.questions, Questions) and call.questions.visible is not None:
            return None
        if model.config.context and bool((call.events.lengths == 0).any()):
            # The context of an empty history is in no page.
            return None
        rows, pages = bucket(max(8, len(call.questions))), bucket(max(map(len, call.tables)))
        new = users if ranked else 0
        users = users if ranked else bucket(users)
        keys, idle = 0, 1
        if model.places.reads_all_clocks:
            # A step of the sizes is at most half of what there is.
            most, idle = users * pages * PAGE, 2 + users // 2
            keys = min(bucket(_history(model, call)), most) + rows
        return Size(users + idle, rows, pages, new=new, keys=keys)

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        users, new, rows = self.size.users, self.size.new, self.size.rows
        integers: dict[str, tuple[int, ...]] = {
            "offsets": (users + 1,),
            "counts": (users,),
            "lengths": (users,),
            "table": (users, self.size.pages),
            "positions": (new + rows,),
            "visible": (rows,),
            "query_times": (new + rows,),
            "own": (new + rows,),
            "timestamps": (self.size.keys,),
        }
        if new:
            integers |= {"new": (new,), "targets": (rows,), "new_offsets": (users + 1,)}
            integers |= {"starts": (users,)}
        if self.model.config.context:
            integers["context"] = (users,)
        return integers, {}

    def values(self, call: Call) -> dict[str, torch.Tensor]:
        size, context = self.size, self.model.config.context_tokens
        asked = asked_of(self.model, call.questions)
        batch = make_batch(self.model, call.events, asked, reused=call.events.lengths)
        where = (batch.offsets, batch.positions, batch.clock, batch.mask)
        rows = cached_rows(*where, batch.keys)
        users, total = len(batch.keys), size.new + size.rows
        self.x[: len(batch.x)] = batch.x
        # Of whoever is not asked, as many keys as there are clocks too many.
        spare = max(0, size.keys - size.rows - int(batch.keys.sum()))
        idle = torch.arange(size.users - users) * size.pages * PAGE
        lengths = torch.cat([batch.keys, (spare - idle).clamp(min=0, max=size.pages * PAGE)])
        counts = asked.offsets.diff()
        offsets = torch.full((size.users + 1,), total)
        offsets[: users + 1] = batch.offsets
        values = {
            "offsets": offsets,
            "counts": self.counts(counts),
            "lengths": lengths,
            "table": self.table(call),
            "positions": batch.positions,
            "visible": (batch.keys - context).repeat_interleave(counts),
            "query_times": batch.clock.query_times,
            "own": rows.own,
            "timestamps": batch.clock.timestamps[: size.keys],
        }
        if rows.new is not None and rows.targets is not None and rows.starts is not None:
            behind = torch.arange(len(batch.x), total)
            values |= {"new": rows.new, "targets": torch.cat([rows.targets, behind])}
            values |= {"new_offsets": torch.arange(size.users + 1).clamp(max=size.new)}
            values |= {"starts": rows.starts}
        if context:
            values["context"] = torch.full((users,), context)
        return values

    def run(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        table, lengths = given["table"], given["lengths"]
        prefixes = [ops.PagedPrefix(k, v, table, lengths) for k, v in self.pool.layers]
        rows = Cached(
            given["offsets"],
            given["positions"],
            Clock(given["timestamps"], given["query_times"]),
            given["own"],
            given.get("starts"),
            given.get("new_offsets"),
            given.get("new"),
            given.get("targets"),
        )
        asked = ops.Mask(num_targets=given["counts"], visible=given["visible"])
        mask = self.model.masked(asked, given.get("context", self.size.users))
        hidden = rows.of_targets(self.model.run_rows(self.x, rows, prefixes, mask))
        if self.size.new:
            return candidate_scores(self.model, hidden)
        return self.model.answers(hidden)


def _history(model: HSTU, call: Call) -> int:
    """Tokens of the histories of a call, the last action of each that is shown candidates too."""
    config, ranked = model.config, isinstance(call.questions, Candidates)
    each = config.context_tokens + int(ranked)
    return config.tokens_per_behaviour * call.events.total + each * len(call.events)
