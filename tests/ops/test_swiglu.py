"""swiglu against its reference, and its gradient against autograd of the reference."""

import pytest
import torch

import pylum
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 4, id="no-rows"),
    pytest.param(1, 1, id="ones"),
    pytest.param(63, 15, id="chunk-1"),
    pytest.param(65, 17, id="chunk+1"),
    pytest.param(5, 136, id="plain"),
]


def plain(gate_up):
    gate, up = gate_up.chunk(2, 1)
    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_equals_reference(rows, width, dtype):
    gate_up = (3 * torch.randn(rows, 2 * width)).to(dtype).requires_grad_()
    weights = torch.randn(rows, width).to(dtype)
    exact_leaf = gate_up.detach().double().requires_grad_()
    plain_leaf = gate_up.detach().clone().requires_grad_()
    found, exact = pylum.ops.swiglu(gate_up), pylum.reference.swiglu(exact_leaf)
    rough = plain(plain_leaf)
    assert found.dtype == dtype
    assert_close(found, exact, rough)
    (found * weights).sum().backward()
    (exact * weights).sum().backward()
    (rough * weights).sum().backward()
    assert_close(gate_up.grad, exact_leaf.grad, plain_leaf.grad)


def test_extreme_gates():
    gate_up = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4, torch.nan, *[2.0] * 6]])
    found = pylum.ops.swiglu(gate_up)
    assert_close(found, pylum.reference.swiglu(gate_up.double()), plain(gate_up))
    leaf = gate_up.clone().requires_grad_()
    pylum.ops.swiglu(leaf)[:, :5].sum().backward()
    assert bool(leaf.grad[0, [0, 1, 2, 3, 4]].isfinite().all())


def test_threads_do_not_change_a_bit():
    gate_up = torch.randn(500, 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = pylum.ops.swiglu(gate_up)
    torch.set_num_threads(3)
    three = pylum.ops.swiglu(gate_up)
    torch.set_num_threads(threads)
    assert torch.equal(one, three)


def test_opcheck_and_compile():
    gate_up = torch.randn(6, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.pylum.swiglu, (gate_up,))
    compiled = torch.compile(pylum.ops.swiglu, fullgraph=True, backend="eager")
    assert torch.equal(compiled(gate_up), pylum.ops.swiglu(gate_up))


@pytest.mark.parametrize(
    ("gate_up", "error", "words"),
    [
        pytest.param(torch.ones(3, 5), ValueError, r"\[rows, 2 \* width\]", id="odd"),
        pytest.param(torch.ones(4), ValueError, r"\[rows, 2 \* width\]", id="dims"),
        pytest.param(torch.ones(4, 6).T, ValueError, "contiguous, got", id="strided"),
        pytest.param(torch.ones(3, 4).double(), TypeError, "float32(,| or) bfloat16", id="double"),
    ],
)
def test_errors(gate_up, error, words):
    with pytest.raises(error, match=words):
        pylum.ops.swiglu(gate_up)
