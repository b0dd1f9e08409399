"""embedding_sequence against its reference, and its gradients against those of the reference."""

import numpy as np
import pytest
import torch

import pylum
from pylum.ops import embedding_sequence
from tests.tolerance import assert_close

FLOAT, HALF = torch.float32, torch.bfloat16
SHAPES = [
    pytest.param(0, [5], [4], id="no-tokens"),
    pytest.param(0, [0], [4], id="no-rows"),
    pytest.param(3, [5], [0], id="dim-0"),
    pytest.param(1, [1], [1], id="ones"),
    pytest.param(63, [9, 3], [64, 64], id="block-1"),
    pytest.param(65, [9, 3], [16, 16], id="block+1"),
    pytest.param(200, [50, 7, 2], [65, 65, 65], id="unaligned"),
    pytest.param(700, [1000, 3], [128, 128], id="long-rows"),
]


def make(tokens, rows, dims, dtypes, *, positions=None):
    tables = [
        torch.randn(r, d, dtype=dtypes[t % len(dtypes)])
        for t, (r, d) in enumerate(zip(rows, dims, strict=True))
    ]
    indices = [torch.randint(max(r, 1), (tokens,)) for r in rows]
    if positions is None:
        return tables, indices, None
    table = torch.randn(11, positions, dtype=dtypes[0])
    return tables, indices, (table, torch.randint(11, (tokens,)))


def plain(tables, indices, positions, combine):
    rows = [torch.nn.functional.embedding(i, t) for t, i in zip(tables, indices, strict=True)]
    out = torch.cat(rows, 1) if combine == "concat" else sum(rows)
    return out if positions is None else out + positions[0][positions[1]]


