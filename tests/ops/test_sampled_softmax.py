"""sampled_softmax against its reference, and its promises."""

import pytest
import torch
import torch.nn.functional as F

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
