"""rotary against its reference, and its gradients against autograd of the reference."""

import pytest
import torch

import pylum
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 2, 1, 8, id="no-rows"),
    pytest.param(1, 1, 1, 2, id="ones"),
    pytest.param(63, 2, 2, 30, id="vector-1"),
    pytest.param(65, 2, 1, 34, id="vector+1"),
    pytest.param(5, 1, 1, 50, id="head-50"),
    pytest.param(5, 3, 0, 16, id="q-only"),
    pytest.param(5, 0, 2, 16, id="kv-only"),
    pytest.param(7, 4, 2, 128, id="head-128"),
]


def make(total, heads, kv_heads, head_dim, dtype):
    x = torch.randn(total, (heads + 2 * kv_heads) * head_dim).to(dtype)
    angles = torch.arange(9.0)[:, None] * torch.rand(head_dim // 2)
    return x, torch.randint(0, 9, (total,)), angles.cos(), angles.sin()


def plain(x, positions, cos, sin, *, heads, kv_heads):
    """The formula in the dtype of x."""
    cos, sin = cos[positions, None].to(x.dtype), sin[positions, None].to(x.dtype)
    q, k, v = x.view(len(x), heads + 2 * kv_heads, 2 * cos.shape[2]).split(
        [heads, kv_heads, kv_heads], 1
    )

    def turned(h):
        a, b = h.chunk(2, 2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], 2)

    return turned(q), turned(k), v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (1, 2)], ids=str)
@pytest.mark.parametrize(("total", "heads", "kv_heads", "head_dim"), SHAPES)
def test_equals_reference(total, heads, kv_heads, head_dim, used, dtype):
    x, *rest = make(total, heads, kv_heads, head_dim, dtype)
    weights = None
    results = []
    for f, leaf in (
        (pylum.ops.rotary, x.clone()),
        (pylum.reference.rotary, x.double()),
        (plain, x.clone()),
    ):
        leaf.requires_grad_()
        out = f(leaf, *rest, heads=heads, kv_heads=kv_heads)
        if weights is None:
            weights = [torch.randn(o.shape) for o in out]
        sum((out[i] * weights[i].to(out[i].dtype)).sum() for i in used).backward()
        results.append([*out, leaf.grad])
    for found, exact, rough in zip(*results, strict=True):
        assert found.dtype == dtype
        assert_close(found, exact, rough)


def test_turning_back_is_exact_for_right_angles():
    cos, sin = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    q, _, _ = pylum.ops.rotary(x, torch.tensor([0, 1]), cos, sin, heads=1, kv_heads=0)
    assert q[:, 0].tolist() == [[-2.0, 1.0], [1.0, 2.0]]


def test_threads_do_not_change_a_bit():
    x, *rest = make(500, 2, 1, 50, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 3):
        torch.set_num_threads(n)
        results.append(pylum.ops.rotary(x, *rest, heads=2, kv_heads=1))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck_and_compile():
    x, *rest = make(6, 2, 1, 8, torch.float32)
    x.requires_grad_()
    torch.library.opcheck(torch.ops.pylum.rotary, (x, *rest, 2, 1))
    compiled = torch.compile(pylum.ops.rotary, fullgraph=True, backend="eager")
    found = compiled(x, *rest, heads=2, kv_heads=1)
    expected = pylum.ops.rotary(x, *rest, heads=2, kv_heads=1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        pytest.param({"heads": 0, "kv_heads": 0}, ValueError, "and not both 0", id="no-heads"),
        pytest.param({"heads": 3}, ValueError, "even heads, contiguous", id="heads"),
        pytest.param({"x": torch.ones(8, 5).T}, ValueError, "contiguous, got", id="strided"),
        pytest.param(
            {"x": torch.ones(5, 8).double()}, TypeError, "float32(,| or) bfloat16", id="double"
        ),
        pytest.param(
            {"positions": torch.zeros(4, dtype=torch.int64)}, ValueError, "total = 5", id="rows"
        ),
        pytest.param(
            {"positions": torch.full((5,), 9)}, ValueError, r"in \[0, 9\), got 9", id="position"
        ),
        pytest.param({"cos": torch.ones(9, 3)}, ValueError, "head_dim / 2 = 1", id="cos"),
        pytest.param({"sin": torch.ones(8, 1)}, ValueError, "sin must be", id="sin"),
        pytest.param({"sin": torch.ones(9, 1).bfloat16()}, TypeError, "sin must be", id="sin-type"),
    ],
)
def test_errors(changes, error, words):
    operands = {
        "x": torch.ones(5, 8),
        "positions": torch.zeros(5, dtype=torch.int64),
        "cos": torch.ones(9, 1),
        "sin": torch.ones(9, 1),
        "heads": 2,
        "kv_heads": 1,
    }
    with pytest.raises(error, match=words):
        pylum.ops.rotary(**{**operands, **changes})
