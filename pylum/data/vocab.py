"""Raw ids to rows of an embedding table, and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pylum.data.columns import ANY, as_ids
from pylum.data.events import ANY_ROW, OOV_ROW
from pylum.data.hashing import hash_ids

Rows = npt.NDArray[np.int64]
VocabKind = Literal["growing", "fixed", "hashed"]
KINDS = ("growing", "fixed", "hashed")

_ARROW = {"string": pa.large_string(), "int": pa.int64(), "bool": pa.int64(), None: pa.int64()}


class Vocab:
    """String or integer ids as rows; ids come back as they went in.

    Row 0 is every id never seen (OOV). In a condition's vocabulary (``any=True``) row 1 is ``ANY``.
    A null (None, NaN) is ``ANY`` where there is one, else OOV. Ids of one vocabulary are all
    strings, all integers or all booleans; ``1`` and ``"1"`` are different ids.

    Args:
        values: the first ids; duplicates and nulls are left out.
        kind: ``growing`` gives each new id of :meth:`grow` the next row; ``fixed`` never changes;
            ``hashed`` spreads every id over ``buckets`` rows by a stable hash
            (:mod:`pylum.data.hashing`), keeps no ids and cannot give them back.
        buckets: rows of a hashed vocabulary, beside the reserved ones.
        any: reserve row 1 for ``ANY``.

    Raises:
        ValueError: ``kind`` is unknown, or ``buckets`` and ``kind`` do not go together.
        TypeError: the values are neither strings, integers nor booleans.
    """

    def __init__(
        self,
        values: Any = (),
        *,
        kind: VocabKind = "growing",
        buckets: int = 0,
        any: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if (kind == "hashed") != (buckets > 0):
            raise ValueError(f"buckets must be positive for hashed only, got {buckets} for {kind}")
        self.kind: VocabKind = kind
        self.buckets = buckets
        self.any = any
        self.type: str | None = None
        # Ids in row order, and an index over them: keys ascending (the integer, or the hash of the
        # string) with the entry each belongs to. All three are replaced, never changed in place.
        self._ids: pa.Array = pa.array([], pa.int64())
        self._keys: npt.NDArray[Any] = np.empty(0, np.int64)
        self._entries: Rows = np.empty(0, np.int64)
        if len(values):
            if kind == "hashed":
                raise ValueError("values must be empty for a hashed vocabulary, which keeps no ids")
            ids, type_ = as_ids(values)
            self._add(ids.drop_null().unique(), type_)

    @property
    def reserved(self) -> int:
        """Rows before the first id."""
        return ANY_ROW + 1 if self.any else OOV_ROW + 1

    def __len__(self) -> int:
        """Number of rows, the reserved ones too."""
        return self.reserved + (self.buckets if self.kind == "hashed" else len(self._ids))

    def __repr__(self) -> str:
        return f"Vocab({len(self)} rows, kind={self.kind!r}, type={self.type!r}, any={self.any})"

    def __contains__(self, value: object) -> bool:
        try:
            return bool(self.rows([value])[0] >= self.reserved)
        except (TypeError, ValueError):  # of another type, or no id at all
            return False

    @property
    def ids(self) -> pa.Array:
        """The ids in row order, without the reserved rows: ``large_string``, int64 or bool."""
        return self._ids.cast(pa.bool_()) if self.type == "bool" else self._ids

    def rows(self, values: Any, name: str = "values") -> Rows:
        """``[N]`` int64 rows of raw ids; an id never seen is 0.

        Raises:
            TypeError: the values are not of the vocabulary's type; the message calls them ``name``.
        """
        return self._rows(values, name, grow=False)

    def grow(self, values: Any, name: str = "values") -> Rows:
        """As :meth:`rows`; a growing vocabulary first gives unseen ids rows, as they come."""
        return self._rows(values, name, grow=True)

    def values(self, rows: Any) -> list[Any]:
        """Raw ids of rows; None for 0 and -1, ``ANY`` for its row.

        Raises:
            ValueError: the vocabulary is hashed.
            IndexError: a row is outside the vocabulary.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        if len(rows) and not (rows.min() >= -1 and rows.max() < len(self)):
            raise IndexError(f"rows must be in [-1, {len(self)}), got {rows.min()}..{rows.max()}")
        if self.kind == "hashed":
            raise ValueError("a hashed vocabulary keeps no ids, so rows have no values")
        known = rows >= self.reserved
        entries = pa.array(rows - self.reserved, mask=~known)
        out = self.ids.take(entries).to_pylist()
        if self.any:
            for position in np.flatnonzero(rows == ANY_ROW).tolist():
                out[position] = ANY
        return out

    def hashes(self) -> npt.NDArray[np.uint64]:
        """``[len(self)]`` stable hash of each row's raw id; reserved rows hold their number.

        Raises:
            ValueError: the vocabulary is hashed.
        """
        if self.kind == "hashed":
            raise ValueError("a hashed vocabulary keeps no ids, so its rows have no hashes")
        reserved = np.arange(self.reserved, dtype=np.uint64)
        return np.concatenate([reserved, hash_ids(self._ids)])

    def copy(self) -> Vocab:
        """A vocabulary that grows apart from this one; the ids so far are shared, not copied."""
        twin = Vocab(kind=self.kind, buckets=self.buckets, any=self.any)
        twin.__dict__.update(self.__dict__)
        return twin

    def starts_with(self, other: Vocab) -> bool:
        """Whether every row of ``other`` means the same here; cheap for copies of each other."""
        if (self.any, self.kind == "hashed") != (other.any, other.kind == "hashed"):
            return False
        if self.kind == "hashed":
            return self.buckets == other.buckets
        if self._ids is other._ids or len(other._ids) == 0:
            return True
        if self.type != other.type or len(self._ids) < len(other._ids):
            return False
        return bool(self._ids.slice(0, len(other._ids)).equals(other._ids))

    def fingerprint(self) -> str:
        """Hex digest of everything that gives a row its meaning."""
        digest = hashlib.sha256(f"{self.type} {self.any} {self.buckets} {len(self._ids)}".encode())
        digest.update(hash_ids(self._ids).tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, for :meth:`from_json`."""
        return {
            "kind": self.kind,
            "type": self.type,
            "any": self.any,
            "buckets": self.buckets,
            "ids": self._ids.to_pylist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocab:
        """From what :meth:`to_json` gave."""
        vocab = cls(kind=data["kind"], buckets=data["buckets"], any=data["any"])
        vocab._add(pa.array(data["ids"], _ARROW[data["type"]]), data["type"])
        vocab.type = data["type"]
        return vocab

    def save(self, path: str | os.PathLike[str]) -> None:
        """To one Arrow file."""
        from pylum.data.vocabs import write_vocabs

        write_vocabs(Path(path), {"": self})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocab:
        """From a file of :meth:`save`."""
        from pylum.data.vocabs import read_vocabs

        return read_vocabs(Path(path))[""]

    def _rows(self, values: Any, name: str, grow: bool) -> Rows:
        ids, type_ = as_ids(values, name)
        null_row = ANY_ROW if self.any else OOV_ROW
        if type_ is None:
            return np.full(len(ids), null_row, np.int64)
        if self.type is not None and type_ != self.type:
            wanted = {"string": "strings", "int": "integers", "bool": "booleans"}
            raise TypeError(f"{name} must be {wanted[self.type]}, got {wanted[type_]}")
        coded = ids.dictionary_encode()
        unique = coded.dictionary
        if self.kind == "hashed":
            self.type = type_ if grow else self.type
            spread = hash_ids(unique) % np.uint64(self.buckets)
            table = spread.astype(np.int64) + self.reserved
        else:
            entries = self._find(unique)
            if grow and self.kind == "growing" and len(entries) and entries.min() < 0:
                new = np.flatnonzero(entries < 0)
                entries[new] = len(self._ids) + np.arange(len(new))
                self._add(unique.take(pa.array(new)), type_)
            table = np.where(entries < 0, OOV_ROW, entries + self.reserved)
        positions = coded.indices.fill_null(len(table)).to_numpy(zero_copy_only=False)
        return np.append(table, null_row)[positions]

    def _find(self, ids: pa.Array) -> Rows:
        """Entries of ids without nulls; -1 where there is none."""
        out = np.full(len(ids), -1, np.int64)
        if len(self._ids) == 0 or len(ids) == 0:
            return out
        strings = self.type == "string"
        keys = hash_ids(ids) if strings else ids.to_numpy(zero_copy_only=False)
        places = np.searchsorted(self._keys, keys)
        open_ = np.flatnonzero(self._keys[np.minimum(places, len(self._keys) - 1)] == keys)
        if not strings:
            out[open_] = self._entries[places[open_]]
            return out
        # Equal hashes are proved by the strings themselves; two ids may share one.
        while len(open_):
            entries = self._entries[places[open_]]
            mine = self._ids.take(pa.array(entries))
            same = pc.equal(mine, ids.take(pa.array(open_))).to_numpy(zero_copy_only=False)
            out[open_[same]] = entries[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < len(self._keys)]
            open_ = open_[self._keys[places[open_]] == keys[open_]]
        return out

    def _add(self, ids: pa.Array, type_: str | None) -> None:
        """Append ids that are new, unique and not null."""
        if not len(ids):
            return
        first = len(self._ids)
        self.type = type_
        keys = hash_ids(ids) if type_ == "string" else ids.to_numpy(zero_copy_only=False)
        order = np.argsort(keys, kind="stable")
        if first == 0:
            self._ids, self._keys, self._entries = ids, keys[order], order
            return
        places = np.searchsorted(self._keys, keys[order])
        self._ids = pa.concat_arrays([self._ids, ids])
        self._keys = np.insert(self._keys, places, keys[order])
        self._entries = np.insert(self._entries, places, order + first)
