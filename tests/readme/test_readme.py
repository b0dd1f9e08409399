"""The README's Python, block by block as it stands, on a small world; training is shortened."""

import functools
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pylum
from pylum.data import Synthetic
from pylum.rank import impressions
from pylum.rank.arms import rows_of

README = Path(__file__).parents[2] / "README.md"
NOW = 1_763_760_000


def block(heading):
    """The one block of Python under a heading that holds ``heading``."""
    (section,) = [s for s in re.split(r"(?m)^## ", README.read_text())[1:] if heading in s]
    return re.findall(r"```python\n(.*?)```", section, re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the blocks share, grown by each; the first is run here."""
    folder = tmp_path_factory.mktemp("readme")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            pylum, "pretrain", functools.partial(pylum.pretrain, epochs=1, progress=False)
        )
        made = Synthetic(users=30).interactions()
        events = made.events
        owner = np.repeat(np.arange(len(made)), np.diff(events.offsets.numpy()))
        table = pa.table(
            {
                "uid": [f"u{b + 1}" for b in owner],
                "iid": [f"i{row}" for row in events.items.tolist()],
                "ts": NOW - 10**6 + 100 * np.arange(len(owner)),
                "scene": [
                    ["home", "search"][row % 2] for row in events.conditions["scene"].tolist()
                ],
                "rating": 1 + events.items.numpy() % 5,
            }
        )
        # Each user's events are spread over all of the time.
        order = np.random.default_rng(0).permutation(len(owner))
        pq.write_table(
            table.set_column(2, "ts", table["ts"].take(pa.array(order))), "events.parquet"
        )
        space: dict = {}
        exec("".join(block("Five lines")), space)
        space["model"].save_pretrained("my-model")
        yield space
    torch.set_num_threads(threads)


def with_rows(space):
    """Names that the ranker's block takes as given: rows later than the user model's training."""
    data = space["data"]
    space["labels"] = np.random.default_rng(1).random(data.events.total) < 0.5
    rows = impressions(data, space["labels"], order="time")
    space["train_rows"] = rows_of(rows, space["valid"])
    later = rows_of(rows, space["test"])
    half = len(later) // 2
    space["valid_rows"], space["test_rows"] = later.slice(0, half), later.slice(half)


def test_five_lines(names):
    frame = names["out"].to_pandas()
    assert list(frame.columns) == ["user", "condition", "rank", "item", "score"]
    assert len(frame) == 2 * 2 * 10


def test_serving(names, capsys):
    space = dict(names)
    exec("".join(block("Serving")), space)
    assert space["cache"].stats


def test_a_ranker_and_what_stands_around_it(names, capsys):
    space = dict(names)
    with_rows(space)
    (code,) = block("A ranker that reads it")
    exec(code, space)
    ranker, knowledge = space["ranker"], space["knowledge"]
    assert len(ranker.predict(space["test_rows"])) == len(space["test_rows"])
    assert Path("knowledge").is_dir() and len(knowledge) == space["data"].events.total
    data = space["data"]
    last = impressions(data, space["labels"], order="time").to_pandas().groupby("user").last()

    def rows_of_pairs(users, items):
        rows = last.loc[users].reset_index()
        rows["item"], rows["time"] = items, int(time.time())
        return rows

    space |= {
        "histories": data.histories(["u1", "u2"]),
        "rows_of_pairs": rows_of_pairs,
        "brands": [item[-1] for item in knowledge.items],
        "users": ["u1", "u2", "u3"],
    }
    cache_block, funnel_block = block("In front of a ranker")
    exec(cache_block, space)
    assert space["served"].sources == ["live", "live"]
    # A catalogue of fewer items than the budgets of the text is all recalled.
    exec(funnel_block, space)
    assert list(Path("reads").glob("*.parquet"))
    printed = capsys.readouterr().out
    assert "recall@10" in printed and "prerank" in printed
    slate = space["funnel"].recommend(["u1"], k=10).items[0]
    brands = [item[-1] for item in slate if item is not None]
    assert len(brands) == 10 and max(brands.count(b) for b in brands) <= 3


def test_hstu(names):
    space: dict = {"pylum": pylum}
    exec("".join(block("HSTU and M-FALCON")), space)
    assert [len(space["scores"][b]) for b in range(2)] == [3, 3]
