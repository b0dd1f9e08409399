"""The demo on a small world: what it prints comes from the run, and its torch is the same model."""

import pytest
import torch
from rich.console import Console

from pylum import demo
from pylum.conditions import normalise
from pylum.demo.accuracy import table
from pylum.demo.cost import exactness, torch_answers
from pylum.demo.show import one_user
from pylum.generation import generate
from pylum.train import pretrain
from tests.tolerance import MODEL


@pytest.fixture(scope="module")
def small():
    case = demo.synthetic(users=120, epochs=3)
    train, valid, test = case.data.split(case.protocol)
    fitted = train.merged(valid)
    options = {**case.options, "batch_tokens": 512}
    return case, pretrain(case.config, fitted, progress=False, **options), fitted, test


def test_torch_answers_the_same(small):
    _, model, _, test = small
    histories = test.histories(test.users[:9])
    asked = normalise(["gift"], 1, model.schema.conditions, model.vocabs.conditions)
    events = histories.encode(model.vocabs, model.schema)
    plain, tokens = torch_answers(model, events, asked.columns)
    ours = generate(model, histories, ["gift"], k=0).embeddings
    assert (plain - ours).abs().max() < MODEL[torch.float32]
    assert tokens == 2 * events.total + len(events)


def test_exactness_is_within_the_promise(small):
    _, model, _, test = small
    found = exactness(model, test.histories(test.users[:9]), ["gift", "home", "night"])
    assert max(found.alone, found.shuffled, found.cached) < MODEL[torch.float32]


def test_recall_of_each_contestant(small):
    case, model, fitted, test = small
    rows = {row.name: row for row in table(case, model, fitted, test)}
    right, wrong = rows["LUM, right condition"], rows["LUM, wrong condition"]
    assert right.best == case.world.bayes_recall(test, 10)
    assert 0 < wrong.recall < right.recall < right.best
    assert rows["popularity"].recall < rows["popularity in the condition"].recall


def test_ticks_are_items_chosen_in_the_test_part(small):
    case, model, _, test = small
    console = Console(record=True, width=200)
    one_user(console, case, model, test)
    text = console.export_text()
    user = text.split("(")[1].split(")")[0]
    place = test.users.index(user)
    own = slice(int(test.events.offsets[place]), int(test.events.offsets[place + 1]))
    chosen = test.vocabs.items.values(test.events.items[own][test.events.targets[own]].numpy())
    ticked = [part.split()[0] for part in text.split("✓ ")[2:]]
    assert set(ticked) <= set(chosen)
    assert len([line for line in text.splitlines() if line.startswith("  ") and "(" in line]) == 5
