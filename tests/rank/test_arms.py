"""The six arms end to end, small: every contestant is there, the order of things is right."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.data.protocols import stages
from pylum.demo import rankers as demo
from pylum.demo.rankers_plot import plot
from pylum.rank import impressions
from pylum.rank.arms import ALL, BOTH_ALL, MISSING, rows_of, run_arms, table
from tests.rank import worlds
from tests.rank.test_as_of import data_of, liked_of

KEPT = ("base", "+ e_i", "+ both", "+ both, shuffled", ALL, BOTH_ALL)


@pytest.fixture(scope="module")
def stage():
    return demo.synthetic(users=300, epochs=5)


@pytest.fixture(scope="module")
def arms(stage):
    changes = {"epochs": 2, "hidden": (32,), "dim": 8, "lr": 5e-3, "batch_rows": 256}
    return stage.run(rankers=["dlrm"], arms=KEPT, seeds=[0], changes=changes)


def test_the_rows_are_of_later_stages_than_the_user_model(stage):
    train, valid, test = stage.parts
    assert stage.knowledge.cut < min(train["time"].to_pylist())
    assert max(train["time"].to_pylist()) < min(valid["time"].to_pylist())
    assert max(valid["time"].to_pylist()) < min(test["time"].to_pylist())
    assert max(stage.earlier["time"].to_pylist()) <= stage.knowledge.cut
    for part in stage.parts:
        labels = np.asarray(part["label"])
        assert labels.mean() == 0.5


def test_every_contestant_is_scored_on_the_same_rows(arms, tmp_path):
    assert set(arms.scores) == {
        *("item mean", "item + user mean", "best possible", "LUM alone"),
        *(f"dlrm {arm}" for arm in (*KEPT, MISSING)),
    }
    found = arms.comparison(samples=100)
    auc = {name: row["AUC"].value for name, row in found.values.items()}
    # So few rows do not show what knowledge is worth, but whose it is.
    assert max(auc, key=auc.get) == "best possible"
    assert auc["item mean"] < auc["dlrm base"]
    assert auc["dlrm + both, shuffled"] < auc["dlrm + both"]
    gain = found.gains["dlrm + both", "dlrm base"]["AUC"]
    assert gain.value == pytest.approx(auc["dlrm + both"] - auc["dlrm base"])
    text = table(arms.title, found)
    assert "dlrm + both, shuffled over + e_i" in text and ", 1 seed\n" in text
    assert "a control: must not beat + e_i" in text and "+ direct" not in text
    assert f"{auc['dlrm + both']:.4f}" in text
    assert json.loads(found.to_json())["values"]["dlrm base"]["AUC"]["value"] == auc["dlrm base"]
    assert plot(tmp_path / "arms.png", arms.title, found)
    assert (tmp_path / "arms.png").stat().st_size > 1000


def test_rows_of_a_part_are_its_targets():
    data = data_of(2, events=200, span=100)
    rows = impressions(data, liked_of(data))
    parts = [rows_of(rows, part) for part in stages(data, "user")]
    assert sorted(pa.concat_tables(parts)["event"].to_pylist()) == list(range(200))
    for part, table_ in zip(stages(data, "user"), parts, strict=True):
        assert len(table_) == part.num_targets


def test_arms_of_rows_and_knowledge_of_ones_own():
    known = worlds.knowledge()
    parts = [worlds.known_rows(known, n, seed=s) for n, s in ((800, 0), (300, 1), (400, 2))]
    arms = run_arms(
        "mine",
        worlds.SCHEMA,
        *parts,
        known,
        rankers={"din": {"epochs": 1, "dim": 4, "hidden": (8,)}},
        seeds=[0],
        arms=["base", "+ matching"],
    )
    assert list(arms.scores)[2:] == ["din base", "din + matching"]
    assert np.array_equal(arms.labels, parts[2]["label"].to_numpy())
    # A floor knows the training rows only.
    first = parts[0].to_pandas().groupby("item")["label"].mean()
    expected = [
        first.get(i, parts[0]["label"].to_numpy().mean()) for i in parts[2]["item"].to_pylist()
    ]
    np.testing.assert_allclose(arms.scores["item mean"][0], expected)


def test_arms_on_all_rows_have_settings_of_their_own():
    known = worlds.knowledge()
    parts = [worlds.known_rows(known, n, seed=s) for n, s in ((400, 0), (100, 1), (100, 2))]
    fitted = {}
    run_arms(
        "mine",
        worlds.SCHEMA,
        *parts,
        known,
        rankers={"dlrm": {"epochs": 1, "dim": 4, "hidden": (8,)}},
        on_all={"dlrm": {"epochs": 3, "lr": 0.01}},
        seeds=[0],
        arms=["base", "+ both", ALL, BOTH_ALL],
        earlier=worlds.known_rows(known, 200, seed=3),
        on_fit=lambda name, seed, ranker: fitted.setdefault(name, ranker),
    )
    epochs = {name: len(ranker.history) for name, ranker in fitted.items()}
    assert [*epochs.values()] == [1, 1, 3, 3]
    assert fitted[f"dlrm {BOTH_ALL}"].settings.lr == 0.01 != fitted["dlrm + both"].settings.lr
    # What an arm answers without knowledge is its base, of the same rows.
    for arm, base in (("+ both", "base"), (BOTH_ALL, ALL)):
        mine = fitted[f"dlrm {arm}"].network.state_dict()
        first = fitted[f"dlrm {base}"].network.state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in first.items())


def test_an_outcome_as_condition_keeps_the_events():
    data = data_of(3)
    liked = liked_of(data)
    told = demo.with_condition(data, "told", liked)
    assert [f.name for f in told.schema.conditions] == ["scene", "told"]
    rows = told.vocabs.conditions["told"].values(told.events.conditions["told"])
    assert rows == liked.tolist()
    assert [f.name for f in data.schema.conditions] == ["scene"]
    assert "told" not in data.vocabs.conditions
    assert np.array_equal(told.event_hashes(), data.event_hashes())
    assert pa.types.is_boolean(told.vocabs.conditions["told"].ids.type)


def test_errors():
    with pytest.raises(
        ValueError, match="protocol must be 'rest-auc' or 'din-auc', got 'loo-full'"
    ):
        demo.ml_100k("loo-full")
