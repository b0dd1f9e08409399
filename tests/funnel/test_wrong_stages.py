"""Stages that do not fit each other are told apart before a slate is wrong."""

import numpy as np
import pytest
import torch

import pylum
from pylum.funnel import ExactSearch, InterestRecall, PopularityRecall, Rerank

ITEMS = 12


def funnel(**changes):
    """Everyone is recalled the catalogue, and liked in the order of the rows."""

    def likes(candidates):
        return -candidates.rows.astype(np.float32)

    options = {
        "recall": PopularityRecall(np.ones(ITEMS)),
        "prerank": likes,
        "rank": likes,
        "rerank": Rerank(),
        "budgets": {"recall": ITEMS, "prerank": ITEMS, "rank": ITEMS},
        "items": [f"i{row}" for row in range(ITEMS)],
        **changes,
    }
    return pylum.Funnel(**options)


def slate(k=3, **changes):
    return funnel(**changes).recommend(["u"], k).items[0].tolist()


@pytest.mark.parametrize("rows", [[], [0, 2], np.array([0, 2, 2], np.int32)])
def test_rows_to_exclude_may_be_lists(rows):
    expected = [f"i{row}" for row in range(ITEMS) if row not in list(rows)]
    assert slate(exclude=lambda users: [rows]) == expected[:3]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        pytest.param(lambda users: [], "exclude must give rows for 1 users, got 0", id="too-few"),
        pytest.param(lambda users: [[ITEMS]], r"rows in \[0, 12\), got \[12\]", id="beyond"),
        pytest.param(lambda users: [[-1]], r"rows in \[0, 12\), got \[-1\]", id="negative"),
        pytest.param(lambda users: [["i3"]], r"rows in \[0, 12\), got \['i3'\]", id="ids"),
    ],
)
def test_wrong_rows_to_exclude(exclude, message):
    with pytest.raises(ValueError, match=message):
        slate(exclude=exclude)


@pytest.mark.parametrize(
    ("rerank", "message"),
    [
        pytest.param(
            {"groups": {"brand": ["x"] * 3}, "most": {"brand": 1}},
            r"groups\['brand'\] must hold a value for each of 12 items, got 3",
            id="groups",
        ),
        pytest.param(
            {"diversity": 0.5, "vectors": torch.eye(13)},
            "vectors must hold a value for each of 12 items, got 13",
            id="vectors",
        ),
    ],
)
def test_a_rerank_of_another_catalogue(rerank, message):
    with pytest.raises(ValueError, match=message):
        funnel(rerank=Rerank(**rerank))


def test_numbers_are_integers():
    with pytest.raises(TypeError, match=r"budgets\['recall'\] must be an integer, got 3.5"):
        funnel(budgets={"recall": 3.5, "prerank": 2, "rank": 1})
    with pytest.raises(TypeError, match=r"k must be an integer, got 2\.0"):
        slate(k=2.0)
    with pytest.raises(TypeError, match="users must be a list of ids, got 'u'"):
        funnel().recommend("u")


@pytest.mark.parametrize(("infinite", "end"), [(-np.inf, -1e-6), (np.inf, 1 + 1e-6)])
def test_an_infinite_score_is_at_an_end_and_the_others_stay_diverse(infinite, end):
    """Rows 1 and 2 are alike, so row 3 goes between them, though row 2 is liked better."""
    vectors = torch.eye(ITEMS)
    vectors[2] = vectors[1]

    def found(first):
        scores = np.array([first, 1.0, 0.9, 0.5, *[0.0] * 8], np.float32)
        rerank = Rerank(diversity=0.5, vectors=vectors)
        return slate(k=ITEMS, rank=lambda c: scores[c.rows], rerank=rerank)

    assert found(infinite) == found(end)
    assert found(infinite).index("i3") < found(infinite).index("i2")


def test_half_precision_vectors_are_searched():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(ITEMS, 8), dim=1)
    users = torch.randn(1, 2, 8)
    found, expected = (
        slate(recall=InterestRecall(lambda _: users, ExactSearch(some)), k=ITEMS)
        for some in (vectors.half(), vectors.half().float())
    )
    assert found == expected
