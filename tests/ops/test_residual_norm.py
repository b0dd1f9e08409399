"""residual_norm against its reference, and its gradients against autograd of the reference."""

import pytest
import torch

import pylum
from pylum.reference.residual_norm import kept_elements
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 8, id="no-rows"),
    pytest.param(1, 1, id="ones"),
    pytest.param(3, 15, id="vector-1"),
    pytest.param(3, 16, id="vector"),
    pytest.param(3, 17, id="vector+1"),
    pytest.param(2, 50, id="width-50"),
    pytest.param(255, 20, id="chunk-1"),
    pytest.param(257, 20, id="chunk+1"),
    pytest.param(4, 700, id="wide"),
]
SEED = 2**61 + 12345


def make(rows, width, dtype, residual=True):
    branch = torch.randn(rows, width, dtype=dtype)
    stream = torch.randn(rows, width, dtype=dtype) if residual else None
    return branch, stream, torch.randn(width, dtype=dtype)


def plain(branch, residual, weight, dropout, seed):
    """The formula in the operands' dtype."""
    kept = kept_elements(*branch.shape, dropout, seed)
    total = branch * (kept.to(branch.dtype) / (1 - dropout)).to(branch.dtype)
    total = total if residual is None else total + residual
    return total, torch.nn.functional.rms_norm(total, weight.shape, weight, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_equals_reference(rows, width, residual, dropout, dtype):
    operands = make(rows, width, dtype, residual)
    found = pylum.ops.residual_norm(*operands, dropout=dropout, seed=SEED)
    double = [None if t is None else t.double() for t in operands]
    exact = pylum.reference.residual_norm(*double, dropout=dropout, seed=SEED)
    for f, e, p in zip(found, exact, plain(*operands, dropout, SEED), strict=True):
        assert f.dtype == dtype
        assert_close(f, e, p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("used", ["both", "sum", "normed"])
@pytest.mark.parametrize(
    ("rows", "width"),
    # A row of one element has the norm 1 whatever it is: its gradient is rounding alone.
    [p if p.id != "ones" else pytest.param(1, 2, id="twos") for p in SHAPES],
)
def test_gradients(rows, width, used, dropout, dtype):
    operands = make(rows, width, dtype)
    weights = [torch.randn(rows, width, dtype=dtype) for _ in range(2)]

    def gradients(f, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = f(*leaves)
        parts = [o * w.to(o.dtype) for o, w in zip(out, weights, strict=True)]
        chosen = {"both": parts, "sum": parts[:1], "normed": parts[1:]}[used]
        sum(part.sum() for part in chosen).backward()
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]

    found = gradients(lambda *t: pylum.ops.residual_norm(*t, dropout=dropout, seed=SEED), operands)
    exact = gradients(
        lambda *t: pylum.reference.residual_norm(*t, dropout=dropout, seed=SEED),
        [t.double() for t in operands],
    )
    rough = gradients(lambda *t: plain(*t, dropout, SEED), operands)
    for f, e, p in zip(found, exact, rough, strict=True):
        assert_close(f, e, p)


def test_dropout_has_its_rate_and_no_pattern():
    rows, width, rate = 400, 500, 0.2
    ones = torch.ones(rows, width)

    def dropped(seed):
        found, _ = pylum.ops.residual_norm(ones, None, ones[0], dropout=rate, seed=seed)
        assert set(found.unique().tolist()) == {0.0, 1.25}
        return (found == 0).double() - rate

    one, two = dropped(1), dropped(2)
    deviation = (rate * (1 - rate) / (rows * width)) ** 0.5
    assert abs(one.mean()) < 5 * deviation
    assert one.mean(0).abs().max() < 6 * deviation * rows**0 * width**0.5
    assert one.mean(1).abs().max() < 6 * deviation * rows**0.5
    # Neighbours, and two seeds, are independent.
    for other in (one.roll(1, 0), one.roll(1, 1), two):
        assert abs((one * other).mean()) < 5 * rate * (1 - rate) / (rows * width) ** 0.5


def test_threads_do_not_change_a_bit():
    branch, residual, weight = (t.requires_grad_() for t in make(1000, 50, torch.float32))
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out = pylum.ops.residual_norm(branch, residual, weight, dropout=0.5, seed=3)
        results.append([*out, *torch.autograd.grad(sum(o.sum() for o in out), (branch, weight))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_nan_row_stays_alone():
    branch, residual, weight = make(5, 50, torch.float32)
    before = pylum.ops.residual_norm(branch, residual, weight)
    branch[2] = torch.nan
    after = pylum.ops.residual_norm(branch, residual, weight)
    for b, a in zip(before, after, strict=True):
        assert bool(a[2].isnan().all())
        assert torch.equal(b[[0, 1, 3, 4]], a[[0, 1, 3, 4]])


def test_opcheck_and_compile():
    branch, residual, weight = (t.requires_grad_() for t in make(6, 10, torch.float32))
    for stream in (residual, None):
        torch.library.opcheck(
            torch.ops.pylum.residual_norm, (branch, stream, weight, 0.25, 7, 1e-6)
        )
    compiled = torch.compile(pylum.ops.residual_norm, fullgraph=True, backend="eager")
    for c, e in zip(
        compiled(branch, residual, weight, dropout=0.1, seed=4),
        pylum.ops.residual_norm(branch, residual, weight, dropout=0.1, seed=4),
        strict=True,
    ):
        assert torch.equal(c, e)


def test_autocast_takes_float32():
    branch, residual, weight = make(4, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = pylum.ops.residual_norm(branch.bfloat16(), residual, weight)
    assert total.dtype == normed.dtype == torch.float32
    assert torch.equal(total, branch.bfloat16().float() + residual)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        pytest.param({"branch": torch.ones(3)}, ValueError, r"branch must be \[rows, w", id="dims"),
        pytest.param(
            {"branch": torch.ones(4, 3).T}, ValueError, "contiguous, got .* strides", id="strided"
        ),
        pytest.param(
            {"branch": torch.ones(3, 4).double()}, TypeError, "float32(,| or) bfloat16", id="double"
        ),
        pytest.param(
            {"residual": torch.ones(3, 5)}, ValueError, r"residual must be \[rows = 3", id="shape"
        ),
        pytest.param(
            {"residual": torch.ones(3, 4).bfloat16()}, TypeError, "float32 like branch", id="dtype"
        ),
        pytest.param({"weight": torch.ones(3)}, ValueError, r"weight must be \[width = 4", id="w"),
        pytest.param({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)", id="dropout"),
    ],
)
def test_errors(changes, error, words):
    operands = {"branch": torch.ones(3, 4), "residual": None, "weight": torch.ones(4)}
    with pytest.raises(error, match=words):
        pylum.ops.residual_norm(**{**operands, **changes})
