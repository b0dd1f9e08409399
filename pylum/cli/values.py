"""Words of the command line as ids and conditions of a model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pylum.data import Vocab

if TYPE_CHECKING:
    from pylum.model import UserModel

TRUTH = {"true": True, "false": False}


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def typed(texts: list[str], vocab: Vocab, name: str) -> list[Any]:
    """Words as ids of a vocabulary's type.

    Raises:
        ValueError: one of them is no such id.
    """
    try:
        if vocab.type == "int":
            return [int(text) for text in texts]
        if vocab.type == "bool":
            return [TRUTH[text.lower()] for text in texts]
    except (ValueError, KeyError):
        wanted = "integers" if vocab.type == "int" else "true or false"
        raise ValueError(f"{name} must be {wanted}, got {', '.join(texts)}") from None
    return texts


def conditions(text: str, model: UserModel) -> Any:
    """``--conditions`` as :func:`pylum.generate` takes it.

    Of a model with one field: values. Of several: ``scene=home+hour=3``, where a field that is
    left out is ANY.

    Raises:
        ValueError: a value is not of its field's type, or names no field where there are several.
    """
    texts, fields = words(text), model.schema.conditions
    if not texts:
        return None
    if not fields:
        raise ValueError(f"conditions must be left out for a model that has none, got {text}")
    if len(fields) == 1:
        return _of_field(texts, fields[0].name, model)
    names = [f.name for f in fields]
    rows = [_pairs(each, names) for each in texts]
    columns: dict[str, list[Any]] = {}
    for name in names:
        if any(name in row for row in rows):
            values = iter(_of_field([row[name] for row in rows if name in row], name, model))
            columns[name] = [next(values) if name in row else None for row in rows]
    return columns


def _pairs(text: str, names: list[str]) -> dict[str, str]:
    """``a=1+b=2`` by name; a value may hold ``+`` and ``=``."""
    known = "|".join(map(re.escape, names))
    parts = [part.partition("=") for part in re.split(rf"\+(?=(?:{known})=)", text)]
    found = {name: value for name, _, value in parts}
    if len(found) < len(parts) or not found.keys() <= {*names}:
        wanted = "+".join(f"{name}=VALUE" for name in names)
        raise ValueError(f"conditions must each be {wanted} or a part of that, got {text}")
    return found


def _of_field(texts: list[str], name: str, model: UserModel) -> list[Any]:
    kind = next(f.kind for f in model.schema.conditions if f.name == name)
    if kind == "category":
        return typed(texts, model.vocabs.conditions[name], f"conditions of {name}")
    if kind == "vector":
        raise ValueError(f"conditions of {name} are vectors, which pylum.generate takes")
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"conditions of {name} must be numbers, got {', '.join(texts)}") from None
