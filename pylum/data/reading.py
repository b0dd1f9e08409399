"""From batches of raw behaviours to coded columns, grouped by user and sorted by time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pylum.data.columns import MICROSECONDS, as_ids, as_numbers, as_times, as_vectors
from pylum.data.events import Events
from pylum.data.hashing import hash_ids
from pylum.data.schema import Field
from pylum.data.spool import Spool, group_by_user
from pylum.data.tables import Columns, check_column, pick
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs
from pylum.progress import counted

BATCH_ROWS = 1 << 17
SAMPLE_ROWS = 1024  # looked at for the width of vectors


@dataclass(frozen=True)
class Coded:
    """What reading gives.

    Args:
        events: of all users.
        users: user ids; user ``b`` of the events is row ``b + 1``.
        item_hashes: ``[N]`` uint64 of the raw item ids, where the item vocabulary loses some.
        on_disk: whether the columns are mapped from files.
    """

    events: Events
    users: Vocab
    item_hashes: npt.NDArray[np.uint64] | None
    on_disk: bool


def read(
    batches: Iterable[pa.RecordBatch | pa.Table], columns: Columns, vocabs: Vocabs, limit: int
) -> Coded:
    """Code ``batches`` with ``vocabs``, which grow, and sort by (user, time, row), stable.

    Args:
        limit: bytes of coded columns kept in memory; beyond it they are mapped from files.

    Raises:
        ValueError: there is no row, or a user, item, time or target is null.
        TypeError: a column does not fit its field, or changes its type between batches.
    """
    for field in columns.conditions:
        if field.kind == "category":
            vocabs.conditions.setdefault(field.name, Vocab(any=True))
    for field in columns.outcomes:
        if field.kind == "category":
            vocabs.outcomes.setdefault(field.name, Vocab())
    users, spool = Vocab(), Spool(limit)
    for batch in batches:
        if batch.num_rows:
            spool.append(_code(batch, columns, users, vocabs))
    if not spool.rows:
        raise ValueError("the table must hold at least one behaviour, got 0 rows")
    on_disk = spool.on_disk
    coded, offsets = group_by_user(spool.close(), "user", "time", len(users) - 1, on_disk)
    coded["time"] //= MICROSECONDS
    tensors = {name: torch.from_numpy(column) for name, column in coded.items() if name != "hash"}
    events = Events(
        torch.from_numpy(offsets),
        tensors["item"],
        tensors["time"],
        {field.name: tensors[f"condition {field.name}"] for field in columns.conditions},
        {field.name: tensors[f"outcome {field.name}"] for field in columns.outcomes},
        tensors.get("target"),
    )
    return Coded(events, users, coded.get("hash"), on_disk)


def parquet_batches(path: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet file, of several, or of a directory's files by name.

    Raises:
        ValueError: there is no such file, or one of them lacks a column.
    """
    files, total = parquet_files(path), 0
    for file in files:
        with parquet_file(file) as reader:
            total += reader.metadata.num_rows
            for column in columns:
                check_column(reader.schema_arrow, column, str(file))
    with counted("reading", "behaviours", total) as count:
        for file in files:
            with parquet_file(file) as reader:
                for batch in reader.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield batch
                    count(batch.num_rows)


def parquet_sample(path: Any) -> pa.RecordBatch | pa.Table:
    """The first rows of the first file that has some, else its columns without a row."""
    files = parquet_files(path)
    for file in files:
        with parquet_file(file) as reader:
            for batch in reader.iter_batches(SAMPLE_ROWS, use_threads=False):
                return batch
    with parquet_file(files[0]) as reader:
        return reader.schema_arrow.empty_table()


def parquet_file(file: Path) -> pq.ParquetFile:
    """A reader that decodes row groups as they are read, and holds none whole.

    Raises:
        ValueError: it is no Parquet file; the message names it.
    """
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 16)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} must be a Parquet file: {error}") from None


def parquet_files(path: Any) -> list[Path]:
    """The files of a path, a directory or a list of these."""
    if isinstance(path, (str, os.PathLike)):
        path = Path(path)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith((".", "_")))
            if not files:
                raise ValueError(f"path must hold Parquet files, got none in {path}")
            return files
        if not path.is_file():
            raise ValueError(f"path must be a Parquet file or a directory, got {path}")
        return [path]
    files = [file for entry in path for file in parquet_files(entry)]
    if not files:
        raise ValueError("path must name at least one Parquet file, got none")
    return files


def _code(
    batch: pa.RecordBatch | pa.Table, columns: Columns, users: Vocab, vocabs: Vocabs
) -> dict[str, npt.NDArray[Any]]:
    def required(role: str, name: str) -> pa.Array:
        column = pick(batch, name, role)
        if column.null_count:
            found = f"{column.null_count} of {len(column)}"
            raise ValueError(f"{role}: {name!r} must not hold nulls or NaN, got {found}")
        return column

    items = required("item", columns.item)
    out: dict[str, npt.NDArray[Any]] = {
        "user": users.grow(required("user", columns.user), f"user: {columns.user!r}") - 1,
        "item": vocabs.items.grow(items, f"item: {columns.item!r}"),
        "time": as_times(required("time", columns.time), f"time: {columns.time!r}"),
    }
    if vocabs.items.kind != "growing":
        out["hash"] = hash_ids(as_ids(items)[0])
    for field in columns.conditions:
        vocab = vocabs.conditions.get(field.name)
        out[f"condition {field.name}"] = code_field(batch, field, vocab, "condition")
    for field in columns.outcomes:
        vocab = vocabs.outcomes.get(field.name)
        out[f"outcome {field.name}"] = code_field(batch, field, vocab, "event")
    if columns.target is not None:
        target = required("target", columns.target)
        if not pa.types.is_boolean(target.type):
            raise TypeError(f"target: {columns.target!r} must hold booleans, got {target.type}")
        out["target"] = target.to_numpy(zero_copy_only=False)
    return out


def code_field(
    batch: pa.RecordBatch | pa.Table, field: Field, vocab: Vocab | None, role: str
) -> npt.NDArray[Any]:
    """A field's column as the model reads it: rows of its vocabulary, or floats."""
    column, name = pick(batch, field.name, role), f"{role}: {field.name!r}"
    if field.kind == "category":
        if vocab is None:
            raise ValueError(f"{name} must have a vocabulary, got none")
        return vocab.grow(column, name)
    if field.kind == "number":
        return as_numbers(column, name)
    return as_vectors(column, name, field.dim)
