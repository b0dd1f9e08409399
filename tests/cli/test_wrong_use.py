"""Commands used as a stranger would: what is asked is understood, or refused before the work."""

import json
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pylum
from pylum.bench import cpu, harness
from pylum.cli import values
from tests.cli.test_cli import run


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Integer ids and an integer condition beside one of strings, which commas tempt to mix up."""
    rng = np.random.default_rng(0)
    n = 400
    table = {
        "user": rng.integers(0, 30, n),
        "item": rng.integers(0, 40, n),
        "time": rng.integers(0, 10**6, n),
        "slot": rng.integers(0, 3, n),
        "scene": rng.choice(["a", "b+slot", "c=d"], n),
        "new": rng.integers(0, 2, n).astype(bool),
        "rating": rng.integers(1, 6, n),
    }
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    pq.write_table(pa.table(table), path)
    path.with_suffix(".csv").write_text("user,item,time\n1,2,3\n")
    return path


def trained(events, name, fields, options=()):
    path = events.with_name(name)
    named = [word for field in fields for word in ("--condition", field)]
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "pretrain", events, path, "--epochs", 1, *named, *options) == 0
    return path


@pytest.fixture(scope="module")
def model(events):
    return trained(events, "model", ["slot"])


@pytest.fixture(scope="module")
def many(events):
    return trained(events, "many", ["scene", "slot", "new"])


@pytest.fixture(scope="module")
def ranker(events):
    task = ("--model", "hstu", "--event", "rating", "--task", "liked=rating:4,5")
    return trained(events, "ranker", [], task)


def test_conditions_are_of_their_columns_type(monkeypatch, events, model, tmp_path):
    out = tmp_path / "top.parquet"
    options = ["--conditions", "1,2", "--condition", "slot", "--users", "3,999", "-k", 2]
    assert run(monkeypatch, "generate", model, events, out, *options, "--exclude", "history") == 0
    data = pylum.Interactions.from_parquet(
        events, user="user", item="item", time="time", condition="slot"
    )
    lum = pylum.LUM.from_pretrained(model)
    found = pylum.generate(lum, data.histories([3, 999]), [1, 2], k=2, exclude="history")
    assert pq.read_table(out).equals(found.to_arrow())
    knowledge = tmp_path / "knowledge"
    asked = ["--conditions", "2", "--condition", "slot"]
    assert run(monkeypatch, "query", model, events, knowledge, *asked) == 0
    assert pylum.Knowledge.load(knowledge).conditions == [2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", None, id="none"),
        pytest.param("slot=1", {"slot": [1]}, id="one"),
        pytest.param(
            "scene=b+slot+slot=2,new=true",
            {"scene": ["b+slot", None], "slot": [2, None], "new": [None, True]},
            id="several",
        ),
        pytest.param("scene=c=d", {"scene": ["c=d"]}, id="equals"),
    ],
)
def test_conditions_of_several_fields(many, text, expected):
    assert values.conditions(text, pylum.LUM.from_pretrained(many)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a", "must each be scene=VALUE", id="unnamed"),
        pytest.param("slot=1+slot=2", "must each be scene=VALUE", id="twice"),
        pytest.param("place=x", "must each be scene=VALUE", id="stranger"),
        pytest.param("slot=x", "conditions of slot must be integers, got x", id="integer"),
        pytest.param("new=yes", "conditions of new must be true or false", id="truth"),
    ],
)
def test_wrong_conditions(many, text, message):
    with pytest.raises(ValueError, match=message):
        values.conditions(text, pylum.LUM.from_pretrained(many))


def test_a_field_that_no_option_names_is_said(monkeypatch, capsys, events, model, ranker, tmp_path):
    assert run(monkeypatch, "generate", model, events, tmp_path / "top.parquet") == 0
    said = capsys.readouterr().err
    assert "--condition slot" in said and ".py:" not in said
    shown = tmp_path / "shown.parquet"
    pq.write_table(pa.table({"user": [1, 2], "item": [1, 2]}), shown)
    assert run(monkeypatch, "score", ranker, events, shown, tmp_path / "scores.parquet") == 0
    assert "--event rating" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["pretrain", "{csv}", "m"], "events.csv must be a Parquet file", id="csv"),
        pytest.param(["pretrain", "{events}", "{csv}"], "must be new", id="model-on-file"),
        pytest.param(["pretrain", "{events}", "m", "--items", "no"], "directory: no", id="items"),
        pytest.param(["pretrain", "{events}", "m", "--lr", "inf"], "lr must be finite", id="lr"),
        pytest.param(["pretrain", "{events}", "m", "--lr", "1e39"], "lower lr", id="diverged"),
        pytest.param(["generate", "{model}", "{events}", "no/x"], "directory that is", id="out"),
        pytest.param(["generate", "{model}", "{events}", "x", "-k", "0"], "k must be", id="k"),
        pytest.param(
            ["generate", "{model}", "{events}", "x", "--users", "1,b"],
            "users must be integers, got 1, b",
            id="users",
        ),
        pytest.param(
            ["score", "{ranker}", "{events}", "{events}", "no/x"], "directory that is", id="scores"
        ),
        pytest.param(
            ["score", "{ranker}", "{events}", "{csv}", "x"], "candidates must be a", id="shown"
        ),
        pytest.param(
            ["query", "{model}", "{events}", "k", "--at", "no"], "at must be end, each", id="at"
        ),
        pytest.param(
            ["scaling", "{events}", "--vary", "width", "--values", "8,inf"], "values", id="inf"
        ),
        pytest.param(
            ["scaling", "{events}", "--vary", "width", "--values", "0"], "from 1 on", id="width"
        ),
        pytest.param(
            ["scaling", "{events}", "--vary", "width", "--values", "8", "--plot", "p.x"],
            "plot must be a .png",
            id="plot",
        ),
        pytest.param(
            ["scaling", "{events}", "--vary", "width", "--values", "8", "--out", "no/runs"],
            "directory that is",
            id="runs",
        ),
        pytest.param(["bench", "cpu", "--only", "no such"], "part of an op's name", id="op"),
        pytest.param(["bench", "threads", "--only", "no such"], "part of an op's name", id="op-2"),
        pytest.param(
            ["bench", "cuda", "--device", "cpu", "--tiny", "--only", "no such"],
            "part of an op's name",
            id="op-cuda",
        ),
    ],
)
def test_wrong_use_is_a_message(
    monkeypatch, capsys, events, model, ranker, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    names = {"events": events, "csv": events.with_suffix(".csv"), "model": model, "ranker": ranker}
    filled = [a.format(**names) for a in arguments]
    options = ["--epochs", 1] if arguments[0] in ("pretrain", "scaling") else []
    assert run(monkeypatch, *filled, *options) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_rate_that_diverges_is_left_to_the_others(monkeypatch, capsys, events, tmp_path):
    out = tmp_path / "runs.jsonl"
    asked = ["--vary", "width", "--values", "8", "--epochs", 1, "--out", out]
    assert run(monkeypatch, "scaling", events, *asked, "--lrs", "1e39,1e-3") == 0
    assert "left out at lr 1e+39" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert [row["lr"] for row in rows] == [1e-3] and np.isfinite(rows[0]["nats"])
    assert run(monkeypatch, "scaling", events, *asked[:-1], tmp_path / "b", "--lrs", "1e39") == 1
    assert "at any lr of [1e+39]" in capsys.readouterr().err


def test_a_benchmark_names_the_commit_of_the_package(monkeypatch, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a", "-C", tmp_path]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of another"], check=True)
    other = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    before = harness.machine()["commit"]
    monkeypatch.chdir(tmp_path)
    assert harness.machine()["commit"] == before != other.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    harness.save("rows.json", [])
    assert json.loads((tmp_path / "rows.json").read_text())["machine"]["commit"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "rows.json"]


def test_rows_outlast_an_interruption(monkeypatch, tmp_path):
    """Ctrl-C while the second row is measured."""
    measure, done = cpu.measure, []

    def interrupted(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(measure(*arguments))
        return done[0]

    monkeypatch.setattr(cpu, "measure", interrupted)
    path = tmp_path / "new" / "rows.json"
    options = ["--only", "group query", "--seconds", 0, "--calls", 1, "--json", path]
    assert run(monkeypatch, "bench", "cpu", *options) == 130
    assert json.loads(path.read_text())["rows"] == done
