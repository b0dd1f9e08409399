"""A two-tower retriever, with or without a user model's interests (section 3.3 of LUM)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum import ops
from pylum.data.tables import as_table, pick
from pylum.data.vocab import Vocab
from pylum.data.vocabs import read_vocabs, write_vocabs
from pylum.knowledge import Knowledge
from pylum.model.files import read_folder, write_folder
from pylum.modes import autocast_off, learning, on_host, seeded
from pylum.rank.coding import Coder
from pylum.rank.joining import Joined, join
from pylum.rank.known import Known, KnownSizes
from pylum.rank.reading import columns_of, knowledge_of, read_all
from pylum.rank.rows import Rows
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.towers import Towers, train
from pylum.rank.utilisation import Inputs, check_pinned

KIND = "pylum two-tower retriever"
VOCABS = "vocabs.arrow"
PREDICT_ROWS = 8192


@on_host
class TwoTower:
    """Finds items for a row's user and moment; trained on rows whose label is 1.

    The loss is a softmax over the items of the batch, corrected by the logarithm of how often each
    is in one. What a row's item is never reaches the user's side.

    Args:
        schema: of the rows.
        user, item: names of its features of each side; others are not read. Sequences are the
            user's.
        knowledge: its answers join the user's side, its item vectors the item's; or its folder, or
            None.
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
        knowledge: Knowledge | str | os.PathLike[str] | None = None,
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
        self.knowledge, self.temperature = knowledge_of(knowledge), float(temperature)
        self.settings = Settings.of("two_tower", settings)
        self.history: list[dict[str, float]] = []
        self.coder: Coder | None = None
        self.towers: Towers | None = None
        self.of_user: Inputs | None = None
        self.of_item: Inputs | None = None
        self.fingerprint: str | None = None

    @learning()
    def fit(self, rows: Any, *, allow_in_sample: bool = False) -> TwoTower:
        """Train on the rows whose label is 1.

        Raises:
            ValueError: no row has a label of 1, a column is missing, or rows are in-sample.
        """
        schema, settings = self.schema, self.settings
        columns = (schema.label, schema.item, *columns_of(schema, self.knowledge, False))
        source = Rows(rows, schema, columns, chosen=True)
        coder = Coder.fit(schema, source, settings.min_count, None)
        ids, codes = Vocab(), []
        for piece in source:
            codes.append(torch.from_numpy(ids.grow(pick(piece, schema.item, "rows"), schema.item)))
        if not codes:
            raise ValueError(f"rows must hold a label {schema.label!r} of 1, got none")
        coded, joined = read_all(coder, source, self.knowledge, allow_in_sample=allow_in_sample)
        if self.knowledge is not None:
            assert joined is not None
            self.fingerprint = self.knowledge.fingerprint
            self.of_user = Inputs.fit(("direct",), self.knowledge, joined)
            self.of_item = replace(self.of_user, parts=("item",))

        def known(side: str, index: torch.Tensor) -> Known | None:
            return self._known(self.of_user if side == "user" else self.of_item, joined, index)

        self.coder = coder
        with seeded(settings.seed):
            self.towers = self._towers(coder)
            self.history = train(
                self.towers, coded, torch.cat(codes), known, settings, self.temperature
            )
        return self

    def _towers(self, coder: Coder) -> Towers:
        sizes = [
            KnownSizes() if inputs is None else inputs.sizes(self.settings.knowledge_dim)
            for inputs in (self.of_user, self.of_item)
        ]
        return Towers(self.schema, coder.vocabs, self.settings, self.user, self.item, *sizes)

    @autocast_off()
    def users(self, rows: Any, *, knowledge: Knowledge | None = None) -> torch.Tensor:
        """``[N, dim]`` unit vectors of the rows' users at their moments; items are not read."""
        schema = self.schema
        known = self.knowledge if knowledge is None else knowledge
        table = as_table(rows, "rows")
        asked = [name for name in columns_of(schema, known, False) if name != schema.item]
        wanted = [*self.user, *asked]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise ValueError(f"rows lack the columns {', '.join(missing)}")
        return self._vectors("user", _only(table, self.user, wanted, schema), self.of_user, known)

    @autocast_off()
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder: safetensors, JSON and the vocabularies; knowledge is saved by itself.

        Raises:
            ValueError: not fitted, or ``path`` is no earlier save.
        """
        if self.towers is None or self.coder is None:
            raise ValueError("the retriever must be fitted before it is saved")
        coder = self.coder
        about = {
            "kind": KIND,
            "user": self.user,
            "item": self.item,
            "temperature": self.temperature,
            "coder": coder.to_json(),
            "settings": asdict(self.settings),
            "inputs": None if self.of_user is None else self.of_user.to_json(),
            "fingerprint": self.fingerprint,
            "history": self.history,
        }

        def more(folder: Path) -> None:
            write_vocabs(folder / VOCABS, coder.vocabs)

        write_folder(path, about, self.towers.state_dict(), more)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        knowledge: Knowledge | str | os.PathLike[str] | None = None,
    ) -> TwoTower:
        """From a folder of :meth:`save`.

        Args:
            knowledge: what its rows and items are joined with, of the fingerprint it was trained
                with; it can also be given to :meth:`users` and :meth:`items`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the knowledge is of another user model.
        """
        about, tensors = read_folder(path, KIND)
        coder = Coder.from_json(about["coder"], read_vocabs(Path(path) / VOCABS))
        model = cls(
            coder.schema,
            about["user"],
            about["item"],
            temperature=about["temperature"],
            **about["settings"],
        )
        model.coder, model.history = coder, about["history"]
        model.fingerprint = about["fingerprint"]
        if about["inputs"] is not None:
            model.of_user = Inputs.from_json(about["inputs"])
            model.of_item = replace(model.of_user, parts=("item",))
        towers = model._towers(coder)
        towers.load_state_dict(tensors)
        model.towers = towers.eval()
        if knowledge is not None:
            model.knowledge = knowledge_of(knowledge)
            check_pinned(model.knowledge, model.of_user, model.fingerprint)
        return model

    def _vectors(
        self, side: str, table: pa.Table, inputs: Inputs | None, knowledge: Knowledge | None
    ) -> torch.Tensor:
        if self.towers is None or self.coder is None:
            raise ValueError("the retriever must be fitted first")
        coded = self.coder.encode(table)
        joined = None
        check_pinned(knowledge, inputs, self.fingerprint)
        if knowledge is not None:
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
