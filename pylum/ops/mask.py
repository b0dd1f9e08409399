"""Who sees whom in a packed batch: one description for every attention op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pylum.transfer import moved

Integers = torch.Tensor | Sequence[int]


@dataclass(frozen=True)
class Mask:
    """Each sequence holds leading context tokens, history tokens, then trailing targets.

    * History is causal. Context tokens see each other only, and every row sees them.
    * A target sees the context, its visible history, the earlier targets of its own group and
      itself; never another group. So asking many conditions at once is asking each alone.
    * A target's position is its visible length plus its rank in its group.
    * ``window`` counts positions: a row at position p sees the keys (history, own group) at
      positions p - window + 1 to p. Context is never hidden by it.
    * ``min_full`` lifts the window for the last ``min_full`` history tokens of a sequence and for
      every target, as ``min_full_attn_seq_len`` of generative-recommenders does. Which history
      rows are the last ones changes as a history grows, so deeper layers of a cached prefix
      differ from a recomputed one.

    Values are checked by the op that reads the mask, against the lengths of its batch.

    Args:
        num_context: ``[batch]`` int64, leading context tokens of each sequence; default none.
        num_targets: ``[batch]`` int64, trailing targets of each sequence; default none.
        group_offsets: ``[groups + 1]`` int64, cumulative sizes of the groups of consecutive
            targets over the whole batch; no group spans two sequences. Default: every target
            alone.
        visible: ``[targets]`` int64, history tokens (context not counted) each target sees:
            constant in a group, non-decreasing within a sequence; default: the whole history.
        window: positions a row sees, itself included; default: all.
        min_full: history tokens at the end of a sequence that the window spares.

    Raises:
        ValueError: a shape or value is not as above, or an argument needs another one.
        TypeError: a tensor is not int64.
    """

    num_context: Integers | None = None
    num_targets: Integers | None = None
    group_offsets: Integers | None = None
    visible: Integers | None = None
    window: int | None = None
    min_full: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_context", "num_targets", "group_offsets", "visible"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, torch.Tensor):
                value = torch.tensor(list(value), dtype=torch.int64)
                object.__setattr__(self, name, value)
            if value.dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got {value.dtype}")
            if value.dim() != 1:
                raise ValueError(f"{name} must have one dimension, got {list(value.shape)}")
            if name in ("group_offsets", "visible") and self.num_targets is None:
                raise ValueError(f"{name} describes targets: num_targets must be given too")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.min_full is not None:
            if self.min_full < 1:
                raise ValueError(f"min_full must be at least 1, got {self.min_full}")
            if self.window is None:
                raise ValueError("min_full lifts the window: window must be given too")

    def to(self, device: torch.device | str) -> Mask:
        """The same mask with its tensors on ``device``."""
        names = ("num_context", "num_targets", "group_offsets", "visible")
        tensors = {name: getattr(self, name) for name in names}
        there = {name: moved(x, device) for name, x in tensors.items() if x is not None}
        return replace(self, **there)  # type: ignore[arg-type]


def flatten(
    mask: Mask | None,
) -> tuple[
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    int,
    int,
]:
    """A mask as the operands of an op; 0 stands for no window and no ``min_full``."""
    if mask is None:
        return None, None, None, None, 0, 0
    tensors = (mask.num_context, mask.num_targets, mask.group_offsets, mask.visible)
    return *tensors, mask.window or 0, mask.min_full or 0  # type: ignore[return-value]
