"""Columns as they come in, turned into the four kinds a field may have, or a clear error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pylum.data.schema import Field


class _Any:
    """The reserved "no particular condition"."""

    def __repr__(self) -> str:
        return "ANY"

    def __reduce__(self) -> str:
        return "ANY"


ANY = _Any()

MICROSECONDS = 1_000_000
# Seconds of the year 3000; a larger time is milliseconds or finer.
LARGEST_SECOND = 32_503_680_000


def as_array(values: Any, name: str = "values") -> pa.Array:
    """An Arrow array of a list, tensor, numpy, pandas or Arrow column; None, NaN, ANY are null."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a column of values, got {values!r}")
    if isinstance(values, (list, tuple)):
        values = [None if value is ANY else value for value in values]
    elif isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise TypeError(f"{name} must hold values of one type Arrow knows, got {error}") from None
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def listed(values: Any, name: str = "users") -> list[Any]:
    """Raw ids of any kind as a list, numpy's numbers as Python's.

    Raises:
        TypeError: one string stands where a list of them belongs, or there is nothing to list.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of ids, got {values!r}")
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.to_pylist()
    if isinstance(values, torch.Tensor):
        return values.tolist()
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def as_ids(values: Any, name: str = "values") -> tuple[pa.Array, str | None]:
    """Raw ids as ``large_string`` or ``int64`` with nulls kept, and their type.

    Returns:
        the array, and ``"string"``, ``"int"``, ``"bool"`` or None where every value is null.

    Raises:
        TypeError: the values are neither strings, integers nor booleans.
        ValueError: an integer does not fit int64.
    """
    array = as_array(values, name)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.int64()), None
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8()).cast(pa.int64()), "bool"
    if pa.types.is_integer(kind):
        try:
            return array.cast(pa.int64()), "int"
        except pa.ArrowInvalid:
            raise ValueError(f"{name} must fit int64, got {kind} values beyond it") from None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return array.cast(pa.large_string()), "string"
    hint = ""
    if pa.types.is_floating(kind):
        hint = " (pandas turns integers with missing values into floats: use Int64 or fill them)"
    raise TypeError(f"{name} must hold strings or integers, got {kind}{hint}")


def as_times(values: Any, name: str = "time") -> npt.NDArray[np.int64]:
    """Times as int64 microseconds: integers and floats are seconds, timestamps and dates are that.

    Raises:
        TypeError: the column is none of these.
        ValueError: a null, NaN or infinite time, or one too large to be seconds.
    """
    array = as_array(values, name)
    kind = array.type
    if array.null_count:
        raise ValueError(f"{name} must not hold nulls, got {array.null_count} of {len(array)}")
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()).to_numpy()
    if pa.types.is_date(kind):
        return array.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        if pa.types.is_null(kind) and len(array) == 0:
            return np.empty(0, np.int64)
        raise TypeError(f"{name} must be seconds or a timestamp, got {kind}")
    seconds = array.to_numpy(zero_copy_only=False)
    if not np.isfinite(seconds).all():
        bad = int((~np.isfinite(seconds)).sum())
        raise ValueError(f"{name} must be finite, got {bad} of {len(seconds)} that are not")
    if len(seconds) and np.abs(seconds.astype(np.float64)).max() > LARGEST_SECOND:
        raise ValueError(
            f"{name} must be in seconds, got {seconds.max()}: "
            "divide milliseconds by 1000 or pass a timestamp column"
        )
    if pa.types.is_integer(kind):
        return seconds.astype(np.int64) * MICROSECONDS
    return np.floor(seconds * MICROSECONDS).astype(np.int64)


def as_numbers(values: Any, name: str) -> npt.NDArray[np.float32]:
    """``[N]`` float32; null is NaN.

    Raises:
        TypeError: the column is not numeric.
    """
    array = as_array(values, name)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise TypeError(f"{name} must be numbers, got {kind}")
    return array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)


def missing_numbers(rows: int, dim: int = 0) -> torch.Tensor:
    """``[rows]`` or, with ``dim``, ``[rows, dim]`` float32 NaN."""
    return torch.full((rows, dim) if dim else (rows,), torch.nan, dtype=torch.float32)


def as_vectors(values: Any, name: str, dim: int) -> npt.NDArray[np.float32]:
    """``[N, dim]`` float32; a null row is all NaN.

    Raises:
        TypeError: the column does not hold lists of numbers.
        ValueError: a row is not ``dim`` long.
    """
    array = as_array(values, name)
    kind = array.type
    out = np.full((len(array), dim), np.nan, np.float32)
    if pa.types.is_null(kind):
        return out
    if not _is_list(kind):
        raise TypeError(f"{name} must hold lists of {dim} numbers, got {kind}")
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(array).drop_null().to_numpy(zero_copy_only=False)
    wrong = lengths[lengths != dim]
    if len(wrong):
        raise ValueError(f"{name} must hold lists of {dim} numbers, got one of {int(wrong[0])}")
    flat = array.drop_null().flatten()
    out[valid] = as_numbers(flat, name).reshape(-1, dim)
    return out


def as_lists(values: Any, name: str) -> tuple[Any, npt.NDArray[np.int64]]:
    """A column of lists as its flat values and ``[N + 1]`` offsets; a null row is empty.

    Raises:
        TypeError: the column does not hold lists.
    """
    array = as_array(values, name)
    if pa.types.is_null(array.type):
        return pa.array([], pa.int64()), np.zeros(len(array) + 1, np.int64)
    if not _is_list(array.type):
        raise TypeError(f"{name} must hold lists, got {array.type}")
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return array.drop_null().flatten(), offsets


def infer_field(name: str, kind: pa.DataType, sample: pa.Array | None = None) -> Field:
    """The field of a column by its type.

    Strings, integers and booleans are a category, floats a number, lists of floats a vector (its
    width taken from ``sample``), other lists categories.

    Raises:
        TypeError: no kind fits the type.
        ValueError: a vector's width is not known, since ``sample`` holds no vector.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_floating(kind):
        return Field(name, "number")
    if _is_list(kind):
        if not pa.types.is_floating(kind.value_type):
            return Field(name, "categories")
        if pa.types.is_fixed_size_list(kind):
            return Field(name, "vector", kind.list_size)
        lengths = pc.list_value_length(sample).drop_null() if sample is not None else []
        if not len(lengths):
            raise ValueError(f"the width of vector {name!r} is unknown: pass a Field with its dim")
        return Field(name, "vector", lengths[0].as_py())
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return Field(name, "category")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return Field(name, "category")
    raise TypeError(f"column {name!r} must hold strings, numbers or lists of them, got {kind}")


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