@pytest.mark.parametrize("with_positions", [False, True], ids=["", "positions"])
@pytest.mark.parametrize("dtype", [None, FLOAT, HALF], ids=str)
@pytest.mark.parametrize("dtypes", [[FLOAT], [HALF], [FLOAT, HALF]], ids=str)
@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize(("tokens", "rows", "dims"), SHAPES)
def test_equals_reference(tokens, rows, dims, combine, dtypes, dtype, with_positions):
    width = dims[0] if combine == "sum" else sum(dims)
    tables, indices, positions = make(
        tokens, rows, dims, dtypes, positions=width if with_positions else None
    )
    leaves = [*tables, *([positions[0]] if positions else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    out = embedding_sequence(tables, indices, positions=positions, dtype=dtype, combine=combine)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, dout)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    at = None if positions is None else (exact[-1], positions[1])
    expected = pylum.reference.embedding_sequence(
        exact[: len(tables)], indices, positions=at, combine=combine
    )
    simple = plain(tables, indices, positions, combine).to(out.dtype)
    assert out.dtype == (dtype or (HALF if dtypes == [HALF] else FLOAT))
    assert_close(out, expected, simple)
    wanted = torch.autograd.grad(expected, exact, dout.double())
    simple_grads = torch.autograd.grad(simple, leaves, dout)
    for grad, want, simple_grad in zip(grads, wanted, simple_grads, strict=True):
        assert_close(grad, want, simple_grad)


def test_one_table_is_an_exact_copy():
    table = torch.randn(100, 33)
    table[3, 5], table[4, 0] = torch.nan, -0.0
    index = torch.randint(100, (1000,))
    out = embedding_sequence([table], [index])
    assert torch.equal(out.view(torch.int32), table[index].view(torch.int32))


def test_strided_rows_and_indices():
    wide = torch.randn(40, 96)
    tables = [wide[::2, :31], wide[1::3, 7:40]]
    columns = torch.stack([torch.randint(20, (50,)), torch.randint(13, (50,))], 1)
    out = embedding_sequence(tables, list(columns.unbind(1)))
    assert torch.equal(out, plain(tables, columns.unbind(1), None, "concat"))


def test_expanded_gradient():
    table = torch.randn(5, 7, requires_grad=True)
    index = torch.tensor([1, 1, 4])
    embedding_sequence([table], [index]).sum().backward()
    assert torch.equal(table.grad, torch.tensor([0.0, 2, 0, 0, 1])[:, None].expand(5, 7))


def test_only_the_tables_that_need_a_gradient_get_one():
    tables, indices, _ = make(6, [4, 4], [3, 3], [FLOAT])
    tables[1].requires_grad_()
    embedding_sequence(tables, indices).sum().backward()
    assert tables[0].grad is None and tables[1].grad is not None


@pytest.mark.parametrize("hot", [False, True], ids=["uniform", "one-hot-row"])
def test_threads_do_not_change_a_bit(hot):
    table = torch.randn(300, 64, requires_grad=True)
    index = torch.randint(300, (20_000,))
    if hot:
        index[torch.rand(20_000) < 0.7] = 7
    dout = torch.randn(20_000, 64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = embedding_sequence([table], [index])
            results.append((out, *torch.autograd.grad(out, table, dout)))
    finally:
        torch.set_num_threads(before)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


def test_a_row_gradient_depends_on_its_own_tokens_only():
    table = torch.randn(10, 8, requires_grad=True)
    index = torch.randint(10, (3000,))
    dout = torch.randn(3000, 8)
    (alone,) = torch.autograd.grad(
        embedding_sequence([table], [index[index == 3]]), table, dout[index == 3]
    )
    dout[index == 5] = torch.nan
    (grad,) = torch.autograd.grad(embedding_sequence([table], [index]), table, dout)
    assert torch.equal(grad[3], alone[3])
    assert grad[5].isnan().all() and grad[:5].isfinite().all() and grad[6:].isfinite().all()


def test_more_than_2_31_elements():
    rows, dim = 2**25 + 8, 64
    # numpy's zeros are committed page by page: this costs 4.3 GB of addresses, not of memory.
    table = torch.from_numpy(np.zeros((rows, dim), dtype=np.uint16)).view(HALF)
    table[-1], table[-2] = 3, 5
    index = torch.tensor([rows - 1, 0, rows - 2])
    out = embedding_sequence([table], [index])
    assert out[:, 0].tolist() == [3, 0, 5] and out[:, -1].tolist() == [3, 0, 5]


ERRORS = [
    pytest.param({"indices": [torch.tensor([0, -1])]}, ValueError, r"indices\[0\].*-1 at 1"),
    pytest.param(
        {"indices": [torch.tensor([0, 5])]},
        ValueError,
        r"indices\[0\] must be rows of tables\[0\] in \[0, 5\), got 5 at 1",
    ),
    pytest.param({"tables": []}, ValueError, "at least one"),
    pytest.param({"tables": [torch.zeros(5)]}, ValueError, r"tables\[0\]"),
    pytest.param({"tables": [torch.zeros(4, 5).T]}, ValueError, r"tables\[0\].*contiguous"),
    pytest.param({"tables": [torch.zeros(5, 4, dtype=torch.float64)]}, TypeError, "dtype"),
    pytest.param({"indices": [torch.tensor([0, 1]).int()]}, TypeError, r"indices\[0\].*int64"),
    pytest.param({"indices": [torch.zeros(1, 2).long()]}, ValueError, r"indices\[0\]"),
    pytest.param({"dtype": torch.float16}, TypeError, "dtype must be"),
    pytest.param({"combine": "mean"}, ValueError, "combine must be"),
    pytest.param(
        {"positions": (torch.zeros(3, 4), torch.tensor([0, 3]))}, ValueError, r"positions\[1\].*3"
    ),
    pytest.param(
        {"positions": (torch.zeros(3, 5), torch.tensor([0, 1]))}, ValueError, r"positions\[0\]"
    ),
    pytest.param(
        {"positions": (torch.zeros(3, 4), torch.tensor([0]))}, ValueError, r"positions\[1\]"
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    arguments = {"tables": [torch.zeros(5, 4)], "indices": [torch.tensor([0, 1])]} | change
    with pytest.raises(error, match=message):
        embedding_sequence(arguments.pop("tables"), arguments.pop("indices"), **arguments)


def test_sum_wants_one_dim():
    tables, indices, _ = make(3, [4, 4], [3, 5], [FLOAT])
    with pytest.raises(ValueError, match=r"tables\[1\] must be \[rows, 3\]"):
        embedding_sequence(tables, indices, combine="sum")


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_opcheck(combine):
    tables, indices, positions = make(
        7, [4, 5], [3, 3], [FLOAT], positions=6 if combine == "concat" else 3
    )
    for table in (*tables, positions[0]):
        table.requires_grad_()
    torch.library.opcheck(
        torch.ops.pylum.embedding_sequence.default,
        (tables, indices, *positions, HALF, combine == "sum"),
    )
    torch.library.opcheck(
        torch.ops.pylum.table_gradient.default,
        (torch.randn(7, 3), indices[0], None, False, 4, FLOAT),
    )


def test_compile_export_and_autocast():
    tables, indices, positions = make(7, [4, 5], [3, 3], [FLOAT], positions=6)
    tables = [torch.nn.Parameter(table) for table in tables]

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = torch.nn.ParameterList(tables)

        def forward(self, a, b, at):
            return embedding_sequence(
                list(self.tables), [a, b], positions=(positions[0], at), dtype=HALF
            )

    module = Module()
    expected = module(*indices, positions[1])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    actual = compiled(*indices, positions[1])
    assert torch.equal(actual, expected)
    dout = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tables, dout)
    for grad, want in zip(torch.autograd.grad(actual, tables, dout), wanted, strict=True):
        assert torch.equal(grad, want)
    tokens = torch.export.Dim("tokens")
    exported = torch.export.export(
        module, (*indices, positions[1]), dynamic_shapes=({0: tokens},) * 3
    )
    assert torch.equal(
        exported.module()(indices[0][:5], indices[1][:5], positions[1][:5]), expected[:5]
    )
    with torch.autocast("cpu", dtype=HALF):
        out = embedding_sequence(tables, indices)
    assert out.dtype == FLOAT
    assert torch.equal(out, embedding_sequence(tables, indices))


def test_double_backward_is_an_error():
    table = torch.randn(4, 3, requires_grad=True)
    out = embedding_sequence([table], [torch.tensor([0, 2])])
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out.square().sum(), table, create_graph=True)
