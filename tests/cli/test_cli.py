"""The command line end to end: train, ask, query, score; wrong input ends with a message."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pylum
from pylum import cli
from pylum.data import Synthetic
from pylum.knowledge import Knowledge

COLUMNS = ["--user", "user", "--item", "item", "--time", "time", "--condition", "scene"]


def run(monkeypatch, *arguments):
    """Exit code of ``pylum ARGUMENTS``."""
    monkeypatch.setattr("sys.argv", ["pylum", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "events.parquet"
    pq.write_table(pa.Table.from_batches(Synthetic(users=60).record_batches()), path)
    return path


@pytest.fixture(scope="module")
def model(events):
    path = events.with_name("model")
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "pretrain", events, path, "--epochs", 1, *COLUMNS) == 0
    return path


def test_generate(monkeypatch, events, model, tmp_path):
    out = tmp_path / "top.parquet"
    options = ["--conditions", "gift,home", "-k", 3, *COLUMNS]
    assert run(monkeypatch, "generate", model, events, out, *options) == 0
    table = pq.read_table(out)
    lum = pylum.LUM.from_pretrained(model)
    data = pylum.Interactions.from_parquet(
        str(events), user="user", item="item", time="time", condition="scene"
    )
    assert table.equals(pylum.generate(lum, data.histories(), ["gift", "home"], k=3).to_arrow())
    assert [p.name for p in tmp_path.iterdir()] == ["top.parquet"]


def test_query(monkeypatch, events, model, tmp_path):
    out = tmp_path / "knowledge"
    assert run(monkeypatch, "query", model, events, out, "--conditions", "gift", *COLUMNS) == 0
    assert len(Knowledge.load(out)) == 60


def test_evaluate(monkeypatch, capsys, events, model, tmp_path):
    out = tmp_path / "report.json"
    assert run(monkeypatch, "evaluate", model, events, "--out", out, *COLUMNS) == 0
    assert "popularity by scene" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert 0 <= report["values"]["LUM"]["HR@10"]["value"] <= 1


def test_evaluate_table(monkeypatch, capsys, tmp_path):
    out = tmp_path / "table.json"
    options = ["--rankers", "dlrm", "--seeds", 1, "--users", 50, "--out", out]
    assert run(monkeypatch, "evaluate", "--table", *options) == 0
    printed = capsys.readouterr().out
    assert "dlrm + both, shuffled" in printed and "item + user mean" in printed
    report = json.loads(out.read_text())
    assert 0 <= report["values"]["dlrm + both"]["AUC"]["value"] <= 1
    assert (tmp_path / "table.png").exists()
    out = tmp_path / "table.parquet"
    assert run(monkeypatch, "evaluate", "--table", *options[:-1], out) == 0
    found = pq.read_table(out).to_pylist()
    (value,) = (
        row["value"]
        for row in found
        if (row["contestant"], row["over"], row["metric"]) == ("dlrm + both", "dlrm base", "AUC")
    )
    gains = {(g["contestant"], g["over"]): g["AUC"]["value"] for g in report["gains"]}
    assert value == gains["dlrm + both", "dlrm base"]


def test_info_names_what_was_built(monkeypatch, capsys):
    assert run(monkeypatch, "info") == 0
    assert "cpu kernels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["demo", "--data", "no-such"], 1, "existing path", id="no-data"),
        pytest.param(["pretrain", "no-such", "m"], 1, "no such file", id="no-events"),
        pytest.param(["pretrain", "{events}", "m", "--user", "nobody"], 1, "nobody", id="column"),
        pytest.param(["generate", "no-model", "{events}", "out"], 1, "no-model", id="no-model"),
        pytest.param(["evaluate"], 1, "model and events must both be given", id="no-model-given"),
        pytest.param(["evaluate", "--table", "--data", "x"], 1, "synthetic or ml-100k", id="table"),
        pytest.param(["evaluate", "--table", "--rankers", "x"], 1, "wide_deep, dlrm", id="ranker"),
        pytest.param(["evaluate", "--table", "--path", "x"], 1, "path must be left", id="path"),
        pytest.param(["evaluate", "--table", "--out", "no/x"], 1, "directory that is", id="out"),
        pytest.param(["evaluate", "--path", "x"], 1, "left out without --table", id="no-table"),
        pytest.param(
            ["evaluate", "--table", "--data", "ml-100k", "--path", "no-such"], 1, "no-such", id="ml"
        ),
        pytest.param(["query", "a-model"], 2, "Missing argument", id="usage"),
    ],
)
def test_wrong_input_is_a_message(monkeypatch, capsys, events, arguments, code, message):
    filled = [a.format(events=events) for a in arguments]
    assert run(monkeypatch, *filled) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_bench_measures_rows_beside_peers_and_ceilings(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    arguments = ("--only", "group query", "--rows", 1, "--seconds", 0, "--json", path)
    assert run(monkeypatch, "bench", "cpu", *arguments) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert "N 1 on 512 tokens" in row["case"] and "N 1 on 512 tokens" in capsys.readouterr().out
    ours, peer = row["ms"]["pylum"][1], row["ms"][row["peer"]][1]
    assert row["ratio"] == pytest.approx(peer / ours, rel=0.01)
    assert row["share"] > 0 and row["runs"] >= 5


@pytest.mark.parametrize(
    ("ratio", "share", "either", "expected"),
    [
        pytest.param((3.0, 3), (0.5, None), False, True, id="ratio"),
        pytest.param((2.9, 3), (0.5, None), False, False, id="ratio-missed"),
        pytest.param((2.9, 3), (0.8, 0.8), True, True, id="share-instead"),
        pytest.param((2.9, 3), (0.8, 0.8), False, False, id="both"),
        pytest.param((0.1, None), (0.7, 0.85), True, False, id="share-missed"),
        pytest.param((0.1, None), (0.1, None), True, None, id="nothing-wanted"),
    ],
)
def test_bench_says_which_goals_are_met(ratio, share, either, expected):
    from pylum.bench.cpu import met, summary

    row = {"ratio": ratio[0], "goal": ratio[1], "share": share[0], "share_goal": share[1]}
    assert met(row | {"either": either}) is expected
    text = summary([{"met": expected}, {"met": True}])
    assert text.startswith("2 of 2" if expected else "1 of 2" if expected is False else "1 of 1")
    assert ("CPU_CEILINGS.md" in text) == (expected is False)


def test_bench_compares_threads(tmp_path, monkeypatch, capsys):
    import torch

    path, before = tmp_path / "rows.json", torch.get_num_threads()
    arguments = ("--only", "group query", "--rows", 1, "--seconds", 0, "--json", path)
    assert run(monkeypatch, "bench", "threads", *arguments) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["case"] in capsys.readouterr().out and torch.get_num_threads() == before
    one, two = (row["ms"][f"pylum, {threads}"][1] for threads in (1, 2))
    assert row["times"]["pylum"] == pytest.approx(one / two, rel=0.01)
    assert row["goal"] is None and row["met"] is None  # a call of less than 5 ms
