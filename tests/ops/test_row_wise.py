"""Row-wise Adagrad and AdamW against their float64 references and against torch's formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import ops, reference
from pylum.ops import RowUse, row_wise_adagrad_, row_wise_adamw_
from tests.tolerance import assert_close

FLOAT, HALF = torch.float32, torch.bfloat16
PIECE = 512  # kPiece of csrc/row_wise/row_wise.h

ADAMW = {"lr": 0.03, "step": 3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
ADAGRAD = {"lr": 0.1, "eps": 1e-6}


def token_use(lookups, rows, dim, dtype=FLOAT):
    return RowUse(torch.randint(max(rows, 1), (lookups,)), torch.randn(lookups, dim, dtype=dtype))


def bag_use(lengths, rows, dim, mode, dtype=FLOAT):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    indices = torch.randint(max(rows, 1), (sum(lengths),))
    return RowUse(indices, torch.randn(len(lengths), dim, dtype=dtype), offsets, mode)


def start(rule, rows, dim, dtype=FLOAT):
    """Table and states of a run that is under way."""
    table, moment, state = (
        torch.randn(rows, dim, dtype=dtype),
        torch.randn(rows, dim),
        torch.rand(rows),
    )
    return [table, state] if rule == "adagrad" else [table, moment, state]


def step(module, rule, tensors, uses):
    if rule == "adagrad":
        module.row_wise_adagrad_(*tensors, uses, **ADAGRAD)
    else:
        module.row_wise_adamw_(*tensors, uses, **ADAMW)


def plain(rule, tensors, uses):
    """The same with dense gradients and torch's own operations in float32."""
    table = tensors[0].float()
    g = torch.zeros_like(table)
    for indices, grad, offsets, mode in uses:
        grad = grad.float()
        if offsets is not None:
            sizes = offsets.diff()
            grad = grad / sizes.clamp_min(1)[:, None] if mode == "mean" else grad
            grad = grad.repeat_interleave(sizes, 0)
        g.index_add_(0, indices, grad)
    used = torch.cat([torch.empty(0, dtype=torch.int64), *(use[0] for use in uses)]).unique()
    if rule == "adagrad":
        state = tensors[1] + g.square().mean(1)
        new = [table - ADAGRAD["lr"] * g / (state.sqrt() + ADAGRAD["eps"])[:, None], state]
    else:
        (beta1, beta2), lr, t = ADAMW["betas"], ADAMW["lr"], ADAMW["step"]
        moment = tensors[1].lerp(g, 1 - beta1)
        state = tensors[2] * beta2 + (1 - beta2) * g.square().mean(1)
        denominator = (state / (1 - beta2**t)).sqrt() + ADAMW["eps"]
        table = table * (1 - lr * ADAMW["weight_decay"])
        new = [table - lr * moment / (1 - beta1**t) / denominator[:, None], moment, state]
    out = [tensor.clone() for tensor in tensors]
    for old, fresh in zip(out, new, strict=True):
        old[used] = fresh[used].to(old.dtype)
    return out


def check(rule, tensors, uses):
    wanted = [tensor.double() for tensor in tensors]
    simple = plain(rule, tensors, uses)
    actual = [tensor.clone() for tensor in tensors]
    step(ops, rule, actual, uses)
    step(reference, rule, wanted, uses)
    for tensor, want, easy in zip(actual, wanted, simple, strict=True):
        assert_close(tensor, want, easy)
    unused = torch.ones(len(tensors[0]), dtype=torch.bool)
    for use in uses:
        unused[use[0]] = False
    for tensor, before in zip(actual, tensors, strict=True):
        assert torch.equal(tensor[unused], before[unused])
    return actual


def uses_of(name, rows, dim):
    return {
        "none": [],
        "empty": [token_use(0, rows, dim), bag_use([], rows, dim, "sum")],
        "empty-bags": [bag_use([0, 0], rows, dim, "mean")],
        "one": [token_use(1, rows, dim)],
        "tokens": [token_use(300, rows, dim)],
        "sum-bags": [bag_use([0, 3, 0, 40, 1, 0], rows, dim, "sum")],
        "mean-bags": [bag_use([2, 0, 70, 0, 0, 5], rows, dim, "mean")],
        "input-and-output": [
            token_use(400, rows, dim, HALF),
            bag_use([7] * 33, rows, dim, "mean"),
            token_use(100, rows, dim),
        ],
    }[name]


