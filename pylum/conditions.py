"""What is asked of each user: condition values, coded for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pylum.data.columns import ANY, as_numbers, as_vectors
from pylum.data.events import ANY_ROW, OOV_ROW
from pylum.data.schema import Field
from pylum.data.vocab import Vocab
from pylum.ragged import Ragged, lengths_to_offsets


@dataclass(frozen=True)
class Conditions:
    """``Q`` questions to ``B`` users, one user's after the other's.

    Args:
        columns: every condition field of the schema: ``[Q]`` int64 rows, ``[Q]`` float32, or
            ``[Q, dim]`` float32.
        offsets: ``[B + 1]`` int64.
        raw: the values as they came, by field, each a list of ``Q``; fields that were not given
            are absent. Where no field was given, ``{"condition": [ANY, ...]}``.
        unknown: values that no vocabulary holds; they are coded as out of vocabulary.
    """

    columns: dict[str, torch.Tensor]
    offsets: torch.Tensor
    raw: dict[str, list[Any]]
    unknown: int

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def users(self, start: int, stop: int) -> Conditions:
        """The questions to the users in ``[start, stop)``; ``unknown`` stays that of all."""
        a, b = int(self.offsets[start]), int(self.offsets[stop])
        columns = {name: column[a:b] for name, column in self.columns.items()}
        raw = {name: values[a:b] for name, values in self.raw.items()}
        offsets = self.offsets[start : stop + 1] - a
        return Conditions(columns, offsets, raw, self.unknown)

    def values(self) -> list[Any]:
        """What came for each question: the value, or a dict of fields where several were given."""
        if len(self.raw) == 1:
            return next(iter(self.raw.values()))
        names = list(self.raw)
        return [dict(zip(names, row, strict=True)) for row in zip(*self.raw.values(), strict=True)]


def normalise(
    conditions: Any, users: int, fields: Sequence[Field], vocabs: Mapping[str, Vocab]
) -> Conditions:
    """Code ``conditions`` for ``users`` users.

    Args:
        conditions: one of

            * None: ``[ANY]`` for everyone;
            * a flat list: these values, for everyone (a model with one field; a list of dicts
              names the fields);
            * a list of ``users`` lists, or a :class:`Ragged`: each user's own values;
            * a dict or DataFrame of equal columns, by field: rows are zipped, a scalar is
              broadcast, a field that is missing is ANY; columns that are Ragged, all of the same
              lengths, are each user's own.

            A value may be :data:`ANY`; None and NaN mean the same. Zero values are allowed.
        users: how many users are asked.
        fields: the condition fields of the model's schema.
        vocabs: of the fields that are categories.

    Raises:
        ValueError: lengths or names do not fit.
        TypeError: a value is not of its field's kind.
    """
    columns, lengths = _columns(conditions, users, fields)
    known = {field.name: field for field in fields}
    strangers = [name for name in columns if name not in known]
    if not fields and strangers == ["condition"] and all(map(_missing, columns["condition"])):
        strangers = []
    if strangers:
        raise ValueError(
            f"conditions must name fields of the model ({', '.join(known) or 'it has none'}), "
            f"got {', '.join(map(repr, strangers))}"
        )
    count = len(next(iter(columns.values())))
    coded, unknown = {}, 0
    for field in fields:
        values = columns.get(field.name)
        coded[field.name], misses = _code(field, values, count, vocabs)
        unknown += misses
    if lengths is None:
        offsets = torch.arange(users + 1) * count
        coded = {
            name: column.repeat(users, *[1] * (column.dim() - 1)) for name, column in coded.items()
        }
        columns = {name: values * users for name, values in columns.items()}
        unknown *= users
    else:
        offsets = lengths_to_offsets(lengths)
    return Conditions(coded, offsets, columns, unknown)


def _columns(
    conditions: Any, users: int, fields: Sequence[Field]
) -> tuple[dict[str, list[Any]], torch.Tensor | None]:
    """Raw columns by field, and each user's number of rows; None: the rows are for everyone."""
    only = fields[0].name if fields else "condition"
    if conditions is None:
        return {only: [ANY]}, None
    if conditions is ANY or isinstance(conditions, (str, bytes)):
        raise TypeError(f"conditions must be a list of values, got the single value {conditions!r}")
    if hasattr(conditions, "to_dict") and hasattr(conditions, "columns"):
        conditions = {str(name): conditions[name].tolist() for name in conditions.columns}
    if isinstance(conditions, dict):
        return _zipped(conditions, users)
    if isinstance(conditions, Ragged):
        rows, lengths = _flat(conditions, users)
        return _rows(rows, fields, only), lengths
    vector = len(fields) == 1 and fields[0].kind == "vector"
    rows = list(conditions)
    nested = [_depth(row) for row in rows]
    if rows and min(nested) > vector:
        flat = Ragged.from_lists(rows)
        if len(flat) != users:
            raise ValueError(
                f"conditions must hold a list for each of the {users} users, got {len(flat)} lists"
            )
        return _rows([value for row in rows for value in row], fields, only), flat.lengths
    if rows and max(nested) > vector:
        raise TypeError("conditions must be a flat list or a list of lists, got a mixture")
    return _rows(rows, fields, only), None


