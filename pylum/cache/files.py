"""A cache on disk: keys and values in plain order, checksummed, bound to its model."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from pylum import ops
from pylum.cache.digest import event_bytes, page_digests
from pylum.cache.entry import Entry, joined, single
from pylum.cache.pool import Pool
from pylum.data.events import Events
from pylum.data.schema import Schema
from pylum.model.files import read_folder, write_folder
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved

KIND = "UserCache"
PLAIN = (str, int, float, bool)


def save(
    path: str | os.PathLike[str],
    entries: Mapping[Hashable, Entry],
    pool: Pool,
    schema: Schema,
    about: Mapping[str, Any],
) -> None:
    """Write users, their histories, keys and values to a folder.

    Raises:
        ValueError: ``path`` exists and is no earlier save.
        TypeError: a user id is neither a string nor a number.
    """
    users = [user.item() if hasattr(user, "item") else user for user in entries]
    strange = [user for user in users if not isinstance(user, PLAIN)]
    if strange:
        raise TypeError(f"users must be strings or numbers to be saved, got {strange[0]!r}")
    held = list(entries.values())
    histories = joined([entry.history for entry in held], schema)
    behaviours = torch.tensor([entry.behaviours for entry in held], dtype=torch.int64)
    tensors = {"offsets": histories.offsets, "behaviours": behaviours}
    tensors["starts"] = torch.tensor([entry.start for entry in held], dtype=torch.int64)
    tensors["approximate"] = torch.tensor([entry.approximate for entry in held], dtype=torch.bool)
    tensors |= {"items": histories.items, "times": histories.times}
    tensors |= {f"condition.{name}": c for name, c in histories.conditions.items()}
    tensors |= {f"outcome.{name}": c for name, c in histories.outcomes.items()}
    prefixes = pool.prefixes([entry.pages for entry in held], pool.tokens(1) * behaviours)
    for layer, prefix in enumerate(prefixes):
        k, v, _ = ops.gather_pages(prefix)
        tensors |= {f"k.{layer}": k, f"v.{layer}": v}
    write_folder(path, {"kind": KIND, **about, "users": users}, tensors)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`save` wrote; errors as of :func:`pylum.model.files.read_folder`."""
    return read_folder(path, KIND)


def restore(
    users: Sequence[Hashable],
    tensors: Mapping[str, torch.Tensor],
    schema: Schema,
    pool: Pool,
) -> dict[Hashable, Entry]:
    """Entries of as many users as the pool has room for, those used last first."""
    histories = Events(
        tensors["offsets"],
        tensors["items"],
        tensors["times"],
        {f.name: tensors[f"condition.{f.name}"] for f in schema.conditions},
        {f.name: tensors[f"outcome.{f.name}"] for f in schema.outcomes},
    )
    lengths = tensors["behaviours"].tolist()
    needs = [pool.pages_for(length) for length in lengths]
    first = len(users)
    while first and sum(needs[first - 1 :]) <= pool.pages:
        first -= 1
    entries: dict[Hashable, Entry] = {}
    for row in range(first, len(users)):
        history = single(histories, row)
        start = int(tensors["starts"][row])
        seen = event_bytes(history)[start : start + lengths[row]]
        entries[users[row]] = Entry(
            history,
            pool.take(needs[row]),
            page_digests(seen),
            lengths[row],
            start,
            bool(tensors["approximate"][row]),
        )
    tables = [entry.pages for entry in entries.values()]
    counts = pool.tokens(1) * tensors["behaviours"][first:]
    begin = pool.tokens(int(tensors["behaviours"][:first].sum()))
    for layer, prefix in enumerate(pool.prefixes(tables, counts)):
        ops.append_pages(
            prefix,
            moved(tensors[f"k.{layer}"][begin:], pool.device),
            moved(tensors[f"v.{layer}"][begin:], pool.device),
            moved(lengths_to_offsets(counts), pool.device),
            starts=torch.zeros_like(counts, device=pool.device),
        )
    return entries
