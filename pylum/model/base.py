"""What the user models share: token encoders, item vectors, a fingerprint, files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pylum.data.events import Events
from pylum.data.items import ItemTable
from pylum.data.schema import Schema
from pylum.data.vocabs import Vocabs
from pylum.model.config import ModelConfig
from pylum.model.encoder import ConditionEncoder, ItemEncoder, OutcomeEncoder
from pylum.model.files import read_folder, write_folder
from pylum.model.record import TrainingRecord
from pylum.modes import on_host
from pylum.ops._library import TORCH_PATHS

TORCH_PATHS[__name__] = "projections of hidden states and items to answers"

Model = TypeVar("Model", bound="UserModel")


class UserModel(nn.Module):
    """Reads behaviours, answers with unit vectors, and has vectors of all items to find.

    Args:
        config: sizes.
        schema, vocabs, items: of the data; they belong to the model and are saved with it.
    """

    config_class: ClassVar[type[ModelConfig]]
    config: ModelConfig

    def __init__(
        self, config: ModelConfig, schema: Schema, vocabs: Vocabs, items: ItemTable
    ) -> None:
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
        self.condition_encoder = ConditionEncoder(
            config, self._choice_schema(), sizes["conditions"]
        )
        self.outcome_encoder = (
            OutcomeEncoder(config, schema, sizes["outcomes"]) if schema.outcomes else None
        )
        self.record = TrainingRecord()
        self._fingerprint: tuple[Any, str] | None = None

    def _choice_schema(self) -> Schema:
        """Whose conditions are of a choice."""
        return self.schema

    def standardise(self, events: Events) -> None:
        """Take the mean and the deviation of every number from ``events``."""
        self.condition_encoder.features.standardise(events.conditions)
        if self.outcome_encoder is not None:
            self.outcome_encoder.features.standardise(events.outcomes)

    def _make_answers(self) -> None:
        """The last layers, made after those of the subclass."""
        self.answer, self.item_answer = (
            _linear(self.config.width, self.config.dim) if self.config.project else nn.Identity()
            for _ in range(2)
        )

    def _apply(
        self: Model, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Any:
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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.item_encoder.ids.device

    def item_tokens(
        self, rows: torch.Tensor | None = None, unknown: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[U, width]`` input tokens of items; arguments as for :class:`ItemEncoder`."""
        return self.item_encoder(rows, unknown)

    def answers(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[*, D]`` unit vectors of hidden states ``[*, width]``."""
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
            "kind": type(self).__name__,
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
    @on_host
    def from_pretrained(
        cls: type[Model], path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
    ) -> Model:
        """A model saved by :meth:`save_pretrained`, in evaluation mode.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is truncated or altered.
        """
        about, tensors = read_folder(path, cls.__name__)
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
            model = cls(cls.config_class.from_json(about["config"]), schema, vocabs, items)
        model.load_state_dict(tensors)
        model.record = TrainingRecord(events=events, **about["record"])
        return model.to(device).eval()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
