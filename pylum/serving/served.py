"""What a ranker is answered with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.knowledge import Knowledge

MISSING, OFFLINE, LIVE = 0, 1, 2
SOURCES = ("missing", "offline", "live")


@dataclass(frozen=True, eq=False)
class Served:
    """What ``R`` users were answered with.

    Args:
        vectors: ``[R, N, D]`` float32; NaN where ``source`` is missing.
        source: ``[R]`` int8: 0 missing, 1 offline, 2 live.
        computed_at: ``[R]`` float64 seconds: as of when; NaN where missing.
        seen: ``[R]`` int64 events those answers saw; -1: not known.
        users: raw ids.
        time: seconds of the read.
        offline: conditions, items, temperature, cut and fingerprint are those of this knowledge.
    """

    vectors: torch.Tensor
    source: npt.NDArray[np.int8]
    computed_at: npt.NDArray[np.float64]
    seen: npt.NDArray[np.int64]
    users: list[Any]
    time: float
    offline: Knowledge

    @property
    def sources(self) -> list[str]:
        """``source`` in words."""
        return [SOURCES[each] for each in self.source]

    def knowledge(self) -> Knowledge:
        """The same as a knowledge of one moment a user, as a ranker reads it; NaN is missing."""
        return replace(
            self.offline,
            vectors=self.vectors,
            users=self.users,
            times=torch.full((len(self.users),), int(self.time)),
            seen=torch.from_numpy(self.seen),
        )
