"""A two-tower retriever, with or without a user model's interests (section 3.3 of LUM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from pylum import ops
from pylum.data.tables import as_table, pick
from pylum.data.vocab import Vocab
from pylum.knowledge import Knowledge
from pylum.rank.coding import Coded, Coder, labels, table_of
from pylum.rank.inputs import Embeddings, Head, Known, KnownSizes
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.utilisation import Inputs, Joined, join, refuse_in_sample

PREDICT_ROWS = 8192


class Towers(nn.Module):
    """User and item vectors of unit length.

    Args:
        schema, vocabs: of the features of both.
        user, item: names of the features of each; sequences are the user's.
        known_user, known_item: sizes of knowledge.
    """

    def __init__(
        self,
        schema: Schema,
        vocabs: dict[str, Vocab],
        settings: Settings,
        user: Sequence[str],
        item: Sequence[str],
        known_user: KnownSizes,
        known_item: KnownSizes,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(schema, vocabs, settings.dim, settings.initial_scale)
        numbers = [f.name for f in schema.of("number")]
        self.at: dict[str, tuple[list[int], list[int]]] = {}
        sides = {}
        for side, names, known in (("user", user, known_user), ("item", item, known_item)):
            fields = [n for n, name in enumerate(self.embeddings.pooled) if name in names]
            floats = [n for n, name in enumerate(numbers) if name in names]
            self.at[side] = (fields, floats)
            behaviours = side == "user" and bool(schema.of("sequence"))
            width = (len(fields) + behaviours) * settings.dim + len(floats)
            if width == 0:
                raise ValueError(f"{side} must name at least one feature, got {list(names)}")
            sides[side] = Head(width, settings.hidden, known, settings.dropout, settings.dim)
        self.sides = nn.ModuleDict(sides)
        self.remembers = bool(schema.of("sequence"))

    def forward(self, side: str, rows: Coded, known: Known | None) -> torch.Tensor:
        """``[B, dim]`` unit vectors of one side."""
        read = self.embeddings(rows)
        fields, floats = self.at[side]
        parts = [read.fields[:, fields].flatten(1), read.numbers[:, floats]]
        if side == "user" and self.remembers:
            parts.append(read.remembered)
        return nn.functional.normalize(self.sides[side](torch.cat(parts, 1), known), dim=1)


class TwoTower:
    """Finds items for a row's user and moment; trained on rows whose label is 1.

    The loss is a softmax over the items of the batch, corrected by the logarithm of how often each
    is in one. What a row's item is never reaches the user's side.

    Args:
        schema: of the rows.
        user, item: names of its features of each side; others are not read. Sequences are the
            user's.
        knowledge: its answers join the user's side, its item vectors the item's; or None.
        temperature: divides the similarities.
        settings: as :class:`~pylum.rank.settings.Settings`; ``dim`` is also that of the vectors.

    Raises:
        ValueError: a name is not in the schema, on both sides, or a side is empty.
    """

    def __init__(
        self,
        schema: Schema,
        user: Sequence[str],
        item: Sequence[str],
        knowledge: Knowledge | None = None,
        *,
        temperature: float = 0.07,
        **settings: Any,
    ) -> None:
        names = [f.name for f in schema.features]
        strangers = [name for name in (*user, *item) if name not in names]
        if strangers or set(user) & set(item):
            raise ValueError(
                f"user and item must be different features of the schema, got {strangers or user}"
            )
        late = [f.name for f in schema.of("sequence") if f.name in item]
        if late:
            raise ValueError(f"item must not hold sequences, got {late}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        features = tuple(f for f in schema.features if f.name in user or f.name in item)
        self.schema = replace(schema, features=features, crosses=())
        self.user, self.item = tuple(user), tuple(item)
        self.knowledge, self.temperature = knowledge, temperature
        self.settings = Settings.of("two_tower", settings)
        self.history: list[dict[str, float]] = []
        self.coder: Coder | None = None
        self.towers: Towers | None = None
        self.of_user: Inputs | None = None
        self.of_item: Inputs | None = None

    def fit(self, rows: Any, *, allow_in_sample: bool = False) -> TwoTower:
        """Train on the rows whose label is 1.

        Raises:
            ValueError: no row has a label of 1, a column is missing, or rows are in-sample.
        """
        schema, settings = self.schema, self.settings
        table = table_of(rows, schema, (schema.label, *self._columns()))
        table = table.filter(pa.array(labels(table, schema).numpy() == 1))
        if not len(table):
            raise ValueError(f"rows must hold a label {schema.label!r} of 1, got none")
        coder = self.coder = Coder.fit(schema, table, settings.min_count, None)
        coded = coder.encode(table)
        joined = None
        if self.knowledge is not None:
            if not allow_in_sample:
                refuse_in_sample(self.knowledge, table, schema)
            joined = join(self.knowledge, table, schema)
            self.of_user = Inputs.fit(("direct",), self.knowledge, joined)
            self.of_item = replace(self.of_user, parts=("item",))
        ids = Vocab()
        codes = torch.from_numpy(ids.grow(pick(table, schema.item, "rows"), schema.item))
        share = torch.bincount(codes, minlength=len(ids)).double() / len(codes)
        log_q = share.clamp_min(1e-12).log().float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.towers = Towers(
                schema,
                coder.vocabs,
                settings,
                self.user,
                self.item,
                self._sizes(self.of_user),
                self._sizes(self.of_item),
            )
            self._train(coded, joined, codes, log_q)
        return self

    def _train(
        self, coded: Coded, joined: Joined | None, codes: torch.Tensor, log_q: torch.Tensor
    ) -> None:
        settings, towers = self.settings, self.towers
        assert towers is not None
        adam = torch.optim.Adam(
            towers.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        towers.train()
        for epoch in range(settings.epochs):
            total = 0.0
            for index in torch.randperm(len(coded)).split(settings.batch_rows):
                distinct, place = codes[index].unique(return_inverse=True)
                # One row of each item of the batch stands for it.
                first = torch.empty(len(distinct), dtype=torch.int64).scatter_(0, place, index)
                known = self._known(self.of_user, joined, index)
                if known is not None and settings.knowledge_dropout:
                    known = known.dropped(settings.knowledge_dropout)
                users = towers("user", coded.take(index), known)
                items = towers("item", coded.take(first), self._known(self.of_item, joined, first))
                loss = ops.sampled_softmax(
                    users, items, place, temperature=self.temperature, log_q=log_q[distinct]
                )
                loss.backward()
                adam.step()
                adam.zero_grad()
                total += float(loss.detach()) * len(index)
            self.history.append({"epoch": epoch + 1, "loss": total / len(coded)})
        towers.eval()

    def users(self, rows: Any, *, knowledge: Knowledge | None = None) -> torch.Tensor:
        """``[N, dim]`` unit vectors of the rows' users at their moments; items are not read."""
        schema = self.schema
        known = self.knowledge if knowledge is None else knowledge
        table = as_table(rows, "rows")
        moments = () if known is None else (schema.user, schema.time)
        wanted = [*self.user, *moments, *([schema.condition] if known and schema.condition else [])]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise ValueError(f"rows lack the columns {', '.join(missing)}")
        return self._vectors("user", _only(table, self.user, wanted, schema), self.of_user, known)

    def items(self, table: Any, *, knowledge: Knowledge | None = None) -> torch.Tensor:
        """``[M, dim]`` unit vectors of items, given by a table of the item's features."""
        schema = self.schema
        known = self.knowledge if knowledge is None else knowledge
        items = as_table(table, "table")
        wanted = [*dict.fromkeys((*self.item, schema.item))]
        missing = [name for name in wanted if name not in items.column_names]
        if missing:
            raise ValueError(f"table lacks the columns {', '.join(missing)}")
        return self._vectors("item", _only(items, self.item, wanted, schema), self.of_item, known)

    def topk(
        self, rows: Any, items: Any, k: int = 10
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """The ``k`` items of a table that come next to each row.

        Returns:
            ``[N, k]`` raw ids, None where there are fewer, and their similarities.
        """
        scores, found = ops.topk(self.users(rows), self.items(items), k)
        known = pick(as_table(items, "items"), self.schema.item, "items").to_pylist()
        ids = np.empty(len(known) + 1, np.object_)
        ids[:] = [*known, None]  # the place of -1
        return ids[found.numpy()], scores.numpy()

    def _vectors(
        self, side: str, table: pa.Table, inputs: Inputs | None, knowledge: Knowledge | None
    ) -> torch.Tensor:
        if self.towers is None or self.coder is None:
            raise ValueError("the retriever must be fitted first")
        coded = self.coder.encode(table)
        joined = None
        if inputs is not None and knowledge is not None:
            if knowledge.fingerprint != (self.knowledge or knowledge).fingerprint:
                raise ValueError(
                    "knowledge must be of the user model the retriever was trained with, got "
                    f"{knowledge.fingerprint}"
                )
            joined = _joined(knowledge, table, self.schema, side)
        parts = []
        with torch.inference_mode():
            for index in torch.arange(len(table)).split(PREDICT_ROWS):
                known = self._known(inputs, joined, index, knowledge)
                parts.append(self.towers(side, coded.take(index), known))
        return torch.cat(parts).clone() if parts else torch.empty(0, self.settings.dim)

    def _known(
        self,
        inputs: Inputs | None,
        joined: Joined | None,
        index: torch.Tensor,
        knowledge: Knowledge | None = None,
    ) -> Known | None:
        knowledge = self.knowledge if knowledge is None else knowledge
        if inputs is None or joined is None or knowledge is None:
            return None
        return inputs.gather(knowledge, joined, index)

    def _sizes(self, inputs: Inputs | None) -> KnownSizes:
        if inputs is None:
            return KnownSizes()
        narrow = min(self.settings.knowledge_dim, inputs.dim)
        return KnownSizes(inputs.vectors, inputs.numbers, inputs.dim, narrow)

    def _columns(self) -> tuple[str, ...]:
        schema = self.schema
        if self.knowledge is None:
            return (schema.item,)
        own = () if schema.condition is None else (schema.condition,)
        return (schema.user, schema.item, schema.time, *own)


def _only(table: pa.Table, side: Sequence[str], wanted: Sequence[str], schema: Schema) -> pa.Table:
    """The columns of one side; those of the other are null, which is unknown."""
    columns = {name: table[name] for name in wanted}
    for f in schema.features:
        if f.name not in side and f.name not in columns:
            columns[f.name] = pa.nulls(len(table))
    return pa.table(columns)


def _joined(knowledge: Knowledge, table: pa.Table, schema: Schema, side: str) -> Joined:
    none = torch.full((len(table),), -1)
    if side == "item":
        items = knowledge.item_rows(pick(table, schema.item, "table"))
        return Joined(none, torch.from_numpy(items), None if schema.condition is None else none)
    blank = table.drop_columns([n for n in (schema.item,) if n in table.column_names])
    blank = blank.append_column(schema.item, pa.nulls(len(table)))
    return join(knowledge, blank, schema)
