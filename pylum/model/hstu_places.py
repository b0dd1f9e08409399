"""Where and when HSTU's tokens stand: research's bias in each layer, production's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pylum import ops
from pylum.model.features import normal
from pylum.model.hstu_config import HSTUConfig
from pylum.transfer import moved

# Production's time embedding has a row for each minute's square: sqrt(gap / 60).
SQUARE_SECONDS = 60


@dataclass(frozen=True)
class Clock:
    """When each token happened, and when it is asked.

    Args:
        timestamps: ``[keys]`` int64 seconds of each token, per sequence history then targets;
            cached tokens count.
        query_times: ``[rows]`` int64 seconds at which each row is asked: a history token when the
            one after it happened, a history's last one when its question is asked, or its own.
    """

    timestamps: torch.Tensor
    query_times: torch.Tensor

    def to(self, device: torch.device) -> Clock:
        """The same on ``device``."""
        return Clock(moved(self.timestamps, device), moved(self.query_times, device))


class Places(nn.Module):
    """Research: tables of relative bias of position and time, which the heads of a layer share and
    the layers do not. Production: embeddings of position and time, added to the input."""

    thresholds: torch.Tensor

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        # A target after a full history stands one behind its last token.
        positions, times = config.max_tokens + 1, config.time_buckets + 1
        width, scale = config.width, config.initial_scale
        if config.variant == "research":
            each = config.layers
            shapes: list[tuple[int, ...]] = [(2 * positions - 1,), (times,)]
            thresholds = ops.log_thresholds(config.time_buckets)
        else:
            each, shapes = 1, [(positions, width), (times, width)]
            thresholds = SQUARE_SECONDS * torch.arange(1, times) ** 2
        self.position_tables, self.time_tables = (
            nn.ParameterList(normal(*shape, scale=scale) for _ in range(count))
            for shape, count in zip(shapes, (each, each * config.time), strict=True)
        )
        self.register_buffer("thresholds", thresholds, persistent=False)

    @property
    def reads_all_clocks(self) -> bool:
        """Whether a row reads the clocks of its keys, not its own alone."""
        return self.config.variant == "research" and self.config.time

    def biases(self, clock: Clock) -> list[ops.RelativeBias | None]:
        """Of each layer."""
        config = self.config
        if config.variant == "production":
            return [None] * config.layers
        positions = [table.float() for table in self.position_tables]
        if not config.time:
            return [ops.RelativeBias(table) for table in positions]
        when = (self.thresholds, clock.timestamps, clock.query_times)
        return [
            ops.RelativeBias(table, times.float(), *when)
            for table, times in zip(positions, self.time_tables, strict=True)
        ]

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, asked: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """``[T, width]`` tokens with production's embeddings.

        Args:
            x: ``[T, width]``.
            positions: ``[T]`` int64 in ``[0, config.max_tokens]``.
            asked, own: ``[T]`` int64 seconds at which each is asked, and happened.
        """
        if self.config.variant == "research":
            return x
        x = x + nn.functional.embedding(positions, self.position_tables[0])
        if self.config.time:
            rows = torch.bucketize((asked - own).abs(), self.thresholds, right=True)
            x = x + nn.functional.embedding(rows, self.time_tables[0])
        return x
