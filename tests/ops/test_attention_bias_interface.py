"""The relative bias as PyTorch meets it, and what it says of wrong calls."""

import dataclasses

import pytest
import torch

import pylum
from pylum.ops import PagedPrefix, RelativeBias, log_thresholds
from tests.ops.biased import SILU, make_bias, sorted_times
from tests.ops.packed import Case, filled_prefix
from tests.ops.test_attention import make


def operands(requires_grad):
    case = Case([9, 3], [1, 0], [[1, 2], [1]], [[2, 8], [3]], 4, 2, score="silu")
    q, k, v = (x.contiguous().requires_grad_(requires_grad) for x in case.qkv())
    mask = case.mask()
    times = sorted_times(case.lengths)
    tables = [torch.randn(n, requires_grad=requires_grad) for n in (15, 129)]
    masks = (mask.num_context, mask.num_targets, mask.group_offsets, mask.visible, 4, 2)
    return (
        q,
        k,
        v,
        case.offsets,
        *masks,
        True,
        0.25,
        None,
        0.1,
        *tables,
        log_thresholds(),
        times,
        (times + 3),
    )


def test_opcheck():
    torch.library.opcheck(torch.ops.pylum.attention.default, operands(True))


def test_compiles_as_one_graph():
    q, k, v, offsets = make([9, 20], 2, 2, 8, 8, torch.float32)
    times = sorted_times([9, 20])
    bias = make_bias(times, times + 3)

    def call(q, k, v, table):
        theirs = dataclasses.replace(bias, position_table=table)
        return pylum.ops.attention(q * 2, k, v, offsets, bias=theirs, **SILU)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = (q, k, v, bias.position_table)
    assert torch.equal(compiled(*leaves), call(*leaves))
    for a, b in zip(
        torch.autograd.grad(compiled(*leaves).sum(), leaves),
        torch.autograd.grad(call(*leaves).sum(), leaves),
        strict=True,
    ):
        assert torch.equal(a, b)


N = torch.arange(6)


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({}, {"score": "softmax", "score_scale": None}, ValueError, "bias must be None with score"),
        ({"position_table": torch.zeros(4)}, {}, ValueError, r"\[2 N - 1\]"),
        (
            {"position_table": torch.zeros(5).double()},
            {},
            TypeError,
            "position_table must be float",
        ),
        ({"time_table": torch.zeros(4)}, {}, ValueError, r"thresholds must be \[buckets = 3\]"),
        ({"thresholds": torch.tensor([3, 2])}, {}, ValueError, r"thresholds\[1\] must be non-decr"),
        ({"thresholds": torch.tensor([-1, 2])}, {}, ValueError, r"thresholds\[0\] must be"),
        ({"timestamps": N[:5]}, {}, ValueError, r"timestamps must be \[keys = 6\]"),
        ({"query_times": N[:5]}, {}, ValueError, r"query_times must be \[rows = 6\]"),
        ({"query_times": N.float()}, {}, TypeError, "query_times must be int64"),
        ({"query_times": None}, {}, ValueError, "query_times must be given with bias.time_table"),
        ({"time_table": None}, {}, ValueError, "thresholds must be given with bias.time_table"),
    ],
)
def test_errors_name_what_is_wrong(changes, options, error, message):
    fields = {
        "position_table": torch.zeros(5),
        "time_table": torch.zeros(3),
        "thresholds": torch.tensor([2, 3]),
        "timestamps": N,
        "query_times": N,
    }
    q = torch.zeros(6, 2, 8)
    with pytest.raises(error, match=message):
        bias = RelativeBias(**{**fields, **changes})
        pylum.ops.attention(q, q, q, torch.tensor([0, 4, 6]), bias=bias, **{**SILU, **options})


def test_needs_a_table():
    with pytest.raises(ValueError, match="got neither"):
        RelativeBias()


def test_pages_need_the_times_of_whole_histories():
    case = Case([70], [0], [[1]], None, None, None, score="silu")
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    bias = make_bias(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert isinstance(prefix, PagedPrefix)
    with pytest.raises(ValueError, match=r"timestamps must be \[keys = 71\]"):
        pylum.ops.prefix_attention(
            q[70:], k[70:], v[70:], torch.tensor([0, 1]), prefix, case.mask(), bias=bias, **SILU
        )
