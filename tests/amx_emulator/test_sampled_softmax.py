"""The kernel of sampled_softmax for AMX: the tests of the op, in bfloat16."""

import pytest
import torch

import pylum
from tests.ops import test_sampled_softmax as op

pytestmark = pytest.mark.usefixtures("amx")

NEGATIVES = pytest.mark.parametrize("negatives", ["all", "shared"])


@NEGATIVES
@pytest.mark.parametrize(("num_queries", "num_items", "dim"), op.SHAPES)
def test_equals_reference(num_queries, num_items, dim, negatives):
    op.test_equals_reference(num_queries, num_items, dim, torch.bfloat16, negatives, "none")


@NEGATIVES
def test_threads_and_runs_change_nothing(negatives):
    op.test_threads_and_runs_change_nothing(negatives, torch.bfloat16)


@NEGATIVES
def test_nan_stays_in_its_row(negatives):
    kwargs = op.inputs(100, 70, 16, torch.bfloat16, negatives) | {"reduction": "none"}
    grad = torch.ones(100)
    grad[37] = 0
    clean = op.run(pylum.ops.sampled_softmax, kwargs, grad=grad)
    kwargs["queries"][37] = torch.nan
    loss, d_queries, d_items = op.run(pylum.ops.sampled_softmax, kwargs, grad=grad)
    assert loss[37].isnan()
    keep = torch.arange(100) != 37
    assert torch.equal(loss[keep], clean[0][keep])
    assert torch.equal(d_queries[keep], clean[1][keep])
    assert torch.equal(d_items, clean[2])