CASES = [
    "none", "empty", "empty-bags", "one", "tokens", "sum-bags", "mean-bags", "input-and-output"
]  # fmt: skip


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (7, 16), (300, 65)])
def test_equals_reference(rows, dim, case, dtype, rule):
    check(rule, start(rule, rows, dim, dtype), uses_of(case, rows, dim))


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
@pytest.mark.parametrize("lookups", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_hot_rows(lookups, rule):
    hot = RowUse(torch.full((lookups,), 2), torch.randn(lookups, 9))
    check(rule, start(rule, 5, 9), [token_use(20, 5, 9), hot, token_use(20, 5, 9)])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 255, 256, 257, 70_000]),
    dim=st.integers(1, 40),
    lengths=st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=3),
    mode=st.sampled_from(["sum", "mean"]),
    tokens=st.integers(0, 200),
    rule=st.sampled_from(["adagrad", "adamw"]),
)
def test_ragged(rows, dim, lengths, mode, tokens, rule):
    uses = [bag_use(use, rows, dim, mode) for use in lengths] + [token_use(tokens, rows, dim)]
    check(rule, start(rule, rows, dim), uses)


def check_steps_of_adamw(steps):
    """With dim 1 the row-wise second moment is Adam's own."""
    row = torch.randn(1, 1)
    parameter = torch.nn.Parameter(row.clone())
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.2}
    optimizer = torch.optim.AdamW([parameter], **options)
    moment, state = torch.zeros(1, 1), torch.zeros(1)
    for t in range(1, steps + 1):
        parameter.grad = torch.randn(1, 1)
        row_wise_adamw_(
            row,
            moment,
            state,
            [(torch.tensor([0]), parameter.grad, None, "sum")],
            step=t,
            **options,
        )
        optimizer.step()
    torch.testing.assert_close(row, parameter.detach())


def check_steps_of_adagrad(steps):
    row, state = torch.randn(1, 1), torch.zeros(1)
    parameter = torch.nn.Parameter(row.clone())
    optimizer = torch.optim.Adagrad([parameter], lr=0.1, eps=1e-7)
    for _ in range(steps):
        parameter.grad = torch.randn(1, 1)
        row_wise_adagrad_(row, state, [RowUse(torch.tensor([0]), parameter.grad)], lr=0.1, eps=1e-7)
        optimizer.step()
    torch.testing.assert_close(row, parameter.detach())


def test_many_steps_follow_torch_adamw():
    check_steps_of_adamw(30)


