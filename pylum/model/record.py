"""What a model was trained on, so that nobody scores it on that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class TrainingRecord:
    """The events a model was fitted on.

    Args:
        cut: seconds, time of the latest one; None for an untrained model.
        events: their hashes, sorted uint64, as :meth:`pylum.Interactions.event_hashes` gives them.
        data: fingerprint of the data set they come from.
        repeat_share: share of them whose item their user chose before.
    """

    cut: int | None = None
    events: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    data: str | None = None
    repeat_share: float = 0.0

    def seen(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the events hashed were trained on."""
        at = np.searchsorted(self.events, hashes)
        inside = at < len(self.events)
        found = np.zeros(len(hashes), bool)
        found[inside] = self.events[at[inside]] == hashes[inside]
        return found

    def joined(self, other: TrainingRecord) -> TrainingRecord:
        """Of a model trained on the events of both, in turn."""
        cuts = [cut for cut in (self.cut, other.cut) if cut is not None]
        return TrainingRecord(
            max(cuts, default=None),
            np.union1d(self.events, other.events),
            other.data,
            other.repeat_share,
        )
