"""Exact search among item vectors, new items included."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import OOV_ROW
from pylum.data.tables import as_table, pick
from pylum.data.vocab import Vocab
from pylum.generation import Generation
from pylum.generation.asking import asking
from pylum.generation.catalogue import catalogue
from pylum.generation.limits import coded_rows, select, translate
from pylum.generation.spread import spread
from pylum.model import LUM
from pylum.modes import on_host
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.transfer import moved


@on_host
class ItemIndex:
    """The items a query may be answered with, searched exactly.

    Args:
        model: encodes the items.
        items: raw ids the model knows; None: its whole catalogue. ``[]`` starts empty.

    Raises:
        ValueError: the model does not know one of ``items``.
    """

    def __init__(self, model: LUM, items: Any = None) -> None:
        self.model = model
        self._vocab = Vocab()
        vectors = catalogue(model)
        if items is None:
            self._vocab.grow(model.vocabs.items.ids)
            self.vectors = vectors[1:].clone()
            return
        rows = model.vocabs.items.rows(items, "items")
        if (rows == OOV_ROW).any():
            first = list(items)[int(np.flatnonzero(rows == OOV_ROW)[0])]
            raise ValueError(
                f"items must be known to the model, got {first!r}: "
                "pass new items with their features to add()"
            )
        self._vocab.grow(items, "items")
        places = torch.from_numpy(rows).unique_consecutive()
        self.vectors = vectors[moved(places, vectors.device)]
        if len(self.vectors) != len(self):
            raise ValueError(f"items must be distinct, got {len(rows) - len(self)} repeated")

    def __len__(self) -> int:
        return len(self._vocab) - 1

    @property
    def items(self) -> list[Any]:
        """Raw ids, in the order of ``vectors``."""
        return self._vocab.ids.to_pylist()

    def add(self, new: Any) -> None:
        """Add items the model was not trained on, or replace the features of items.

        A new item is encoded from the unknown item's id and its features, as training with
        ``id_dropout`` prepares the model for.

        Args:
            new: a table (Arrow, pandas or a dict of columns) with the id column of the model's
                items and all of their features.

        Raises:
            ValueError: a column is missing, an id is null or stands twice, or the model reads no
                item features, so that all new items would be one.
        """
        ids, vectors = encode_items(self.model, new)
        rows = torch.from_numpy(self._vocab.grow(ids, "new")) - 1
        grown = self.vectors.new_empty(len(self), self.vectors.shape[1])
        grown[: len(self.vectors)] = self.vectors
        grown[moved(rows, grown.device)] = vectors.to(grown)
        self.vectors = grown

    def topk(
        self,
        queries: torch.Tensor | Generation,
        k: int = 10,
        *,
        exclude: Any = None,
        candidates: Any = None,
    ) -> tuple[npt.NDArray[Any], torch.Tensor]:
        """The ``k`` best items of each query.

        Args:
            queries: ``[Q, D]`` float32 on any device, or a generation, whose embeddings are taken.
            exclude, candidates: raw ids of each query, as a list of ``Q`` lists or a Ragged;
                ids that are not in the index are left out.

        Returns:
            items ``[Q, k]`` raw ids, scores ``[Q, k]`` float32; None and -inf where fewer than
            ``k`` are left. Equal scores go to the item added first.

        Raises:
            ValueError: a shape is not as above.
            TypeError: ``queries`` is neither a tensor nor a generation.
        """
        if isinstance(queries, Generation):
            queries = queries.embeddings
        if not isinstance(queries, torch.Tensor):
            raise TypeError(
                f"queries must be a tensor or a Generation, got {type(queries).__name__}"
            )
        if queries.dim() != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries must be [queries, {self.vectors.shape[1]}], got {list(queries.shape)}"
            )
        limits: list[Ragged | None] = []
        for name, given in (("candidates", candidates), ("exclude", exclude)):
            coded = None
            if given is not None:
                known, _ = coded_rows(name, given, len(queries), len(queries), self._vocab)
                coded = translate(known.rows, None)
            limits.append(coded)
        with torch.inference_mode():
            asked = moved(queries.to(self.vectors.dtype).contiguous(), self.vectors.device)
            scores, rows = select(asked, self.vectors, k, *limits)
        places = rows.numpy().reshape(-1)
        items = np.empty(len(places), dtype=np.object_)
        items[:] = self._vocab.values(np.where(places < 0, -1, places + 1))
        return items.reshape(rows.shape), scores

    def to_faiss(self, factory: str = "Flat") -> Any:
        """A faiss inner-product index of the vectors; its ids are places in ``items``.

        Args:
            factory: a faiss factory string; ``"Flat"`` is exact, others approximate.

        Raises:
            ImportError: faiss is not installed.
        """
        try:
            import faiss
        except ImportError as error:
            raise ImportError("to_faiss needs faiss: pip install faiss-cpu") from error
        vectors = np.ascontiguousarray(self.vectors.float().cpu().numpy())
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
        return index


def encode_items(model: LUM, new: Any) -> tuple[Any, torch.Tensor]:
    """Raw ids and ``[N, D]`` unit vectors of items given by their features.

    Args:
        new: as for :meth:`ItemIndex.add`.
    """
    if not model.items.fields:
        raise ValueError(
            "new items must have features to tell them apart, but this model reads none of them"
        )
    table = as_table(new, "new")
    vocabs = model.vocabs.copy()
    vocabs.items.kind = "growing"
    merged = model.items.add(table, vocabs)
    ids = pick(table, model.items.id_column, "new")
    rows = torch.from_numpy(vocabs.items.rows(ids))
    columns: dict[str, torch.Tensor | Ragged] = {}
    for name, column in merged.columns.items():
        if isinstance(column, Ragged):
            lengths = column.lengths[rows]
            values = column.values[spread(column.offsets[rows], lengths)]
            columns[name] = Ragged(values, lengths_to_offsets(lengths))
        else:
            columns[name] = column[rows]
    encoder = model.output_encoder or model.item_encoder
    rows = moved(rows, model.device)
    columns = {name: column.to(model.device) for name, column in columns.items()}
    # As the encoder does it for items of its vocabulary that no training event has chosen.
    own = torch.where(rows < len(encoder.chosen), rows, OOV_ROW)
    own = torch.where(encoder.chosen[own], own, OOV_ROW)
    with asking(model):
        tokens = encoder.encode(encoder.ids[own], columns)
        vectors = torch.nn.functional.normalize(model.item_answer(tokens), dim=-1)
    return ids, vectors
