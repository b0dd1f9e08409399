"""The table a ranker is given: checked, read a piece at a time, its columns taken apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pylum.data.columns import as_ids
from pylum.data.reading import parquet_file, parquet_files
from pylum.data.tables import as_table, check_column, pick
from pylum.rank.schema import Feature, Schema

PIECE_ROWS = 1 << 16


class Rows:
    """A table in pieces, as often as it is asked for; a Parquet file is never held whole.

    Args:
        rows: an Arrow or pandas table, a dict of columns, the path of a Parquet file or of a
            directory of them.
        schema: its features must all be there.
        more: columns that must be there beside.
        chosen: only rows whose label is 1.

    Raises:
        ValueError: columns are missing, all of them are named, or one stands twice.
        TypeError: it is no table.
    """

    def __init__(
        self, rows: Any, schema: Schema, more: tuple[str, ...] = (), *, chosen: bool = False
    ) -> None:
        self.schema, self.chosen = schema, chosen
        self.names = [*dict.fromkeys([*(f.name for f in schema.features), *more])]
        self._files = parquet_files(rows) if isinstance(rows, (str, os.PathLike)) else []
        self._table = None if self._files else as_table(rows, "rows")
        if self._table is not None:
            self._check(self._table.schema, "rows")
        for file in self._files:
            with parquet_file(file) as reader:
                self._check(reader.schema_arrow, str(file) if len(self._files) > 1 else "rows")

    def _check(self, found: pa.Schema, name: str) -> None:
        missing = [column for column in self.names if column not in found.names]
        if missing:
            raise ValueError(
                f"{name} lack the columns {', '.join(missing)}; they have "
                f"{', '.join(found.names) or 'none'}"
            )
        for column in self.names:
            check_column(found, column, name)

    def __iter__(self) -> Iterator[pa.Table]:
        """Tables of the columns alone, with at least one row each."""
        for piece in self._pieces():
            if self.chosen:
                piece = piece.filter(pa.array(labels(piece, self.schema).numpy() == 1))
            if len(piece):
                yield piece

    def _pieces(self) -> Iterator[pa.Table]:
        if self._table is not None:
            whole = self._table.select(self.names)
            for start in range(0, len(whole), PIECE_ROWS):
                yield whole.slice(start, PIECE_ROWS)
            return
        for file in self._files:
            with parquet_file(file) as reader:
                for batch in reader.iter_batches(PIECE_ROWS, columns=self.names, use_threads=False):
                    yield pa.Table.from_batches([batch])


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


def numbers_of(rows: pa.Table, f: Feature) -> npt.NDArray[np.float64]:
    """``[N]`` of a number feature; null is NaN."""
    column = pick(rows, f.name, "rows")
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        raise TypeError(f"{f.name!r} is a number, got {kind}")
    # Integers beyond 2^53 are rounded: what counts is their order.
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
