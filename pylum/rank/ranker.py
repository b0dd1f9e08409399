"""A conventional ranker, with or without a user model's knowledge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pylum.data.vocabs import read_vocabs, write_vocabs
from pylum.knowledge import Knowledge
from pylum.model.files import read_folder, write_folder
from pylum.modes import autocast_off, learning, on_host
from pylum.rank import training
from pylum.rank.answers import Batches
from pylum.rank.coding import Coder
from pylum.rank.joining import join
from pylum.rank.known import KnownSizes
from pylum.rank.network import Network
from pylum.rank.reading import columns_of, knowledge_of, read_all
from pylum.rank.rows import Rows
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.utilisation import PARTS, Inputs, check_pinned

KIND = "pylum ranker"
VOCABS = "vocabs.arrow"
PREDICT_ROWS = 8192


@on_host
class Ranker:
    """Predicts the probability of a label of 1 for each row.

    Args:
        name: ``"wide_deep"``, ``"dlrm"``, ``"din"`` or ``"sim_rank"``.
        schema: of the rows.
        knowledge: of :func:`pylum.query`, as of the rows' times, or its folder, or None. Rows read
            the latest moment of their user that is not after them.
        inputs: what is taken of it: ``"item"`` (the item's vector), ``"direct"`` (the answers) and
            ``"matching"`` (similarities of answers and item).
        settings: as :class:`~pylum.rank.settings.Settings`.

    Raises:
        ValueError: the name, an input or a setting is unknown.
        TypeError: ``schema`` or ``knowledge`` is of another class.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        knowledge: Knowledge | str | os.PathLike[str] | None = None,
        *,
        inputs: Sequence[str] = PARTS,
        **settings: Any,
    ) -> None:
        if name not in training.NETWORKS:
            raise ValueError(f"name must be one of {', '.join(training.NETWORKS)}, got {name!r}")
        if not isinstance(schema, Schema):
            raise TypeError(f"schema must be a pylum.rank.Schema, got {type(schema).__name__}")
        strangers = [part for part in inputs if part not in PARTS]
        if strangers or not inputs or isinstance(inputs, str):
            raise ValueError(f"inputs must be some of {', '.join(PARTS)}, got {inputs!r}")
        self.name, self.schema = name, schema
        self.knowledge = knowledge_of(knowledge)
        self.parts = tuple(part for part in PARTS if part in inputs)
        self.settings = Settings.of(name, settings)
        self.history: list[dict[str, float]] = []
        self.coder: Coder | None = None
        self.inputs: Inputs | None = None
        self.fingerprint: str | None = None
        self.network: Network | None = None

    def __repr__(self) -> str:
        state = "not fitted"
        if self.network is not None:
            state = f"{sum(p.numel() for p in self.network.parameters()):,} parameters"
        known = f", knowledge {'+'.join(self.parts)}" if self.knowledge is not None else ""
        return f"Ranker({self.name!r}, {len(self.schema.features)} features{known}, {state})"

    @learning()
    def fit(
        self,
        rows: Any,
        *,
        valid: Any = None,
        init: Ranker | None = None,
        known: Any = None,
        only_knowledge: bool = False,
        allow_in_sample: bool = False,
    ) -> Ranker:
        """Train on labelled rows.

        A Parquet file is read twice, in pieces: memory holds its vocabularies and the rows as
        codes of four bytes.

        Args:
            rows: a table (Arrow, pandas, a dict of columns, or the path of a Parquet file or of a
                directory of them).
            valid: rows of a later time: the epoch with the least loss on them is kept.
            init: a fitted ranker of the same name, schema and sizes to start from. Its vocabularies
                grow and its quantiles stay. Knowledge that it does not have begins with weights of
                zero, so that at first this ranker predicts what ``init`` does; knowledge of another
                fingerprint is another vector space and begins anew.
            known: ``[N]`` booleans: rows that knowledge may be read for. The others, such as those
                the user model was trained on, are learned from as if nothing were known. None: all.
            only_knowledge: train only what knowledge changes of the answers of ``init``, which
                stays the answer where nothing is known.
            allow_in_sample: also read it for rows not later than the user model's training.

        Returns:
            itself.

        Raises:
            ValueError: a column is missing, the labels are all alike, rows are in-sample,
                ``init`` does not fit, or ``only_knowledge`` lacks it or knowledge.
            TypeError: a column's type does not fit its kind.
        """
        if only_knowledge and (init is None or self.knowledge is None):
            lacks = "init" if init is None else "knowledge"
            raise ValueError(f"only_knowledge must be given with {lacks}, got none")
        source = self._rows(rows, self.knowledge, True)
        old = self._old(init)
        coder = Coder.fit(self.schema, source, self.settings.min_count, old.coder if old else None)
        coded, joined = read_all(
            coder, source, self.knowledge, known=known, allow_in_sample=allow_in_sample
        )
        assert coded.labels is not None
        if bool((coded.labels == coded.labels[0]).all()):
            raise ValueError(
                f"label {self.schema.label!r} must hold both 0 and 1, got "
                f"{int(coded.labels[0])} in all {len(coded)} rows"
            )
        inputs, keep = None, False
        if self.knowledge is not None:
            assert joined is not None
            keep = (
                old is not None
                and old.inputs is not None
                and (old.fingerprint, old.inputs.parts) == (self.knowledge.fingerprint, self.parts)
                and old.inputs.conditions == self.knowledge.vectors.shape[1]
            )
            inputs = old.inputs if keep and old else None
            if inputs is None:
                inputs = Inputs.fit(self.parts, self.knowledge, joined)
        network = training.build(
            self.name, self.schema, coder.vocabs, self.settings, self._sizes(inputs)
        )
        if old is not None and old.network is not None:
            training.carry_over(old.network, network, keep)
        self.coder, self.inputs, self.network = coder, inputs, network
        self.fingerprint = None if self.knowledge is None else self.knowledge.fingerprint
        later = None
        if valid is not None:
            held = read_all(coder, self._rows(valid, self.knowledge, True, "valid"), self.knowledge)
            later = Batches(held[0], self.knowledge, inputs, held[1])
        batches = Batches(coded, self.knowledge, inputs, joined)
        self.history = training.train(network, batches, self.settings, later, only_knowledge)
        return self

    @autocast_off()
    def predict(
        self,
        rows: Any,
        *,
        knowledge: Knowledge | str | os.PathLike[str] | None = None,
        batch_rows: int = PREDICT_ROWS,
    ) -> npt.NDArray[np.float32]:
        """``[N]`` probability of a label of 1, in the order of ``rows``; no label is needed.

        Args:
            rows: as for :meth:`fit`. A value never seen is read as the unknown one; a user or item
                without knowledge as the learned missing one.
            knowledge: newer, of the same fingerprint; None: that of the ranker.
            batch_rows: rows of one pass.

        Raises:
            ValueError: not fitted, a column is missing, or the knowledge is of another user model.
            TypeError: a column's type does not fit its kind.
        """
        if self.network is None:
            raise ValueError("the ranker must be fitted or loaded before it predicts")
        knowledge = self.knowledge if knowledge is None else knowledge_of(knowledge)
        check_pinned(knowledge, self.inputs, self.fingerprint)
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
        assert self.coder is not None
        parts = [np.empty(0, np.float32)]
        for piece in self._rows(rows, knowledge, False):
            coded = self.coder.encode(piece)
            batches = Batches(coded)
            if knowledge is not None:
                joined = join(knowledge, piece, self.schema)
                batches = Batches(coded, knowledge, self.inputs, joined)
            found = training.logits(self.network, batches, batch_rows)
            parts += [part.sigmoid().numpy() for part in found]
        return np.concatenate(parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder: safetensors, JSON and the vocabularies; knowledge is saved by itself.

        Raises:
            ValueError: not fitted, or ``path`` is no earlier save.
        """
        if self.network is None or self.coder is None:
            raise ValueError("the ranker must be fitted before it is saved")
        coder = self.coder
        about = {
            "kind": KIND,
            "name": self.name,
            "coder": coder.to_json(),
            "settings": asdict(self.settings),
            "inputs": None if self.inputs is None else self.inputs.to_json(),
            "fingerprint": self.fingerprint,
            "history": self.history,
        }

        def more(folder: Path) -> None:
            write_vocabs(folder / VOCABS, coder.vocabs)

        write_folder(path, about, self.network.state_dict(), more)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        knowledge: Knowledge | str | os.PathLike[str] | None = None,
    ) -> Ranker:
        """From a folder of :meth:`save`.

        Args:
            knowledge: what its rows are joined with, of the fingerprint it was trained with; it can
                also be given to :meth:`predict`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the knowledge is of another user model.
        """
        about, tensors = read_folder(path, KIND)
        coder = Coder.from_json(about["coder"], read_vocabs(Path(path) / VOCABS))
        ranker = cls(about["name"], coder.schema, None, **about["settings"])
        ranker.coder, ranker.history = coder, about["history"]
        ranker.fingerprint = about["fingerprint"]
        if about["inputs"] is not None:
            ranker.inputs = Inputs.from_json(about["inputs"])
            ranker.parts = ranker.inputs.parts
        network = training.build(
            ranker.name, ranker.schema, coder.vocabs, ranker.settings, ranker._sizes(ranker.inputs)
        )
        network.load_state_dict(tensors)
        ranker.network = network.eval()
        if knowledge is not None:
            ranker.knowledge = knowledge_of(knowledge)
            check_pinned(ranker.knowledge, ranker.inputs, ranker.fingerprint)
        return ranker

    def _sizes(self, inputs: Inputs | None) -> KnownSizes:
        return KnownSizes() if inputs is None else inputs.sizes(self.settings.knowledge_dim)

    def _rows(
        self, rows: Any, knowledge: Knowledge | None, label: bool, name: str = "rows"
    ) -> Rows:
        found = Rows(rows, self.schema, columns_of(self.schema, knowledge, label))
        if label and next(iter(found), None) is None:
            raise ValueError(f"{name} must be at least one, got none")
        return found

    def _old(self, init: Ranker | None) -> Ranker | None:
        if init is None:
            return None
        if not isinstance(init, Ranker):
            raise TypeError(f"init must be a Ranker, got {type(init).__name__}")
        if init.network is None:
            raise ValueError("init must be fitted")
        if init.name != self.name or init.schema != self.schema:
            raise ValueError(f"init must be a {self.name} of the same schema, got {init!r}")
        return init
