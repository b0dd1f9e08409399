"""Planted curves are recovered, and the intervals hold them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import fit_scaling

X = np.geomspace(1e4, 1e9, 12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 1.5), st.floats(0.1, 50), st.floats(-5, 5), st.sampled_from([-1, 1]))
def test_planted_power_and_floor(alpha, size, gamma, sign):
    # `size` is what the curve falls over the range, so that it can be seen beside the floor.
    a = sign * size / (X[0] ** -alpha - X[-1] ** -alpha)
    fit = fit_scaling(X, a * X**-alpha + gamma, samples=10)
    assert fit.coefficients["alpha"] == pytest.approx(alpha, rel=1e-3)
    assert fit.coefficients["a"] == pytest.approx(a, rel=2e-2)
    assert fit.coefficients["gamma"] == pytest.approx(gamma, abs=2e-2 * max(1, size / alpha))
    assert fit.r2 > 1 - 1e-9 and not fit.at_bound


@pytest.mark.parametrize("alpha", [-0.5, 0.05, 0.3, 2.0])
def test_planted_power(alpha):
    fit = fit_scaling(X, 3.5 * X**-alpha, "power", samples=10)
    assert fit.coefficients == pytest.approx({"a": 3.5, "alpha": alpha}, rel=1e-4)


def test_planted_logarithm():
    fit = fit_scaling(X, 0.2 + 0.013 * np.log(X), "log", samples=10)
    assert fit.coefficients == pytest.approx({"a": 0.2, "b": 0.013}, rel=1e-9)
    np.testing.assert_allclose(fit.predict(X), 0.2 + 0.013 * np.log(X))


def test_units_move_only_the_factor():
    y = 5 * X**-0.3 + 1.2 + 0.002 * np.sin(np.arange(12))
    one, other = fit_scaling(X, y, samples=10), fit_scaling(X * 1e6, y, samples=10)
    assert one.coefficients["alpha"] == pytest.approx(other.coefficients["alpha"], rel=1e-6)
    assert one.coefficients["gamma"] == pytest.approx(other.coefficients["gamma"], rel=1e-6)


@pytest.mark.parametrize("form", ["power_floor", "power", "log"])
def test_no_other_coefficients_fit_better(form):
    rng = np.random.default_rng(3)
    y = 8 * X**-0.2 + 0.5 + 0.01 * rng.normal(size=len(X))
    fit = fit_scaling(X, y, form, samples=10)
    least = ((fit.predict(X) - y) ** 2).sum()
    for _ in range(300):
        moved = {n: v * (1 + 0.02 * rng.normal()) for n, v in fit.coefficients.items()}
        other = type(fit)(form, moved, {}, 0.0, 0.95, False)
        assert ((other.predict(X) - y) ** 2).sum() >= least * (1 - 1e-9)


@pytest.mark.parametrize("seeds", [1, 6])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        noise = 0.01 * rng.normal(size=(seeds, len(X)))
        y = 4 * X**-0.15 + 0.9 + noise
        fit = fit_scaling(X, y if seeds > 1 else y[0], samples=200, seed=trial)
        low, high = fit.intervals["alpha"]
        held += low <= 0.15 <= high
    # Six seeds are few to resample: their intervals are somewhat narrow.
    assert held >= (50 if seeds == 1 else 42)


def test_a_flat_line_says_that_its_exponent_is_unknown():
    rng = np.random.default_rng(1)
    y = 2.0 + 1e-12 * rng.normal(size=len(X))
    fit = fit_scaling(X, y, samples=10)
    assert np.isfinite(list(fit.coefficients.values())).all()
    np.testing.assert_allclose(fit.predict(X), 2.0, atol=1e-9)


def test_the_same_seed_gives_the_same_intervals():
    y = 4 * X**-0.15 + 0.01 * np.cos(np.arange(12))
    assert fit_scaling(X, y, samples=20) == fit_scaling(X, y, samples=20)
    assert "alpha" in str(fit_scaling(X, y, samples=20))


@pytest.mark.parametrize(
    "x, y, form, message",
    [
        pytest.param([1, 2, 3, 4], [1, 2, 3], "log", r"\[4\] and \[3\]", id="lengths"),
        pytest.param([1, 2, 3], [1, 2, 3], "power_floor", "more than 3 distinct", id="few"),
        pytest.param([1, 1, 1, 2], [1, 2, 3, 4], "log", "more than 2 distinct", id="same"),
        pytest.param([0, 1, 2, 3], [1, 2, 3, 4], "log", "positive", id="zero"),
        pytest.param([1, 2, 3, 4], [1, 2, np.nan, 4], "log", "finite", id="nan"),
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], "cubic", "form must be", id="form"),
    ],
)
def test_errors(x, y, form, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling(x, y, form)
