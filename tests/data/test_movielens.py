"""MovieLens in its four layouts, on small files of the same form."""

import zipfile

import numpy as np
import pytest
import torch

from pylum.data import movielens_100k, read_movielens
from pylum.data.movielens import GENRES_100K

RATINGS = [(7, 1, 5, 20), (7, 2, 3, 10), (9, 3, 4.5, 30), (9, 1, 1, 30), (9, 4, 2, 31)]
FILMS = {
    1: ("Heat (1995)", 1995, ["Action", "Crime"]),
    2: ("Amélie (2001)", 2001, ["Comedy"]),
    3: ("Sans titre", None, ["Drama", "Romance", "War"]),
    4: ("Nothing (2003)", 2003, []),
}


def write(folder, layout):
    flags = GENRES_100K
    ratings, films = [], []
    for user, item, rating, time in RATINGS:
        sep = {"u": "\t", "recbole": "\t", "dat": "::", "csv": ","}[layout]
        ratings.append(sep.join(map(str, (user, item, rating, time))))
    for item, (title, year, genres) in FILMS.items():
        if layout == "u":
            bits = "|".join("1" if g in genres else "0" for g in flags)
            films.append(f"{item}|{title}|{f'01-Jan-{year}' if year else ''}||http://x|{bits}")
        elif layout == "recbole":
            films.append(f"{item}\t{title}\t{year or 'V'}\t{' '.join(genres)}")
        elif layout == "dat":
            films.append(f"{item}::{title}::{'|'.join(genres)}")
        else:
            films.append(f'{item},"{title}",{"|".join(genres) or "(no genres listed)"}')
    names = {
        "u": ("u.data", "u.item"),
        "recbole": ("ml-100k.inter", "ml-100k.item"),
        "dat": ("ratings.dat", "movies.dat"),
        "csv": ("ratings.csv", "movies.csv"),
    }[layout]
    if layout == "recbole":
        ratings.insert(0, "user_id:token\titem_id:token\trating:float\ttimestamp:float")
        films.insert(0, "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq")
    if layout == "csv":
        ratings.insert(0, "userId,movieId,rating,timestamp")
        films.insert(0, "movieId,title,genres")
    encoding = "latin-1" if layout in ("u", "dat") else "utf-8"
    (folder / names[0]).write_text("\n".join(ratings) + "\n")
    (folder / names[1]).write_text("\n".join(films) + "\n", encoding=encoding)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["u", "recbole", "dat", "csv"])
def test_layouts(tmp_path, layout, zipped):
    write(tmp_path, layout)
    path = tmp_path
    if zipped:
        path = tmp_path / "ml.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in tmp_path.glob("[!m]*.*" if layout == "u" else "*.*"):
                if file != path:
                    archive.write(file, f"ml/{file.name}")
    data = read_movielens(path)
    assert data.users == [7, 9]
    assert data.vocabs.items.values(data.events.items) == [2, 1, 3, 1, 4]
    assert data.events.times.tolist() == [10, 20, 30, 30, 31]
    assert data.events.outcomes["rating"].tolist() == [3, 5, 4.5, 1, 2]
    rows = data.vocabs.items.rows(list(FILMS))
    assert data.items.names(rows) == [title for title, _, _ in FILMS.values()]
    genres = data.items.columns["genres"]
    for row, (_, year, expected) in zip(rows, FILMS.values(), strict=True):
        assert data.vocabs.features["genres"].values(genres[int(row)]) == expected
        found = float(data.items.columns["year"][row])
        assert found == year or (year is None and np.isnan(found))
    assert data.schema.conditions == ()


def test_genre_is_one_of_the_film_drawn_by_seed(tmp_path):
    write(tmp_path, "csv")
    many = "userId,movieId,rating,timestamp\n" + "".join(f"{u},3,4,{u}\n" for u in range(600))
    (tmp_path / "ratings.csv").write_text(many + "1,4,4,9999\n")
    data = read_movielens(tmp_path, "genre")
    drawn = data.vocabs.conditions["genre"].values(data.events.conditions["genre"])
    item = data.vocabs.items.values(data.events.items)
    for genre in ("Drama", "War", "Romance"):
        assert 150 < drawn.count(genre) < 250
    assert [str(g) for g, i in zip(drawn, item, strict=True) if i == 4] == ["ANY"]
    again = read_movielens(tmp_path, "genre").events.conditions["genre"]
    other = read_movielens(tmp_path, "genre", seed=1).events.conditions["genre"]
    assert torch.equal(again, data.events.conditions["genre"])
    assert not torch.equal(other, data.events.conditions["genre"])


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"u\.data and u\.item"):
        read_movielens(tmp_path)
    with pytest.raises(ValueError, match="'hour'"):
        read_movielens(tmp_path, "hour")
    with pytest.raises(ValueError, match="folder or a zip"):
        read_movielens(tmp_path / "absent")
    monkeypatch.setenv("PYLUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConnectionError, match="grouplens"):
        movielens_100k()
    (tmp_path / "cache" / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"x")
    with pytest.raises(ValueError, match="sha256"):
        movielens_100k()


@pytest.mark.network
def test_100k():
    try:
        data = movielens_100k("genre")
    except ConnectionError as error:
        pytest.skip(str(error))
    assert len(data) == 943
    assert data.events.total == 100_000
    assert len(data.vocabs.items) == 1683
    # 19 genres, one of them "unknown", and the two reserved rows.
    assert len(data.vocabs.conditions["genre"]) == 21
    _, _, test = data.split("loo-full")
    assert test.num_targets == 943
