"""What the ops cannot do is an error: torch would take an unknown derivative for zero."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.autograd import forward_ad

from pylum import Ragged, ops

OFFSETS = torch.tensor([0, 4, 10])
ROWS = torch.tensor([0, 2, 2])

CALLS = [
    pytest.param(lambda x: ops.attention(*[x.view(10, 2, 4)] * 3, OFFSETS), id="attention"),
    pytest.param(lambda x: ops.linear(x, torch.ones(4, 8)), id="linear"),
    pytest.param(lambda x: ops.swiglu(x), id="swiglu"),
    pytest.param(lambda x: ops.dot_interaction(x.view(2, 5, 8)), id="dot_interaction"),
    pytest.param(lambda x: ops.embedding_bag([x], [ROWS], [torch.tensor([0, 3])]), id="bag"),
    pytest.param(lambda x: ops.embedding_sequence([x], [ROWS]), id="sequence"),
    pytest.param(
        lambda x: ops.sampled_softmax(x[:3], x[3:], ROWS, temperature=0.1), id="sampled_softmax"
    ),
    pytest.param(lambda x: ops.topk(x[:3], x[3:], 2)[0], id="topk"),
]


@pytest.mark.parametrize("call", CALLS)
def test_forward_mode_is_refused(call):
    torch.manual_seed(0)
    x = torch.randn(10, 8)
    plain = call(x)
    with pytest.raises(NotImplementedError, match=r"pylum\.ops\.\w+ has no forward-mode"):
        torch.func.jvp(call, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        assert torch.equal(call(x), plain)
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="differentiate it by backward"):
            call(dual)


def test_vmap_is_the_loop():
    torch.manual_seed(0)
    x = torch.randn(3, 10, 2, 4)
    found = torch.func.vmap(lambda a: ops.attention(a, a, a, OFFSETS))(x)
    assert torch.equal(found, torch.stack([ops.attention(a, a, a, OFFSETS) for a in x]))


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_would_spoil_a_table_is_refused(lr):
    table, state = torch.zeros(4, 8), torch.zeros(4)
    use = ops.RowUse(torch.tensor([1]), torch.ones(1, 8))
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        ops.row_wise_adagrad_(table, state, [use], lr=lr)
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        ops.row_wise_adamw_(table, torch.zeros(4, 8), state, [use], lr=lr, step=1)
    assert not table.any() and not state.any()


def test_lists_of_rows_are_ragged():
    x = torch.randn(4, 8)
    for name in ("exclude", "candidates"):
        with pytest.raises(TypeError, match=rf"{name} must be a pylum\.Ragged or None, got list"):
            ops.topk(x, x, 2, **{name: [[1], [2], [3], [0]]})


def test_heads_of_no_width_are_refused():
    q = torch.empty(10, 2, 0)
    with pytest.raises(ValueError, match="head_dim of 1 to 256"):
        ops.attention(q, q, q, OFFSETS)


def test_lists_that_are_all_empty_limit_nothing_or_everything():
    x, none = torch.eye(4), Ragged.from_lists([[], [], [], []])
    assert torch.equal(ops.topk(x, x, 2, exclude=none)[1], ops.topk(x, x, 2)[1])
    assert (ops.topk(x, x, 2, candidates=none)[1] == -1).all()
    with pytest.raises(TypeError, match="exclude must hold rows of items, got 'a'"):
        ops.topk(x, x, 2, exclude=Ragged.from_lists([["a"], [], [], []]))


def test_rows_of_a_ragged_may_be_arrays():
    rows = [np.array([1]), torch.tensor([2, 3]), [], np.array([0])]
    lists = Ragged.from_lists(rows)
    assert lists.values.tolist() == [1, 2, 3, 0] and lists.values.dtype == torch.int64
    x = torch.eye(4)
    assert ops.topk(x, x, 1, candidates=lists)[1][:, 0].tolist() == [1, 2, -1, 0]
    for wrong in ([1, 2], ["ab"], [None]):
        with pytest.raises(TypeError, match="rows must be lists, got one of"):
            Ragged.from_lists(wrong)
    assert Ragged.from_arrow(pa.array([[1, None], [3]])).to_lists() == [[1, None], [3]]
