"""HSTU on the command line: trained, asked, scored and evaluated from Parquet to Parquet."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pylum
from pylum.data import Synthetic
from pylum.model import load_model
from tests.cli.test_cli import run

COLUMNS = ["--user", "user", "--item", "item", "--time", "time", "--condition", "scene"]
LIKED = [*COLUMNS, "--event", "liked"]
OPTIONS = ["--model", "hstu", "--epochs", 1, "--max-length", 60]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    path = tmp_path_factory.mktemp("hstu") / "events.parquet"
    pq.write_table(pa.Table.from_batches(Synthetic(users=40).record_batches()), path)
    return path


def trained(events, name, *options):
    path = events.with_name(name)
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "pretrain", events, path, *OPTIONS, *options) == 0
    return path


@pytest.fixture(scope="module")
def retriever(events):
    return trained(events, "retriever", "--variant", "production", *COLUMNS)


@pytest.fixture(scope="module")
def ranker(events):
    return trained(events, "ranker", "--task", "liked=liked:true", *LIKED)


def read(events, event=None):
    return pylum.Interactions.from_parquet(
        str(events), user="user", item="item", time="time", condition="scene", event=event
    )


def test_the_next_item(monkeypatch, events, retriever, tmp_path, capsys):
    model = load_model(retriever)
    assert isinstance(model, pylum.HSTU) and model.config.variant == "production"
    out = tmp_path / "top.parquet"
    assert run(monkeypatch, "generate", retriever, events, out, "-k", 3, *COLUMNS) == 0
    expected = pylum.generate(model, read(events).histories(), k=3).to_arrow()
    assert pq.read_table(out).equals(expected)
    report = tmp_path / "report.json"
    assert run(monkeypatch, "evaluate", retriever, events, "--out", report, *COLUMNS) == 0
    assert "HSTU" in capsys.readouterr().out
    assert 0 <= json.loads(report.read_text())["values"]["HSTU"]["HR@10"]["value"] <= 1


def test_ranking_and_scores(monkeypatch, events, ranker, tmp_path):
    model = load_model(ranker)
    assert [task.name for task in model.config.tasks] == ["liked"]
    report = tmp_path / "report.json"
    assert run(monkeypatch, "evaluate", ranker, events, "--out", report, *LIKED) == 0
    values = json.loads(report.read_text())["tasks"]["liked"]["values"]["HSTU"]
    assert set(values) == {"AUC", "GAUC", "log loss", "NE"}

    data = read(events, "liked")
    users = [data.users[2], "nobody", data.users[0], data.users[2]]
    items = data.vocabs.items.values([5, 3, 4, 6])
    shown = pa.table({"user": users, "item": items, "scene": ["gift", "home", None, "home"]})
    pq.write_table(shown, tmp_path / "shown.parquet")
    out = tmp_path / "scores.parquet"
    paths = (ranker, events, tmp_path / "shown.parquet", out)
    assert run(monkeypatch, "score", *paths, *LIKED) == 0
    table = pq.read_table(out)
    assert table.drop_columns(["liked"]).equals(shown)
    for n, (user, item) in enumerate(zip(users, items, strict=True)):
        histories = data.histories([user])
        alone = pylum.score(model, histories, [item], {"scene": [shown["scene"][n].as_py()]})
        assert table["liked"][n].as_py() == pytest.approx(float(alone.values[0]), abs=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("report.json", "scores.parquet", "shown.parquet")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--model", "sasrec"], "model must be lum or hstu", id="model"),
        pytest.param(["--variant", "research"], "variant must be left out for lum", id="lum"),
        pytest.param(["--model", "hstu", "--task", "liked"], "task must be NAME=COLUMN", id="task"),
        pytest.param(
            ["--model", "hstu", "--task", "a=scene:gift"],
            "must ask a column of --event",
            id="event",
        ),
        pytest.param(
            ["--model", "hstu", "--event", "liked", "--task", "a=liked:never"],
            "must have values that 'liked' takes",
            id="value",
        ),
    ],
)
def test_wrong_models_are_messages(monkeypatch, capsys, events, tmp_path, arguments, message):
    path = tmp_path / "m"
    assert run(monkeypatch, "pretrain", events, path, *COLUMNS, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not path.exists()


def test_wrong_candidates_are_messages(monkeypatch, capsys, events, retriever, ranker, tmp_path):
    shown = tmp_path / "shown.parquet"
    pq.write_table(pa.table({"user": ["a"], "liked": np.ones(1)}), shown)
    cases = [
        ((ranker, events, shown, tmp_path / "out"), "lacks ['item']"),
        ((ranker, events, tmp_path / "none", tmp_path / "out"), "no such file"),
        ((retriever, events, shown, tmp_path / "out"), "lacks ['item']"),
    ]
    for paths, message in cases:
        assert run(monkeypatch, "score", *paths, *LIKED) == 1
        assert message in capsys.readouterr().err
    pq.write_table(pa.table({"user": ["a"], "item": ["b"], "liked": np.ones(1)}), shown)
    assert run(monkeypatch, "score", ranker, events, shown, tmp_path / "out", *LIKED) == 1
    assert "must not have a column 'liked'" in capsys.readouterr().err
    assert run(monkeypatch, "score", retriever, events, shown, tmp_path / "out", *COLUMNS) == 1
    assert "use pylum.generate" in capsys.readouterr().err


def test_sequence_models_in_the_table(monkeypatch, capsys, tmp_path):
    out = tmp_path / "table.json"
    options = ["--rankers", "HSTU,SASRec", "--seeds", 1, "--users", 50, "--out", out]
    assert run(monkeypatch, "evaluate", "--table", *options) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("HSTU", "SASRec", "LUM alone", "best possible"))
    values = json.loads(out.read_text())["values"]
    assert set(values["HSTU"]) == {"AUC", "GAUC", "log loss", "NE"}
    assert set(values["SASRec"]) == {"AUC", "GAUC"}
