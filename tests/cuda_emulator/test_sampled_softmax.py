"""The CUDA kernels of sampled_softmax in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings

import pylum
from tests.ops import test_sampled_softmax as op
from tests.ops.test_sampled_softmax import (  # noqa: F401
    test_autocast,
    test_compile_and_export,
    test_double_backward_is_an_error,
    test_errors,
    test_extreme_logits,
    test_full_softmax_is_cross_entropy,
    test_ids_differ_in_either_half,
    test_nan_stays_in_its_row,
    test_no_negatives,
    test_nothing_but_the_target,
    test_only_what_is_asked,
    test_opcheck,
    test_small_losses_keep_their_digits,
    test_strided,
    test_target_counts_once,
    test_weights_all_zero,
)

pytestmark = pytest.mark.usefixtures("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEGATIVES = ["all", "shared", "per-query"]
test_any_shape = settings(max_examples=10, deadline=None)(
    given(**op.test_any_shape.hypothesis._given_kwargs)(op.test_any_shape.hypothesis.inner_test)
)
SHAPES = [
    *op.SHAPES[:-2],
    pytest.param(35, 129, 80, id="blocks"),
    pytest.param(65, 40, 130, id="more-queries"),
    pytest.param(2, 3, 256, id="most-dim"),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim"), SHAPES)
def test_equals_reference(num_queries, num_items, dim, dtype, negatives, reduction):
    """With what may be given besides, and for the mean without it."""
    grad = torch.randn(num_queries) if reduction == "none" else torch.tensor(0.75)
    kwargs = op.inputs(num_queries, num_items, dim, dtype, negatives, reduction != "mean")
    op.assert_equals_reference({**kwargs, "reduction": reduction}, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_blocks_backwards_change_nothing(negatives, dtype, emulated_module):
    kwargs = op.inputs(70, 90, 33, dtype, negatives, extras=True)
    results = []
    try:
        for backwards in (False, True):
            emulated_module.set_backwards(backwards)
            results.append(op.run(pylum.ops.sampled_softmax, kwargs))
    finally:
        emulated_module.set_backwards(False)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("negatives", ["shared", "per-query"])
def test_hot_items_cross_chunks_of_the_scatter(negatives):
    """One item in most lists, another that fills whole chunks of 32, and rows with one use."""
    kwargs = op.inputs(50, 40, 8, negatives=negatives)
    lists = kwargs["negatives"]
    lists[torch.rand(lists.shape) < 0.6] = 7
    lists.view(-1)[3:17] = 8
    kwargs["targets"][:40] = 9
    op.assert_equals_reference(kwargs)


def test_a_bad_target_or_negative_is_nan_and_noted(cuda):
    for negatives in NEGATIVES:
        kwargs = op.inputs(40, 30, 8, negatives=negatives) | {"reduction": "none"}
        clean = op.run(pylum.ops.sampled_softmax, kwargs, grad=torch.ones(40))
        grad = torch.ones(40)
        grad[[3, 17]] = 0.0
        others = op.run(pylum.ops.sampled_softmax, kwargs, grad=grad)
        kwargs["targets"][[3, 17]] = torch.tensor([-1, 30])
        if negatives == "per-query":
            kwargs["targets"][17] = 0
            kwargs["negatives"][17, 5] = 31
        found = op.run(pylum.ops.sampled_softmax, kwargs, grad=torch.ones(40))
        assert cuda.take_errors() == 4
        keep = torch.ones(40, dtype=torch.bool)
        keep[[3, 17]] = False
        for a, e in zip(found[:2], clean[:2], strict=True):
            assert torch.equal(a[keep], e[keep]) and a[~keep].isnan().all()
        assert torch.equal(found[2], others[2])
    kwargs = op.inputs(9, 30, 8, negatives="shared") | {"reduction": "none"}
    kwargs["negatives"][2] = 30
    assert pylum.ops.sampled_softmax(**kwargs).isnan().all()
    assert cuda.take_errors() == 4


def test_a_bad_weight_is_nan_and_noted(cuda):
    kwargs = op.inputs(9, 30, 8) | {"reduction": "none", "weights": torch.ones(9)}
    kwargs["weights"][[2, 5, 7]] = torch.tensor([-1.0, torch.inf, torch.nan])
    loss = pylum.ops.sampled_softmax(**kwargs)
    assert cuda.take_errors() == 64
    assert loss.isnan().nonzero()[:, 0].tolist() == [2, 5, 7]


def test_dim_has_a_bound():
    with pytest.raises(ValueError, match="dim at most 256] on cuda"):
        pylum.ops.sampled_softmax(**op.inputs(2, 3, 257))
