"""An HSTU as a module: what it refuses, its files, its parts left out."""

import pytest
import torch

from pylum import HSTU, HSTUConfig, Task, UserCache
from pylum.data import ItemTable, Schema, Vocab, Vocabs
from tests.model.hstu_world import TASKS, make_hstu
from tests.model.test_hstu import CONTEXT, PRODUCTION, WINDOW, ask, run
from tests.model.world import SCHEMA, make_events, make_items, make_vocabs


def test_min_full_refuses_what_would_differ():
    model = make_hstu(**PRODUCTION, **WINDOW)
    visible = torch.tensor([1, 3])
    with pytest.raises(ValueError, match="visible must be the whole history"):
        ask(model, make_events([3]), [2], visible=visible)
    with pytest.raises(ValueError, match="model must be without min_full to be cached"):
        UserCache(model, 640)


def test_without_projections_and_features_an_item_is_its_row():
    config = HSTUConfig(dim=8, project=False)
    model = HSTU(config, Schema(), Vocabs(Vocab(["a", "b", "c"])), ItemTable(4))
    ids = model.item_encoder.ids.detach()
    vectors = model.item_vectors().detach()
    torch.testing.assert_close(vectors, ids / ids.norm(dim=1, keepdim=True))
    tokens = model.choice_tokens(torch.tensor([2, 1]), {}).detach()
    bias = model.condition_encoder.bias.detach()
    torch.testing.assert_close(tokens, ids[[2, 1]] * 8**0.5 + bias)
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(model.answers(hidden), hidden / hidden.norm(dim=1, keepdim=True))


def test_save_and_load(tmp_path):
    model = make_hstu(task="ranking", **PRODUCTION, **CONTEXT, **WINDOW)
    model.save_pretrained(tmp_path / "m")
    loaded = HSTU.from_pretrained(tmp_path / "m")
    assert loaded.config == model.config and loaded.config.tasks == TASKS
    assert loaded.fingerprint() == model.fingerprint()
    events = make_events([5])
    assert torch.equal(run(model, events)[1], run(loaded, events)[1])
    with pytest.raises(ValueError, match="must hold a LUM, got 'HSTU'"):
        from pylum.model import LUM

        LUM.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"variant": "paper"}, ValueError, "variant must be research or production"),
        ({"task": "both"}, ValueError, "task must be retrieval or ranking"),
        ({"task": "ranking"}, ValueError, "tasks must be given with task='ranking'"),
        ({"tasks": TASKS}, ValueError, "tasks must be given with task='ranking'"),
        ({"window": 3}, ValueError, "window must be left out of the research variant, got 3"),
        ({"min_full": 3}, ValueError, "min_full must be left out of the research variant"),
        ({**PRODUCTION, "window": -1}, ValueError, "window must be at least 0, got -1"),
        ({**PRODUCTION, "min_full": 3}, ValueError, "min_full must be 0 without window"),
        ({"context": ("age",)}, ValueError, "context must be left out of the research variant"),
        ({**PRODUCTION, "context": ("a", "a")}, ValueError, "context must name each field once"),
        ({"head_dim": 300}, ValueError, "head_dim must be at most 256"),
        ({"layers": 0}, ValueError, "layers must be at least 1"),
        ({"project": False, "width": 8}, ValueError, "dim must be width = 8 with project=False"),
        ({"dropout": 1.0}, ValueError, "dropout must be in"),
        ({"heads": 2.0}, TypeError, "heads must be int"),
    ],
)
def test_config_checks_its_fields(changes, error, message):
    with pytest.raises(error, match=message):
        HSTUConfig(**changes)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("a", "dwell", (1,)), "must ask a category among the outcomes"),
        (Task("a", "rating"), "must ask a number among the outcomes"),
        (Task("a", "scene", ("home",)), "must ask a category among the outcomes"),
        (Task("a", "rating", (9,)), "must have values that 'rating' takes"),
    ],
)
def test_tasks_ask_known_outcomes(task, message):

    with pytest.raises(ValueError, match=message):
        HSTU(HSTUConfig(task="ranking", tasks=(task,)), SCHEMA, make_vocabs(), make_items())


def test_context_is_made_of_known_conditions():
    with pytest.raises(ValueError, match=r"context must be among the conditions .*, got \['age'\]"):
        make_hstu(**PRODUCTION, context=("age", "scene"))
