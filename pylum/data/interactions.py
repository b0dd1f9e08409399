"""A data set of behaviours: who chose what, when, under which condition."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data import identity, reading
from pylum.data.columns import listed
from pylum.data.events import Events
from pylum.data.histories import Histories
from pylum.data.items import ItemTable
from pylum.data.schema import Field, Schema
from pylum.data.tables import Columns, FieldSpec, as_table, field_specs
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs
from pylum.modes import on_host
from pylum.ragged import Ragged, lengths_to_offsets

MEMORY_LIMIT = 1 << 30


@on_host
@dataclass(frozen=True, eq=False)
class Interactions:
    """Behaviours sorted by (user, time, original row), coded, with what gives the codes meaning.

    Made by the ``from_*`` methods. Users stand in the order of their first row. A part made by
    :meth:`split` shares the vocabularies and items of the whole and holds, for each of its users,
    everything that may be seen; ``events.targets`` marks what is trained on or scored.

    Args:
        schema: the fields.
        vocabs: raw values to rows.
        items: features of all items.
        events: of all users.
        user_vocab: raw user ids; of the whole data set in a part too.
        user_rows: ``[B]`` int64 rows of ``user_vocab``, one per user of ``events``.
        protocol, part: set by :meth:`split`.
        whole: what a part is a part of.
        whole_rows: ``[N]`` int64, where each event stands in ``whole.events``.
        item_hashes: ``[N]`` uint64 of the raw item ids, where the vocabulary loses some.
        on_disk: whether the columns are mapped from files.
    """

    schema: Schema
    vocabs: Vocabs
    items: ItemTable
    events: Events
    user_vocab: Vocab
    user_rows: npt.NDArray[np.int64]
    protocol: str | None = None
    part: str | None = None
    whole: Interactions | None = None
    whole_rows: npt.NDArray[np.int64] | None = None
    item_hashes: npt.NDArray[np.uint64] | None = None
    on_disk: bool = False

    def __len__(self) -> int:
        """Number of users."""
        return len(self.events)

    def __repr__(self) -> str:
        name = f"{self.protocol}/{self.part}: " if self.protocol else ""
        fields = ", ".join(f.name for f in self.schema.conditions)
        return (
            f"Interactions({name}{self.events.total:,} events, {self.num_targets:,} targets, "
            f"{len(self):,} users, {len(self.vocabs.items) - self.vocabs.items.reserved:,} items, "
            f"conditions [{fields}])"
        )

    @classmethod
    def from_parquet(
        cls,
        path: Any,
        *,
        user: str,
        item: str,
        time: str,
        condition: FieldSpec = None,
        event: FieldSpec = None,
        target: str | None = None,
        items: Any = None,
        item_features: Sequence[str | Field] | None = None,
        item_title: str | None = None,
        vocabs: Vocabs | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> Interactions:
        """From Parquet, read by batches: memory holds vocabularies, users and ``memory_limit``.

        Args:
            path: a file, a directory (its files by name) or a list of these.
            user, item: columns of string or integer ids, without nulls.
            time: column of seconds (integers or floats) or timestamps, without nulls.
            condition: column or columns known *before* the choice, each a name or a
                :class:`~pylum.data.Field`; null is ANY. None: no condition at all.
            event: column or columns known only *after* it (rating, kind of behaviour, dwell).
            target: a column of booleans: which events are loss targets; None: all.
            items: a table of items: a :class:`~pylum.data.ItemTable`'s sources, or its path. Its
                id column is called like ``item``.
            item_features, item_title: ``features`` and ``title`` of ``ItemTable.from_table``.
            vocabs: code with copies of these; a fixed one gives unknown values row 0.
            memory_limit: bytes of coded columns kept in memory; beyond it they are mapped from
                unnamed files where temporary files go (``$TMPDIR``, which should not be memory).

        Strings, integers and booleans are read as categories, floats as numbers, lists of floats
        as vectors, unless a ``Field`` says otherwise.

        Raises:
            ValueError: a column is missing, read twice or holds nulls it must not; no rows.
            TypeError: a column's type does not fit its use.
        """
        first = reading.parquet_sample(path)
        columns = Columns.resolve(
            first, user=user, item=item, time=time, condition=condition, event=event, target=target
        )
        batches = reading.parquet_batches(path, columns.names)
        spec = (items, item_features, item_title)
        return cls._read(batches, columns, vocabs, spec, memory_limit)

    @classmethod
    def from_arrow(
        cls,
        table: Any,
        *,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        condition: FieldSpec = None,
        event: FieldSpec = None,
        target: str | None = None,
        items: Any = None,
        item_features: Sequence[str | Field] | None = None,
        item_title: str | None = None,
        vocabs: Vocabs | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> Interactions:
        """From an Arrow table, or an iterable of record batches, read as they come.

        Arguments and errors as :meth:`from_parquet`.
        """
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        batches: Iterable[pa.RecordBatch | pa.Table]
        if isinstance(table, pa.Table):
            first, batches = table, table.to_batches(max_chunksize=reading.BATCH_ROWS)
        else:
            stream = iter(table)
            first = next(stream, None)
            if first is None:
                raise ValueError("the table must hold at least one behaviour, got no batch")
            if not isinstance(first, (pa.RecordBatch, pa.Table)):
                raise TypeError(f"table must be an Arrow table or record batches, got {first!r}")
            batches = itertools.chain([first], stream)
        columns = Columns.resolve(
            first, user=user, item=item, time=time, condition=condition, event=event, target=target
        )
        return cls._read(batches, columns, vocabs, (items, item_features, item_title), memory_limit)

    @classmethod
    def from_pandas(
        cls,
        frame: Any,
        *,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        condition: FieldSpec = None,
        event: FieldSpec = None,
        target: str | None = None,
        **options: Any,
    ) -> Interactions:
        """From a pandas frame; arguments and errors as :meth:`from_arrow`."""
        fields = [*field_specs(condition, "condition"), *field_specs(event, "event")]
        wanted = [user, item, time, *(f.name if isinstance(f, Field) else f for f in fields)]
        if target is not None:
            wanted.append(target)
        table = as_table(frame, "frame", wanted)
        return cls.from_arrow(
            table,
            user=user,
            item=item,
            time=time,
            condition=condition,
            event=event,
            target=target,
            **options,
        )

    @classmethod
    def from_arrays(
        cls,
        user: Any,
        item: Any,
        time: Any,
        condition: Any = None,
        event: Any = None,
        target: Any = None,
        **options: Any,
    ) -> Interactions:
        """From equally long columns: lists, tensors, numpy, pandas or Arrow.

        Args:
            condition, event: a dict of columns by name or :class:`~pylum.data.Field`; or one
                column, then called ``"condition"`` or ``"event"``.

        Other arguments and errors as :meth:`from_arrow`.
        """
        columns: dict[str, Any] = {"user": user, "item": item, "time": time}
        specs: dict[str, list[str | Field]] = {"condition": [], "event": []}
        for role, given in (("condition", condition), ("event", event)):
            if given is None:
                continue
            given = given if isinstance(given, Mapping) else {role: given}
            for key, column in given.items():
                name = key.name if isinstance(key, Field) else key
                if name in columns:
                    raise ValueError(f"{role} must not name a column twice, got {name!r}")
                columns[name] = column
                specs[role].append(key)
        if target is not None:
            columns["target"] = target
            options["target"] = "target"
        table = as_table(columns, "columns")
        return cls.from_arrow(
            table, condition=specs["condition"] or None, event=specs["event"] or None, **options
        )

    @classmethod
    def _read(
        cls,
        batches: Iterable[pa.RecordBatch | pa.Table],
        columns: Columns,
        vocabs: Vocabs | None,
        item_spec: tuple[Any, Sequence[str | Field] | None, str | None],
        memory_limit: int,
    ) -> Interactions:
        vocabs = Vocabs() if vocabs is None else vocabs.copy()
        coded = reading.read(batches, columns, vocabs, memory_limit)
        source, features, title = item_spec
        if source is None:
            items = ItemTable(len(vocabs.items))
        else:
            items = ItemTable.from_table(
                source, vocabs, item=columns.item, features=features, title=title
            )
        return cls(
            Schema(columns.conditions, columns.outcomes, items.fields),
            vocabs,
            items,
            coded.events,
            coded.users,
            np.arange(1, len(coded.users)),
            item_hashes=coded.item_hashes,
            on_disk=coded.on_disk,
        )

    @cached_property
    def users(self) -> list[Any]:
        """``B`` raw user ids."""
        return self.user_vocab.values(self.user_rows)

    @property
    def num_targets(self) -> int:
        """Events that are trained on or scored."""
        targets = self.events.targets
        return self.events.total if targets is None else int(targets.sum())

    def histories(self, users: Any = None) -> Histories:
        """All events of ``users`` (raw ids), in the order asked; None: of all users.

        A user never seen has an empty history.

        Raises:
            TypeError: ``users`` is no list, or their ids are of another type than the data's.
        """
        if users is None:
            return Histories(self.users, self.events, self.schema, self.vocabs)
        users = listed(users)
        rows = torch.from_numpy(self._places[self.user_vocab.rows(users, "users")])
        known = rows >= 0
        events = self.events.users(rows[known])
        lengths = torch.zeros(len(users), dtype=torch.int64)
        lengths[known] = events.lengths
        events = replace(events, offsets=lengths_to_offsets(lengths))
        return Histories(users, events, self.schema, self.vocabs)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Where each row of the user vocabulary stands in the events; -1 where it does not."""
        places = np.full(len(self.user_vocab), -1, np.int64)
        places[self.user_rows] = np.arange(len(self))
        return places

    def split(self, protocol: str) -> tuple[Interactions, Interactions, Interactions]:
        """Train, valid and test by a named protocol (:mod:`pylum.data.protocols`)."""
        from pylum.data.protocols import split

        return split(self, protocol)

    def merged(self, other: Interactions) -> Interactions:
        """What this part and another of the same split see, with the targets of both."""
        from pylum.data.protocols import merged

        return merged(self, other)

    def beside(self, items: Ragged | Sequence[Sequence[Any]]) -> Interactions:
        """The same events, with what was shown beside each and not chosen.

        Args:
            items: raw ids, a list for each event in the order of ``events``. An id of no event is
                the unknown item.

        Raises:
            ValueError: there are too many or too few lists.
        """
        lists = items if isinstance(items, Ragged) else Ragged.from_lists(items)
        if len(lists) != self.events.total:
            raise ValueError(
                f"items must be a list for each of {self.events.total} events, got {len(lists)}"
            )
        lengths = lists.lengths
        owner = torch.repeat_interleave(lengths)
        place = torch.arange(len(owner)) - lists.offsets[owner]
        shown = torch.full((len(lists), int(lengths.max()) if len(lists) else 0), -1)
        shown[owner, place] = torch.from_numpy(self.vocabs.items.rows(lists.values, "items"))
        return replace(self, events=replace(self.events, shown=shown))

    @cached_property
    def repeat_share(self) -> float:
        """Share of events whose item their user chose before."""
        owner = torch.arange(len(self)).repeat_interleave(self.events.lengths)
        pairs = owner * len(self.vocabs.items) + self.events.items
        return 1 - len(pairs.unique()) / max(1, len(pairs))

    def event_hashes(self) -> npt.NDArray[np.uint64]:
        """Sorted hashes of the targets: of raw user, raw item, time and occurrence.

        They do not depend on the coding, so that a model can tell whether it was trained on an
        event of another data set.
        """
        hashes = identity.event_hashes(self)
        targets = self.events.targets
        return np.sort(hashes if targets is None else hashes[targets.numpy()])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of all events of the whole data set, whatever the coding and the part."""
        return identity.fingerprint(self if self.whole is None else self.whole)
