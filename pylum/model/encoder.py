"""The token encoder: typed features of items and conditions to tokens of one width.

Section 3.1 of arXiv 2502.08309: ``e_t = proj_t(concat(f_1, f_2, ...))`` for each token type ``t``,
with a linear projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pylum.data.events import ANY_ROW, OOV_ROW
from pylum.data.schema import Schema
from pylum.model.config import CALENDAR, ModelConfig
from pylum.model.features import Column, Features, normal
from pylum.ops._library import TORCH_PATHS
from pylum.ragged import Ragged
from pylum.transfer import moved

TORCH_PATHS[__name__] = "projections of features to the width of tokens"

# A gap of s seconds is in bucket floor(ln(max(1, s)) / 0.301), as HSTU's time bias has it.
GAP_BUCKETS = 64
GAP_RATIO = 0.301


class ItemEncoder(nn.Module):
    """An item's id and features to one token.

    An item that no training event has chosen is encoded with the unknown item's id and its own
    features: its id was never trained, while "unknown id and features" was, by id dropout.

    Args:
        features: ``Schema.item_features``, with columns that have a row for each item.
        rows: items of the vocabulary, row 0 being the unknown item.
    """

    chosen: torch.Tensor

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        sizes: Mapping[str, int],
        rows: int,
        columns: Mapping[str, Column],
    ) -> None:
        super().__init__()
        width, scale = config.width, config.initial_scale
        self.ids = normal(rows, width, scale=scale)
        self.register_buffer("chosen", torch.ones(rows, dtype=torch.bool))
        self.features = Features(schema.item_features, sizes, config.feature_dim, OOV_ROW, scale)
        projected = config.project or self.features.width > 0
        self.proj = _linear(width + self.features.width, width) if projected else nn.Identity()
        self._ragged: list[str] = []
        self._lengths: dict[str, tuple[Any, torch.Tensor]] = {}
        for f in schema.item_features:
            column = columns[f.name]
            if isinstance(column, Ragged):
                self._ragged.append(f.name)
                self.register_buffer(f"values_{f.name}", column.values)
                self.register_buffer(f"offsets_{f.name}", column.offsets)
            else:
                self.register_buffer(f"column_{f.name}", column)
        if rows and schema.item_features and not self.ids.is_meta:
            self.features.standardise(self.columns(None))

    @staticmethod
    def saved_columns(
        schema: Schema, state: Mapping[str, torch.Tensor], prefix: str
    ) -> dict[str, Column]:
        """The feature columns of a saved encoder, whose tensors begin with ``prefix``."""
        return {
            f.name: Ragged(state[f"{prefix}values_{f.name}"], state[f"{prefix}offsets_{f.name}"])
            if f.kind == "categories"
            else state[f"{prefix}column_{f.name}"]
            for f in schema.item_features
        }

    def columns(self, rows: torch.Tensor | None) -> dict[str, Column]:
        """The features of the items at ``rows``; None: of all."""
        columns: dict[str, Column] = {}
        there = None if rows is None else moved(rows, self.ids.device)
        for f in self.features.fields:
            if f.name in self._ragged:
                bag = Ragged(getattr(self, f"values_{f.name}"), getattr(self, f"offsets_{f.name}"))
                if rows is not None and there is not None:
                    bag = _take(bag, there, self._elements(f.name, bag.offsets, rows))
                columns[f.name] = bag
            else:
                column = getattr(self, f"column_{f.name}")
                columns[f.name] = column if there is None else column[there]
        return columns

    def _elements(self, name: str, offsets: torch.Tensor, rows: torch.Tensor) -> int | None:
        """How many the bags at ``rows`` hold; None: that is known on their device only."""
        # Tensors made in inference mode do not count their changes.
        if rows.device.type != "cpu" or offsets.is_inference():
            return None
        key = (offsets.data_ptr(), offsets._version)
        if name not in self._lengths or self._lengths[name][0] != key:
            self._lengths[name] = key, moved(offsets, "cpu").diff()
        return int(self._lengths[name][1][rows].sum())

    def forward(
        self, rows: torch.Tensor | None = None, unknown: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[U, width]`` tokens.

        Args:
            rows: ``[U]`` int64, best on the host: of rows on a GPU it must be asked how many
                categories they have in all. None: every item.
            unknown: ``[U]`` bool beside the weights, more items whose id is replaced by the
                unknown item's.
        """
        there = None if rows is None else moved(rows, self.ids.device)
        ids = self.ids if there is None else nn.functional.embedding(there, self.ids)
        known = self.chosen if there is None else self.chosen[there]
        if unknown is not None:
            known = known & ~unknown
        ids = torch.where(known[:, None], ids, self.ids[OOV_ROW])
        return self.encode(ids, self.columns(rows))

    def encode(self, ids: torch.Tensor, columns: Mapping[str, Column]) -> torch.Tensor:
        """Tokens of items given by id embeddings ``[U, width]`` and feature columns."""
        return self.proj(torch.cat([ids, *self.features(columns, len(ids))], 1))


