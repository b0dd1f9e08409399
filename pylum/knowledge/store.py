"""Knowledge on disk: a Parquet data set written in parts, so that long work can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pylum.data.spool import allocate

MANIFEST = "_knowledge.json"
ITEMS = "_items.parquet"
GROUP_ROWS = 1 << 14  # what is decoded at a time
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_table(path: Path, table: pa.Table) -> None:
    """Write aside and rename: a file of this name is always whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, aside, row_group_size=GROUP_ROWS)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def part_table(
    rows: torch.Tensor,
    users: Sequence[Any],
    times: torch.Tensor,
    seen: torch.Tensor,
    vectors: torch.Tensor,
) -> pa.Table:
    """``row, user, time, seen`` and the answers, ``vectors [rows, N * D]``, one list a row."""
    return pa.table(
        {
            "row": rows.numpy(),
            "user": pa.array(users),
            "time": times.numpy(),
            "seen": seen.numpy(),
            "vectors": vector_column(vectors),
        }
    )


def item_table(ids: pa.Array, vectors: torch.Tensor) -> pa.Table:
    return pa.table({"item": ids, "vector": vector_column(vectors)})


def vector_column(vectors: torch.Tensor) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vectors.numpy()).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """``[rows, width]`` of a column of :func:`vector_column`."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), array.type.list_size)


@dataclass(frozen=True, eq=False)
class Parts:
    """All parts of a folder, moments in the order of ``row``.

    Args:
        vectors: ``[R, N * D]``.
        users: ``R`` raw ids.
        times, seen: ``[R]`` int64.
    """

    vectors: torch.Tensor
    users: pa.Array
    times: torch.Tensor
    seen: torch.Tensor


def read_parts(folder: Path, count: int, memory_limit: int) -> Parts:
    """One part at a time; vectors of more bytes than ``memory_limit`` are mapped from a file."""
    names = [folder / part_name(number) for number in range(count)]
    about = pa.concat_tables(
        [pq.read_table(n, columns=["row", "user", "time", "seen"]) for n in names]
    )
    total = len(about)
    kind = pq.read_schema(names[0]).field("vectors").type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    large = total * kind.list_size * dtype.itemsize > memory_limit
    vectors = allocate((total, kind.list_size), dtype, large)
    for name in names:
        with pq.ParquetFile(name, pre_buffer=False) as reader:
            for group in range(reader.num_row_groups):
                part = reader.read_row_group(group, columns=["row", "vectors"], use_threads=False)
                vectors[part["row"].to_numpy()] = vectors_of(part["vectors"])
    order = pa.array(np.argsort(about["row"].to_numpy()))
    about = about.take(order)
    times, seen = (torch.from_numpy(about[name].to_numpy().copy()) for name in ("time", "seen"))
    return Parts(torch.from_numpy(vectors), about["user"].combine_chunks(), times, seen)


def check(path: Path) -> None:
    """That a folder of knowledge may be written at ``path``.

    Raises:
        ValueError: something else is there.
    """
    ours = (path / MANIFEST).exists()
    if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"out must be new or an earlier query's, got {path} without {MANIFEST}")


def begin(path: Path, request: dict[str, Any], resume: bool) -> None:
    """Make the folder, or check that what it holds is of the same request.

    Args:
        request: everything the answers depend on.
        resume: keep finished parts.

    Raises:
        ValueError: the folder is not ours, or holds another request.
    """
    manifest = path / MANIFEST
    check(path)
    path.mkdir(parents=True, exist_ok=True)
    if manifest.exists():
        old = json.loads(manifest.read_text())
        if old["request"] != request:
            if resume:
                changed = sorted(k for k in request if old["request"].get(k) != request[k])
                raise ValueError(
                    f"out holds another query, which differs in {', '.join(changed)}: "
                    "choose another path, or pass resume=False to replace it"
                )
        elif resume:
            return
    for file in [*path.glob("part-*.parquet"), path / ITEMS]:
        file.unlink(missing_ok=True)
    write_json(manifest, {"request": request, "complete": False})
