"""The Large User Model (arXiv 2502.08309, sections 3.1 and 3.2)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pylum import ops
from pylum.data.events import Events
from pylum.data.items import ItemTable
from pylum.data.schema import Schema
from pylum.data.vocabs import Vocabs
from pylum.model.config import LUMConfig
from pylum.model.encoder import ConditionEncoder, ItemEncoder, OutcomeEncoder
from pylum.model.files import read_folder, write_folder
from pylum.model.record import TrainingRecord
from pylum.model.transformer import UserEncoder


class LUM(nn.Module):
    """Answers "what would this user choose under this condition" with a unit vector.

    Behaviour ``k`` is two tokens at position ``k``: its condition, then the item chosen under it.
    The hidden state of a condition token answers for the item that follows; a condition asked after
    a history is one more such token, a target, at the position after the behaviours it sees.

    Args:
        config: sizes.
        schema, vocabs, items: of the data; they belong to the model and are saved with it.
    """

    def __init__(self, config: LUMConfig, schema: Schema, vocabs: Vocabs, items: ItemTable) -> None:
        super().__init__()
        self.config, self.schema, self.vocabs, self.items = config, schema, vocabs, items
        sizes = {
            group: {name: len(vocab) for name, vocab in getattr(vocabs, group).items()}
            for group in ("conditions", "outcomes", "features")
        }
        rows = len(vocabs.items)
        make = (config, schema, sizes["features"], rows, items.columns)
        self.item_encoder = ItemEncoder(*make)
        self.output_encoder = None if config.tie else ItemEncoder(*make)
        self.condition_encoder = ConditionEncoder(config, schema, sizes["conditions"])
        self.outcome_encoder = (
            OutcomeEncoder(config, schema, sizes["outcomes"]) if schema.outcomes else None
        )
        self.user_encoder = UserEncoder(config)
        self.answer = _linear(config.width, config.dim)
        self.item_answer = _linear(config.width, config.dim)
        self.record = TrainingRecord()
        self._fingerprint: tuple[Any, str] | None = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LUM:
        """Move or cast. Angles, and numbers of items and how to standardise them, stay float32.

        bfloat16 has no 1994 and no position 257; only the vectors of items, which may be large,
        follow the weights.
        """
        kept = {
            name: buffer
            for name, buffer in self.named_buffers()
            if buffer.dtype == torch.float32 and not (buffer.dim() == 2 and ".column_" in name)
        }
        super()._apply(fn, recurse)
        for name, old in kept.items():
            path, _, leaf = name.rpartition(".")
            buffers = self.get_submodule(path)._buffers
            new = buffers[leaf]
            if new is not None and new.element_size() < old.element_size():
                buffers[leaf] = old.to(new.device)
        return self

    @property
    def dim(self) -> int:
        """Width of answers and item vectors."""
        return self.config.dim

    @property
    def temperature(self) -> float:
        """Divides the inner product of an answer and an item vector."""
        return self.config.temperature

    def item_tokens(
        self, rows: torch.Tensor | None = None, unknown: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[U, width]`` input tokens of items; arguments as for :class:`ItemEncoder`."""
        return self.item_encoder(rows, unknown)

    def gaps(self, events: Events) -> torch.Tensor:
        """``[N]`` int64 seconds since the event before; -1 for a user's first."""
        gaps = torch.full_like(events.times, -1)
        gaps[1:] = events.times[1:] - events.times[:-1]
        gaps[events.offsets[:-1][events.lengths > 0]] = -1
        return gaps

    def history_tokens(
        self,
        events: Events,
        *,
        gaps: torch.Tensor | None = None,
        item_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[2 N, width]`` tokens, condition and item of each behaviour in turn.

        Args:
            events: ``N`` behaviours.
            gaps: as :meth:`gaps` gives them, the default.
            item_tokens: ``[N, width]`` tokens of ``events.items``, where they are known already.
        """
        if gaps is None and self.config.query_time:
            gaps = self.gaps(events)
        conditions = self.condition_encoder(events.conditions, events.total, gaps, events.times)
        items = self.item_tokens(events.items) if item_tokens is None else item_tokens
        if self.outcome_encoder is not None:
            items = items + self.outcome_encoder(events.outcomes, events.total)
        return torch.stack([conditions, items], 1).flatten(0, 1)

    def query_tokens(
        self,
        conditions: Mapping[str, torch.Tensor],
        gaps: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
        *,
        count: int | None = None,
    ) -> torch.Tensor:
        """``[Q, width]`` tokens of conditions asked.

        Args:
            conditions: columns of ``Q`` rows by field; a field left out is ANY.
            gaps: ``[Q]`` int64 seconds since the last event; negative or None: unknown.
            times: ``[Q]`` int64 seconds of the clock, for ``config.calendar``; None: unknown.
            count: ``Q``, needed where no column tells it.
        """
        columns = [*conditions.values(), *(c for c in (gaps, times) if c is not None)]
        if count is None and not columns:
            raise ValueError("count must be given where there is no condition column, got None")
        return self.condition_encoder(
            conditions, len(columns[0]) if count is None else count, gaps, times
        )

    def run(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        mask: ops.Mask | None = None,
        *,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One causal pass over packed sequences.

        Args:
            x: ``[T, width]`` tokens, history tokens of a sequence before its targets.
            offsets: ``[B + 1]`` int64, in tokens.
            positions: ``[T]`` int64 in ``[0, max_length]``, in behaviours.
            mask: which tokens are targets and what they see, in tokens; None: causal.
            rows: ``[R]`` int64 distinct tokens whose hidden state is wanted; None: all.

        Returns:
            ``[T, width]`` or ``[R, width]`` hidden states.
        """
        return self.user_encoder.run(x, offsets, positions, mask, rows)

    def run_cached(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None = None,
    ) -> torch.Tensor:
        """The pass of :meth:`run` over tokens whose earlier history lies in pages. Inference only.

        New history rows are appended to the pages; targets are not.

        Args:
            x: ``[T, width]`` tokens; of each sequence its new history tokens, then its targets.
            offsets: ``[B + 1]`` int64, in tokens.
            positions: ``[T]`` int64 in ``[0, max_length]``, in behaviours.
            prefixes: one per layer, sharing ``table`` and ``lengths``. Lengths count the new
                history rows already, and the table has pages for them.
            mask: how many targets each sequence has and what they see; None: no targets.

        Returns:
            ``[T, width]`` hidden states, of the new history rows too.
        """
        return self.user_encoder.run_cached(x, offsets, positions, prefixes, mask)

    def answers(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[*, D]`` unit vectors of hidden states ``[*, width]`` of condition tokens."""
        return nn.functional.normalize(self.answer(hidden), dim=-1)

    def item_vectors(
        self, rows: torch.Tensor | None = None, *, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[U, D]`` unit vectors of items.

        Args:
            rows: ``[U]`` int64; None: every item of the vocabulary.
            tokens: ``[U, width]`` of :meth:`item_tokens` at ``rows``, where they are known already.
        """
        if self.output_encoder is not None:
            tokens = self.output_encoder(rows)
        elif tokens is None:
            tokens = self.item_encoder(rows)
        return nn.functional.normalize(self.item_answer(tokens), dim=-1)

    def fingerprint(self) -> str:
        """Hex digest of weights, config, schema and vocabularies; the same in every process."""
        state = self.state_dict()
        # Tensors made in inference mode do not count their changes.
        counted = not any(t.is_inference() for t in state.values())
        version = tuple((t.data_ptr(), t._version) for t in state.values()) if counted else None
        if self._fingerprint is None or version is None or self._fingerprint[0] != version:
            about = [self.config.to_json(), self.schema.to_json(), self.vocabs.fingerprint()]
            digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
            for name, tensor in sorted(state.items()):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
                digest.update(flat.view(torch.uint8).numpy().data)
            self._fingerprint = (version, digest.hexdigest()[:32])
        return self._fingerprint[1]

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the folder :meth:`from_pretrained` reads: safetensors, Arrow and JSON.

        Raises:
            ValueError: ``path`` exists and is no earlier save.
        """

        def more(folder: Path) -> None:
            self.vocabs.save(folder / "vocabs.arrow")
            if self.items.titles is not None:
                titles = pa.table({"title": self.items.titles})
                with (
                    pa.OSFile(str(folder / "titles.arrow"), "wb") as sink,
                    pa.ipc.new_file(sink, titles.schema) as writer,
                ):
                    writer.write_table(titles)

        about = {
            "kind": "LUM",
            "config": self.config.to_json(),
            "schema": self.schema.to_json(),
            "items": {
                "id_column": self.items.id_column,
                "title_column": self.items.title_column,
            },
            "record": {
                "cut": self.record.cut,
                "data": self.record.data,
                "repeat_share": self.record.repeat_share,
            },
            "fingerprint": self.fingerprint(),
        }
        events = torch.from_numpy(self.record.events.view(np.int64))
        write_folder(path, about, {**self.state_dict(), "record.events": events}, more)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
    ) -> LUM:
        """A model saved by :meth:`save_pretrained`, in evaluation mode.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is truncated or altered.
        """
        about, tensors = read_folder(path, "LUM")
        events = tensors.pop("record.events").numpy().view(np.uint64)
        vocabs = Vocabs.load(Path(path) / "vocabs.arrow")
        schema = Schema.from_json(about["schema"])
        titles = None
        if "titles.arrow" in about["files"]:
            with pa.OSFile(str(Path(path) / "titles.arrow"), "rb") as source:
                titles = pa.ipc.open_file(source).read_all()["title"].combine_chunks()
        columns = ItemEncoder.saved_columns(schema, tensors, "item_encoder.")
        rows = len(tensors["item_encoder.ids"])
        items = ItemTable(rows, schema.item_features, columns, titles, **about["items"])
        with torch.random.fork_rng(devices=[]):
            model = cls(LUMConfig.from_json(about["config"]), schema, vocabs, items)
        model.load_state_dict(tensors)
        model.record = TrainingRecord(events=events, **about["record"])
        return model.to(device).eval()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
