"""attention against its reference, and the equalities that hold to the bit."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask
from pylum.ragged import lengths_to_offsets
from pylum.reference.attention import sequence_mask
from tests.ops.packed import Case, cases
from tests.tolerance import assert_close

FULL = Mask(
    num_context=[2, 0, 3, 5, 0, 1],
    num_targets=[2, 1, 10, 40, 33, 100],
    window=20,
    min_full=7,
    group_offsets=[0, 2, 3, 13, 20, 40, 53, 86, 100, 186],
    visible=[1] * 2 + [0] + [51] * 10 + [3] * 7 + [10] * 20 + [20] * 13 + [0] * 33 + [70] * 14
    + [99] * 86,
)  # fmt: skip
LENGTHS = [5, 1, 64, 65, 33, 200]
CASES = [
    pytest.param([5, 0, 1, 63, 64, 65, 200], 4, 4, 32, 32, None, id="causal"),
    pytest.param([0, 0], 2, 1, 8, 8, None, id="empty-sequences"),
    pytest.param([], 2, 1, 8, 8, None, id="empty-batch"),
    pytest.param([33, 31], 4, 2, 50, 17, None, id="unaligned-grouped-heads"),
    pytest.param([70], 1, 1, 256, 256, None, id="largest-head"),
    pytest.param(LENGTHS, 4, 2, 24, 40, FULL, id="every-mask"),
    pytest.param([90, 3], 2, 1, 16, 16, Mask(num_targets=[70, 3]), id="targets-alone"),
]


def make(lengths, heads, kv_heads, head_dim, value_dim, dtype):
    total = sum(lengths)
    q = torch.randn(total, heads, head_dim, dtype=dtype, requires_grad=True)
    k = torch.randn(total, kv_heads, head_dim, dtype=dtype, requires_grad=True)
    v = torch.randn(total, kv_heads, value_dim, dtype=dtype, requires_grad=True)
    return q, k, v, lengths_to_offsets(torch.tensor(lengths, dtype=torch.int64))


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), CASES)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, dtype, score):
    q, k, v, offsets = make(lengths, heads, kv_heads, head_dim, value_dim, dtype)
    options = {"score": score, "score_scale": 0.01 if score == "silu" else None}
    out = pylum.ops.attention(q, k, v, offsets, mask, **options)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = pylum.reference.attention(*exact_inputs, offsets, mask, **options)
    assert out.dtype == dtype
    assert_close(out, exact, exact.to(dtype))
    if out.numel() == 0:
        return
    dout = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    expected = torch.autograd.grad(exact, exact_inputs, dout.double())
    for actual, reference in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, reference, reference.to(dtype))


def run(case, q, k, v, sequences=None):
    """Output and gradients of the case, or of some of its sequences packed alone."""
    if sequences is None:
        sequences = list(range(len(case.history)))
    bounds = case.offsets.tolist()
    rows = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in sequences])
    offsets = lengths_to_offsets(torch.tensor([case.lengths[b] for b in sequences]))
    leaves = [x[rows].detach().requires_grad_() for x in (q, k, v)]
    out = pylum.ops.attention(*leaves, offsets, case.mask(sequences), **case.options)
    dout = torch.cos(out.detach().float() * 100).to(out.dtype)
    return rows, [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@settings(deadline=None, max_examples=60)
@given(cases())
def test_packed_equals_alone_and_run_twice(case):
    q, k, v = case.qkv()
    _, packed = run(case, q, k, v)
    for b in range(len(case.history)):
        rows, alone = run(case, q, k, v, [b])
        for whole, part in zip(packed, alone, strict=True):
            assert torch.equal(whole[rows], part)
    _, again = run(case, q, k, v)
    assert all(torch.equal(x, y) for x, y in zip(packed, again, strict=True))


@settings(deadline=None, max_examples=30)
@given(cases(), st.randoms(use_true_random=False))
def test_another_user_of_nan_moves_nothing(case, random):
    q, k, v = case.qkv()
    victim = random.randrange(len(case.history))
    _, clean = run(case, q, k, v)
    rows = torch.arange(case.offsets[victim], case.offsets[victim + 1])
    for x in (q, k, v):
        x[rows] = torch.nan
    _, dirty = run(case, q, k, v)
    others = torch.ones(len(q), dtype=torch.bool)
    others[rows] = False
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x[others], y[others])


@settings(deadline=None, max_examples=60)
@given(cases(visible=False), st.randoms(use_true_random=False))
def test_grouped_equals_alone_in_any_order(case, random):
    case = dataclasses.replace(
        case,
        history=case.history[:1],
        context=case.context[:1],
        groups=[case.groups[0] or [1]],
    )
    q, k, v = case.qkv()
    history = case.history[0]
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    sizes = case.groups[0]
    starts = [history + sum(sizes[:g]) for g in range(len(sizes))]
    groups = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    orders = [[g] for g in range(len(sizes))] + [random.sample(range(len(sizes)), len(sizes))]
    for order in orders:
        rows = list(range(history)) + [row for g in order for row in groups[g]]
        part = dataclasses.replace(case, groups=[[sizes[g] for g in order]])
        alone = pylum.ops.attention(
            q[rows], k[rows], v[rows], part.offsets, part.mask(), **case.options
        )
        assert torch.equal(alone, out[rows])


@settings(deadline=None, max_examples=30)
@given(cases())
def test_every_mask_equals_reference(case):
    q, k, v = case.qkv()
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    exact = pylum.reference.attention(q.double(), k, v, case.offsets, case.mask(), **case.options)
    assert_close(out, exact, exact.to(case.dtype))


SPREAD = [
    pytest.param([700, 3, 90], [[1] * 50, [2], []], 4, 1, id="one-long-among-short"),
    pytest.param([1000], [[]], 1, 1, id="one-head"),
    pytest.param([300], [[150, 1, 1]], 6, 2, id="more-heads-than-keys"),
    pytest.param([90] * 40, [[1]] * 40, 2, 1, id="many-short"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("history", "groups", "heads", "kv_heads"), SPREAD)
def test_threads_change_nothing(history, groups, heads, kv_heads, dtype):
    context = [3] * len(history)
    case = Case(history, context, groups, None, None, None, heads, kv_heads, dtype=dtype)
    tensors = case.qkv()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            results.append(run(case, *tensors)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@settings(deadline=None, max_examples=30)
@given(cases(), st.randoms(use_true_random=False))
def test_an_unseen_row_of_nan_moves_nothing(case, random):
    q, k, v = case.qkv()
    clean = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    b = random.choice([b for b, length in enumerate(case.lengths) if length] or [None])
    if b is None:
        return
    broken = random.randrange(case.lengths[b])
    first = int(case.offsets[b])
    k[first + broken] = torch.nan
    v[first + broken] = torch.inf
    q[first + broken] = torch.nan
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    sees = sequence_mask(case.mask(), b, case.history[b], case.targets[b])[:, broken]
    sees[broken] = True
    kept = torch.ones(len(q), dtype=torch.bool)
    kept[first : first + case.lengths[b]] = ~sees
    assert torch.equal(out[kept], clean[kept])
    assert out[~kept].isnan().flatten(1).all()


@settings(deadline=None, max_examples=60)
@given(cases(), st.randoms(use_true_random=False))
def test_an_unseen_row_of_nan_moves_no_gradient(case, random):
    q, k, v = case.qkv()
    _, clean = run(case, q, k, v)
    b = random.choice([b for b, length in enumerate(case.lengths) if length] or [None])
    if b is None:
        return
    broken = random.randrange(case.lengths[b])
    first = int(case.offsets[b])
    k[first + broken] = torch.nan
    v[first + broken] = torch.inf
    q[first + broken] = torch.nan
    _, dirty = run(case, q, k, v)
    sees = sequence_mask(case.mask(), b, case.history[b], case.targets[b])
    broken_rows = sees[:, broken].clone()
    broken_rows[broken] = True
    # A key's gradient takes part of every row that sees it, a query's of its own row.
    of_row, of_key = torch.zeros(2, len(q), dtype=torch.bool)
    of_row[first : first + case.lengths[b]] = broken_rows
    of_key[first : first + case.lengths[b]] = sees[broken_rows].any(0)
    for x, y, moved in zip(clean, dirty, (of_row, of_row, of_key, of_key), strict=True):
        assert torch.equal(x[~moved], y[~moved])
        assert y[moved].isnan().flatten(1).any(1).all()


def test_large_scores_stay_finite():
    q, k, v, offsets = make([40], 1, 1, 8, 8, torch.float32)
    with torch.no_grad():
        out = pylum.ops.attention(q * 1e3, k * 1e3, v, offsets)
        exact = pylum.reference.attention(q.double() * 1e3, k.double() * 1e3, v, offsets)
    assert out.isfinite().all()
    assert (out - exact).abs().max() < 1e-2  # scores of 1e6 carry errors of 1e-1


def test_scale_and_score_scale_rows():
    q, k, v, offsets = make([10, 20], 2, 2, 8, 8, torch.float32)
    factor = torch.rand(30)
    options = {"score": "silu", "scale": 0.3, "score_scale": factor}
    out = pylum.ops.attention(q, k, v, offsets, **options)
    exact = pylum.reference.attention(q.double(), k, v, offsets, **options)
    assert_close(out, exact, exact.float())


def test_autocast_gives_q_k_v_one_dtype():
    q, k, v, offsets = make([10], 2, 2, 8, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pylum.ops.attention(q.bfloat16(), k, v, offsets)
    expected = pylum.ops.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), offsets)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


def operands(case, requires_grad):
    q, k, v = (x.contiguous().requires_grad_(requires_grad) for x in case.qkv())
    mask = case.mask()
    return (
        q,
        k,
        v,
        case.offsets,
        mask.num_context,
        mask.num_targets,
        mask.group_offsets,
        mask.visible,
        case.window or 0,
        case.min_full or 0,
        False,
        0.25,
        None,
        0.0,
        *[None] * 5,
    )


SMALL = Case([9, 3], [1, 0], [[1, 2], [1]], [[2, 8], [3]], 4, 2)


def test_opcheck():
    torch.library.opcheck(torch.ops.pylum.attention.default, operands(SMALL, True))


def test_compiles_as_one_graph_and_exports():
    case = SMALL
    q, k, v = case.qkv()
    mask = case.mask()

    class Module(torch.nn.Module):
        def forward(self, q, k, v, offsets):
            return pylum.ops.attention(q * 2, k, v, offsets, mask) + 1

    expected = Module()(q, k, v, case.offsets)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, case.offsets), expected)
    exported = torch.export.export(Module(), (q, k, v, case.offsets))
    assert torch.equal(exported.module()(q, k, v, case.offsets), expected)


def test_double_backward_is_an_error():
    q, k, v, offsets = make([5], 1, 1, 4, 4, torch.float32)
    out = pylum.ops.attention(q, k, v, offsets)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


Q = torch.zeros(6, 2, 8)
OFFSETS = torch.tensor([0, 4, 6])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": Q[0]}, ValueError, r"q must be \[total, heads, head_dim\]"),
        ({"q": Q.double()}, TypeError, "q must be float32 or bfloat16, got .* float64"),
        ({"k": Q.bfloat16()}, TypeError, "k must be float32 like q"),
        ({"k": torch.zeros(6, 4, 8)}, ValueError, "k must be of a number of heads that divides"),
        ({"k": torch.zeros(5, 2, 8)}, ValueError, "k must be of 6 rows like q"),
        ({"v": torch.zeros(6, 1, 8)}, ValueError, "v must be of 2 heads like k"),
        ({"v": Q.transpose(1, 2).transpose(1, 2)[..., ::2]}, ValueError, "v must be .*contiguous"),
        ({"q": torch.zeros(6, 2, 257)}, ValueError, "q must be of a head_dim of 1 to 256"),
        ({"offsets": torch.tensor([0, 4, 5])}, ValueError, "offsets must run from 0 to 6"),
        ({"offsets": torch.tensor([0, 5, 4, 6])}, ValueError, "offsets must be non-decreasing"),
        ({"offsets": OFFSETS.int()}, TypeError, "offsets must be int64"),
        ({"mask": Mask(num_targets=[1])}, ValueError, r"num_targets must be \[batch = 2\]"),
        ({"mask": Mask(num_targets=[5, 0])}, ValueError, r"num_targets\[0\] must be in \[0, 4"),
        ({"mask": Mask(num_context=[0, 3])}, ValueError, r"num_context\[1\] must be in \[0, 2"),
        (
            {"mask": Mask(num_targets=[1, 1], group_offsets=[0, 2])},
            ValueError,
            "group_offsets must start a group",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[2, 1])},
            ValueError,
            r"visible\[1\] must be non-decreasing",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[1, 2], group_offsets=[0, 2])},
            ValueError,
            r"visible\[1\] must be constant in a group",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[1, 3])},
            ValueError,
            r"visible\[1\] must be in \[0, 2",
        ),
        ({"score": "tanh"}, ValueError, "score must be"),
        ({"score": "silu"}, ValueError, "score_scale must be given"),
        ({"score_scale": 1.0}, ValueError, "score_scale must be None"),
        (
            {"score": "silu", "score_scale": torch.ones(5)},
            ValueError,
            r"score_scale must be \[total = 6\]",
        ),
    ],
)
def test_errors_name_what_is_wrong(changes, error, message):
    arguments = {"q": Q, "k": Q, "v": Q, "offsets": OFFSETS} | changes
    with pytest.raises(error, match=message):
        pylum.ops.attention(**arguments)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"visible": [1]}, ValueError, "num_targets must be given too"),
        ({"num_context": torch.zeros(2)}, TypeError, "num_context must be int64"),
        ({"num_targets": torch.zeros(1, 1, dtype=torch.int64)}, ValueError, "one dimension"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"min_full": 3}, ValueError, "window must be given too"),
        ({"min_full": 0, "window": 2}, ValueError, "min_full must be at least 1"),
    ],
)
def test_mask_checks_its_fields(fields, error, message):
    with pytest.raises(error, match=message):
        Mask(**fields)


ISAS = ["base", "avx2", "avx512", "avx512_bf16", "amx"]
PORTABLE = """
import torch
from tests.ops import test_attention as t, test_prefix_attention as p, test_query_layer as l
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for score in ("softmax", "silu"):
        t.test_equals_reference(t.LENGTHS, 4, 2, 24, 40, t.FULL, dtype, score)
    p.test_a_condition_alone_equals_it_among_many(dtype)
    l.test_equals_reference(l.Layer([5, 70], [6, 1], width=64, ffn=176, head_dim=16), dtype)
p.test_nan_in_an_unseen_block_and_in_a_page_tail_moves_nothing()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names the ISAs of x86")
def test_other_instruction_sets():
    best = pylum._C.build_info()["isa_best"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PORTABLE],
            env=os.environ | {"PYLUM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for isa in ISAS[: ISAS.index(best)]
    ]
    assert [run.wait() for run in runs] == [0] * len(runs)


def test_meta_tensors_give_shapes_and_other_arrays_an_error():
    q = torch.empty(10, 2, 8, device="meta")
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    assert pylum.ops.attention(q, q, q, offsets).shape == (10, 2, 8)
    real = torch.zeros(10, 2, 8)
    with pytest.raises(TypeError, match=r"k must be a torch.Tensor, got ndarray"):
        pylum.ops.attention(real, real.numpy(), real, torch.tensor([0, 4, 10]))
