"""embedding_bag against its reference, and its gradients against those of the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import embedding_bag
from tests.tolerance import assert_close

FLOAT, HALF = torch.float32, torch.bfloat16
SHAPES = [
    pytest.param([], [5], [4], id="no-bags"),
    pytest.param([0, 0, 0], [0], [4], id="only-empty-bags"),
    pytest.param([0, 3, 0, 0, 1, 0], [5, 2], [4, 3], id="some-empty-bags"),
    pytest.param([2], [5], [0], id="dim-0"),
    pytest.param([1], [1], [1], id="ones"),
    pytest.param([2] * 31, [9, 3], [64, 64], id="block-1"),
    pytest.param([3] * 33, [9, 3], [16, 63], id="block+1"),
    pytest.param([1, 0, 2000, 1, 2], [50, 7, 2], [65, 130, 17], id="one-long"),
]


def make(lengths, rows, dims, dtypes):
    tables = [
        torch.randn(r, d, dtype=dtypes[t % len(dtypes)])
        for t, (r, d) in enumerate(zip(rows, dims, strict=True))
    ]
    offsets = [torch.tensor([0, *lengths]).cumsum(0) for _ in rows]
    return tables, [torch.randint(max(r, 1), (sum(lengths),)) for r in rows], offsets


def plain(tables, indices, offsets, mode):
    bags = [
        torch.nn.functional.embedding_bag(i, t, o, mode=mode, include_last_offset=True)
        for t, i, o in zip(tables, indices, offsets, strict=True)
    ]
    return torch.cat(bags, 1)


def check(lengths, rows, dims, dtypes, mode):
    tables, indices, offsets = make(lengths, rows, dims, dtypes)
    for table in tables:
        table.requires_grad_()
    out = embedding_bag(tables, indices, offsets, mode=mode)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, tables, dout)

    exact = [table.detach().double().requires_grad_() for table in tables]
    expected = pylum.reference.embedding_bag(exact, indices, offsets, mode=mode)
    # torch's bfloat16 bags round each partial sum, so float32 tables are the plain comparison.
    single = [table.detach().float().requires_grad_() for table in tables]
    simple = plain(single, indices, offsets, mode)
    assert out.dtype == (HALF if dtypes == [HALF] else FLOAT)
    assert_close(out, expected, simple.to(out.dtype))
    wanted = torch.autograd.grad(expected, exact, dout.double())
    simple_grads = torch.autograd.grad(simple, single, dout.float())
    for grad, want, simple_grad in zip(grads, wanted, simple_grads, strict=True):
        assert_close(grad, want, simple_grad.to(grad.dtype))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtypes", [[FLOAT], [HALF], [FLOAT, HALF]], ids=str)
@pytest.mark.parametrize(("lengths", "rows", "dims"), SHAPES)
def test_equals_reference(lengths, rows, dims, dtypes, mode):
    check(lengths, rows, dims, dtypes, mode)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=70),
    tables=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 80)), min_size=1, max_size=3),
    half=st.booleans(),
    mode=st.sampled_from(["sum", "mean"]),
)
def test_ragged(lengths, tables, half, mode):
    rows, dims = map(list, zip(*tables, strict=True))
    check(lengths, rows, dims, [HALF] if half else [FLOAT], mode)


def test_tables_may_have_different_lookups():
    tables = [torch.randn(5, 3), torch.randn(6, 2)]
    indices = [torch.tensor([4, 0, 1]), torch.tensor([5])]
    offsets = [torch.tensor([0, 2, 3]), torch.tensor([0, 0, 1])]
    out = embedding_bag(tables, indices, offsets)
    assert torch.equal(out[0, :3], tables[0][4] + tables[0][0])
    assert torch.equal(out[1], torch.cat([tables[0][1], tables[1][5]]))
    assert (out[0, 3:] == 0).all()


def test_a_bag_alone_is_bitwise_the_same():
    tables, indices, offsets = make([3, 700, 0, 5], [40], [70], [FLOAT])
    packed = embedding_bag(tables, indices, offsets)
    o = offsets[0]
    for b in range(4):
        bag = indices[0][o[b] : o[b + 1]]
        alone = embedding_bag(tables, [bag], [torch.tensor([0, len(bag)])])
        assert torch.equal(packed[b : b + 1], alone)


def test_strided_rows_and_indices():
    table = torch.randn(40, 96)[::2, 5:36]
    index = torch.randint(20, (30, 2))[:, 1]
    offsets = torch.tensor([0, 7, 30])
    out = embedding_bag([table], [index], [offsets])
    assert_close(
        out,
        pylum.reference.embedding_bag([table], [index], [offsets]),
        plain([table.contiguous()], [index.contiguous()], [offsets], "sum"),
    )


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_threads_do_not_change_a_bit(mode):
    tables, indices, offsets = make([1, 5000, 0] + [20] * 700, [300, 3], [64, 64], [FLOAT])
    for table in tables:
        table.requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = embedding_bag(tables, indices, offsets, mode=mode)
            results.append((out, *torch.autograd.grad(out, tables, torch.ones_like(out) / 3)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_broken_row_moves_no_other_bag():
    table = torch.randn(10, 8, requires_grad=True)
    index, offsets = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2, 4, 5])
    healthy = embedding_bag([table], [index], [offsets])
    with torch.no_grad():
        table[4] = torch.nan
    out = embedding_bag([table], [index], [offsets])
    assert out[1].isnan().all()
    assert torch.equal(out[0], healthy[0]) and torch.equal(out[2], healthy[2])
    (grad,) = torch.autograd.grad(
        out, table, torch.tensor([1.0, torch.nan, 1])[:, None].expand(3, 8)
    )
    assert grad.isnan().all(1).nonzero().flatten().tolist() == [3, 4]
    assert grad.isnan().any(1).nonzero().flatten().tolist() == [3, 4]


def test_more_than_2_31_elements():
    rows, dim = 2**25 + 8, 64
    # numpy's zeros are committed page by page: this costs 4.3 GB of addresses, not of memory.
    table = torch.from_numpy(np.zeros((rows, dim), dtype=np.uint16)).view(HALF)
    table[-1], table[-2] = 3, 5
    out = embedding_bag([table], [torch.tensor([rows - 1, 0, rows - 2])], [torch.tensor([0, 2, 3])])
    assert out[:, 0].tolist() == [3, 5] and out[:, -1].tolist() == [3, 5]


ERRORS = [
    pytest.param({"indices": [torch.tensor([0, -1])]}, ValueError, r"indices\[0\].*-1 at 1"),
    pytest.param({"indices": [torch.tensor([5, 1])]}, ValueError, r"indices\[0\].*got 5 at 0"),
    pytest.param({"indices": [torch.tensor([0, 1]).int()]}, TypeError, r"indices\[0\].*int64"),
    pytest.param({"indices": []}, ValueError, "as many"),
    pytest.param({"tables": [torch.zeros(5)]}, ValueError, r"tables\[0\]"),
    pytest.param({"tables": [torch.zeros(5, 4).double()]}, TypeError, r"tables\[0\].*float32"),
    pytest.param({"tables": [torch.zeros(4, 5).T]}, ValueError, r"tables\[0\].*contiguous"),
    pytest.param({"offsets": [torch.tensor([0, 3])]}, ValueError, r"offsets\[0\].*0 to 2.*0 to 3"),
    pytest.param({"offsets": [torch.tensor([1, 2])]}, ValueError, r"offsets\[0\].*got 1 to 2"),
    pytest.param({"offsets": [torch.tensor([0, 2, 1, 2])]}, ValueError, "2 before 1"),
    pytest.param({"offsets": [torch.tensor([0, 2]).int()]}, TypeError, r"offsets\[0\].*int64"),
    pytest.param({"offsets": [torch.tensor([]).long()]}, ValueError, r"offsets\[0\]"),
    pytest.param({"mode": "max"}, ValueError, "mode must be"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "tables": [torch.zeros(5, 4)],
        "indices": [torch.tensor([0, 1])],
        "offsets": [torch.tensor([0, 2])],
        "mode": "sum",
    } | change
    mode = arguments.pop("mode")
    with pytest.raises(error, match=message):
        embedding_bag(*arguments.values(), mode=mode)


def test_batches_must_agree():
    tables, indices, offsets = make([1, 1], [4, 4], [3, 3], [FLOAT])
    offsets[1] = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"offsets\[1\] must be \[batch \+ 1 = 3\]"):
        embedding_bag(tables, indices, offsets)


def test_opcheck():
    tables, indices, offsets = make([3, 0, 2], [4, 5], [3, 2], [FLOAT])
    for table in tables:
        table.requires_grad_()
    torch.library.opcheck(torch.ops.pylum.embedding_bag.default, (tables, indices, offsets, True))
    torch.library.opcheck(
        torch.ops.pylum.table_gradient.default,
        (torch.randn(3, 3), indices[0], offsets[0], True, 4, HALF),
    )


def test_compile_export_and_autocast():
    tables, indices, offsets = make([3, 0, 2], [4, 5], [3, 2], [FLOAT])
    tables = [torch.nn.Parameter(table) for table in tables]

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = torch.nn.ParameterList(tables)

        def forward(self, a, b, at_a, at_b):
            return embedding_bag(list(self.tables), [a, b], [at_a, at_b], mode="mean")

    module, inputs = Module(), (*indices, *offsets)
    expected = module(*inputs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    actual = compiled(*inputs)
    assert torch.equal(actual, expected)
    dout = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tables, dout)
    for grad, want in zip(torch.autograd.grad(actual, tables, dout), wanted, strict=True):
        assert torch.equal(grad, want)
    exported = torch.export.export(module, inputs)
    assert torch.equal(exported.module()(*inputs), expected)
    with torch.autocast("cpu", dtype=HALF):
        assert torch.equal(module(*inputs), expected)


def test_double_backward_is_an_error():
    table = torch.randn(4, 3, requires_grad=True)
    out = embedding_bag([table], [torch.tensor([0, 2])], [torch.tensor([0, 2])])
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out.square().sum(), table, create_graph=True)
