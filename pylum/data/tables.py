"""Tables of any make, as Arrow; and what each of their columns is for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pylum.data.columns import as_array, infer_field
from pylum.data.schema import Field, Schema

FieldSpec = str | Field | Sequence[str | Field] | None


def as_table(table: Any, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """An Arrow table of an Arrow, pandas or dict table, or of a Parquet file's path.

    Raises:
        TypeError: it is none of these, or a column holds mixed types.
        ValueError: a column stands twice, the columns are not equally long, or a path holds no
            Parquet.
    """
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    if isinstance(table, (str, os.PathLike)):
        if not os.path.exists(table):
            raise ValueError(f"{name} must be a Parquet file or a directory, got {table}")
        try:
            return pq.read_table(os.fspath(table), columns=columns)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name} must be a Parquet file, got {table}: {error}") from None
    if not isinstance(table, Mapping) and not (hasattr(table, "columns") and hasattr(table, "loc")):
        raise TypeError(f"{name} must be an Arrow or pandas table or a dict, got {type(table)}")
    present = [*table] if isinstance(table, Mapping) else [*table.columns]
    wanted = present if columns is None else [*dict.fromkeys(columns)]
    for missing in (c for c in wanted if c not in present):
        raise ValueError(f"{name}: {missing!r} is not a column; the columns are {present}")
    twice = sorted({str(c) for c in wanted if present.count(c) > 1})
    if twice:
        raise ValueError(f"{name} must not hold a column twice, got {', '.join(twice)}")
    arrays = {str(c): as_array(table[c], f"{name}: {c!r}") for c in wanted}
    lengths = {c: len(array) for c, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} must hold columns of one length, got {lengths}")
    return pa.table(arrays)


def pick(table: pa.Table | pa.RecordBatch, column: str, name: str) -> pa.Array:
    """A column of a table as one array.

    Raises:
        ValueError: the table has no such column, or two.
    """
    check_column(table.schema, column, name)
    return as_array(table.column(column), column)


def check_column(schema: pa.Schema, column: str, name: str) -> None:
    found = schema.get_all_field_indices(column)
    if len(found) != 1:
        what = "is not a column" if not found else "stands twice"
        raise ValueError(f"{name}: {column!r} {what}; the columns are {', '.join(schema.names)}")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table of behaviours are read, and as what."""

    user: str
    item: str
    time: str
    conditions: tuple[Field, ...] = ()
    outcomes: tuple[Field, ...] = ()
    target: str | None = None

    @property
    def names(self) -> list[str]:
        fields = [f.name for f in (*self.conditions, *self.outcomes)]
        return [self.user, self.item, self.time, *fields, *([self.target] if self.target else [])]

    @classmethod
    def resolve(
        cls,
        sample: pa.Table | pa.RecordBatch,
        *,
        user: str,
        item: str,
        time: str,
        condition: FieldSpec = None,
        event: FieldSpec = None,
        target: str | None = None,
    ) -> Columns:
        """Check the names against a first batch and infer the kinds of the fields.

        Raises:
            ValueError: a column is missing or read twice, or a field's name is reserved.
            TypeError: an argument is not a column's name, or a column's type fits no field.
        """
        for argument, name in (("user", user), ("item", item), ("time", time)):
            if not isinstance(name, str):
                raise TypeError(f"{argument} must be the name of a column, got {name!r}")
            check_column(sample.schema, name, argument)
        if target is not None:
            check_column(sample.schema, target, "target")
            if not pa.types.is_boolean(sample.schema.field(target).type):
                kind = sample.schema.field(target).type
                raise TypeError(f"target must be a column of booleans, got {kind}")
        conditions = _fields(sample, condition, "condition")
        outcomes = _fields(sample, event, "event")
        Schema(conditions, outcomes)  # refuses reserved names and fields of many values
        columns = cls(user, item, time, conditions, outcomes, target)
        twice = sorted({name for name in columns.names if columns.names.count(name) > 1})
        if twice:
            raise ValueError(f"a column has one use, got more for {', '.join(twice)}")
        return columns


def field_specs(spec: FieldSpec, name: str) -> list[str | Field]:
    """The fields of an argument, each a column's name or a :class:`Field`.

    Raises:
        TypeError: it is neither, nor a list of these.
    """
    if spec is None:
        return []
    entries: list[Any] = [*spec] if isinstance(spec, (list, tuple)) else [spec]
    for entry in entries:
        if not isinstance(entry, (str, Field)):
            raise TypeError(f"{name} must be a column's name, a Field or a list, got {entry!r}")
    return entries


def _fields(sample: pa.Table | pa.RecordBatch, spec: FieldSpec, name: str) -> tuple[Field, ...]:
    fields: list[Field] = []
    for entry in field_specs(spec, name):
        column = pick(sample, entry if isinstance(entry, str) else entry.name, name)
        if isinstance(entry, str):
            entry = infer_field(entry, column.type, column)
        fields.append(entry)
    return tuple(fields)