def test_many_steps_follow_torch_adagrad():
    check_steps_of_adagrad(30)


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_uses_of_a_step_make_one_update(rule):
    """Bitwise: as many uses, or one use that holds them all in their order."""
    uses = [token_use(50, 9, 8), token_use(70, 9, 8)]
    joined = [RowUse(torch.cat([u.indices for u in uses]), torch.cat([u.grad for u in uses]))]
    a = start(rule, 9, 8)
    b = [tensor.clone() for tensor in a]
    step(ops, rule, a, uses)
    step(ops, rule, b, joined)
    assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_threads_do_not_change_a_bit(rule):
    rows, dim = 5000, 32
    uses = [token_use(150_000, rows, dim), bag_use([9] * 2000, rows, dim, "mean")]
    uses[0].indices[torch.rand(150_000) < 0.5] = 17
    first = start(rule, rows, dim)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([tensor.clone() for tensor in first])
            step(ops, rule, results[-1], uses)
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_a_broken_gradient_moves_no_other_row(rule):
    use = token_use(2000, 12, 8)
    healthy = start(rule, 12, 8)
    broken = [tensor.clone() for tensor in healthy]
    step(ops, rule, healthy, [use])
    grad = use.grad.clone()
    grad[(use.indices == 5).nonzero()[0]] = torch.nan
    step(ops, rule, broken, [use._replace(grad=grad)])
    others = torch.arange(12) != 5
    for a, b in zip(broken, healthy, strict=True):
        assert a[5].isnan().all() and torch.equal(a[others], b[others])


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_strided(rule):
    """Rows apart in a wider table, column slices of wider gradients, a column of indices."""
    whole = [torch.randn(40, 3 * 12) if t.ndim == 2 else t for t in start(rule, 20, 12)]
    tensors = [w[::2, 5:17] if w.ndim == 2 else w for w in whole]
    before = [w.clone() for w in whole]
    uses = [
        RowUse(torch.randint(20, (30, 2))[:, 1], torch.randn(60, 40)[::2, 7:19]),
        RowUse(torch.randint(20, (8,)), torch.randn(12).expand(3, 12), torch.tensor([0, 1, 1, 8])),
    ]
    expected = [tensor.clone() for tensor in tensors]
    step(ops, rule, expected, [RowUse(u[0].clone(), u[1].clone(), *u[2:]) for u in uses])
    step(ops, rule, tensors, uses)
    assert all(map(torch.equal, tensors, expected))
    for old, new in zip(before, whole, strict=True):
        if new.ndim == 2:
            assert torch.equal(old[1::2], new[1::2])
            assert torch.equal(old[:, :5], new[:, :5]) and torch.equal(old[:, 17:], new[:, 17:])


def test_more_than_2_31_elements():
    rows, dim = 2**25 + 8, 64
    # numpy's zeros are committed page by page: this costs addresses, not memory.
    table = torch.from_numpy(np.zeros((rows, dim), dtype=np.uint16)).view(HALF)
    state = torch.from_numpy(np.zeros(rows, dtype=np.float32))
    use = RowUse(torch.tensor([rows - 1, 3, rows - 1]), torch.ones(3, dim))
    row_wise_adagrad_(table, state, [use], lr=0.5)
    assert (table[-1] == -0.5).all() and (table[3] == -0.5).all() and (table[-2] == 0).all()
    assert state[[3, rows - 1, rows - 2]].tolist() == [1, 4, 0]


def test_gradients_reach_uses_through_detached_rows():
    """The way of a training step: rows looked up are a leaf, its gradient is a use."""
    table = torch.randn(30, 6)
    inputs, targets = torch.randint(30, (40,)), torch.randint(30, (10,))
    leaves = [
        ops.embedding_sequence([table], [rows]).requires_grad_() for rows in (inputs, targets)
    ]
    (leaves[0][:10] * leaves[1]).square().sum().backward()
    sparse, state = table.clone(), torch.zeros(30)
    uses = [RowUse(rows, leaf.grad) for rows, leaf in zip((inputs, targets), leaves, strict=True)]
    row_wise_adagrad_(sparse, state, uses, lr=0.1, eps=1e-8)

    whole = table.clone().requires_grad_()
    (whole[inputs][:10] * whole[targets]).square().sum().backward()
    accumulated = whole.grad.square().mean(1)
    dense = table - 0.1 * whole.grad / (accumulated.sqrt() + 1e-8)[:, None]
    torch.testing.assert_close(state, accumulated)
    torch.testing.assert_close(sparse, dense)


def use(indices=(0, 1), grad=None, offsets=None, mode="sum"):
    grad = torch.zeros(2, 4) if grad is None else grad
    return RowUse(torch.tensor(indices), grad, offsets, mode)


