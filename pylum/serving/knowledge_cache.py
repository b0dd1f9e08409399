"""The knowledge cache between step 2 and a ranker (section 3.4 of arXiv 2502.08309).

Step 2 runs beside retrieval and puts its answers here; the ranker reads them moments later. Where
none came in time, it reads those of a knowledge computed offline.
"""

from __future__ import annotations

import logging
import math
import os
import time as clocks
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.columns import listed
from pylum.generation import Generation, generate
from pylum.knowledge import Knowledge
from pylum.knowledge.knowledge import condition_to_json
from pylum.model import LUM
from pylum.modes import on_host
from pylum.serving.entry import key_of, pack, prefix_of, unpack
from pylum.serving.read_log import ReadLog
from pylum.serving.served import LIVE, OFFLINE, SOURCES, Served
from pylum.serving.stores import SqliteStore, Store

LOGGER = logging.getLogger(__name__)


@on_host
class KnowledgeCache:
    """Live answers of one model over those computed offline.

    A user's answers are served whole: the newer of the live ones, where they are at most
    ``max_age`` seconds old, and the offline ones. Both come from the model whose fingerprint
    ``offline`` carries, asked its conditions; answers of other models lie beside them in the store
    and are never mixed in, so a new model can be filled in while the old one serves.

    Args:
        offline: the fallback, held in memory; its latest moment of each user counts.
        store: of live answers; default: this process's memory. :class:`SqliteStore` with a path
            for the processes of one machine, :class:`RedisStore` for many machines.
        max_age: seconds after which a live answer is stale; None: never.
        log: folder of a Parquet data set of everything that was read, with its vectors, for
            :func:`read_log`; None: no log.
        log_rows: users a file of the log.
        clock: seconds; for tests.

    Raises:
        ValueError: ``max_age`` or ``log_rows`` is not positive, or ``offline`` has no condition.
        TypeError: ``offline`` is no knowledge.
    """

    def __init__(
        self,
        offline: Knowledge,
        *,
        store: Store | None = None,
        max_age: float | None = None,
        log: str | os.PathLike[str] | None = None,
        log_rows: int = 50_000,
        clock: Callable[[], float] = clocks.time,
    ) -> None:
        if not isinstance(offline, Knowledge):
            raise TypeError(f"offline must be a pylum.Knowledge, got {type(offline).__name__}")
        if max_age is not None and not max_age > 0:
            raise ValueError(f"max_age must be positive or None, got {max_age}")
        if not offline.conditions:
            raise ValueError("offline must be asked at least one condition, got none")
        self.offline, self.max_age, self._clock = offline, max_age, clock
        self.store = SqliteStore(clock=clock) if store is None else store
        self._asked = [condition_to_json(each) for each in offline.conditions]
        self._shape = (len(offline.conditions), offline.item_vectors.shape[1])
        self._prefix = prefix_of(offline.fingerprint, self._asked)
        order = torch.argsort(offline.times, stable=True).tolist()
        self._offline_row = {offline.users[row]: row for row in order}
        self._log = None if log is None else ReadLog(log, offline, log_rows)
        self.stats: Counter[str] = Counter()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            "a KnowledgeCache cannot be copied or pickled: each process makes its own, and a "
            "SqliteStore of one path or a RedisStore shares the live answers"
        )

    def put(
        self,
        answers: Generation | Knowledge,
        *,
        fingerprint: str | None = None,
        time: float | None = None,
    ) -> None:
        """Keep live answers.

        Args:
            answers: of :func:`pylum.generate`, each user asked the conditions of ``offline`` in
                their order; or of :func:`pylum.query`, whose latest moment of each user counts.
            fingerprint: of the model that gave a generation.
            time: seconds as of which a generation holds; default: now.

        Raises:
            ValueError: other conditions or another width, or a generation without a fingerprint.
            Exception: what the store raises where it can not be written.
        """
        count, dim = self._shape
        if isinstance(answers, Knowledge):
            asked = [condition_to_json(each) for each in answers.conditions]
            self._check_asked(asked, answers.vectors.shape[-1])
            fingerprint = answers.fingerprint
            rows = {answers.users[row]: row for row in torch.argsort(answers.times, stable=True)}
            entries = [
                (user, answers.vectors[row], float(answers.times[row]), int(answers.seen[row]))
                for user, row in rows.items()
            ]
        else:
            if fingerprint is None:
                raise ValueError(
                    "fingerprint must be that of the model which gave the generation, got None: "
                    "pass fingerprint=model.fingerprint()"
                )
            asked = [condition_to_json(each) for each in answers.conditions]
            for b, (start, stop) in enumerate(
                zip(answers.offsets[:-1], answers.offsets[1:], strict=True)
            ):
                self._check_asked(asked[start:stop], dim, f" for user {answers.users[b]!r}")
            if answers.users:
                self._check_asked(self._asked, answers.embeddings.shape[1])
            now = self._clock() if time is None else float(time)
            vectors = answers.embeddings.unflatten(0, (len(answers.users), count))
            entries = [(u, v, now, -1) for u, v in zip(answers.users, vectors, strict=True)]
        prefix = prefix_of(fingerprint, self._asked)
        pairs = [
            (key_of(prefix, user), pack(block.float().cpu().numpy(), at, seen))
            for user, block, at, seen in entries
        ]
        self.store.put(pairs, self.max_age)

    def refresh(
        self, model: LUM, histories: Any, conditions: Any = None, *, time: float | None = None
    ) -> None:
        """Ask ``model`` the conditions of ``offline`` and keep its answers.

        Args:
            histories: as for :func:`pylum.generate`.
            conditions: those of ``offline`` in the form that :func:`pylum.generate` takes; needed
                for a model with several fields of which ``offline`` was asked one.
            time: seconds at which is asked; default: now.
        """
        now = self._clock() if time is None else float(time)
        asked: Any = self.offline.conditions if conditions is None else conditions
        if conditions is None and isinstance(asked[0], dict):
            asked = {name: [each[name] for each in asked] for name in asked[0]}
        answers = generate(model, histories, asked, k=0, exclude="none", query_time=int(now))
        self.put(answers, fingerprint=model.fingerprint(), time=now)

    def read(self, users: Sequence[Any], *, time: float | None = None) -> Served:
        """The answers of each user, logged.

        A store that fails or times out counts as empty: the offline answers are served, a warning
        is logged, and ``stats["store_errors"]`` counts it; so does ``stats["log_errors"]`` where
        the log cannot be written, which is tried again with later reads. ``stats`` also counts
        ``live``, ``offline`` and ``missing`` users, and ``stale`` and ``damaged`` entries of the
        store.

        Args:
            users: raw ids; one may stand twice.
            time: seconds of the read; default: now.

        Raises:
            TypeError: ``users`` is no list, or an id is neither a string nor an integer.
            ValueError: ``time`` is not finite.
        """
        users = listed(users)
        now = self._clock() if time is None else float(time)
        if not math.isfinite(now):
            raise ValueError(f"time must be finite, got {now}")
        count, dim = self._shape
        vectors = np.full((len(users), count, dim), np.nan, np.float32)
        source = np.zeros(len(users), np.int8)
        at = np.full(len(users), np.nan)
        seen = np.full(len(users), -1, np.int64)
        for i, (user, value) in enumerate(zip(users, self._fetch(users), strict=True)):
            row = self._offline_row.get(user)
            if row is not None:
                at[i], source[i] = float(self.offline.times[row]), OFFLINE
            live = self._live(value, now)
            if live is not None and not live[1] < at[i]:
                (vectors[i], at[i], seen[i]), source[i] = live, LIVE
            elif row is not None:
                vectors[i], seen[i] = self.offline.vectors[row].float(), int(self.offline.seen[row])
        for name, n in zip(SOURCES, np.bincount(source, minlength=len(SOURCES)), strict=True):
            self.stats[name] += int(n)
        served = Served(torch.from_numpy(vectors), source, at, seen, users, now, self.offline)
        if self._log is not None:
            try:
                self._log.append(users, now, [SOURCES[s] for s in source], at, seen, vectors)
            except OSError as error:
                self.stats["log_errors"] += 1
                LOGGER.warning("the log of reads failed, and is tried again: %r", error)
        return served

    def invalidate(self, users: Sequence[Any]) -> None:
        """Drop the live answers of users."""
        self.store.delete([key_of(self._prefix, user) for user in listed(users)])

    def flush(self) -> None:
        """Write what the log still holds in memory.

        Raises:
            OSError: it cannot be written.
        """
        if self._log is not None:
            self._log.flush()

    def close(self) -> None:
        """Flush, and close the store."""
        self.flush()
        self.store.close()

    def __enter__(self) -> KnowledgeCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_asked(self, asked: list[Any], dim: int, whose: str = "") -> None:
        if asked != self._asked:
            raise ValueError(f"conditions{whose} must be {self._asked} as of offline, got {asked}")
        if dim != self._shape[1]:
            raise ValueError(f"answers must be {self._shape[1]} wide as of offline, got {dim}")

    def _fetch(self, users: list[Any]) -> list[bytes | None]:
        keys = [key_of(self._prefix, user) for user in users]
        try:
            return self.store.get(keys)
        except Exception as error:  # whatever the store is: a ranker must get its answer
            self.stats["store_errors"] += 1
            LOGGER.warning("the store of live answers failed, serving offline ones: %r", error)
            return [None] * len(users)

    def _live(
        self, value: bytes | None, now: float
    ) -> tuple[npt.NDArray[np.float32], float, int] | None:
        if value is None:
            return None
        entry = unpack(value, *self._shape)
        if entry is None:
            self.stats["damaged"] += 1
            return None
        if self.max_age is not None and now - entry[1] > self.max_age:
            self.stats["stale"] += 1
            return None
        return entry
