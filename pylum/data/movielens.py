"""MovieLens (Harper and Konstan 2015) in every layout it is given out in.

The data may be used for research and not be redistributed: it is read where the user has it, or
downloaded for the user. MovieLens 100K is contained in the wheel of recbole 1.2.1 on PyPI, which is
read as an archive and never imported.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from pylum.data.archive import Archive, recbole_wheel
from pylum.data.interactions import Interactions
from pylum.data.schema import Field

Condition = Literal["genre"] | None

NO_GENRES = ("(no genres listed)", "")


def movielens_100k(
    condition: Condition = None, *, seed: int = 0, path: str | os.PathLike[str] | None = None
) -> Interactions:
    """MovieLens 100K: 100,000 ratings of 943 users for 1,682 films.

    Args:
        condition, seed: as :func:`read_movielens`.
        path: where it is, as for :func:`read_movielens`. By default the recbole wheel in
            ``$PYLUM_CACHE`` (else ``$XDG_CACHE_HOME/pylum``, else ``~/.cache/pylum``), downloaded
            by pip when it is not there.

    Raises:
        ConnectionError: it is not there and cannot be downloaded.
    """
    return read_movielens(recbole_wheel() if path is None else path, condition, seed=seed)


def read_movielens(
    path: str | os.PathLike[str], condition: Condition = None, *, seed: int = 0
) -> Interactions:
    """MovieLens of any size, with the outcome ``rating`` and item features ``genres``, ``year``.

    Args:
        path: a folder or zip archive with ``u.data`` and ``u.item`` (100K), ``ratings.dat`` and
            ``movies.dat`` (1M, 10M), ``ratings.csv`` and ``movies.csv`` (20M, 25M, 32M, latest), or
            ``ml-100k.inter`` and ``ml-100k.item`` (recbole).
        condition: ``"genre"`` gives every event one genre of its film, drawn by ``seed``; a film
            without a genre has none (ANY). Asking with it at the target is an oracle: compare with
            candidates filtered to that genre. None: no condition.
        seed: of that draw.

    Raises:
        ValueError: no layout fits the path, or the condition is unknown.
    """
    if condition not in (None, "genre"):
        raise ValueError(f"condition must be None or 'genre', got {condition!r}")
    with Archive(Path(path)) as archive:
        for layout in LAYOUTS:
            if archive.has(layout.ratings) and archive.has(layout.films):
                break
        else:
            wanted = "; ".join(f"{x.ratings} and {x.films}" for x in LAYOUTS)
            raise ValueError(f"path must hold one of {wanted}; got {path}")
        films = layout.read_films(archive.read(layout.films))
        batches = layout.read_ratings(archive.open(layout.ratings))
        if condition == "genre":
            batches = _with_genre(batches, films, seed)
        return Interactions.from_arrow(
            batches,
            condition=None if condition is None else [Field("genre", "category")],
            event="rating",
            items=films,
            item_features=[Field("genres", "categories"), Field("year", "number")],
            item_title="title",
        )


def _with_genre(
    batches: Iterator[pa.RecordBatch], films: pa.Table, seed: int
) -> Iterator[pa.RecordBatch]:
    ids = films.column("item").combine_chunks()
    genres = films.column("genres").combine_chunks()
    starts = genres.offsets.to_numpy()
    counts = np.append(np.diff(starts), 0)
    flat = genres.values
    random = np.random.default_rng(seed)
    for batch in batches:
        place = pc.index_in(batch.column("item"), ids).fill_null(len(ids)).to_numpy()
        drawn = random.random(len(place))
        pick = starts[place] + np.floor(drawn * counts[place]).astype(np.int64)
        chosen = flat.take(pa.array(pick, mask=counts[place] == 0))
        yield batch.append_column("genre", chosen)


def _ratings(separator: str, names: list[str] | None, skip: int = 0) -> Callable[[IO[bytes]], Any]:
    def read(file: IO[bytes]) -> Iterator[pa.RecordBatch]:
        data: Any = file
        delimiter = separator
        if len(separator) > 1:
            data, delimiter = io.BytesIO(file.read().replace(separator.encode(), b"\t")), "\t"
        columns = names or ["user", "item", "rating", "time"]
        reader = csv.open_csv(
            data,
            csv.ReadOptions(column_names=columns, skip_rows=skip, use_threads=False),
            csv.ParseOptions(delimiter=delimiter, quote_char=False),
            csv.ConvertOptions(
                column_types={
                    "user": pa.int64(),
                    "item": pa.int64(),
                    "rating": pa.float32(),
                    "time": pa.int64(),
                }
            ),
        )
        with file:
            yield from reader

    return read


def _films(
    ids: list[int], titles: list[str], years: list[str | None], genres: list[list[str]]
) -> pa.Table:
    year = [float(y) if y and len(y) == 4 and y.isdigit() else None for y in years]
    kept = [[g for g in row if g not in NO_GENRES] for row in genres]
    return pa.table(
        {
            "item": pa.array(ids, pa.int64()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array(year, pa.float32()),
            "genres": pa.array(kept, pa.list_(pa.string())),
        }
    )


def _u_item(data: bytes) -> pa.Table:
    rows = [line.split("|") for line in data.decode("latin-1").splitlines() if line]
    return _films(
        [int(row[0]) for row in rows],
        [row[1] for row in rows],
        [row[2][-4:] for row in rows],
        [
            [g for g, is_so in zip(GENRES_100K, row[5:], strict=True) if is_so == "1"]
            for row in rows
        ],
    )


def _recbole_item(data: bytes) -> pa.Table:
    rows = [line.split("\t") for line in data.decode("utf-8").splitlines()[1:] if line]
    return _films(
        [int(row[0]) for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3].split() for row in rows],
    )


def _movies_dat(data: bytes) -> pa.Table:
    rows = [line.split("::") for line in data.decode("latin-1").splitlines() if line]
    return _from_titles([int(r[0]) for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def _movies_csv(data: bytes) -> pa.Table:
    table = csv.read_csv(
        io.BytesIO(data),
        convert_options=csv.ConvertOptions(
            column_types={"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
        ),
    )
    ids, titles, genres = (table.column(c).to_pylist() for c in ("movieId", "title", "genres"))
    return _from_titles(ids, titles, genres)


def _from_titles(ids: list[int], titles: list[str], genres: list[str]) -> pa.Table:
    """Titles end with the year: ``Heat (1995)``."""
    found = pc.struct_field(
        pc.extract_regex(pa.array(titles, pa.string()), r"\((?P<year>\d{4})\)\s*$"), "year"
    )
    return _films(ids, titles, found.to_pylist(), [row.split("|") for row in genres])


@dataclass(frozen=True)
class _Layout:
    ratings: str
    films: str
    read_ratings: Callable[[IO[bytes]], Iterator[pa.RecordBatch]]
    read_films: Callable[[bytes], pa.Table]


LAYOUTS = (
    _Layout("u.data", "u.item", _ratings("\t", None), _u_item),
    _Layout("ml-100k.inter", "ml-100k.item", _ratings("\t", None, 1), _recbole_item),
    _Layout("ratings.dat", "movies.dat", _ratings("::", None), _movies_dat),
    _Layout("ratings.csv", "movies.csv", _ratings(",", None, 1), _movies_csv),
)
# The order of the flags in u.item.
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
