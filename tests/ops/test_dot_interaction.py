"""dot_interaction against its reference, and its gradient against autograd of the reference."""

import pytest
import torch

import pylum
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param(0, 5, 8, id="no-rows"),
    pytest.param(3, 0, 8, id="no-vectors"),
    pytest.param(3, 1, 8, id="one-vector"),
    pytest.param(3, 4, 0, id="no-elements"),
    pytest.param(1, 2, 1, id="ones"),
    pytest.param(15, 16, 15, id="lanes-1"),
    pytest.param(17, 17, 16, id="lanes"),
    pytest.param(16, 18, 17, id="lanes+1"),
    pytest.param(5, 35, 33, id="three-tiles"),
    pytest.param(2, 3, 512, id="widest"),
]


def plain(vectors):
    row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
    return (vectors @ vectors.transpose(1, 2))[:, row, column]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "count", "dim"), SHAPES)
def test_equals_reference(batch, count, dim, dtype):
    vectors = torch.randn(batch, count, dim).to(dtype).requires_grad_()
    weights = torch.randn(batch, count * (count - 1) // 2).to(dtype)
    exact_leaf = vectors.detach().double().requires_grad_()
    plain_leaf = vectors.detach().clone().requires_grad_()
    found = pylum.ops.dot_interaction(vectors)
    exact, rough = pylum.reference.dot_interaction(exact_leaf), plain(plain_leaf)
    assert found.dtype == dtype
    assert_close(found, exact, rough)
    (found * weights).sum().backward()
    (exact * weights).sum().backward()
    (rough * weights).sum().backward()
    assert_close(vectors.grad, exact_leaf.grad, plain_leaf.grad)


def test_order_is_row_by_row():
    vectors = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    found = pylum.ops.dot_interaction(vectors)
    assert found.tolist() == [[10.0, 100.0, 1000.0, 1000.0, 10000.0, 100000.0]]


def test_nan_stays_in_its_row_and_pairs():
    vectors = torch.randn(3, 20, 7)
    clean = pylum.ops.dot_interaction(vectors)
    vectors[1, 4] = torch.nan
    found = pylum.ops.dot_interaction(vectors)
    assert_close(found, pylum.reference.dot_interaction(vectors.double()), plain(vectors))
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_threads_and_neighbours_do_not_change_a_bit():
    vectors = torch.randn(100, 9, 24)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = pylum.ops.dot_interaction(vectors)
    torch.set_num_threads(3)
    three = pylum.ops.dot_interaction(vectors)
    torch.set_num_threads(threads)
    assert torch.equal(one, three)
    assert torch.equal(pylum.ops.dot_interaction(vectors[37:38]), one[37:38])


def test_opcheck_and_compile():
    vectors = torch.randn(6, 5, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.pylum.dot_interaction, (vectors,))
    compiled = torch.compile(pylum.ops.dot_interaction, fullgraph=True, backend="eager")
    assert torch.equal(compiled(vectors), pylum.ops.dot_interaction(vectors))


@pytest.mark.parametrize(
    ("vectors", "error", "words"),
    [
        pytest.param(torch.ones(3, 5), ValueError, r"\[batch, count, dim\], got", id="dims"),
        pytest.param(torch.ones(2, 3, 513), ValueError, "at most 512", id="wide"),
        pytest.param(torch.ones(2, 4, 6).mT, ValueError, "contiguous, got", id="strided"),
        pytest.param(
            torch.ones(2, 3, 4).double(), TypeError, "float32(,| or) bfloat16", id="double"
        ),
    ],
)
def test_errors(vectors, error, words):
    with pytest.raises(error, match=words):
        pylum.ops.dot_interaction(vectors)
