"""Rows of raw values as tensors: vocabularies with minimum counts, quantiles of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pylum.data.columns import as_ids
from pylum.data.tables import as_table, pick
from pylum.data.vocab import Vocab
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.rank.schema import Feature, Schema

QUANTILES = 256


@dataclass(frozen=True, eq=False)
class Coded:
    """``N`` rows as a ranker reads them.

    Args:
        numbers: ``[N, numbers]`` float32 in [0, 1]: the share of training rows below each value.
        categories: by feature, ``[N]`` int64 rows of its vocabulary.
        bags: by categories or sequence feature, ``N`` ragged rows of these.
        labels: ``[N]`` float32, or None.
    """

    numbers: torch.Tensor
    categories: dict[str, torch.Tensor]
    bags: dict[str, Ragged]
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: torch.Tensor) -> Coded:
        """The rows at ``index``, in its order."""
        return Coded(
            self.numbers[index],
            {name: column[index] for name, column in self.categories.items()},
            {name: _take(bag, index) for name, bag in self.bags.items()},
            None if self.labels is None else self.labels[index],
        )


@dataclass(frozen=True, eq=False)
class Coder:
    """What gives the codes meaning; fitted once, grown by a warm start.

    Args:
        schema: of the rows.
        vocabs: by table, growing; row 0: a value that was not there often enough.
        bounds: by number feature, ``[quantiles - 1]`` float64, ascending.
    """

    schema: Schema
    vocabs: dict[str, Vocab]
    bounds: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def fit(cls, schema: Schema, rows: pa.Table, min_count: int, old: Coder | None) -> Coder:
        """Vocabularies and quantiles of ``rows``.

        Args:
            min_count: a value seen less often, over all columns of its table, stays unknown.
            old: of a ranker to start from: its vocabularies grow, its quantiles stay.
        """
        vocabs: dict[str, Vocab] = {}
        for f in schema.of("category", "categories", "sequence"):
            if f.shares is None:
                parts = [flat_ids(rows, g)[0] for g in schema.features if g.table == f.name]
                vocab = Vocab() if old is None or f.name not in old.vocabs else old.vocabs[f.name]
                vocabs[f.name] = vocab.copy()
                for part in parts:
                    # A wrong type is named before columns are counted together.
                    _rows(vocabs[f.name], part, f.name)
                ids = pa.concat_arrays(_of_one_type(parts, f.name)).drop_null()
                counts = pc.value_counts(ids)
                often = pc.greater_equal(counts.field("counts"), min_count)
                vocabs[f.name].grow(counts.field("values").filter(often), f.name)
        bounds = {}
        for f in schema.of("number"):
            known = None if old is None else old.bounds.get(f.name)
            bounds[f.name] = quantile_bounds(_numbers(rows, f)) if known is None else known
        return cls(schema, vocabs, bounds)

    def encode(self, rows: pa.Table, with_labels: bool = False) -> Coded:
        """Rows as tensors.

        Raises:
            ValueError: a column is missing, a label is neither 0 nor 1, or sequences of one row
                differ in length.
            TypeError: a column's type does not fit its kind.
        """
        numbers = [
            quantile(_numbers(rows, f), self.bounds[f.name]) for f in self.schema.of("number")
        ]
        categories, bags = {}, {}
        for f in self.schema.of("category"):
            categories[f.name] = _rows(self.vocabs[f.table], flat_ids(rows, f)[0], f.name)
        for f in self.schema.of("categories", "sequence"):
            ids, lengths = flat_ids(rows, f)
            codes = _rows(self.vocabs[f.table], ids, f.name)
            bags[f.name] = Ragged(codes, lengths_to_offsets(torch.from_numpy(lengths)))
        sequences = [bags[f.name] for f in self.schema.of("sequence")]
        for f, bag in zip(self.schema.of("sequence"), sequences, strict=True):
            if not torch.equal(bag.offsets, sequences[0].offsets):
                row = int((bag.lengths != sequences[0].lengths).nonzero()[0])
                raise ValueError(
                    f"all sequences of a row must have one length, got {int(bag.lengths[row])} of "
                    f"{f.name!r} and {int(sequences[0].lengths[row])} of "
                    f"{self.schema.of('sequence')[0].name!r} in row {row}"
                )
        packed = torch.zeros(len(rows), 0)
        if numbers:
            packed = torch.from_numpy(np.stack(numbers, 1).astype(np.float32))
        return Coded(packed, categories, bags, labels(rows, self.schema) if with_labels else None)

    def to_json(self) -> dict[str, Any]:
        """Without the vocabularies."""
        return {
            "schema": self.schema.to_json(),
            "bounds": {name: values.tolist() for name, values in self.bounds.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], vocabs: dict[str, Vocab]) -> Coder:
        bounds = {name: np.asarray(values, np.float64) for name, values in data["bounds"].items()}
        return cls(Schema.from_json(data["schema"]), vocabs, bounds)


def table_of(rows: Any, schema: Schema, more: tuple[str, ...] = ()) -> pa.Table:
    """Rows as an Arrow table with every column the schema names.

    Raises:
        ValueError: columns are missing; all of them are named.
    """
    table = as_table(rows, "rows")
    wanted = [*(f.name for f in schema.features), *more]
    missing = [name for name in dict.fromkeys(wanted) if name not in table.column_names]
    if missing:
        raise ValueError(
            f"rows lack the columns {', '.join(missing)}; they have {', '.join(table.column_names)}"
        )
    return table


def labels(rows: pa.Table, schema: Schema) -> torch.Tensor:
    """``[N]`` float32 of 0 and 1."""
    column = pick(rows, schema.label, "rows")
    if column.null_count:
        raise ValueError(f"label {schema.label!r} must not be null, got {column.null_count} nulls")
    if not (
        pa.types.is_boolean(column.type)
        or pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
    ):
        raise TypeError(f"label {schema.label!r} must be 0 or 1, got {column.type}")
    values = column.to_numpy(zero_copy_only=False).astype(np.float32)
    other = np.unique(values[(values != 0) & (values != 1)])
    if len(other):
        raise ValueError(f"label {schema.label!r} must be 0 or 1, got {other[:3].tolist()}")
    return torch.from_numpy(values)


def flat_ids(rows: pa.Table, f: Feature) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The raw ids of a column one after the other, and how many each row has.

    Raises:
        TypeError: the column is a list where one value belongs, or the other way round.
    """
    column = pick(rows, f.name, "rows")
    kind = column.type
    lists = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if f.kind == "category":
        if lists:
            raise TypeError(f"{f.name!r} is a category, one value a row, got {kind}")
        return as_ids(column, f.name)[0], np.ones(len(column), np.int64)
    if pa.types.is_null(kind):
        return pa.array([], pa.int64()), np.zeros(len(column), np.int64)
    if not lists:
        raise TypeError(f"{f.name!r} is {f.kind}, a list a row, got {kind}")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    lengths = lengths.astype(np.int64)
    ids = as_ids(pc.list_flatten(column), f.name)[0]
    if f.max_length and len(lengths) and lengths.max() > f.max_length:
        ends = lengths.cumsum()
        kept = np.minimum(lengths, f.max_length)
        from_end = np.repeat(ends, lengths) - np.arange(len(ids))
        ids = ids.filter(pa.array(from_end <= f.max_length))
        lengths = kept
    return ids, lengths


