"""The cache of users' histories: :class:`UserCache`.

``users`` knows who is held and what proves it, ``pages`` where keys and values lie, ``warm`` how a
call that computes nothing new is one launch.
"""

from pylum.cache.user_cache import UserCache

__all__ = ["UserCache"]
