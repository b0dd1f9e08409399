"""Every form in which conditions may come, coded alike."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pylum.conditions import ANY, normalise
from pylum.data.schema import Field
from pylum.data.vocab import Vocab
from pylum.ragged import Ragged

SCENE = Field("scene")
HOUR = Field("hour", "number")
QUERY = Field("query", "vector", 2)
VOCABS = {"scene": Vocab(["home", "search"], any=True)}


def scenes(conditions, users=2, fields=(SCENE,)):
    coded = normalise(conditions, users, fields, VOCABS)
    assert len(coded) == len(coded.columns["scene"]) == len(coded.values())
    return coded


@pytest.mark.parametrize(
    ("conditions", "rows", "offsets"),
    [
        pytest.param(None, [1, 1], [0, 1, 2], id="none-is-any"),
        pytest.param(["home", "search"], [2, 3, 2, 3], [0, 2, 4], id="flat"),
        pytest.param(("home", ANY), [2, 1, 2, 1], [0, 2, 4], id="tuple-with-any"),
        pytest.param(np.array(["home"]), [2, 2], [0, 1, 2], id="array"),
        pytest.param(pd.Series(["home", None]), [2, 1, 2, 1], [0, 2, 4], id="series-with-null"),
        pytest.param([["home"], ["search", ANY]], [2, 3, 1], [0, 1, 3], id="per-user"),
        pytest.param([[], ["search"]], [3], [0, 0, 1], id="per-user-none-for-one"),
        pytest.param([[], []], [], [0, 0, 0], id="none-for-all"),
        pytest.param([], [], [0, 0, 0], id="empty"),
        pytest.param(
            Ragged(["home", "search"], torch.tensor([0, 2, 2])), [2, 3], [0, 2, 2], id="ragged"
        ),
        pytest.param({"scene": ["home", "search"]}, [2, 3, 2, 3], [0, 2, 4], id="dict"),
        pytest.param({"scene": "home"}, [2, 2], [0, 1, 2], id="dict-of-scalar"),
        pytest.param([{"scene": "home"}, {}], [2, 1, 2, 1], [0, 2, 4], id="dicts"),
        pytest.param(pd.DataFrame({"scene": ["home"]}), [2, 2], [0, 1, 2], id="frame"),
        pytest.param(["unseen"], [0, 0], [0, 1, 2], id="unknown"),
    ],
)
def test_forms(conditions, rows, offsets):
    coded = scenes(conditions)
    assert coded.columns["scene"].tolist() == rows
    assert coded.columns["scene"].dtype == torch.int64
    assert coded.offsets.tolist() == offsets
    assert coded.unknown == rows.count(0)


def test_values_come_back_as_they_came():
    assert scenes(["home", ANY, "unseen"]).values() == ["home", ANY, "unseen"] * 2
    assert scenes(None).values() == [ANY, ANY]
    both = normalise({"scene": ["home", ANY], "hour": 3.0}, 1, (SCENE, HOUR), VOCABS)
    assert both.values() == [{"scene": "home", "hour": 3.0}, {"scene": ANY, "hour": 3.0}]


def test_several_fields_are_zipped_and_missing_ones_any():
    fields = (SCENE, HOUR, QUERY)
    coded = normalise({"scene": ["home", "search"], "hour": 7}, 2, fields, VOCABS)
    assert coded.columns["scene"].tolist() == [2, 3, 2, 3]
    assert coded.columns["hour"].tolist() == [7.0] * 4
    assert coded.columns["query"].shape == (4, 2)
    assert coded.columns["query"].isnan().all()
    coded = normalise({"query": [[1, 2], [3, 4]]}, 1, fields, VOCABS)
    assert coded.columns["scene"].tolist() == [1, 1]
    assert coded.columns["query"].tolist() == [[1, 2], [3, 4]]
    own = Ragged(["home", "search"], torch.tensor([0, 0, 2]))
    coded = normalise({"scene": own, "hour": 7}, 2, fields, VOCABS)
    assert coded.offsets.tolist() == [0, 0, 2]
    assert coded.columns["hour"].tolist() == [7.0] * 2


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        pytest.param([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], 6, id="flat-list-of-vectors"),
        pytest.param(np.ones((3, 2), np.float32), 6, id="array"),
        pytest.param([[[1.0, 2.0]], []], 1, id="per-user"),
        pytest.param(Ragged(torch.ones(3, 2), torch.tensor([0, 1, 3])), 3, id="ragged"),
        pytest.param([ANY], 2, id="any"),
    ],
)
def test_vectors(conditions, count):
    coded = normalise(conditions, 2, (QUERY,), {})
    assert coded.columns["query"].shape == (count, 2)
    assert coded.columns["query"].dtype == torch.float32


def test_users_are_a_slice():
    coded = normalise([["home"], ["search", "home"], []], 3, (SCENE,), VOCABS)
    part = coded.users(1, 3)
    assert part.columns["scene"].tolist() == [3, 2]
    assert part.offsets.tolist() == [0, 2, 2]
    assert part.values() == ["search", "home"]


def test_a_model_without_condition_fields_is_asked_any():
    assert len(normalise(None, 3, (), {})) == 3
    assert normalise([ANY, ANY], 1, (), {}).columns == {}
    with pytest.raises(ValueError, match="it has none"):
        normalise(["home"], 1, (), {})


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        pytest.param("home", TypeError, "list of values, got the single value 'home'", id="str"),
        pytest.param(ANY, TypeError, "single value ANY", id="any"),
        pytest.param([["home"]], ValueError, "each of the 2 users, got 1 list", id="lists"),
        pytest.param(["home", ["search"]], TypeError, "mixture", id="mixed"),
        pytest.param({"scen": ["home"]}, ValueError, "model .scene., got 'scen'", id="name"),
        pytest.param({}, ValueError, "at least one field", id="empty-dict"),
        pytest.param([3], TypeError, "condition 'scene' must be strings, got integers", id="type"),
        pytest.param(
            Ragged(["home"], torch.tensor([0, 1])), ValueError, "2 rows, one a", id="ragged"
        ),
        pytest.param({"scene": ["home"], "hour": [1, 2]}, ValueError, "equal length", id="unequal"),
        pytest.param({"hour": "noon"}, TypeError, "condition 'hour' must be numbers", id="number"),
    ],
)
def test_errors(conditions, error, message):
    fields = (SCENE, HOUR) if isinstance(conditions, dict) and "hour" in conditions else (SCENE,)
    with pytest.raises(error, match=message):
        normalise(conditions, 2, fields, VOCABS)


def test_several_fields_need_names():
    with pytest.raises(ValueError, match=r"scene, hour\): pass a dict"):
        normalise(["home"], 1, (SCENE, HOUR), VOCABS)


def test_any_is_one_object():
    assert copy.deepcopy(ANY) is ANY
    assert pickle.loads(pickle.dumps(ANY)) is ANY
    assert repr(ANY) == "ANY"