def quantile_bounds(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The bounds of ``QUANTILES`` equally filled parts; equal bounds are kept, NaN does not count.

    Section 3.1 of arXiv 1606.07792.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(QUANTILES - 1)
    return np.quantile(known, np.arange(1, QUANTILES) / QUANTILES)


def quantile(
    values: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """``(i - 1) / (n - 1)`` for a value in the i-th of n parts; .5 for NaN.

    A value on several equal bounds lies in the middle of them.
    """
    below = np.searchsorted(bounds, values, "left")
    upto = np.searchsorted(bounds, values, "right")
    return np.where(np.isnan(values), 0.5, (below + upto) / 2 / len(bounds))


def _numbers(rows: pa.Table, f: Feature) -> npt.NDArray[np.float64]:
    column = pick(rows, f.name, "rows")
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise TypeError(f"{f.name!r} is a number, got {kind}")
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()


def _rows(vocab: Vocab, ids: pa.Array, name: str) -> torch.Tensor:
    """Rows of raw ids; nulls alone have no type that could be wrong."""
    if ids.null_count == len(ids):
        return torch.zeros(len(ids), dtype=torch.int64)
    return torch.from_numpy(vocab.rows(ids, name))


def _of_one_type(parts: list[pa.Array], name: str) -> list[pa.Array]:
    """Parts without the empty ones; an all-null column has no type of its own."""
    full = [part for part in parts if len(part) > part.null_count]
    kinds = {part.type for part in full}
    if len(kinds) > 1:
        raise TypeError(
            f"columns that share {name!r} must be of one type, got {sorted(map(str, kinds))}"
        )
    return full or [pa.array([], pa.int64())]


def _take(bag: Ragged, index: torch.Tensor) -> Ragged:
    lengths = bag.lengths[index]
    offsets = lengths_to_offsets(lengths)
    places = torch.arange(int(offsets[-1]))
    places += (bag.offsets[index] - offsets[:-1]).repeat_interleave(lengths)
    return Ragged(bag.values[places], offsets)