class OutcomeEncoder(nn.Module):
    """What is known only after the choice, to be added to the history's item tokens.

    ``proj(concat(item, outcomes))`` with its two halves apart: an item has a token of its own
    wherever it is a target or a candidate, and no outcome in it.
    """

    def __init__(self, config: ModelConfig, schema: Schema, sizes: Mapping[str, int]) -> None:
        super().__init__()
        scale = config.initial_scale
        self.features = Features(schema.outcomes, sizes, config.feature_dim, OOV_ROW, scale)
        self.proj = _linear(self.features.width, config.width)

    def forward(self, outcomes: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        """``[count, width]`` from columns by field; a missing field is unknown."""
        return self.proj(torch.cat(self.features(outcomes, count), 1))


class ConditionEncoder(nn.Module):
    """Condition fields, the query time and the clock to one token."""

    thresholds: torch.Tensor

    def __init__(self, config: ModelConfig, schema: Schema, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.config, scale = config, config.initial_scale
        self.features = Features(schema.conditions, sizes, config.feature_dim, ANY_ROW, scale)
        clock = {name: CALENDAR[name] + 1 for name in config.calendar}
        if config.query_time:
            clock["gap"] = GAP_BUCKETS + 1
        # Row 0 of each: unknown.
        self.clock = nn.ParameterDict(
            {
                name: normal(rows, config.feature_dim, scale=scale)
                for name, rows in sorted(clock.items())
            }
        )
        width = self.features.width + len(clock) * config.feature_dim
        self.proj = _linear(width, config.width) if width else None
        self.bias = normal(config.width, scale=scale)
        # Integer thresholds: every device and dtype finds the same bucket.
        edges = torch.exp(torch.arange(1, GAP_BUCKETS, dtype=torch.float64) * GAP_RATIO)
        self.register_buffer("thresholds", edges.ceil().long(), persistent=False)

    def forward(
        self,
        conditions: Mapping[str, torch.Tensor],
        count: int,
        gaps: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[count, width]`` tokens.

        Args:
            conditions: columns by field; a missing field is ANY.
            gaps: ``[count]`` int64 seconds since the event before; negative or None: unknown.
            times: ``[count]`` int64 seconds of the clock (UTC); negative or None: unknown.
        """
        parts = self.features(conditions, count)
        for name, table in self.clock.items():
            column = self._clock_rows(name, gaps, times)
            parts.append(
                table[0].expand(count, -1)
                if column is None
                else nn.functional.embedding(column, table)
            )
        if self.proj is None:
            return self.bias.expand(count, -1)
        return self.proj(torch.cat(parts, 1)) + self.bias

    def _clock_rows(
        self, name: str, gaps: torch.Tensor | None, times: torch.Tensor | None
    ) -> torch.Tensor | None:
        if name == "gap":
            if gaps is None:
                return None
            rows = torch.bucketize(gaps, self.thresholds, right=True) + 1
            return rows.masked_fill(gaps < 0, 0)
        if times is None:
            return None
        # The first of January 1970 was a Thursday, weekday 3.
        rows = times // 3600 % 24 if name == "hour" else (times // 86400 + 3) % 7
        return (rows + 1).masked_fill(times < 0, 0)


def _take(bag: Ragged, rows: torch.Tensor, total: int | None) -> Ragged:
    """The bags at ``rows``, which hold ``total`` elements; None: they are asked."""
    lengths = bag.lengths[rows]
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    shift = (bag.offsets[rows] - offsets[:-1]).repeat_interleave(lengths, output_size=total)
    index = torch.arange(shift.numel(), device=rows.device) + shift
    return Ragged(bag.values[index], offsets)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