ERRORS = [
    pytest.param({"uses": [use(), use((0, 5))]}, ValueError, r"uses\[1\] indices.*5\), got 5 at 1"),
    pytest.param({"uses": [use((-1, 0))]}, ValueError, r"uses\[0\] indices.*got -1 at 0"),
    pytest.param({"uses": [use((0.0, 1.0))]}, TypeError, r"uses\[0\] indices.*int64"),
    pytest.param({"uses": [use(((0, 1),))]}, ValueError, r"uses\[0\] indices"),
    pytest.param(
        {"uses": [use(grad=torch.zeros(3, 4))]}, ValueError, r"uses\[0\] grad.*lookups = 2"
    ),
    pytest.param({"uses": [use(grad=torch.zeros(2, 5))]}, ValueError, r"uses\[0\] grad.*dim = 4"),
    pytest.param({"uses": [use(grad=torch.zeros(2, 4).double())]}, TypeError, r"uses\[0\] grad"),
    pytest.param({"uses": [use(grad=torch.zeros(4, 2).T)]}, ValueError, r"uses\[0\] grad.*contig"),
    pytest.param(
        {"uses": [use(offsets=torch.tensor([0, 1, 3]))]}, ValueError, r"uses\[0\] offsets.*0 to 3"
    ),
    pytest.param(
        {"uses": [use(offsets=torch.tensor([0, 2]))]},
        ValueError,
        r"uses\[0\] offsets.*bags \+ 1 = 3",
    ),
    pytest.param({"uses": [use(mode="max")]}, ValueError, r"uses\[0\] mode"),
    pytest.param({"table": torch.zeros(5, 4).double()}, TypeError, "table must be float32"),
    pytest.param({"table": torch.zeros(4).expand(5, 4)}, ValueError, "table must be.*apart"),
    pytest.param({"table": torch.zeros(5, 16_385)}, ValueError, "at most 16384"),
    pytest.param({"state": torch.zeros(4)}, ValueError, r"state must be \[rows = 5\]"),
    pytest.param({"state": torch.zeros(5).double()}, TypeError, "state must be float32"),
]


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_errors_name_the_argument_and_write_nothing(change, error, message, rule):
    arguments = {"table": torch.zeros(5, 4), "state": torch.zeros(5), "uses": [use()]} | change
    table, state, uses = arguments.values()
    moment = torch.zeros(table.shape)
    tensors = [table, state] if rule == "adagrad" else [table, moment, state]
    with pytest.raises(error, match=message):
        step(ops, rule, tensors, uses)
    assert all(bool((tensor == 0).all()) for tensor in tensors)


def test_adamw_errors():
    table, state = torch.zeros(5, 4), torch.zeros(5)
    with pytest.raises(ValueError, match="moment must be shaped like table"):
        row_wise_adamw_(table, torch.zeros(5, 3), state, [], lr=0.1, step=1)
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        row_wise_adamw_(table, torch.zeros(5, 4), state, [], lr=0.1, step=0)


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_opcheck(rule):
    tensors = start(rule, 5, 4)
    uses = [token_use(6, 5, 4), bag_use([2, 0, 3], 5, 4, "mean")]
    lists = [list(column) for column in zip(*uses, strict=True)][:3]
    means = [False, True]
    if rule == "adagrad":
        op, numbers = torch.ops.pylum.row_wise_adagrad_.default, (0.1, 1e-6)
    else:
        op, numbers = torch.ops.pylum.row_wise_adamw_.default, (0.1, 0.9, 0.99, 1e-6, 0.1, 3)
    torch.library.opcheck(op, (*tensors, *lists, means, *numbers))


@pytest.mark.parametrize("rule", ["adagrad", "adamw"])
def test_compiled_step(rule):
    tensors = start(rule, 9, 4)
    copies = [tensor.clone() for tensor in tensors]
    uses = [token_use(6, 9, 4), bag_use([2, 0, 3], 9, 4, "mean")]

    def update(tensors, uses):
        step(ops, rule, tensors, uses)
        return tensors[0] * 2

    doubled = torch.compile(update, fullgraph=True, backend="aot_eager")(tensors, uses)
    step(ops, rule, copies, uses)
    assert all(map(torch.equal, tensors, copies))
    assert torch.equal(doubled, 2 * tensors[0])


def test_a_parameter_is_updated_outside_autograd_and_seen_by_it():
    table = torch.nn.Parameter(torch.randn(5, 4))
    saved = (table * table).sum()
    row_wise_adagrad_(table, torch.zeros(5), [token_use(3, 5, 4)], lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
