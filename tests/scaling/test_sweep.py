"""A sweep measures every setting on the same targets, and can be stopped and resumed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss
from typer.testing import CliRunner

from pylum import LUMConfig, generate
from pylum.cli import app
from pylum.evaluate.likelihood import cross_entropy
from pylum.scaling import Setting, runs, sweep
from pylum.scaling.runs import shrunk
from tests.serving.worlds import data, model

PARTS = data().split("loo-full")
TINY = LUMConfig(dim=8, layers=1, max_length=20)


@torch.no_grad()
def test_cross_entropy_by_hand():
    lum, test = model(), PARTS[2]
    anys = cross_entropy(lum, test, conditions="any")
    vectors = torch.nn.functional.normalize(lum.item_vectors()[1:], dim=-1)
    names = lum.vocabs.items.ids.to_pylist()
    for place, user in enumerate(test.users[:5]):
        events = test.histories([user])
        rows = list(events_of(events))
        last = rows[-1]
        answer = generate(lum, {"u": rows[:-1]}, k=0).embeddings
        logits = (answer @ vectors.T / lum.temperature)[0].double()
        wanted = torch.logsumexp(logits, 0) - logits[names.index(last["item"])]
        assert anys[place] == pytest.approx(float(wanted), abs=1e-3)
        chances = torch.softmax(logits, 0).numpy()
        item = [names.index(last["item"])]
        assert anys[place] == pytest.approx(
            log_loss(item, [chances / chances.sum()], labels=np.arange(len(names))), abs=1e-3
        )


def events_of(histories):
    """The events of one user as dictionaries with their raw values."""
    part = PARTS[2]
    user = part.users.index(histories.users[0])
    a, b = (int(x) for x in part.events.offsets[user : user + 2])
    e = part.events
    items = part.vocabs.items.values(e.items[a:b].numpy())
    scenes = part.vocabs.conditions["scene"].values(e.conditions["scene"][a:b].numpy())
    ratings = part.vocabs.outcomes["rating"].values(e.outcomes["rating"][a:b].numpy())
    for i in range(b - a):
        yield {
            "item": items[i],
            "scene": scenes[i],
            "hour": float(e.conditions["hour"][a + i]),
            "text": e.conditions["text"][a + i].tolist(),
            "rating": ratings[i],
            "time": int(e.times[a + i]),
        }


def test_rows_and_resume(tmp_path, monkeypatch):
    settings = [Setting(TINY), Setting(TINY.replace(max_length=5)), Setting(TINY, 0.5)]
    path = tmp_path / "runs.jsonl"
    arguments = {"lrs": (1e-3, 1e-2), "seeds": (0, 1), "epochs": 1, "out": path}
    rows = sweep(settings, *PARTS, **arguments)
    assert [(r["setting"], r["seed"]) for r in rows] == [(s, d) for s in range(3) for d in (0, 1)]
    assert [r["length"] for r in rows] == [20, 20, 5, 5, 20, 20]
    assert rows[4]["events"] < rows[0]["events"]
    assert all(np.isfinite(r["nats"]) and 0 <= r["recall"] <= 1 for r in rows)
    tried = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(tried) == 3 * 2 + 3
    for place in range(3):
        first = [r for r in tried if r["setting"] == place and r["seed"] == 0]
        best = min(first, key=lambda r: r["valid_nats"])["lr"]
        assert {r["lr"] for r in rows if r["setting"] == place} == {best}
    # Half a line is the mark of an interruption: that run is done again, and no other.
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    count = []
    run = runs._run
    monkeypatch.setattr(runs, "_run", lambda *a: count.append(a[1]) or run(*a))
    again = sweep(settings, *PARTS, **arguments)
    assert count == [2]
    same = [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in again] == same
    with pytest.raises(ValueError, match="another sweep"):
        sweep(settings[:2], *PARTS, **arguments)


def test_a_smaller_share_is_part_of_a_larger():
    train = PARTS[0]
    half, most = shrunk(train, 0.4), shrunk(train, 0.8)
    assert set(half.users) < set(most.users) < set(train.users)
    assert shrunk(train, 1.0) is train
    assert shrunk(train, 0.4).fingerprint == half.fingerprint


def test_errors():
    with pytest.raises(ValueError, match="share must be in"):
        Setting(TINY, 0)
    with pytest.raises(ValueError, match="at least one"):
        sweep([], *PARTS)


def test_command_line(tmp_path):
    rng = np.random.default_rng(0)
    rows = 600
    pq.write_table(
        pa.table(
            {
                "user": rng.integers(0, 20, rows),
                "item": rng.integers(0, 15, rows),
                "time": np.arange(rows),
            }
        ),
        tmp_path / "events.parquet",
    )
    arguments = ["scaling", str(tmp_path / "events.parquet"), "--vary", "length"]
    arguments += ["--epochs", "1", "--lrs", "1e-3", "--out", str(tmp_path / "s.jsonl")]
    arguments += ["--plot", str(tmp_path / "s.png"), "--form", "log"]
    made = CliRunner().invoke(app, [*arguments, "--values", "2,4,8"])
    assert made.exit_code == 0, made.output
    assert "a + b ln x" in made.output
    assert (tmp_path / "s.png").stat().st_size > 5000
    wrong = CliRunner().invoke(app, [*arguments, "--values", "2,x"])
    assert isinstance(wrong.exception, ValueError) and "values must be numbers" in str(
        wrong.exception
    )
