"""Arguments of a cache, checked before it takes any memory."""

from __future__ import annotations

import numpy as np

from pylum.cache.pages.pool import PAGE
from pylum.model import LUM, UserModel


def check_arguments(
    model: UserModel,
    max_tokens: int,
    page: int,
    overflow: str,
    host_tokens: int,
    growing: bool,
) -> None:
    """Arguments as for :class:`pylum.UserCache`.

    Args:
        growing: whether histories grow between calls.

    Raises:
        TypeError, ValueError: one of them is out of range.
    """
    if page != PAGE:
        raise ValueError(f"page must be {PAGE}, got {page}")
    for name, tokens in (("max_tokens", max_tokens), ("host_tokens", host_tokens)):
        if isinstance(tokens, bool) or not isinstance(tokens, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, got {tokens!r}")
    if max_tokens < PAGE:
        raise ValueError(f"max_tokens must be at least one page of {PAGE}, got {max_tokens}")
    if host_tokens and host_tokens < PAGE:
        raise ValueError(f"host_tokens must be 0 or at least one page of {PAGE}, got {host_tokens}")
    if overflow not in ("rebuild", "sliding"):
        raise ValueError(f"overflow must be 'rebuild' or 'sliding', got {overflow!r}")
    if overflow == "sliding" and not isinstance(model, LUM):
        raise ValueError(
            f"overflow must be 'rebuild' for an {type(model).__name__}: sliding turns rotary "
            "positions back, and it has none"
        )
    if growing and model.config.whole_history:
        raise ValueError(
            "model must be without min_full to be cached: which tokens see the whole history "
            "changes as it grows, and with them all kept ones behind the first layer"
        )
