"""What a user model knows of users as of moments, apart from the model."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pylum.data.columns import ANY
from pylum.data.vocab import Vocab
from pylum.index import encode_items
from pylum.knowledge import store
from pylum.knowledge.latest import Moments
from pylum.model import LUM
from pylum.model.files import in_place
from pylum.modes import on_host

MEMORY_LIMIT = 1 << 30


@on_host
@dataclass(frozen=True, eq=False)
class Knowledge:
    """Answers to ``N`` conditions at ``R`` moments (section 3.3 of arXiv 2502.08309).

    A ranker reads ``vectors`` as its direct feature and their cosines with ``item_vectors`` as its
    matching feature; it needs no model. ``fingerprint`` says which model the vectors come from:
    vectors of different models do not compare.

    Args:
        vectors: ``[R, N, D]`` float32 or float16, unit length.
        users: ``R`` raw ids.
        times: ``[R]`` int64 seconds: only events before ``times - delay`` were seen.
        seen: ``[R]`` int64 how many those were.
        conditions: ``N`` values, or dicts by field.
        items: raw ids; none where the model's vocabulary is hashed.
        item_vectors: ``[M, D]``, unit length.
        temperature: divides cosines to make logits, as in training.
        cut: seconds, the latest event the model was trained on; None: not trained. Knowledge of
            an earlier row is in-sample.
        delay: seconds.
        fingerprint: of the model.
    """

    vectors: torch.Tensor
    users: list[Any]
    times: torch.Tensor
    seen: torch.Tensor
    conditions: list[Any]
    items: list[Any]
    item_vectors: torch.Tensor
    temperature: float
    cut: int | None
    delay: int
    fingerprint: str

    def __len__(self) -> int:
        """Number of moments."""
        return len(self.vectors)

    def rows(self, users: Any, times: Any = None) -> npt.NDArray[np.int64]:
        """The latest moment of each user that is not after ``times``; -1: none.

        Args:
            users: raw ids, a list or an Arrow array.
            times: a moment in seconds for each; None: the latest moment of the user.
        """
        asked = self._moments.users.rows(users, "users") if len(users) else np.empty(0, np.int64)
        return self._moments.latest(asked, times)

    def item_rows(self, items: Any) -> npt.NDArray[np.int64]:
        """``[n]`` rows of ``item_vectors``; -1: an item without a vector."""
        return self._item_vocab.rows(items, "items") - 1

    @cached_property
    def _moments(self) -> Moments:
        return Moments.of(self.users, self.times)

    @cached_property
    def _item_vocab(self) -> Vocab:
        vocab = Vocab()
        vocab.grow(self.items, "items")
        return vocab

    def with_items(self, model: LUM, new: Any) -> Knowledge:
        """With vectors of items the model was not trained on.

        Args:
            model: the one that made this knowledge.
            new: a table of ids and features, as for :meth:`pylum.ItemIndex.add`.

        Raises:
            ValueError: another model, or ``new`` does not fit it.
        """
        if model.fingerprint() != self.fingerprint:
            raise ValueError(
                f"model must be the one of this knowledge, {self.fingerprint}, "
                f"got {model.fingerprint()}"
            )
        ids, vectors = encode_items(model, new)
        vocab = self._item_vocab.copy()
        rows = torch.from_numpy(vocab.grow(ids, "new")) - 1
        grown = self.item_vectors.new_empty(len(vocab) - 1, self.item_vectors.shape[1])
        grown[: len(self.items)] = self.item_vectors
        grown[rows] = vectors.to(grown)
        return replace(self, items=vocab.ids.to_pylist(), item_vectors=grown)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that :meth:`load` reads, as ``query(..., out=path)`` writes it.

        An earlier save stays as it is until the new one is whole.

        Raises:
            ValueError: ``path`` exists and is no knowledge.
        """
        folder = Path(path)
        request = {"saved": True, "fingerprint": self.fingerprint}
        store.check(folder)
        flat = self.vectors.flatten(1)
        table = store.part_table(torch.arange(len(self)), self.users, self.times, self.seen, flat)
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            store.begin(aside, request, resume=False)
            store.write_table(aside / store.part_name(0), table)
            self.finish(aside, request)
            in_place(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, memory_limit: int = MEMORY_LIMIT) -> Knowledge:
        """From a folder of :meth:`save` or ``query(..., out=path)``, read part by part.

        Args:
            memory_limit: bytes of ``vectors`` kept in memory; beyond it they are mapped from an
                unnamed file in the folder for temporary files, and paged in where they are read.

        Raises:
            FileNotFoundError: there is no knowledge at ``path``.
            ValueError: it is not complete.
        """
        folder = Path(path)
        if not (folder / store.MANIFEST).is_file():
            raise FileNotFoundError(f"path must be a folder with {store.MANIFEST}, got {path}")
        about = json.loads((folder / store.MANIFEST).read_text())
        if not about["complete"]:
            raise ValueError(f"{path} is not complete: run its query again to finish it")
        conditions = [condition_from_json(value) for value in about["conditions"]]
        parts = store.read_parts(folder, about["parts"], memory_limit)
        items = pq.read_table(folder / store.ITEMS)
        return cls(
            parts.vectors.unflatten(1, (len(conditions), about["dim"])),
            parts.users.to_pylist(),
            parts.times,
            parts.seen,
            conditions,
            items["item"].to_pylist(),
            torch.from_numpy(store.vectors_of(items["vector"]).copy()),
            about["temperature"],
            about["cut"],
            about["delay"],
            about["fingerprint"],
        )

    def finish(self, folder: Path, request: dict[str, Any], parts: int = 1) -> None:
        """Add the items to a folder of parts, and say that it is complete."""
        ids = pa.array(self.items) if self.items else pa.array([], pa.int64())
        store.write_table(folder / store.ITEMS, store.item_table(ids, self.item_vectors))
        store.write_json(folder / store.MANIFEST, self.about(request, parts))

    def about(self, request: dict[str, Any], parts: int) -> dict[str, Any]:
        """The manifest of a complete folder."""
        return {
            "request": request,
            "complete": True,
            "parts": parts,
            "dim": self.item_vectors.shape[1],
            "conditions": [condition_to_json(value) for value in self.conditions],
            "temperature": self.temperature,
            "cut": self.cut,
            "delay": self.delay,
            "fingerprint": self.fingerprint,
        }


def condition_to_json(value: Any) -> Any:
    """A condition as JSON; ANY is null."""
    if isinstance(value, dict):
        return {name: condition_to_json(v) for name, v in value.items()}
    if value is ANY or value is None:
        return None
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value


def condition_from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: condition_from_json(v) for name, v in value.items()}
    return ANY if value is None else value
