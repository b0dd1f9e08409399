"""linear against its reference, and its gradients against autograd of the reference."""

import importlib

import pytest
import torch

import pylum
from tests.tolerance import assert_close

SHAPES = [
    pytest.param(0, 8, 8, id="no-rows"),
    pytest.param(1, 1, 1, id="ones"),
    pytest.param(5, 50, 150, id="tile-1"),
    pytest.param(6, 50, 16, id="tile"),
    pytest.param(7, 15, 17, id="tile+1"),
    pytest.param(95, 33, 63, id="chunk-1"),
    pytest.param(97, 64, 65, id="chunk+1"),
    pytest.param(130, 7, 129, id="two-panels+1"),
    pytest.param(2047, 20, 10, id="gradient-chunk-1"),
    pytest.param(2049, 20, 10, id="gradient-chunk+1"),
    pytest.param(20, 1024, 40, id="deepest"),
    pytest.param(20, 40, 1025, id="torchs"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("total", "depth", "width"), SHAPES)
def test_equals_reference(total, depth, width, dtype):
    x, weight = torch.randn(total, depth).to(dtype), torch.randn(width, depth).to(dtype)
    dy = torch.randn(total, width).to(dtype)
    results = []
    for f, cast in (
        (pylum.ops.linear, dtype),
        (pylum.reference.linear, torch.float64),
        (torch.nn.functional.linear, dtype),
    ):
        leaves = [t.to(cast).clone().requires_grad_() for t in (x, weight)]
        out = f(*leaves)
        out.backward(dy.to(out.dtype))
        results.append([out, *(leaf.grad for leaf in leaves)])
    for found, exact, rough in zip(*results, strict=True):
        assert found.dtype == dtype
        assert_close(found, exact, rough)


@pytest.mark.parametrize(("total", "depth", "width"), SHAPES)
def test_what_cuda_runs_has_the_shapes_and_gradients_of_the_op(total, depth, width):
    """torch's product: the same on a CPU, so that no GPU is needed to see it."""
    module = importlib.import_module("pylum.ops.linear")
    x, weight = torch.randn(total, depth), torch.randn(width, depth)
    dy = torch.randn(total, width)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    rough = [t.clone().requires_grad_() for t in (x, weight)]
    out, expected = module._cuda(x, weight), pylum.reference.linear(*exact)
    plain = torch.nn.functional.linear(*rough)
    assert_close(out, expected.detach(), plain.detach())
    expected.backward(dy.double())
    plain.backward(dy)
    for wanted in ((True, True), (True, False), (False, True)):
        found = module._backward_cuda(dy, x, weight, *wanted)
        fake = module._backward_fake(dy, x, weight, *wanted)
        for d, like, e, r, want in zip(found, fake, exact, rough, wanted, strict=True):
            assert d.shape == like.shape and d.dtype == like.dtype
            if want:
                assert_close(d, e.grad, r.grad)


def test_a_row_does_not_depend_on_the_others():
    x, weight = torch.randn(300, 50), torch.randn(150, 50)
    whole = pylum.ops.linear(x, weight)
    for start, stop in ((0, 1), (5, 12), (90, 300)):
        assert torch.equal(pylum.ops.linear(x[start:stop], weight), whole[start:stop])
    x[7] = torch.nan
    spoilt = pylum.ops.linear(x, weight)
    assert bool(spoilt[7].isnan().all())
    rest = torch.arange(300) != 7
    assert torch.equal(spoilt[rest], whole[rest])


def test_threads_do_not_change_a_bit():
    x, weight = torch.randn(5000, 50, requires_grad=True), torch.randn(70, 50, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out = pylum.ops.linear(x, weight)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_operands():
    x, weight = torch.randn(50, 30).T, torch.randn(150, 50)[::2]
    expected = pylum.ops.linear(x.contiguous(), weight.contiguous())
    assert torch.equal(pylum.ops.linear(x, weight), expected)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradients_wanted(needs):
    x, weight = torch.randn(9, 4, requires_grad=needs[0]), torch.randn(3, 4, requires_grad=needs[1])
    pylum.ops.linear(x, weight).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needs


def test_opcheck_and_compile():
    x, weight = torch.randn(6, 10, requires_grad=True), torch.randn(5, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.pylum.linear, (x, weight))
    compiled = torch.compile(pylum.ops.linear, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight), pylum.ops.linear(x, weight))


def test_autocast():
    x, weight = torch.randn(6, 10), torch.randn(5, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert pylum.ops.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "weight", "error", "words"),
    [
        pytest.param(torch.ones(3), torch.ones(2, 3), ValueError, r"got \[3\] and", id="dims"),
        pytest.param(torch.ones(4, 2), torch.ones(2, 3), ValueError, "x must be", id="depth"),
        pytest.param(
            torch.ones(4, 3), torch.ones(2, 3).double(), TypeError, "float32 like x", id="dtype"
        ),
    ],
)
def test_errors(x, weight, error, words):
    with pytest.raises(error, match=words):
        pylum.ops.linear(x, weight)
