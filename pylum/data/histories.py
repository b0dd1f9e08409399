"""What some users did so far, as a model is asked about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from pylum.data.columns import MICROSECONDS, as_array, as_times, missing_numbers
from pylum.data.events import ANY_ROW, OOV_ROW, Events
from pylum.data.reading import code_field
from pylum.data.schema import Field, Schema
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs
from pylum.modes import on_host
from pylum.ragged import lengths_to_offsets

OnUnknown = Literal["oov", "drop", "raise"]


@on_host
@dataclass(frozen=True, eq=False)
class Histories:
    """``B`` users' behaviours, oldest first, coded by vocabularies that keep every raw id.

    Args:
        users: ``B`` raw ids; one may stand more than once.
        events: of these users; an unknown user's history is empty.
        schema: the fields of the events.
        vocabs: of the rows in ``events``.
    """

    users: list[Any]
    events: Events
    schema: Schema
    vocabs: Vocabs

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        fields = ", ".join(f.name for f in self.schema.conditions)
        return (
            f"Histories({self.events.total:,} events, {len(self):,} users, conditions [{fields}])"
        )

    def __post_init__(self) -> None:
        if len(self.users) != len(self.events):
            raise ValueError(f"users must be {len(self.events)} ids, got {len(self.users)}")

    @classmethod
    def from_dicts(
        cls,
        histories: Mapping[Any, Sequence[Mapping[str, Any]]],
        schema: Schema,
        vocabs: Vocabs | None = None,
    ) -> Histories:
        """From ``{user: [{"item": ..., "time": ..., "<field>": ...}, ...]}``.

        A user's events are sorted by time, stable: a late event takes its place by its time, and
        events of one second stay in the order of the list. A missing or null condition is ANY, a
        missing outcome unknown.

        Args:
            histories: by raw user id; times in seconds or as datetimes, all alike.
            schema: the fields an event may have.
            vocabs: a model's, if at hand: ids of another type than its are refused here already.

        Raises:
            ValueError: an event lacks its item or time, or has a key that is no field.
            TypeError: a value does not fit its field.
        """
        if not isinstance(histories, Mapping):
            raise TypeError(f"histories must be a dict by user, got {type(histories)}")
        flat = [event for events in histories.values() for event in events]
        fields = [*schema.conditions, *schema.outcomes]
        known = {"item", "time", *(f.name for f in fields)}
        for user, events in histories.items():
            for position, event in enumerate(events):
                where = f"histories[{user!r}][{position}]"
                if not isinstance(event, Mapping):
                    raise TypeError(f"{where} must be a dict, got {event!r}")
                if event.get("item") is None or event.get("time") is None:
                    raise ValueError(f"{where} must have an item and a time, got {dict(event)}")
                if not event.keys() <= known:
                    extra = sorted(event.keys() - known)
                    raise ValueError(f"{where} may have {sorted(known)}, got also {extra}")
        lengths = torch.tensor([len(events) for events in histories.values()], dtype=torch.int64)
        offsets = lengths_to_offsets(lengths)
        own = Vocabs(
            Vocab(),
            {f.name: Vocab(any=True) for f in schema.conditions if f.kind == "category"},
            {f.name: Vocab() for f in schema.outcomes if f.kind == "category"},
        )
        micros = as_times(as_array([e["time"] for e in flat], "time"), "time")
        items = own.items.grow([e["item"] for e in flat], "item")
        if not items.all():
            raise ValueError("an item must be an id, got NaN or ANY")
        table = pa.table({f.name: as_array([e.get(f.name) for e in flat], f.name) for f in fields})
        conditions = {
            f.name: code_field(table, f, own.conditions.get(f.name), "condition")
            for f in schema.conditions
        }
        outcomes = {
            f.name: code_field(table, f, own.outcomes.get(f.name), "event") for f in schema.outcomes
        }
        order = np.lexsort((micros, np.repeat(np.arange(len(lengths)), lengths.numpy())))
        columns = Events(
            offsets,
            torch.from_numpy(items),
            torch.from_numpy(micros // MICROSECONDS),
            {name: torch.from_numpy(column) for name, column in conditions.items()},
            {name: torch.from_numpy(column) for name, column in outcomes.items()},
        )
        made = cls(list(histories), columns.take(torch.from_numpy(order), offsets), schema, own)
        if vocabs is not None:
            _check_types(own, vocabs)
        return made

    def unknown(self, vocabs: Vocabs) -> torch.Tensor:
        """``[B]`` int64 events of each user whose item ``vocabs`` does not know."""
        rows = _recode(self.events.items, self.vocabs.items, vocabs.items, "item")
        owner = torch.arange(len(self)).repeat_interleave(self.events.lengths)
        return torch.bincount(owner[rows == OOV_ROW], minlength=len(self))

    def encode(
        self, vocabs: Vocabs, schema: Schema | None = None, *, on_unknown: OnUnknown = "oov"
    ) -> Events:
        """The events in the rows of ``vocabs``, a model's.

        Args:
            schema: the model's fields, by default those of the histories. A condition field the
                histories lack is ANY, an outcome unknown; fields the model lacks are left out.
            on_unknown: what becomes of an event with an item that ``vocabs`` does not know: it
                keeps row 0 (``oov``), goes (``drop``), or is an error (``raise``). How many
                there are is :meth:`unknown`'s to tell.

        Raises:
            ValueError: ``on_unknown`` is not one of these, or is ``raise`` and there is one; a
                field's kind is not the model's; a hashed vocabulary would have to be recoded.
            TypeError: ids are of another type than the model's.
        """
        if on_unknown not in ("oov", "drop", "raise"):
            raise ValueError(f"on_unknown must be oov, drop or raise, got {on_unknown!r}")
        schema = schema or self.schema
        events = Events(
            self.events.offsets,
            _recode(self.events.items, self.vocabs.items, vocabs.items, "item"),
            self.events.times,
            self._fields(schema.conditions, True, vocabs),
            self._fields(schema.outcomes, False, vocabs),
            self.events.targets,
        )
        missing = events.items == OOV_ROW
        if on_unknown == "oov" or not bool(missing.any()):
            return events
        if on_unknown == "raise":
            first = int(missing.nonzero()[0])
            user = self.users[int(torch.searchsorted(events.offsets, first, right=True)) - 1]
            raw = self.vocabs.items.values([int(self.events.items[first])])[0]
            count = int(missing.sum())
            raise ValueError(
                f"every item must be known to the model, got {count} unknown, "
                f"the first {raw!r} of user {user!r}"
            )
        kept = lengths_to_offsets((~missing).to(torch.int64))[events.offsets]
        return events.take((~missing).nonzero().squeeze(1), kept)

    def _fields(
        self, fields: tuple[Field, ...], condition: bool, vocabs: Vocabs
    ) -> dict[str, torch.Tensor]:
        columns = self.events.conditions if condition else self.events.outcomes
        kinds = {f.name: f for f in (self.schema.conditions if condition else self.schema.outcomes)}
        mine, theirs = (
            (self.vocabs.conditions, vocabs.conditions)
            if condition
            else (self.vocabs.outcomes, vocabs.outcomes)
        )
        out = {}
        for f in fields:
            if f.name not in kinds:
                out[f.name] = _blank(f, self.events.total, ANY_ROW if condition else OOV_ROW)
                continue
            if kinds[f.name] != f:
                raise ValueError(f"field {f.name!r} must be {f}, got {kinds[f.name]}")
            column = columns[f.name]
            if f.kind == "category":
                if f.name not in theirs:
                    raise ValueError(f"vocabs must hold field {f.name!r}, got {sorted(theirs)}")
                column = _recode(column, mine[f.name], theirs[f.name], f.name)
            out[f.name] = column
        return out


def _check_types(mine: Vocabs, theirs: Vocabs) -> None:
    pairs = [("item", mine.items, theirs.items)]
    for group in ("conditions", "outcomes"):
        known = getattr(theirs, group)
        pairs += [(n, v, known[n]) for n, v in getattr(mine, group).items() if n in known]
    for name, own, model in pairs:
        model.rows(own.ids.slice(0, 1), name)


def _blank(f: Field, total: int, row: int) -> torch.Tensor:
    if f.kind == "category":
        return torch.full((total,), row, dtype=torch.int64)
    return missing_numbers(total, f.dim)


def _recode(rows: torch.Tensor, mine: Vocab, theirs: Vocab, name: str) -> torch.Tensor:
    """Rows of ``mine`` as rows of ``theirs``; the cost follows the smaller of rows and ids."""
    if theirs.starts_with(mine):
        return rows
    if mine.kind == "hashed":
        raise ValueError(f"{name} is coded by a hashed vocabulary, which keeps no ids to recode")
    if len(rows) >= len(mine):
        known, back = torch.arange(len(mine)), rows
    else:
        known, back = rows.unique(return_inverse=True)
    table = torch.from_numpy(theirs.rows(_ids_of(known, mine), name))
    # Reserved rows are the same everywhere; a null of a growing vocabulary is one of them.
    table = torch.where(known < mine.reserved, known, table)
    return table[back]


def _ids_of(rows: torch.Tensor, vocab: Vocab) -> pa.Array:
    entries = rows.numpy() - vocab.reserved
    return vocab.ids.take(pa.array(np.maximum(entries, 0), mask=entries < 0))
