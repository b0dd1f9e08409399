"""generate and UserCache with a retrieval HSTU: the next item, whole or cached."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import HSTU, HSTUConfig, UserCache, generate
from pylum.generation.packing import Questions, answer, windows
from pylum.generation.prefixes import PrefixQuestions, answer_prefixes, plan
from tests.serving.worlds import data, event, history
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]


@functools.cache
def model(**changes) -> HSTU:
    """Random weights, large enough that histories and times matter."""
    sizes = {"dim": 16, "width": 32, "heads": 2, "value_dim": 8, "max_length": 64, **changes}
    torch.manual_seed(1)
    made = HSTU(HSTUConfig(**sizes), data().schema, data().vocabs, data().items)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        for table in made.places.parameters():
            table.normal_(std=0.5)
    return made.eval()


PRODUCTION = {"variant": "production"}
VARIANTS = [
    pytest.param({}, id="research"),
    pytest.param(PRODUCTION, id="production"),
    pytest.param({**PRODUCTION, "window": 9, "context": ("scene",)}, id="masks"),
    pytest.param({"project": False, "dim": 32}, id="no-projections"),
]
MIN_FULL = {**PRODUCTION, "window": 9, "min_full": 6, "context": ("scene",)}


def close(a, b):
    torch.testing.assert_close(a.embeddings, b.embeddings, atol=CLOSE, rtol=0)
    torch.testing.assert_close(a.scores, b.scores, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64, 65, 90])
def test_cold_warm_and_uncached_agree(changes, length):
    made = model(**changes)
    context = made.config.context_tokens
    cache = UserCache(made, 4096)
    histories = {"u": history(length)}
    time = 1_800_000_000
    plain = generate(made, histories, query_time=time)
    close(generate(made, histories, query_time=time, cache=cache), plain)
    seen = min(length, 64)
    assert cache.stats["tokens_computed"] == plain.stats["tokens_computed"] == context + seen + 1
    # The last behaviour is read by the question, which is computed each time.
    warm = generate(made, histories, query_time=time, cache=cache)
    close(warm, plain)
    kept = context if length else 0
    assert warm.stats["tokens_reused"] == kept + seen
    assert warm.stats["tokens_computed"] == context - kept + 1
    close(generate(made, histories, cache=cache), generate(made, histories))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_appending_equals_the_whole(data):
    made = model(**data.draw(st.sampled_from([case.values[0] for case in VARIANTS])))
    cache = UserCache(made, data.draw(st.sampled_from([64, 100_000])))
    mine = history(data.draw(st.integers(0, 60)))
    for _ in range(3):
        close(generate(made, {"u": mine}, cache=cache), generate(made, {"u": mine}))
        last = mine[-1]["time"] if mine else 1_700_000_000
        new = [event(data.draw(st.integers(0, 59)), last + i) for i in range(1, 4)]
        mine = mine + new
        if data.draw(st.booleans()) and "u" in cache:
            cache.append(["u"], [new])


def test_the_time_of_the_question_matters():
    made = model()
    histories = {"u": history(20)}
    early, late = (
        generate(made, histories, query_time=t).embeddings for t in (1_700_010_000, 1_900_000_000)
    )
    assert not torch.allclose(early, late, atol=1e-3)


@pytest.mark.parametrize("changes", [*VARIANTS, pytest.param(MIN_FULL, id="min-full")])
def test_users_in_one_pass_equal_each_alone(changes):
    made = model(**changes)
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([0, 3, 64, 80, 1])}
    together = generate(made, histories)
    for i, (user, events) in enumerate(histories.items()):
        alone = generate(made, {user: events})
        torch.testing.assert_close(
            together.embeddings[i : i + 1], alone.embeddings, atol=CLOSE, rtol=0
        )
    close(generate(made, histories, batch_tokens=10), together)


def test_prefixes_of_a_model_whose_last_tokens_see_more():
    """Each prefix is what generate answers where the history ends there."""
    made, users = model(**MIN_FULL), data().histories()
    events = users.encode(made.vocabs, made.schema)
    owner = torch.repeat_interleave(events.lengths)
    place = torch.arange(events.total) - events.offsets[owner]
    some = ((place > 0) & (owner < 3)).nonzero()[:12, 0]
    questions = PrefixQuestions(owner[some], place[some], {})
    found = torch.empty(len(some), made.dim)
    for index, answers in answer_prefixes(made, events, questions, plan(made, questions, 65536)):
        found[index] = answers
    for q, (u, visible) in enumerate(zip(owner[some], place[some], strict=True)):
        rows = torch.arange(int(visible)) + events.offsets[u]
        alone = events.take(rows, torch.tensor([0, len(rows)]))
        nothing = Questions({}, torch.tensor([0, 1]))
        with torch.inference_mode():
            expected = answer(made, windows(made.config, alone), nothing)
        torch.testing.assert_close(found[q], expected[0], atol=CLOSE, rtol=0)
