"""The cache of users' histories: :class:`UserCache`."""

from pylum.cache.user_cache import UserCache

__all__ = ["UserCache"]
