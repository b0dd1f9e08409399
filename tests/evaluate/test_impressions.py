"""Comparison of rankers on rows: metrics beside scikit-learn, intervals beside plain loops."""

import numpy as np
import pytest
from sklearn import metrics as sk

from pylum.evaluate import compare, metrics
from pylum.evaluate.floors import mean_floors


def case(seed=0, rows=400, users=30):
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.4).astype(int)
    user = np.array([f"u{u}" for u in random.integers(0, users, rows)])
    good = np.clip(0.3 * label + 0.7 * random.random(rows), 0.01, 0.99)
    bad = np.round(random.random(rows), 1) * 0.98 + 0.01
    return label, user, good, bad


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_scikit_learn(seed):
    label, user, good, bad = case(seed)
    found = compare(label, user, {"good": good, "bad": bad}, over=[("good", "bad")], samples=50)
    for name, score in (("good", good), ("bad", bad)):
        values = {metric: interval.value for metric, interval in found.values[name].items()}
        assert values["AUC"] == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
        assert values["log loss"] == pytest.approx(sk.log_loss(label, score), abs=1e-12)
        base = sk.log_loss(label, np.full(len(label), label.mean()))
        assert values["NE"] == pytest.approx(sk.log_loss(label, score) / base, abs=1e-12)
        assert metrics.normalised_entropy(label, score) == pytest.approx(values["NE"])
        total = weight = 0.0
        for u in np.unique(user):
            mine = user == u
            if 0 < label[mine].sum() < mine.sum():
                total += mine.sum() * sk.roc_auc_score(label[mine], score[mine])
                weight += mine.sum()
        assert values["GAUC"] == pytest.approx(total / weight, abs=1e-12)
    gain = found.gains["good", "bad"]["AUC"]
    assert gain.value == pytest.approx(
        found.values["good"]["AUC"].value - found.values["bad"]["AUC"].value
    )
    assert gain.low <= gain.value <= gain.high
    assert found.to_dict()["gains"][0]["over"] == "bad"


def test_draws_are_those_of_users_with_all_their_rows():
    label, user, good, bad = case(rows=200, users=12)
    found = compare(label, user, {"good": good, "bad": bad}, over=[("good", "bad")], samples=300)
    random = np.random.default_rng(7)
    names = np.unique(user)
    drawn = []
    for _ in range(600):
        rows = np.concatenate([np.flatnonzero(user == u) for u in random.choice(names, len(names))])
        drawn.append(
            sk.roc_auc_score(label[rows], good[rows]) - sk.roc_auc_score(label[rows], bad[rows])
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    gain = found.gains["good", "bad"]["AUC"]
    assert gain.low == pytest.approx(low, abs=0.25 * (high - low))
    assert gain.high == pytest.approx(high, abs=0.25 * (high - low))


def test_pairs_cancel_what_they_share_and_seeds_are_drawn():
    label, user, good, bad = case()
    same = compare(label, user, {"a": good, "b": good}, over=[("a", "b")], samples=100)
    gain = same.gains["a", "b"]["AUC"]
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
    two = np.stack([good, bad])
    found = compare(label, user, {"a": two, "floor": bad}, only_order=("floor",), samples=100)
    mean = (sk.roc_auc_score(label, good) + sk.roc_auc_score(label, bad)) / 2
    assert found.values["a"]["AUC"].value == pytest.approx(mean)
    assert found.seeds == 2 and list(found.values["floor"]) == ["AUC", "GAUC"]
    one = compare(label, user, {"a": good}, samples=100).values["a"]["AUC"]
    wide = found.values["a"]["AUC"]
    assert wide.high - wide.low > one.high - one.low


def test_errors():
    label, user, good, _ = case()
    with pytest.raises(ValueError, match="must hold both 0 and 1 for an AUC, got 1"):
        compare(np.ones(400), user, {"a": good})
    with pytest.raises(ValueError, match="labels must be"):
        compare(label * 2, user, {"a": good})
    with pytest.raises(ValueError, match=r"scores of 'a' must be \[400\]"):
        compare(label, user, {"a": good[:5]})
    with pytest.raises(ValueError, match="must not be NaN, got 1"):
        compare(label, user, {"a": np.r_[np.nan, good[1:]]})
    with pytest.raises(ValueError, match=r"users must be \[400\], got \[3\]"):
        compare(label, user[:3], {"a": good})


def test_mean_floors_by_hand():
    found = mean_floors(
        [1, 0, 1, 1], ["a", "a", "b", "b"], [1, 1, 1, 2], ["a", "b", "z", "z"], [1, 2, 1, 9]
    )
    np.testing.assert_allclose(found["item mean"], [2 / 3, 1, 2 / 3, 3 / 4])
    np.testing.assert_allclose(
        found["item + user mean"], [2 / 3 + 1 / 2, 2, 2 / 3 + 3 / 4, 3 / 4 + 3 / 4]
    )
