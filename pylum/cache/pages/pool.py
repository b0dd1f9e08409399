"""Pages of keys and values: one slab per layer, shared by all users."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pylum import ops
from pylum.model import UserModel
from pylum.transfer import moved

PAGE = 64  # tokens, as the kernels have it


class Pages:
    """Numbers of pages that are free or belong to a user.

    Args:
        pages: how many there are; those from ``_used`` on were never taken.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._used = 0
        # The page freed last is taken first: it is the one most likely in a processor cache.
        self._freed: list[int] = []

    @property
    def free(self) -> int:
        """Number of free pages."""
        return len(self._freed) + self.pages - self._used

    def take(self, count: int) -> list[int]:
        """Pages that are the caller's until given back; there must be enough."""
        split = max(0, len(self._freed) - count)
        taken, self._freed = self._freed[split:], self._freed[:split]
        first = self._used
        self._used += count - len(taken)
        return [*taken, *range(first, self._used)]

    def give(self, pages: Sequence[int]) -> None:
        self._freed.extend(pages)


class Pool(Pages):
    """Pages on the device of a model; the slabs never move.

    Args:
        model: gives layers, heads and dtype.
        pages: of each layer.
    """

    def __init__(self, model: UserModel, pages: int) -> None:
        super().__init__(pages)
        config = model.config
        self.config = config
        self.dtype, self.device = model.item_encoder.ids.dtype, model.device
        heads, key, value = config.cache_shape
        k, v = (
            torch.empty(0, heads, width, dtype=self.dtype, device=self.device)
            for width in (key, value)
        )
        self.layers = [ops.pages_like(k, v, pages) for _ in range(config.layers)]

    def prefixes(
        self, tables: Sequence[Sequence[int]], lengths: torch.Tensor
    ) -> list[ops.PagedPrefix]:
        """Each layer's view of a batch.

        Args:
            tables: pages of each user.
            lengths: ``[B]`` int64 tokens of each, on the host.
        """
        width = max((len(pages) for pages in tables), default=0)
        table = torch.zeros(len(tables), width, dtype=torch.int64)
        for row, pages in enumerate(tables):
            table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int64)
        table, lengths = moved(table, self.device), moved(lengths, self.device)
        return [ops.PagedPrefix(k, v, table, lengths) for k, v in self.layers]

    def tokens(self, behaviours: int) -> int:
        """Tokens of behaviours that are kept."""
        return self.config.tokens_per_behaviour * behaviours

    def kept(self, behaviours: int) -> int:
        """Tokens of behaviours and of the context before them; nothing is kept of none."""
        return self.tokens(behaviours) + self.config.context_tokens if behaviours else 0

    def pages_for(self, behaviours: int) -> int:
        """Pages that hold the context, the tokens of behaviours, and what a question writes behind
        them."""
        more = self.config.context_tokens + self.config.passing_tokens
        return -(-(self.tokens(behaviours) + more) // PAGE)

    def pages_of(self, behaviours: int) -> int:
        """Pages that hold what is kept of behaviours."""
        return -(-self.kept(behaviours) // PAGE)
