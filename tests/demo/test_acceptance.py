"""The demo's training reaches what its world allows: the figures the project promises."""

import pytest
import torch

from pylum import demo
from pylum.demo.accuracy import K, table
from pylum.evaluate import metrics
from pylum.evaluate.next_item import targets_of
from pylum.generation.catalogue import catalogue
from pylum.generation.prefixes import PrefixQuestions, answer_prefixes, plan
from pylum.train import pretrain


@pytest.fixture(scope="module")
def trained():
    case = demo.synthetic(users=3000, epochs=6)
    train, valid, test = case.data.split(case.protocol)
    fitted = train.merged(valid)
    return case, pretrain(case.config, fitted, progress=False, **case.options), fitted, test


def test_recall_beside_the_best_possible(trained):
    case, model, fitted, test = trained
    rows = {row.name: row for row in table(case, model, fitted, test)}
    best = rows["LUM, right condition"].best
    assert rows["LUM, right condition"].recall >= 0.9 * best
    # The condition is worth as much as the world's pinned difficulty says.
    assert rows["LUM, wrong condition"].recall <= 0.4 * best
    assert rows["LUM, ANY"].recall <= 0.7 * best
    assert rows["LUM, ANY"].recall >= 0.8 * rows["LUM, ANY"].best


def test_cold_items_are_found_by_their_features(trained):
    _, model, fitted, test = trained
    scored = targets_of(test)
    events = test.histories().encode(model.vocabs, model.schema)
    targets = events.items[scored.index]
    cold = ~torch.isin(targets, fitted.events.items.unique())
    assert int(cold.sum()) > 500
    columns = {name: column[scored.index] for name, column in events.conditions.items()}
    questions = PrefixQuestions(scored.users, scored.places, columns)
    hit = torch.zeros(len(targets), dtype=torch.bool)
    steps = plan(model, questions, 65536)
    for index, answers in answer_prefixes(model, events, questions, steps):
        hit[index] = metrics.ranks(answers, catalogue(model)[1:], targets[index] - 1) < K
    warm_recall, cold_recall = (hit[part].float().mean() for part in (~cold, cold))
    assert cold_recall >= 0.5 * warm_recall
