"""sampled_softmax against its reference, and its promises."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 5, 8, id="no-queries"),
    pytest.param(1, 1, 1, id="ones"),
    pytest.param(7, 63, 16, id="panel-1"),
    pytest.param(48, 64, 64, id="panel"),
    pytest.param(49, 65, 17, id="panel+1-unaligned"),
    pytest.param(97, 200, 80, id="blocks"),
    pytest.param(200, 130, 128, id="more-queries"),
]


def inputs(num_queries, num_items, dim, dtype=torch.float32, negatives="all", extras=False):
    kwargs = {
        "queries": torch.randn(num_queries, dim).to(dtype),
        "items": torch.randn(num_items, dim).to(dtype),
        "targets": torch.randint(num_items, (num_queries,)),
        "temperature": 0.5 + dim**0.5 / 2,
    }
    if negatives == "shared":
        kwargs["negatives"] = torch.randint(num_items, (19,))
    if negatives == "per-query":
        kwargs["negatives"] = torch.randint(num_items, (num_queries, 19))
    if extras:
        kwargs["item_ids"] = torch.randint(1 + num_items // 2, (num_items,)) << 31
        kwargs["log_q"] = torch.randn(num_items)
        kwargs["weights"] = torch.rand(num_queries).round(decimals=1)
    return kwargs


def run(f, kwargs, dtype=None, grad=None):
    """Loss and gradients of ``f`` with queries and items in ``dtype``."""
    kwargs = dict(kwargs)
    leaves = []
    for name in ("queries", "items"):
        leaves.append(kwargs[name].detach().to(dtype or kwargs[name].dtype).requires_grad_())
        kwargs[name] = leaves[-1]
    loss = f(**kwargs)
    loss.backward(torch.ones_like(loss) if grad is None else grad.to(loss.dtype))
    return loss.detach(), leaves[0].grad, leaves[1].grad


def plain(
    queries,
    items,
    targets,
    *,
    temperature,
    negatives=None,
    item_ids=None,
    log_q=None,
    weights=None,
    reduction="mean",
):
    """The formula in float32, as one writes it in PyTorch."""
    queries, items = queries.float(), items.float()
    rows = torch.arange(len(items)) if negatives is None else negatives
    bias = torch.zeros(len(items)) if log_q is None else log_q
    ids = torch.arange(len(items)) if item_ids is None else item_ids
    if rows.dim() == 1:
        logits = queries @ items[rows].T
    else:
        logits = torch.einsum("nd,nrd->nr", queries, items[rows])
    logits = logits / temperature - bias[rows]
    logits = logits.masked_fill(ids[rows] == ids[targets][:, None], -torch.inf)
    target = (queries * items[targets]).sum(1) / temperature - bias[targets]
    logits = torch.cat([target[:, None], logits], 1)
    losses = F.cross_entropy(logits, torch.zeros_like(targets), reduction="none")
    scales = torch.ones(len(queries)) if weights is None else weights
    if reduction == "none":
        return losses * scales
    return (losses * scales).sum() / (scales.sum().clamp_min(1e-30) if reduction == "mean" else 1)


def assert_equals_reference(kwargs, grad=None):
    actual = run(pylum.ops.sampled_softmax, kwargs, grad=grad)
    expected = run(pylum.reference.sampled_softmax, kwargs, torch.float64, grad)
    rounded = run(plain, kwargs, grad=grad)
    for a, e, p in zip(actual, expected, rounded, strict=True):
        assert_close(a, e, p)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", ["all", "shared", "per-query"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim"), SHAPES)
def test_equals_reference(num_queries, num_items, dim, dtype, negatives, reduction):
    grad = torch.randn(num_queries) if reduction == "none" else torch.tensor(0.75)
    for extras in (False, True):
        kwargs = inputs(num_queries, num_items, dim, dtype, negatives, extras)
        assert_equals_reference({**kwargs, "reduction": reduction}, grad)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_queries=st.integers(0, 120),
    num_items=st.integers(1, 150),
    dim=st.integers(1, 40),
    negatives=st.sampled_from(["all", "shared", "per-query"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    extras=st.booleans(),
)
def test_any_shape(seed, num_queries, num_items, dim, negatives, reduction, extras):
    torch.manual_seed(seed)
    kwargs = inputs(num_queries, num_items, dim, torch.float32, negatives, extras)
    assert_equals_reference({**kwargs, "reduction": reduction})


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_softmax_is_cross_entropy(dtype):
    kwargs = inputs(60, 90, 32, dtype)
    queries, items = kwargs["queries"].double(), kwargs["items"].double()
    expected = F.cross_entropy(queries @ items.T / kwargs["temperature"], kwargs["targets"])
    assert_close(pylum.ops.sampled_softmax(**kwargs), expected, expected.float())


def test_target_counts_once():
    """The target among the negatives, under its row or its id, changes nothing."""
    kwargs = inputs(40, 50, 16)
    kwargs["targets"] = torch.randint(25, (40,))
    others = torch.arange(25, 50)
    expected = run(pylum.ops.sampled_softmax, {**kwargs, "negatives": others.repeat(40, 1)})
    with_target = torch.cat([kwargs["targets"][:, None], others.repeat(40, 1)], 1)
    actual = run(pylum.ops.sampled_softmax, {**kwargs, "negatives": with_target})
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e.double(), e)
    ids = torch.arange(50)
    ids[:25] = 7
    for negatives in (torch.arange(50), torch.arange(50).repeat(40, 1)):
        actual = run(pylum.ops.sampled_softmax, {**kwargs, "negatives": negatives, "item_ids": ids})
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e.double(), e)


def test_ids_differ_in_either_half():
    ids = torch.tensor([5, 5 + (1 << 32), 6, 5 - (1 << 33), -5])
    kwargs = inputs(9, 5, 8) | {"item_ids": ids}
    assert_equals_reference(kwargs)
    same = run(pylum.ops.sampled_softmax, {**kwargs, "item_ids": None})
    for a, e in zip(run(pylum.ops.sampled_softmax, kwargs), same, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("negatives", ["all", "shared", "per-query"])
def test_nothing_but_the_target(negatives):
    kwargs = inputs(6, 5, 8, negatives=negatives) | {"item_ids": torch.zeros(5, dtype=torch.int64)}
    loss, d_queries, d_items = run(pylum.ops.sampled_softmax, kwargs)
    assert loss == 0
    assert d_queries.eq(0).all() and d_items.eq(0).all()


def test_no_negatives():
    for negatives in (torch.empty(0, dtype=torch.int64), torch.empty(6, 0, dtype=torch.int64)):
        kwargs = inputs(6, 5, 8) | {"negatives": negatives}
        loss, d_queries, d_items = run(pylum.ops.sampled_softmax, kwargs)
        assert loss == 0
        assert d_queries.eq(0).all() and d_items.eq(0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_all_zero(reduction):
    kwargs = inputs(50, 70, 16) | {"weights": torch.zeros(50), "reduction": reduction}
    kwargs["queries"][3] = torch.nan
    loss, d_queries, d_items = run(pylum.ops.sampled_softmax, kwargs)
    assert loss.eq(0).all()
    assert d_queries.eq(0).all() and d_items.eq(0).all()


@pytest.mark.parametrize("negatives", ["all", "shared", "per-query"])
def test_nan_stays_in_its_row(negatives):
    kwargs = inputs(100, 70, 16, negatives=negatives) | {"reduction": "none"}
    clean = run(pylum.ops.sampled_softmax, kwargs, grad=torch.ones(100))
    kwargs["queries"][37] = torch.nan
    grad = torch.ones(100)
    grad[37] = 0
    loss, d_queries, d_items = run(pylum.ops.sampled_softmax, kwargs, grad=grad)
    keep = torch.arange(100) != 37
    assert loss[37].isnan()
    assert torch.equal(loss[keep], clean[0][keep])
    assert torch.equal(d_queries[keep], clean[1][keep])
    assert d_items.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_extreme_logits(scale):
    kwargs = inputs(30, 100, 16)
    kwargs["queries"] *= scale
    # Some targets far ahead of every other item, some far behind.
    kwargs["queries"][:10] = kwargs["items"][kwargs["targets"][:10]] * scale
    kwargs["queries"][10:15] = -kwargs["items"][kwargs["targets"][10:15]] * scale
    assert_equals_reference({**kwargs, "reduction": "none"})


def test_small_losses_keep_their_digits():
    """A target far ahead: the loss and its gradient are far below the spacing of floats at 1."""
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    kwargs = {
        "queries": torch.tensor([[25.0, 0.0], [30.0, 1.0]]),
        "items": items,
        "targets": torch.zeros(2, dtype=torch.int64),
        "temperature": 1.0,
        "reduction": "none",
    }
    loss, d_queries, _ = run(pylum.ops.sampled_softmax, kwargs)
    queries = kwargs["queries"].double().requires_grad_()
    exact = torch.log1p((queries @ (items[1:] - items[0]).double().T).exp().sum(1))
    exact.sum().backward()
    assert (loss / exact - 1).abs().max() < 1e-5
    assert (d_queries / queries.grad - 1).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", ["all", "shared", "per-query"])
def test_threads_and_runs_change_nothing(negatives, dtype):
    kwargs = inputs(500, 300, 33, dtype, negatives, extras=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            results.append(run(pylum.ops.sampled_softmax, kwargs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, e in zip(result, results[0], strict=True):
            assert torch.equal(a, e)


def test_only_what_is_asked():
    kwargs = inputs(50, 70, 16)
    expected = run(pylum.ops.sampled_softmax, kwargs)
    for name, gradient in (("queries", expected[1]), ("items", expected[2])):
        for reduction in ("mean", "none"):
            leaf = kwargs[name].clone().requires_grad_()
            loss = pylum.ops.sampled_softmax(**{**kwargs, name: leaf, "reduction": reduction})
            loss.mean().backward()
            assert_close(leaf.grad, gradient.double(), gradient)
    with torch.no_grad():
        leaf = kwargs["queries"].clone().requires_grad_()
        assert not pylum.ops.sampled_softmax(**{**kwargs, "queries": leaf}).requires_grad
    with torch.inference_mode():
        assert torch.equal(pylum.ops.sampled_softmax(**kwargs), expected[0])


def test_strided():
    kwargs = inputs(40, 60, 50)
    kwargs["queries"], kwargs["items"] = kwargs["queries"][::2, 3:36], kwargs["items"][::3, 3:36]
    kwargs["targets"] = (kwargs["targets"] % 20)[::2]
    kwargs["weights"] = torch.rand(20, 2)[:, 0]
    kwargs["log_q"] = torch.rand(20, 2)[:, 0]
    dense = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    assert torch.equal(pylum.ops.sampled_softmax(**kwargs), pylum.ops.sampled_softmax(**dense))


def test_double_backward_is_an_error():
    kwargs = inputs(4, 6, 8)
    kwargs["queries"].requires_grad_()
    loss = pylum.ops.sampled_softmax(**kwargs)
    with pytest.raises(RuntimeError, match="sampled_softmax has no double backward"):
        torch.autograd.grad(loss, kwargs["queries"], create_graph=True)


def test_autocast():
    kwargs = inputs(30, 40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = {**kwargs, "queries": kwargs["queries"].bfloat16()}
        loss = pylum.ops.sampled_softmax(**mixed)
    assert loss.dtype == torch.float32
    exact = {**mixed, "queries": mixed["queries"].float()}
    assert torch.equal(loss, pylum.ops.sampled_softmax(**exact))


q, i, t = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)
BAD = [
    pytest.param({"queries": q[0]}, ValueError, "queries must be", id="queries-1d"),
    pytest.param(
        {"queries": q.double()}, TypeError, "queries must be float32(,| or)", id="float64"
    ),
    pytest.param({"queries": q.T.contiguous().T}, ValueError, "last dimension", id="layout"),
    pytest.param({"items": i[:, :3]}, ValueError, "dim = 4", id="dim"),
    pytest.param({"items": i.bfloat16()}, TypeError, "items must be float32", id="dtypes"),
    pytest.param({"targets": t[:2]}, ValueError, r"targets must be \[queries = 3\]", id="targets"),
    pytest.param({"targets": t.int()}, TypeError, "targets must be int64", id="targets-int32"),
    pytest.param({"targets": t + 5}, ValueError, r"targets .* \[0, 5\), got 5", id="target-row"),
    pytest.param({"negatives": t - 1}, ValueError, r"negatives .* got -1", id="negative-row"),
    pytest.param({"negatives": t[:2, None]}, ValueError, "negatives must be", id="negatives"),
    pytest.param({"item_ids": t}, ValueError, r"item_ids must be \[items = 5\]", id="ids"),
    pytest.param({"log_q": q[0]}, ValueError, r"log_q must be \[items = 5\]", id="log_q"),
    pytest.param({"log_q": i[:, 0].double()}, TypeError, "log_q must be float32", id="log_q-64"),
    pytest.param({"weights": i[0]}, ValueError, r"weights must be \[queries = 3\]", id="weights"),
    pytest.param({"weights": q[:, 0] - 1}, ValueError, "at least 0, got -1", id="negative-weight"),
    pytest.param({"weights": q[:, 0] / 0}, ValueError, "weights must be finite", id="nan-weight"),
    pytest.param({"temperature": 0.0}, ValueError, "temperature must be positive", id="zero"),
    pytest.param(
        {"temperature": torch.tensor(1.0, requires_grad=True)},
        TypeError,
        "temperature must be a number",
        id="temperature-grad",
    ),
    pytest.param({"reduction": "max"}, ValueError, "reduction must be one of mean", id="reduction"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_errors(changes, error, message):
    kwargs = {"queries": q, "items": i, "targets": t, "temperature": 1.0, "weights": q[:, 0]}
    with pytest.raises(error, match=message):
        pylum.ops.sampled_softmax(**{**kwargs, **changes})


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("negatives", ["all", "shared", "per-query"])
def test_opcheck(negatives, reduction):
    kwargs = inputs(6, 9, 8, negatives=negatives, extras=True)
    leaves = [kwargs[name].requires_grad_() for name in ("queries", "items")]
    rest = [kwargs[name] for name in ("item_ids", "log_q", "weights")]
    formed = reduction == "mean"
    torch.library.opcheck(
        torch.ops.pylum.sampled_softmax.default,
        (*leaves, kwargs["targets"], kwargs.get("negatives"), *rest, 0.5, reduction)
        + (formed,) * 2,
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_and_export(reduction):
    kwargs = inputs(20, 30, 16)
    temperature = kwargs.pop("temperature")

    def loss(queries, items, targets):
        return pylum.ops.sampled_softmax(
            queries * 2, items, targets, temperature=temperature, reduction=reduction
        )

    expected = run(loss, kwargs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, e in zip(run(compiled, kwargs), expected, strict=True):
        assert torch.equal(a, e)

    class Loss(torch.nn.Module):
        def forward(self, queries, items, targets):
            return loss(queries, items, targets)

    exported = torch.export.export(Loss(), tuple(kwargs.values()))
    assert torch.equal(exported.module()(*kwargs.values()), expected[0])