def _depth(value: Any) -> int:
    """How deep lists are nested in a value; an empty list counts as a user without questions."""
    depth = 0
    while isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
        depth += 1
        if not len(value):
            return depth + 1
        value = value[0]
    return depth


def _rows(rows: list[Any], fields: Sequence[Field], only: str) -> dict[str, list[Any]]:
    """Columns of a list of values, or of dicts of fields."""
    if rows and all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name, ANY) for row in rows] for name in names} or {
            only: [ANY] * len(rows)
        }
    if len(fields) > 1 and any(not _missing(row) for row in rows):
        raise ValueError(
            "conditions must name their fields for a model with several "
            f"({', '.join(f.name for f in fields)}): pass a dict of columns"
        )
    return {only: rows}


def _zipped(
    columns: dict[str, Any], users: int
) -> tuple[dict[str, list[Any]], torch.Tensor | None]:
    """Rows of a dict of columns and scalars."""
    ragged = {name: column for name, column in columns.items() if isinstance(column, Ragged)}
    lengths = None
    lists: dict[str, list[Any]] = {}
    for name, column in ragged.items():
        lists[name], own = _flat(column, users)
        if lengths is not None and not torch.equal(own, lengths):
            raise ValueError(f"conditions {', '.join(ragged)} must have the same lengths")
        lengths = own
    for name, column in columns.items():
        if name not in ragged and isinstance(column, (list, tuple, np.ndarray, torch.Tensor)):
            lists[name] = _plain(column)
    sizes = {name: len(column) for name, column in lists.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"conditions must be columns of equal length, got {sizes}")
    if lengths is not None and len(ragged) < len(lists):
        flat = sorted(set(lists) - set(ragged))
        raise ValueError(f"conditions must be all Ragged or all lists, got the lists {flat}")
    count = next(iter(sizes.values()), 1)
    if not columns:
        raise ValueError("conditions must name at least one field, got an empty dict")
    return {name: lists.get(name, [columns[name]] * count) for name in columns}, lengths


def _flat(column: Ragged, users: int) -> tuple[list[Any], torch.Tensor]:
    if len(column) != users:
        raise ValueError(f"conditions must have {users} rows, one a user, got {len(column)}")
    column = column.to("cpu")
    return _plain(column.values), column.lengths


def _plain(values: Any) -> list[Any]:
    """A list; the rows of a 2-d array stay arrays."""
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    if isinstance(values, np.ndarray):
        return values.tolist() if values.ndim == 1 else list(values)
    return list(values)


def _missing(value: Any) -> bool:
    return value is ANY or value is None or (isinstance(value, float) and value != value)


def _code(
    field: Field, values: list[Any] | None, count: int, vocabs: Mapping[str, Vocab]
) -> tuple[torch.Tensor, int]:
    """A field's column of rows or numbers, and how many values are unknown."""
    name = f"condition {field.name!r}"
    if field.kind == "category":
        if not values:
            return torch.full((count,), ANY_ROW, dtype=torch.int64), 0
        rows = torch.from_numpy(vocabs[field.name].rows(values, name))
        return rows, int((rows == OOV_ROW).sum())
    if field.kind == "number":
        return torch.from_numpy(as_numbers(values or [None] * count, name)), 0
    return torch.from_numpy(as_vectors(values or [None] * count, name, field.dim)), 0
