"""What is known of the items beside their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.columns import as_lists, as_numbers, as_vectors, infer_field, missing_numbers
from pylum.data.events import OOV_ROW
from pylum.data.schema import Field
from pylum.data.tables import as_table, check_column, pick
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs
from pylum.ragged import Ragged


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Features of every row of the item vocabulary, row 0 (unknown) too.

    Args:
        rows: number of rows, that of the item vocabulary.
        fields: the features.
        columns: by feature. A category is ``[rows]`` int64 rows of its vocabulary; categories a
            :class:`~pylum.Ragged` of them; a number ``[rows]`` float32; a vector ``[rows, dim]``
            float32. What is not known is row 0, an empty row, or NaN.
        titles: ``[rows]`` readable names as an Arrow string array, null where there is none.
        id_column: the name its tables give the item id.
        title_column: the name they give the title.
    """

    rows: int
    fields: tuple[Field, ...] = ()
    columns: dict[str, torch.Tensor | Ragged] = field(default_factory=dict)
    titles: pa.Array | None = None
    id_column: str = "item"
    title_column: str | None = None

    def __len__(self) -> int:
        return self.rows

    @classmethod
    def from_table(
        cls,
        table: Any,
        vocabs: Vocabs,
        *,
        item: str = "item",
        features: Sequence[str | Field] | None = None,
        title: str | None = None,
    ) -> ItemTable:
        """From a table with one row per item.

        Args:
            table: Arrow, pandas, a dict of columns, or the path of a Parquet file.
            vocabs: items of the table are added to ``vocabs.items`` where that grows, and the
                features' vocabularies to ``vocabs.features``.
            item: the column of item ids.
            features: the feature columns, by name or :class:`Field`; default: all others.
            title: a column of readable names, which is no feature.

        Raises:
            ValueError: a column is missing, an item is null or stands twice, or the item
                vocabulary is hashed.
            TypeError: a column's type fits no kind of field.
        """
        table = as_table(table, "items")
        if title is not None:
            check_column(table.schema, title, "item_title")
        if features is None:
            features = [name for name in table.column_names if name not in (item, title)]
        fields: list[Field] = []
        for feature in features:
            name = feature if isinstance(feature, str) else feature.name
            column = pick(table, name, "items")
            if isinstance(feature, str):
                feature = infer_field(name, column.type, column)
            fields.append(feature)
        for each in fields:
            if each.kind in ("category", "categories"):
                vocabs.features.setdefault(each.name, Vocab())
        empty = cls(0, tuple(fields), {}, None, item, title)
        return empty._merged(table, vocabs, grow=True)

    def add(self, table: Any, vocabs: Vocabs) -> ItemTable:
        """With the items of ``table`` added, or their features replaced.

        The item vocabulary grows; the features' vocabularies, which a model's tables are as long
        as, do not: a category never seen is unknown.

        Raises:
            ValueError, TypeError: as :meth:`from_table`.
        """
        return self._merged(as_table(table, "items"), vocabs, grow=False)

    def extended(self, rows: int) -> ItemTable:
        """With unknown features for rows added to the vocabulary since."""
        if rows == self.rows:
            return self
        if rows < self.rows:
            raise ValueError(f"rows must be at least {self.rows}, got {rows}")
        more = rows - self.rows
        columns = dict(self.columns)
        for each in self.fields:
            columns[each.name] = _stretched(columns.get(each.name), each, more)
        titles = self.titles
        if self.title_column is not None:
            blank = pa.nulls(more, pa.large_string())
            titles = blank if titles is None else pa.concat_arrays([titles, blank])
        return ItemTable(rows, self.fields, columns, titles, self.id_column, self.title_column)

    def names(self, rows: Any) -> list[str | None]:
        """Titles of rows; None where there is none."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        if self.titles is None:
            return [None] * len(rows)
        out: list[str | None] = self.titles.take(pa.array(rows, mask=rows < 0)).to_pylist()
        return out

    def _merged(self, table: pa.Table, vocabs: Vocabs, grow: bool) -> ItemTable:
        if vocabs.items.kind == "hashed":
            raise ValueError("items need a growing or fixed vocabulary, got a hashed one")
        ids = pick(table, self.id_column, "items")
        if ids.null_count:
            raise ValueError(f"items: {self.id_column!r} must not be null, got {ids.null_count}")
        rows = vocabs.items.grow(ids, f"items: {self.id_column!r}")
        kept = np.flatnonzero(rows != OOV_ROW)
        unique, first = np.unique(rows[kept], return_index=True)
        if len(unique) < len(kept):
            twice = np.setdiff1d(np.arange(len(kept)), first)
            repeated = ids[int(kept[twice[0]])].as_py()
            raise ValueError(f"items: {self.id_column!r} must be unique, got {repeated!r} twice")
        source = kept[first]
        base = self.extended(len(vocabs.items))
        columns = dict(base.columns)
        for each in self.fields:
            values = pick(table, each.name, "items").take(pa.array(source))
            columns[each.name] = _replaced(columns[each.name], unique, values, each, vocabs, grow)
        titles = base.titles
        if titles is not None and self.title_column and self.title_column in table.column_names:
            given = pick(table, self.title_column, "items").cast(pa.large_string())
            from_table = np.full(base.rows, -1, np.int64)
            from_table[unique] = len(titles) + source
            index = np.where(from_table < 0, np.arange(base.rows), from_table)
            titles = pa.concat_arrays([titles, given]).take(pa.array(index))
        return ItemTable(base.rows, self.fields, columns, titles, self.id_column, self.title_column)


def _stretched(column: Any, each: Field, more: int) -> Any:
    """``column`` and ``more`` rows of the unknown."""
    if each.kind == "categories":
        old = column if column is not None else Ragged.from_lists([])
        values = column.values if column is not None else torch.empty(0, dtype=torch.int64)
        return Ragged(values, torch.cat([old.offsets, old.offsets[-1:].expand(more)]))
    if each.kind == "category":
        blank = torch.full((more,), OOV_ROW, dtype=torch.int64)
    else:
        blank = missing_numbers(more, each.dim)
    return blank if column is None else torch.cat([column, blank])


def _replaced(
    column: Any,
    rows: npt.NDArray[np.int64],
    values: pa.Array,
    each: Field,
    vocabs: Vocabs,
    grow: bool,
) -> torch.Tensor | Ragged:
    """``column`` with ``values`` at ``rows``."""
    name = f"items: {each.name!r}"
    if each.kind in ("category", "categories"):
        vocab = vocabs.features[each.name]
        code = vocab.grow if grow else vocab.rows
    if each.kind == "categories":
        flat, starts = as_lists(values, name)
        return _replaced_lists(column, rows, code(flat, name), starts)
    column = column.clone()
    if each.kind == "category":
        new: npt.NDArray[Any] = code(values, name)
    elif each.kind == "number":
        new = as_numbers(values, name)
    else:
        new = as_vectors(values, name, each.dim)
    column[torch.from_numpy(rows)] = torch.from_numpy(new)
    return column


def _replaced_lists(
    column: Ragged,
    rows: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> Ragged:
    old = column.offsets.numpy()
    begin, length = old[:-1].copy(), np.diff(old)
    begin[rows] = len(column.values) + starts[:-1]
    length[rows] = np.diff(starts)
    offsets = np.zeros(len(length) + 1, np.int64)
    np.cumsum(length, out=offsets[1:])
    index = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], length)
    both = np.concatenate([column.values.numpy(), codes])
    return Ragged(torch.from_numpy(both[index]), torch.from_numpy(offsets))
