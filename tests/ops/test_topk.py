"""topk against its reference, and its promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ragged import Ragged
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 10, 4, 3, id="no-queries"),
    pytest.param(3, 0, 4, 3, id="no-items"),
    pytest.param(3, 10, 0, 3, id="no-dim"),
    pytest.param(3, 10, 4, 0, id="k-0"),
    pytest.param(1, 1, 1, 1, id="ones"),
    pytest.param(4, 100, 15, 100, id="k-all"),
    pytest.param(4, 33, 17, 50, id="k-beyond"),
    pytest.param(5, 63, 16, 2, id="panel-1"),
    pytest.param(6, 64, 16, 1, id="panel"),
    pytest.param(13, 65, 32, 5, id="panel+1"),
    pytest.param(7, 1000, 64, 10, id="plain"),
    pytest.param(7, 1000, 65, 10, id="unaligned"),
    pytest.param(400, 300, 16, 7, id="two-chunks"),
    pytest.param(3, 9000, 8, 600, id="two-ranges-large-k"),
]


def whole(num_queries, num_items, dim):
    """Small integers: every score is exact in float32, and many are equal."""
    return (
        torch.randint(-3, 4, (num_queries, dim)).float(),
        torch.randint(-3, 4, (num_items, dim)).float(),
    )


def lists(num_queries, num_items, longest):
    """One list of rows for each query, unordered, with repetitions, some of them empty."""
    lengths = torch.randint(0, longest + 1, (num_queries,))
    if num_queries:
        lengths[0] = 0
    return Ragged(
        torch.randint(0, max(num_items, 1), (int(lengths.sum()),)),
        pylum.ragged.lengths_to_offsets(lengths),
    )


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), SHAPES)
def test_equals_reference(num_queries, num_items, dim, k, dtype):
    queries = torch.randn(num_queries, dim, dtype=dtype)
    items = torch.randn(num_items, dim, dtype=dtype)
    scores, rows = pylum.ops.topk(queries, items, k)
    expected, _ = pylum.reference.topk(queries, items, k)
    plain = torch.full_like(expected, -torch.inf)
    n = min(k, num_items)
    plain[:, :n] = (queries.float() @ items.float().T).sort(1, descending=True).values[:, :n]
    assert_close(scores, expected.double(), plain)
    exact = (queries.double() @ items.double().T).gather(1, rows[:, :n])
    assert_close(scores[:, :n], exact, plain[:, :n])
    assert (rows[:, n:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), SHAPES)
def test_exact_with_ties_lists(num_queries, num_items, dim, k, dtype):
    queries, items = (x.to(dtype) for x in whole(num_queries, num_items, dim))
    exclude = lists(num_queries, num_items, num_items // 2)
    candidates = lists(num_queries, num_items, 2 * num_items)
    for kwargs in ({}, {"exclude": exclude}, {"candidates": candidates}):
        assert_same(
            pylum.ops.topk(queries, items, k, **kwargs),
            pylum.reference.topk(queries, items, k, **kwargs),
        )
    both = {"exclude": exclude, "candidates": candidates}
    assert_same(
        pylum.ops.topk(queries, items, k, **both), pylum.reference.topk(queries, items, k, **both)
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_queries=st.integers(0, 20),
    num_items=st.integers(1, 300),
    dim=st.integers(1, 40),
    k=st.integers(0, 320),
    excluded=st.booleans(),
    chosen=st.booleans(),
)
def test_any_shape(seed, num_queries, num_items, dim, k, excluded, chosen):
    torch.manual_seed(seed)
    queries, items = whole(num_queries, num_items, dim)
    kwargs = {}
    if excluded:
        kwargs["exclude"] = lists(num_queries, num_items, num_items)
    if chosen:
        kwargs["candidates"] = lists(num_queries, num_items, num_items)
    assert_same(
        pylum.ops.topk(queries, items, k, **kwargs),
        pylum.reference.topk(queries, items, k, **kwargs),
    )


ORDERS = ["ascending", "descending", "equal", "zeros"]


def check_order(order, count, ks):
    scores = torch.arange(float(count)) - count // 2
    if order == "descending":
        scores = scores.flip(0)
    elif order == "equal":
        scores = torch.full_like(scores, -7)
    elif order == "zeros":
        scores = torch.where(torch.arange(count) % 2 == 0, 0.0, -0.0)
    items = scores[:, None]
    queries = torch.tensor([[1.0], [-1.0], [0.0]])
    for k in ks:
        assert_same(pylum.ops.topk(queries, items, k), pylum.reference.topk(queries, items, k))


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_scores(order):
    check_order(order, 5000, (1, 2, 64, 129, 700))


def test_nan_and_infinity():
    items = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, torch.inf, 2.0, -torch.inf])
    queries = torch.tensor([[1.0], [torch.nan], [-1.0]])
    scores, rows = pylum.ops.topk(queries, items[:, None], 7)
    assert rows[0].tolist() == [2, 4, 5, 0, 3, 6, -1]
    assert rows[1].tolist() == [-1] * 7
    assert rows[2].tolist() == [3, 6, 0, 5, 2, 4, -1]
    assert scores[1].eq(-torch.inf).all()
    # Once the k best are infinite, nothing passes them.
    many = torch.full((500, 1), torch.inf)
    assert pylum.ops.topk(torch.ones(1, 1), many, 3)[1].tolist() == [[0, 1, 2]]
    assert pylum.ops.topk(-torch.ones(1, 1), many, 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_the_querys_own(dtype):
    """Alone or among others, with or without threads, as candidates or from all: the same bits."""
    queries = torch.randn(31, 48).to(dtype)
    items = torch.randn(9000, 48).to(dtype)
    exclude = lists(31, 9000, 500)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = pylum.ops.topk(queries, items, 100, exclude=exclude)
        torch.set_num_threads(3)
        assert_same(pylum.ops.topk(queries, items, 100, exclude=exclude), expected)
        everything = Ragged(torch.arange(9000).repeat(31), torch.arange(32) * 9000)
        assert_same(
            pylum.ops.topk(queries, items, 100, exclude=exclude, candidates=everything), expected
        )
        for count in (1, 2, 7):
            offsets = exclude.offsets[: count + 1]
            part = Ragged(exclude.values[: offsets[-1]], offsets)
            alone = pylum.ops.topk(queries[:count], items, 100, exclude=part)
            assert_same(alone, [x[:count] for x in expected])
    finally:
        torch.set_num_threads(threads)


def rows_of_kind(kind, count, dim):
    """Rows whose scores are hard to judge by bytes."""
    rows = torch.randn(count, dim)
    if kind == "ties":
        rows = torch.randint(-3, 4, (count, dim)).float()
    elif kind == "wide":
        rows *= torch.exp(6 * torch.randn(count, 1))
    elif kind == "zeros":
        rows[::3] = 0
    elif kind == "one-large-element":
        rows[:, 0] *= 1e4
    elif kind == "ascending":
        rows = rows.abs() * torch.linspace(0.1, 1, count)[:, None]
    elif kind == "not-finite":
        rows[3, 1], rows[17, 0], rows[20], rows[64:128:2] = torch.nan, torch.inf, 1e30, 1e-30
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["plain", "ties", "wide", "zeros", "one-large-element", "ascending", "not-finite"]
)
@pytest.mark.parametrize(
    ("num_queries", "num_items", "dim", "k"),
    [
        pytest.param(48, 300, 64, 10, id="whole"),
        pytest.param(131, 4999, 17, 5, id="unaligned"),
        pytest.param(400, 1500, 65, 70, id="two-chunks"),
    ],
)
def test_many_queries_get_what_each_alone_gets(num_queries, num_items, dim, k, kind, dtype):
    """Judging pairs by bytes, which only many queries are worth, leaves out none that counts."""
    torch.manual_seed(0)
    queries = rows_of_kind(kind, num_queries, dim).to(dtype)
    items = rows_of_kind(kind, num_items, dim).to(dtype)
    exclude = lists(num_queries, num_items, 40)
    actual = pylum.ops.topk(queries, items, k, exclude=exclude)
    for begin in range(0, num_queries, 40):
        end = min(begin + 40, num_queries)
        part = [int(exclude.offsets[begin]), int(exclude.offsets[end])]
        few = Ragged(
            exclude.values[slice(*part)], exclude.offsets[begin : end + 1] - exclude.offsets[begin]
        )
        scores, rows = pylum.ops.topk(queries[begin:end], items, k, exclude=few)
        assert torch.equal(actual[1][begin:end], rows)
        assert torch.equal(actual[0][begin:end], scores)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(pylum.ops.topk(queries, items, k, exclude=exclude), actual)
    finally:
        torch.set_num_threads(threads)


def test_another_querys_nan_moves_nothing():
    queries = torch.randn(8, 16)
    items = torch.randn(200, 16)
    expected = pylum.ops.topk(queries, items, 10)
    queries[3] = torch.nan
    actual = pylum.ops.topk(queries, items, 10)
    keep = torch.arange(8) != 3
    assert_same([x[keep] for x in actual], [x[keep] for x in expected])


def test_strided():
    queries, items = torch.randn(8, 40), torch.randn(300, 40)
    assert_same(
        pylum.ops.topk(queries[::2, 3:35], items[::3, 3:35], 9),
        pylum.ops.topk(queries[::2, 3:35].clone(), items[::3, 3:35].clone(), 9),
    )


def test_all_excluded():
    everything = Ragged(torch.arange(70).repeat(2), torch.tensor([0, 70, 140]))
    scores, rows = pylum.ops.topk(torch.randn(2, 8), torch.randn(70, 8), 3, exclude=everything)
    assert (rows == -1).all() and scores.eq(-torch.inf).all()


q, i = torch.zeros(2, 4), torch.zeros(5, 4)
BAD = [
    pytest.param((q[0], i, 1), {}, ValueError, "queries must be", id="queries-1d"),
    pytest.param((q, i[:, :3], 1), {}, ValueError, r"items must be \[items, dim = 4\]", id="dim"),
    pytest.param((q, i.bfloat16(), 1), {}, TypeError, "items must be float32", id="dtype"),
    pytest.param((q.double(), i, 1), {}, TypeError, "queries must be float32(,| or)", id="float64"),
    pytest.param(
        (q, i.T.contiguous().T, 1), {}, ValueError, "last dimension contiguous", id="layout"
    ),
    pytest.param((q, i, -1), {}, ValueError, "k must be at least 0, got -1", id="k"),
    pytest.param(
        (q, i, 1),
        {"exclude": Ragged(torch.tensor([5]), torch.tensor([0, 1, 1]))},
        ValueError,
        r"exclude must be item rows in \[0, 5\), got 5",
        id="row",
    ),
    pytest.param(
        (q, i, 1),
        {"candidates": Ragged(torch.tensor([1]), torch.tensor([0, 1]))},
        ValueError,
        r"candidates offsets must be \[queries \+ 1 = 3\]",
        id="offsets",
    ),
    pytest.param(
        (q, i, 1),
        {"candidates": Ragged(torch.tensor([1], dtype=torch.int32), torch.tensor([0, 1, 1]))},
        TypeError,
        "candidates must be int64",
        id="int32",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), BAD)
def test_errors(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        pylum.ops.topk(*args, **kwargs)


def test_opcheck():
    exclude = lists(4, 50, 9)
    for dtype in DTYPES:
        args = (torch.randn(4, 8).to(dtype), torch.randn(50, 8).to(dtype), 5)
        torch.library.opcheck(
            torch.ops.pylum.topk.default, (*args, exclude.values, exclude.offsets, None, None)
        )


def test_compile_and_export():
    queries, items = torch.randn(4, 8), torch.randn(50, 8)

    class Best(torch.nn.Module):
        def forward(self, queries, items):
            scores, rows = pylum.ops.topk(queries * 2, items, 5)
            return scores + 1, rows

    expected = Best()(queries, items)
    assert_same(
        torch.compile(Best(), fullgraph=True, backend="aot_eager")(queries, items), expected
    )
    exported = torch.export.export(Best(), (queries, items))
    assert_same(exported.module()(queries, items), expected)
