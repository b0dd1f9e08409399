"""A cache on disk: keys and values in plain order, checksummed, bound to its model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from pylum import ops
from pylum.cache.pages.host_pool import HostPool
from pylum.cache.pages.pool import Pool
from pylum.cache.users.digest import event_bytes, page_digests
from pylum.cache.users.entry import Entry, joined, single
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
    host: HostPool,
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
    tensors |= _kept(held, pool, host)
    write_folder(path, {"kind": KIND, **about, "users": users}, tensors)


def _kept(entries: Sequence[Entry], pool: Pool, host: HostPool) -> dict[str, torch.Tensor]:
    """``[tokens, heads, width]`` keys and values of each layer, user by user, on the host."""
    lengths = [pool.kept(entry.behaviours) for entry in entries]
    here = [i for i, entry in enumerate(entries) if not entry.rows]
    for i in here:
        copied = entries[i].copied
        if copied is not None:
            copied.wait()
    tables, counts = [entries[i].pages for i in here], [lengths[i] for i in here]
    layers: list[dict[int, tuple[torch.Tensor, torch.Tensor]]] = []
    for prefix in pool.prefixes(tables, torch.tensor(counts, dtype=torch.int64)):
        k, v, _ = ops.gather_pages(prefix)
        parts = zip(k.cpu().split(counts), v.cpu().split(counts), strict=True)
        layers.append(dict(zip(here, parts, strict=True)))
    for i, entry in enumerate(entries):
        if entry.rows:
            prefixes = host.prefixes(entry.rows, lengths[i], entry.copied)
            for layer, prefix in zip(layers, prefixes, strict=True):
                k, v, _ = ops.gather_pages(prefix)
                layer[i] = k.cpu(), v.cpu()
    heads, key, value = pool.config.cache_shape
    tensors = {}
    for number, layer in enumerate(layers):
        for place, (name, width) in enumerate((("k", key), ("v", value))):
            parts_of = [layer[i][place] for i in range(len(entries))]
            nothing = torch.empty(0, heads, width, dtype=pool.dtype)
            tensors[f"{name}.{number}"] = torch.cat([nothing, *parts_of])
    return tensors


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`save` wrote; errors as of :func:`pylum.model.files.read_folder`."""
    return read_folder(path, KIND)


def restore(
    users: Sequence[Hashable],
    tensors: Mapping[str, torch.Tensor],
    schema: Schema,
    pool: Pool,
    host: HostPool,
) -> dict[Hashable, Entry]:
    """Entries of as many users as there is room for; those used last on the device."""
    histories = Events(
        tensors["offsets"],
        tensors["items"],
        tensors["times"],
        {f.name: tensors[f"condition.{f.name}"] for f in schema.conditions},
        {f.name: tensors[f"outcome.{f.name}"] for f in schema.outcomes},
    )
    lengths = tensors["behaviours"].tolist()
    here = len(users)
    needs = [pool.pages_for(length) for length in lengths]
    while here and sum(needs[here - 1 :]) <= pool.pages:
        here -= 1
    rows, first = host.pages, here
    while first and needs[first - 1] <= pool.pages and pool.pages_of(lengths[first - 1]) <= rows:
        first -= 1
        rows -= pool.pages_of(lengths[first])
    bounds = [0, *itertools.accumulate(map(pool.kept, lengths))]
    entries: dict[Hashable, Entry] = {}

    def write(some: range) -> None:
        """To the pages of entries of consecutive users."""
        counts = torch.tensor([pool.kept(lengths[row]) for row in some], dtype=torch.int64)
        tables = [entries[users[row]].pages for row in some]
        part = slice(bounds[some.start], bounds[some.stop])
        for layer, prefix in enumerate(pool.prefixes(tables, counts)):
            ops.append_pages(
                prefix,
                moved(tensors[f"k.{layer}"][part], pool.device),
                moved(tensors[f"v.{layer}"][part], pool.device),
                moved(lengths_to_offsets(counts), pool.device),
                starts=torch.zeros_like(counts, device=pool.device),
            )

    for row in range(first, len(users)):
        history = single(histories, row)
        start = int(tensors["starts"][row])
        seen = event_bytes(history)[start : start + lengths[row]]
        entry = entries[users[row]] = Entry(
            history,
            pool.take(needs[row]),
            [],
            page_digests(seen),
            lengths[row],
            start,
            bool(tensors["approximate"][row]),
        )
        if row < here:
            write(range(row, row + 1))
            host.begin()
            count = pool.pages_of(entry.behaviours)
            entry.rows = host.take(count)
            if count:
                entry.copied = host.leave(entry.pages[:count], entry.rows)
            pool.give(entry.pages)
            entry.pages = []
    write(range(here, len(users)))
    host.begin()
    host.end()
    return entries
