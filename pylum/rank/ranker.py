"""A conventional ranker, with or without a user model's knowledge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.vocabs import read_vocabs, write_vocabs
from pylum.knowledge import Knowledge
from pylum.model.files import read_folder, write_folder
from pylum.rank import training
from pylum.rank.coding import Coder, table_of
from pylum.rank.inputs import KnownSizes, Network
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.training import Batches
from pylum.rank.utilisation import PARTS, Inputs, join, refuse_in_sample

KIND = "pylum ranker"
VOCABS = "vocabs.arrow"
PREDICT_ROWS = 8192


class Ranker:
    """Predicts the probability of a label of 1 for each row.

    Args:
        name: ``"wide_deep"``, ``"dlrm"``, ``"din"`` or ``"sim_rank"``.
        schema: of the rows.
        knowledge: of :func:`pylum.query`, as of the rows' times, or None. Rows read the latest
            moment of their user that is not after them.
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
        knowledge: Knowledge | None = None,
        *,
        inputs: Sequence[str] = PARTS,
        **settings: Any,
    ) -> None:
        if name not in training.NETWORKS:
            raise ValueError(f"name must be one of {', '.join(training.NETWORKS)}, got {name!r}")
        if not isinstance(schema, Schema):
            raise TypeError(f"schema must be a pylum.rank.Schema, got {type(schema).__name__}")
        if knowledge is not None and not isinstance(knowledge, Knowledge):
            raise TypeError(f"knowledge must be a Knowledge, got {type(knowledge).__name__}")
        strangers = [part for part in inputs if part not in PARTS]
        if strangers or not inputs or isinstance(inputs, str):
            raise ValueError(f"inputs must be some of {', '.join(PARTS)}, got {inputs!r}")
        self.name, self.schema, self.knowledge = name, schema, knowledge
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

    def fit(
        self,
        rows: Any,
        *,
        valid: Any = None,
        init: Ranker | None = None,
        allow_in_sample: bool = False,
    ) -> Ranker:
        """Train on labelled rows.

        Args:
            rows: a table (Arrow, pandas, a dict of columns, or the path of a Parquet file).
            valid: rows of a later time: the epoch with the least loss on them is kept.
            init: a fitted ranker of the same name, schema and sizes to start from. Its vocabularies
                grow and its quantiles stay. Knowledge that it does not have begins with weights of
                zero, so that at first this ranker predicts what ``init`` does; knowledge of another
                fingerprint is another vector space and begins anew.
            allow_in_sample: also train on rows that are not later than the user model's training.

        Returns:
            itself.

        Raises:
            ValueError: a column is missing, the labels are all alike, rows are in-sample, or
                ``init`` does not fit.
            TypeError: a column's type does not fit its kind.
        """
        table = table_of(rows, self.schema, self._columns(self.knowledge, True))
        if len(table) == 0:
            raise ValueError("rows must be at least one, got none")
        old = self._old(init)
        coder = Coder.fit(self.schema, table, self.settings.min_count, old.coder if old else None)
        coded = coder.encode(table, with_labels=True)
        assert coded.labels is not None
        if len(coded.labels.unique()) < 2:
            raise ValueError(
                f"label {self.schema.label!r} must hold both 0 and 1, got "
                f"{int(coded.labels[0])} in all {len(table)} rows"
            )
        joined, inputs, keep = None, None, False
        if self.knowledge is not None:
            if not allow_in_sample:
                refuse_in_sample(self.knowledge, table, self.schema)
            joined = join(self.knowledge, table, self.schema)
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
        later = None if valid is None else self._batches(valid, self.knowledge, labels=True)
        batches = Batches(coded, self.knowledge, inputs, joined)
        self.history = training.train(network, batches, self.settings, later)
        return self

    def predict(
        self, rows: Any, *, knowledge: Knowledge | None = None, batch_rows: int = PREDICT_ROWS
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
        if knowledge is None:
            knowledge = self.knowledge
        self._check(knowledge)
        batches = self._batches(rows, knowledge, labels=False)
        parts = [part.sigmoid() for part in training.logits(self.network, batches, batch_rows)]
        return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)

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
    def load(cls, path: str | os.PathLike[str], knowledge: Knowledge | None = None) -> Ranker:
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
            ranker._check(knowledge)
            ranker.knowledge = knowledge
        return ranker

    def _sizes(self, inputs: Inputs | None) -> KnownSizes:
        if inputs is None:
            return KnownSizes()
        narrow = min(self.settings.knowledge_dim, inputs.dim)
        return KnownSizes(inputs.vectors, inputs.numbers, inputs.dim, narrow)

    def _columns(self, knowledge: Knowledge | None, label: bool) -> tuple[str, ...]:
        """What is read beside the features."""
        schema = self.schema
        wanted = [schema.label] if label else []
        if knowledge is not None:
            wanted += [schema.user, schema.item, schema.time]
            wanted += [] if schema.condition is None else [schema.condition]
        return tuple(wanted)

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

    def _check(self, knowledge: Knowledge | None) -> None:
        if (knowledge is None) != (self.inputs is None):
            wanted = f"of fingerprint {self.fingerprint}" if self.inputs else "None"
            raise ValueError(
                f"knowledge must be {wanted}, as in training, got "
                f"{'none' if knowledge is None else knowledge.fingerprint}"
            )
        if knowledge is None or self.inputs is None:
            return
        if knowledge.fingerprint != self.fingerprint:
            raise ValueError(
                f"knowledge must be of the user model {self.fingerprint} the ranker was trained "
                f"with, got {knowledge.fingerprint}: vectors of two models do not compare"
            )
        self.inputs.check(knowledge)

    def _batches(self, rows: Any, knowledge: Knowledge | None, labels: bool) -> Batches:
        assert self.coder is not None
        schema = self.schema
        table = table_of(rows, schema, self._columns(knowledge, labels))
        coded = self.coder.encode(table, with_labels=labels)
        if knowledge is None or self.inputs is None:
            return Batches(coded)
        return Batches(coded, knowledge, self.inputs, join(knowledge, table, schema))
