"""Where live answers are kept: keys and values of bytes that expire."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

BATCH = 500  # keys a statement; SQLite allows 999 variables in its oldest builds


class Store(Protocol):
    """What :class:`~pylum.serving.KnowledgeCache` needs of a store."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key; None where there is none, or it has expired."""
        ...

    def put(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None) -> None:
        """Set values, all or none, for ``ttl`` seconds; None: for good."""
        ...

    def delete(self, keys: Sequence[bytes]) -> None:
        """Forget keys; those that are not there are ignored."""
        ...

    def close(self) -> None:
        """Let go of files and connections; nothing is read or written after it."""
        ...


class SqliteStore:
    """One machine: a file that its processes share, or this process's memory.

    Args:
        path: of the file; ``":memory:"`` for this process alone.
        clock: seconds; for tests.
    """

    def __init__(
        self, path: str | os.PathLike[str] = ":memory:", clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        # Readers do not wait for the writer, and a crash loses no more than the last answers.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB, expires REAL) "
            "WITHOUT ROWID"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_expiry ON answers (expires)")

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        now = self._clock()
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            marks = ",".join("?" * len(some))
            with self._lock:
                rows = self._db.execute(
                    f"SELECT key, value FROM answers WHERE key IN ({marks}) "
                    "AND (expires IS NULL OR expires > ?)",
                    [*some, now],
                ).fetchall()
            found.update(rows)
        return [found.get(key) for key in keys]

    def put(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None) -> None:
        now = self._clock()
        expires = None if ttl is None else now + ttl
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                    [(key, value, expires) for key, value in pairs],
                )
                self._db.execute("DELETE FROM answers WHERE expires <= ?", [now])
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    def delete(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._db.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])

    def close(self) -> None:
        self._db.close()


class RedisStore:
    """Many machines: a Redis server; needs ``pip install pylum[redis]``.

    Args:
        url: such as ``redis://host:6379/0``.
        prefix: of every key, so that a server can be shared.
        timeout: seconds that a ranker waits for an answer before it does without.

    Raises:
        ImportError: the ``redis`` package is missing.
    """

    def __init__(self, url: str, *, prefix: str = "pylum:", timeout: float = 0.05) -> None:
        try:
            import redis
        except ImportError as error:
            raise ImportError(
                "RedisStore needs the redis package: pip install pylum[redis]"
            ) from error
        self._prefix = prefix.encode()
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout
        )

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(self._client.mget([self._prefix + key for key in keys])) if keys else []

    def put(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None) -> None:
        expires = None if ttl is None else max(1, round(1000 * ttl))
        pipeline = self._client.pipeline(transaction=True)
        for key, value in pairs:
            pipeline.set(self._prefix + key, value, px=expires)
        pipeline.execute()

    def delete(self, keys: Sequence[bytes]) -> None:
        if keys:
            self._client.delete(*[self._prefix + key for key in keys])

    def close(self) -> None:
        self._client.close()
