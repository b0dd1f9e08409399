"""HSTU over histories that lie in pages: whole and cached are one, in one pass or several."""

from dataclasses import replace

import pytest
import torch

from pylum import ops
from pylum.model.hstu_batch import Asked, make_batch
from pylum.ragged import lengths_to_offsets
from tests.model.hstu_world import make_hstu
from tests.model.test_hstu import CONTEXT, PRODUCTION, STEADY, WINDOW, close, run
from tests.model.world import make_events


@pytest.mark.parametrize("changes", STEADY)
@pytest.mark.parametrize("task", ["retrieval", "ranking"])
def test_cached_equals_whole_pass(changes, task):
    """All behaviours but some in pages, then the rest and the targets; asking leaves no trace."""
    model = make_hstu(**changes, task=task)
    c = model.config
    per = c.tokens_per_behaviour
    events = make_events([20, 7, 33, 0])
    counts = torch.tensor([1, 2, 3, 1])
    asked = Asked(lengths_to_offsets(counts), times=torch.full((7,), 3_000_000))
    if task == "ranking":
        shown = make_events([7], seed=5)
        choices = model.choice_tokens(shown.items, shown.conditions)
        asked = replace(asked, choices=choices, columns=shown.conditions)
    batch, hidden = run(model, events, asked)
    expected = hidden[batch.targets]
    with torch.inference_mode():
        q = torch.empty(1, c.heads, c.head_dim)
        v = torch.empty(1, c.heads, c.value_dim)
        pools = [ops.pages_like(q, v, 6) for _ in range(c.layers)]
        table = torch.tensor([[4, 0], [2, 0], [1, 5], [3, 0]])

        def step(events, asked, reused):
            batch = make_batch(model, events, asked, reused=reused)
            prefixes = [ops.PagedPrefix(k, v, table, batch.keys) for k, v in pools]
            args = (batch.x, batch.offsets, batch.positions, batch.clock, prefixes, batch.mask)
            return model.run_cached(*args)[batch.targets]

        early = torch.tensor([10, 7, 0, 0])
        rows = torch.cat(
            [torch.arange(n) + a for n, a in zip(early, events.offsets[:-1], strict=True)]
        )
        step(events.take(rows, lengths_to_offsets(early)), None, torch.zeros_like(early))
        assert close(step(events, asked, early), expected)
        for _ in range(2):
            assert close(step(events, asked, events.lengths), expected)
    assert per * int(events.lengths.max()) <= 128


@pytest.mark.parametrize("task", ["retrieval", "ranking"])
def test_targets_in_several_passes_of_one_history_equal_one_pass(task):
    """``min_full`` with pages, as M-FALCON has it: the history stays, only targets differ."""
    model = make_hstu(**PRODUCTION, **CONTEXT, **WINDOW, task=task)
    c, events = model.config, make_events([20, 7, 33])
    shown = make_events([6], seed=5)

    def asked(lines):
        choices = columns = None
        if task == "ranking":
            columns = {name: column[lines] for name, column in shown.conditions.items()}
            choices = model.choice_tokens(shown.items[lines], columns)
        each = torch.tensor([0, len(lines) // 3, 2 * len(lines) // 3, len(lines)])
        return Asked(each, times=torch.full_like(lines, 3_000_000), choices=choices)

    batch, hidden = run(model, events, asked(torch.arange(6)))
    expected = hidden[batch.targets]
    with torch.inference_mode():
        q, v = torch.empty(1, c.heads, c.head_dim), torch.empty(1, c.heads, c.value_dim)
        pools = [ops.pages_like(q, v, 6) for _ in range(c.layers)]
        table = torch.tensor([[4, 0], [2, 0], [1, 5]])
        for step, reused in enumerate((torch.zeros_like(events.lengths), events.lengths)):
            lines = torch.tensor([0, 2, 4]) + step
            batch = make_batch(model, events, asked(lines), reused=reused)
            prefixes = [ops.PagedPrefix(k, v, table, batch.keys) for k, v in pools]
            args = (batch.x, batch.offsets, batch.positions, batch.clock, prefixes, batch.mask)
            assert close(model.run_cached(*args)[batch.targets], expected[lines])
