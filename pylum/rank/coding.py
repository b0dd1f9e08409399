"""Rows of raw values as tensors: vocabularies with minimum counts, quantiles of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.vocab import Vocab
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.rank.quantiles import quantile, quantile_bounds
from pylum.rank.rows import flat_ids, labels, numbers_of
from pylum.rank.schema import Schema


@dataclass(frozen=True, eq=False)
class Coded:
    """``N`` rows as a ranker reads them.

    Args:
        numbers: ``[N, numbers]`` float32 in [0, 1]: the share of training rows below each value.
        categories: by feature, ``[N]`` rows of its vocabulary: int64, or int32 to be stored.
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
        """The rows at ``index``, in its order, codes as int64."""
        return Coded(
            self.numbers[index],
            {name: column[index].long() for name, column in self.categories.items()},
            {name: _take(bag, index) for name, bag in self.bags.items()},
            None if self.labels is None else self.labels[index],
        )


class Collected:
    """Pieces of coded rows on the way to one :class:`Coded`, codes as int32."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], list[torch.Tensor]] = {}

    def add(self, piece: Coded) -> None:
        columns = {("numbers", ""): piece.numbers}
        for name, codes in piece.categories.items():
            columns["category", name] = codes.int()
        for name, bag in piece.bags.items():
            columns["values", name] = torch.as_tensor(bag.values).int()
            columns["lengths", name] = bag.lengths
        if piece.labels is not None:
            columns["labels", ""] = piece.labels
        for place, column in columns.items():
            self._columns.setdefault(place, []).append(column)

    def rows(self) -> Coded:
        """All of them; at most one column is there twice meanwhile."""
        whole = {place: torch.cat(self._columns.pop(place)) for place in [*self._columns]}
        return Coded(
            whole["numbers", ""],
            {name: column for (part, name), column in whole.items() if part == "category"},
            {
                name: Ragged(column, lengths_to_offsets(whole["lengths", name]))
                for (part, name), column in whole.items()
                if part == "values"
            },
            whole.get(("labels", "")),
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
    def fit(
        cls, schema: Schema, pieces: Iterable[pa.Table], min_count: int, old: Coder | None
    ) -> Coder:
        """Vocabularies and quantiles of rows, read once.

        Args:
            min_count: a value seen less often, over all columns of its table, stays unknown.
            old: of a ranker to start from: its vocabularies grow, its quantiles stay.
        """
        counts = {f.name: _Counts() for f in schema.of("category", "categories", "sequence")}
        before = {} if old is None else old.bounds
        values: dict[str, list[npt.NDArray[np.float64]]] = {
            f.name: [] for f in schema.of("number") if f.name not in before
        }
        for rows in pieces:
            for f in schema.features:
                if f.kind != "number":
                    counts[f.name].add(flat_ids(rows, f)[0], f.name)
                elif f.name in values:
                    values[f.name].append(numbers_of(rows, f))
        vocabs: dict[str, Vocab] = {}
        for f in schema.of("category", "categories", "sequence"):
            if f.shares is None:
                vocab = Vocab() if old is None or f.name not in old.vocabs else old.vocabs[f.name]
                vocabs[f.name] = vocab.copy()
                parts = [counts[g.name] for g in schema.features if g.table == f.name]
                for part in parts:
                    # A wrong type is named before columns are counted together.
                    _rows(vocabs[f.name], part.vocab.ids, f.name)
                vocabs[f.name].grow(_often(parts, min_count, f.name), f.name)
        bounds = {}
        for f in schema.of("number"):
            bounds[f.name] = before[f.name] if f.name in before else _bounds(values.pop(f.name))
        return cls(schema, vocabs, bounds)

    def encode(self, rows: pa.Table, with_labels: bool = False) -> Coded:
        """Rows as tensors.

        Raises:
            ValueError: a column is missing, a label is neither 0 nor 1, or sequences of one row
                differ in length.
            TypeError: a column's type does not fit its kind.
        """
        numbers = [
            quantile(numbers_of(rows, f), self.bounds[f.name]) for f in self.schema.of("number")
        ]
        categories, bags = {}, {}
        for f in self.schema.of("category"):
            categories[f.name] = _rows(self.vocabs[f.table], flat_ids(rows, f)[0], f.name)
        for f in self.schema.of("categories", "sequence"):
            ids, lengths = flat_ids(rows, f)
            codes = _rows(self.vocabs[f.table], ids, f.name)
            bags[f.name] = Ragged(codes, lengths_to_offsets(torch.from_numpy(lengths)))
        self._check_sequences(bags)
        packed = torch.zeros(len(rows), 0, dtype=torch.float32)
        if numbers:
            packed = torch.from_numpy(np.stack(numbers, 1).astype(np.float32))
        return Coded(packed, categories, bags, labels(rows, self.schema) if with_labels else None)

    def _check_sequences(self, bags: dict[str, Ragged]) -> None:
        sequences = self.schema.of("sequence")
        for f in sequences[1:]:
            one, other = bags[f.name].lengths, bags[sequences[0].name].lengths
            if not torch.equal(one, other):
                row = int((one != other).nonzero()[0])
                raise ValueError(
                    f"all sequences of a row must have one length, got {int(one[row])} of "
                    f"{f.name!r} and {int(other[row])} of {sequences[0].name!r} in one row"
                )

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


class _Counts:
    """How often each value of a column stands in the pieces so far."""

    def __init__(self) -> None:
        self.vocab = Vocab()
        self.counts = np.zeros(1, np.int64)

    def add(self, ids: pa.Array, name: str) -> None:
        codes = self.vocab.grow(ids, name)
        counts = np.bincount(codes, minlength=len(self.vocab))
        counts[: len(self.counts)] += self.counts
        self.counts = counts


def _often(parts: list[_Counts], min_count: int, name: str) -> pa.Array:
    """Values that stand often enough in all columns together, in order of first appearance.

    Raises:
        TypeError: the columns are of several types; one of nulls alone has none.
    """
    parts = [part for part in parts if len(part.vocab) > 1]
    kinds = {part.vocab.ids.type for part in parts}
    if len(kinds) > 1:
        raise TypeError(
            f"columns that share {name!r} must be of one type, got {sorted(map(str, kinds))}"
        )
    if not parts:
        return pa.array([], pa.int64())
    coded = pa.concat_arrays([part.vocab.ids for part in parts]).dictionary_encode()
    total = np.bincount(coded.indices.to_numpy(), np.concatenate([p.counts[1:] for p in parts]))
    return coded.dictionary.filter(pa.array(total >= min_count))


def _bounds(values: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return quantile_bounds(np.concatenate([np.empty(0), *values]))


def _rows(vocab: Vocab, ids: pa.Array, name: str) -> torch.Tensor:
    """Rows of raw ids; nulls alone have no type that could be wrong."""
    if ids.null_count == len(ids):
        return torch.zeros(len(ids), dtype=torch.int64)
    return torch.from_numpy(vocab.rows(ids, name))


def _take(bag: Ragged, index: torch.Tensor) -> Ragged:
    lengths = bag.lengths[index]
    offsets = lengths_to_offsets(lengths)
    places = torch.arange(int(offsets[-1]))
    places += (bag.offsets[index] - offsets[:-1]).repeat_interleave(lengths)
    return Ragged(bag.values[places].long(), offsets)
