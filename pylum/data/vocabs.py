"""All vocabularies of a data set or a model, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pylum.data.vocab import Vocab

_FILE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("about", pa.string()),
        ("integers", pa.large_list(pa.int64())),
        ("strings", pa.large_list(pa.large_string())),
    ]
)


@dataclass
class Vocabs:
    """The vocabularies that turn raw values into rows.

    Args:
        items: item ids.
        conditions: by field, categories only; each reserves row 1 for ``ANY``.
        outcomes: by field, categories only.
        features: by item feature, of kind category or categories.
    """

    items: Vocab = field(default_factory=Vocab)
    conditions: dict[str, Vocab] = field(default_factory=dict)
    outcomes: dict[str, Vocab] = field(default_factory=dict)
    features: dict[str, Vocab] = field(default_factory=dict)

    def copy(self) -> Vocabs:
        """Vocabularies that grow apart from these."""
        return Vocabs(
            self.items.copy(),
            {name: vocab.copy() for name, vocab in self.conditions.items()},
            {name: vocab.copy() for name, vocab in self.outcomes.items()},
            {name: vocab.copy() for name, vocab in self.features.items()},
        )

    def fingerprint(self) -> dict[str, str]:
        """Hex digest of every vocabulary, by its place."""
        return {name: vocab.fingerprint() for name, vocab in self._named().items()}

    def to_json(self) -> dict[str, Any]:
        return {name: vocab.to_json() for name, vocab in self._named().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabs:
        return cls._from_named({name: Vocab.from_json(entry) for name, entry in data.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """To one Arrow file, written aside and renamed."""
        write_vocabs(Path(path), self._named())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabs:
        return cls._from_named(read_vocabs(Path(path)))

    def _named(self) -> dict[str, Vocab]:
        named = {"items": self.items}
        for group in ("conditions", "outcomes", "features"):
            named |= {f"{group}/{name}": vocab for name, vocab in getattr(self, group).items()}
        return named

    @classmethod
    def _from_named(cls, named: Mapping[str, Vocab]) -> Vocabs:
        vocabs = cls(named["items"])
        for path, vocab in named.items():
            group, _, name = path.partition("/")
            if name:
                getattr(vocabs, group)[name] = vocab
        return vocabs


def write_vocabs(path: Path, vocabs: Mapping[str, Vocab]) -> None:
    """One row per vocabulary: its name, its JSON without the ids, and its ids."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _FILE_SCHEMA) as writer:
            for name, vocab in vocabs.items():
                about = {
                    "kind": vocab.kind,
                    "type": vocab.type,
                    "any": vocab.any,
                    "buckets": vocab.buckets,
                }
                ids = vocab._ids
                columns = {"integers": None, "strings": None}
                columns["strings" if vocab.type == "string" else "integers"] = ids
                offsets = [0, len(ids)]
                writer.write_batch(
                    pa.record_batch(
                        [
                            pa.array([name]),
                            pa.array([json.dumps(about)]),
                            *(
                                pa.array([None], kind.type)
                                if columns[kind.name] is None
                                else pa.LargeListArray.from_arrays(offsets, columns[kind.name])
                                for kind in list(_FILE_SCHEMA)[2:]
                            ),
                        ],
                        schema=_FILE_SCHEMA,
                    )
                )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_vocabs(path: Path) -> dict[str, Vocab]:
    """The vocabularies of a file of :func:`write_vocabs`."""
    out = {}
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            about = json.loads(batch.column("about")[0].as_py())
            vocab = Vocab(kind=about["kind"], buckets=about["buckets"], any=about["any"])
            column = "strings" if about["type"] == "string" else "integers"
            vocab._add(batch.column(column).flatten(), about["type"])
            vocab.type = about["type"]
            out[batch.column("name")[0].as_py()] = vocab
    return out
