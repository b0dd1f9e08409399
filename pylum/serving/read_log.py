"""What a ranker read, as a Parquet data set: it trains from that, not from steps 1 and 2."""

from __future__ import annotations

import json
import os
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pylum.knowledge import Knowledge, store
from pylum.knowledge.knowledge import condition_to_json

ABOUT = b"pylum.read_log"
KEPT = 8  # files' worth of reads are kept in memory while none can be written


class ReadLog:
    """Writes files of ``rows`` users; a file that has its name is whole."""

    def __init__(self, folder: str | os.PathLike[str], offline: Knowledge, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"log_rows must be at least 1, got {rows}")
        self.folder, self.rows = Path(folder), rows
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {
            "fingerprint": offline.fingerprint,
            "conditions": [condition_to_json(each) for each in offline.conditions],
            "dim": offline.item_vectors.shape[1],
        }
        self._about = {ABOUT: json.dumps(about).encode()}
        self._tables: list[pa.Table] = []
        self._held = 0
        self._lock = threading.Lock()

    def append(
        self,
        users: list[Any],
        time: float,
        sources: list[str],
        computed_at: npt.NDArray[np.float64],
        seen: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
    ) -> None:
        if not users:
            return
        table = pa.table(
            {
                "user": pa.array(users),
                "time": np.full(len(users), time),
                "source": sources,
                "computed_at": computed_at,
                "seen": seen,
                "vectors": store.vector_column(torch.from_numpy(vectors).flatten(1)),
            }
        )
        with self._lock:
            if self._tables and table.schema != self._tables[0].schema:
                self._write()  # strings and integers as ids do not fit one file
            self._tables.append(table)
            self._held += len(users)
            if self._held >= self.rows:
                self._write()

    def flush(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._tables:
            return
        table = pa.concat_tables(self._tables).replace_schema_metadata(self._about)
        try:
            store.write_table(self.folder / f"read-{uuid.uuid4().hex}.parquet", table)
        except OSError as error:
            if self._held < KEPT * self.rows:
                raise
            lost, self._tables, self._held = self._held, [], 0
            raise OSError(f"{lost} reads are lost, the log cannot be written: {error}") from error
        self._tables, self._held = [], 0


def read_log(
    path: str | os.PathLike[str], offline: Knowledge, *, others: str = "raise"
) -> Knowledge:
    """The reads of a :class:`~pylum.serving.KnowledgeCache` as knowledge to train a ranker on.

    Each read is a moment at the second of the read, in the order of time; a user that was
    answered with nothing has NaN vectors there, which a ranker takes as missing.

    Args:
        path: the ``log`` of the cache.
        offline: the cache's: item vectors, temperature, cut and fingerprint are taken from it.
        others: what to do about reads of another model or other conditions: ``"raise"`` or
            ``"skip"``.

    Raises:
        FileNotFoundError: there is no log at ``path``.
        ValueError: a file is no log, or of another model, or there is no read of this one.
    """
    if others not in ("raise", "skip"):
        raise ValueError(f"others must be 'raise' or 'skip', got {others!r}")
    folder = Path(path)
    files = sorted(folder.glob("read-*.parquet"))
    if not files:
        raise FileNotFoundError(f"path must be a folder with read-*.parquet, got {path}")
    wanted = {
        "fingerprint": offline.fingerprint,
        "conditions": [condition_to_json(each) for each in offline.conditions],
        "dim": offline.item_vectors.shape[1],
    }
    tables = []
    for file in files:
        try:
            table = pq.read_table(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} must be a whole Parquet file: {error}") from error
        about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        if about == wanted:
            tables.append(table)
        elif others == "raise":
            differ = sorted(k for k in wanted if about.get(k) != wanted[k])
            raise ValueError(
                f"{file} must be of the model and conditions of offline, but differs in "
                f"{', '.join(differ)}; others='skip' leaves it out"
            )
    if not tables:
        raise ValueError(f"path must hold reads of model {offline.fingerprint}, got none")
    users = [user for table in tables for user in table["user"].to_pylist()]
    table = pa.concat_tables([table.drop_columns("user") for table in tables])
    order = np.argsort(table["time"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    vectors = torch.from_numpy(store.vectors_of(table["vectors"]).copy())
    return replace(
        offline,
        vectors=vectors.unflatten(1, (len(offline.conditions), wanted["dim"])),
        users=[users[i] for i in order],
        times=torch.from_numpy(np.floor(table["time"].to_numpy()).astype(np.int64)),
        seen=torch.from_numpy(table["seen"].to_numpy().copy()),
    )
