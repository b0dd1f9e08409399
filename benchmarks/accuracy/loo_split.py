"""MovieLens-100K and its leave-one-out split (`loo-full`), without pylum.

All ratings are kept. Each user's rows are sorted by (time, original row), stable: the last row
is the test item, the last but one the validation item, the rest train. The sort must be stable:
most rows share their second with another row of the same user.
"""

import zipfile
from pathlib import Path

import numpy as np

FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
# Tuning trains on all but the last six rows of a user and asks for the five before the test item:
# one target a user has a standard error of .007 in NDCG@10, as large as what is to be told apart.
TUNING_TARGETS = range(6, 1, -1)
TEST_TARGET = range(1, 0, -1)


def load_ml100k(wheel: str | Path) -> dict[str, np.ndarray]:
    """Read the ratings out of the recbole 1.2.1 wheel.

    Args:
        wheel: path of `recbole-1.2.1-py3-none-any.whl`, read as a zip and never imported.

    Returns:
        Columns ``user``, ``item`` (ids as in the data), ``rating``, ``time`` (seconds), ``left``
        (rows of the user from here on: 1 is the last, the test item) and ``genre`` (one of the
        film's, drawn by seed as ``pylum.data.movielens`` draws it; "" where it has none), one entry
        per rating, in (user, time, row) order.
    """
    with zipfile.ZipFile(wheel) as archive, archive.open(FOLDER + ".inter") as file:
        table = np.loadtxt(file, delimiter="\t", skiprows=1, dtype=np.float64).astype(np.int64)
    user, item, rating, time = table.T
    films = load_genres(wheel)
    drawn = np.random.default_rng(0).random(len(item))
    genre = np.array([pick(films[i], x) for i, x in zip(item.tolist(), drawn, strict=True)])
    # lexsort is stable: ties of (user, time) stay in original row order.
    order = np.lexsort((time, user))
    columns = {"user": user, "item": item, "rating": rating, "time": time, "genre": genre}
    columns = {name: values[order] for name, values in columns.items()}
    _, counts = np.unique(columns["user"], return_counts=True)
    return columns | {"left": np.repeat(counts.cumsum(), counts) - np.arange(len(user))}


def load_genres(wheel: str | Path) -> dict[int, list[str]]:
    """The genres of each film, in the order of the file."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(FOLDER + ".item").decode().splitlines()[1:]
    rows = [line.split("\t") for line in lines if line]
    return {int(row[0]): row[3].split() for row in rows}


def pick(genres: list[str], drawn: float) -> str:
    return genres[int(drawn * len(genres))] if genres else ""
