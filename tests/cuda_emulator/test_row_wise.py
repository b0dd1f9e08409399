"""The CUDA kernels of row_wise in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings

from pylum.ops import RowUse
from tests.ops import test_row_wise as op
from tests.ops.test_row_wise import (  # noqa: F401
    test_a_broken_gradient_moves_no_other_row,
    test_a_parameter_is_updated_outside_autograd_and_seen_by_it,
    test_adamw_errors,
    test_compiled_step,
    test_errors_name_the_argument_and_write_nothing,
    test_gradients_reach_uses_through_detached_rows,
    test_hot_rows,
    test_opcheck,
    test_strided,
    test_uses_of_a_step_make_one_update,
)

pytestmark = pytest.mark.usefixtures("cuda")
test_ragged = settings(max_examples=8, deadline=None)(
    given(**op.test_ragged.hypothesis._given_kwargs)(op.test_ragged.hypothesis.inner_test)
)
RULES = pytest.mark.parametrize("rule", ["adagrad", "adamw"])


@RULES
@pytest.mark.parametrize("dtype", [op.FLOAT, op.HALF, torch.float16], ids=str)
@pytest.mark.parametrize("case", op.CASES)
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (7, 16), (300, 65)])
def test_equals_reference(rows, dim, case, dtype, rule):
    op.check(rule, op.start(rule, rows, dim, dtype), op.uses_of(case, rows, dim))


def test_many_steps_follow_torch_adamw():
    op.check_steps_of_adamw(6)


def test_many_steps_follow_torch_adagrad():
    op.check_steps_of_adagrad(6)


@RULES
@pytest.mark.parametrize("dim", [132, 520])
def test_rows_wider_than_a_warp_holds(dim, rule):
    op.check(rule, op.start(rule, 4, dim), [op.token_use(9, 4, dim, torch.float16)])


@pytest.mark.parametrize("lookups", [2047, 2048, 2049, 4100])
def test_tiles_of_the_sort(lookups):
    op.check("adagrad", op.start("adagrad", 70_000, 1), [op.token_use(lookups, 70_000, 1)])


def test_long_rows_that_meet():
    """Long rows whose pieces begin within one another's multiples of a piece."""
    lengths = [op.PIECE + 1, op.PIECE + 1, 3, 2 * op.PIECE, op.PIECE]
    indices = torch.arange(5).repeat_interleave(torch.tensor(lengths))
    order = torch.randperm(len(indices))
    use = RowUse(indices[order], torch.randn(len(indices), 2))
    op.check("adagrad", op.start("adagrad", 5, 2), [use])


@RULES
def test_blocks_backwards_change_nothing(emulated_module, rule):
    uses = [op.token_use(700, 9, 8), op.bag_use([7] * 33, 9, 8, "mean")]
    first = op.start(rule, 9, 8)
    results = []
    try:
        for backwards in (False, True):
            emulated_module.set_backwards(backwards)
            results.append([tensor.clone() for tensor in first])
            op.step(op.ops, rule, results[-1], uses)
    finally:
        emulated_module.set_backwards(False)
    assert all(map(torch.equal, *results))


@RULES
def test_bad_lookups_are_left_out_and_noted(cuda, rule):
    tokens, bags = op.token_use(30, 6, 4), op.bag_use([3, 0, 5], 6, 4, "mean")
    first = op.start(rule, 6, 4)
    expected = [tensor.clone() for tensor in first]
    op.step(op.ops, rule, expected, [RowUse(tokens.indices[2:], tokens.grad[2:]), bags])
    assert cuda.take_errors() == 0
    tokens.indices[:2] = torch.tensor([6, -1])
    found = [tensor.clone() for tensor in first]
    op.step(op.ops, rule, found, [tokens, bags])
    assert cuda.take_errors() == 4
    assert all(map(torch.equal, found, expected))
    bags.offsets[-1] = 7
    op.step(op.ops, rule, found, [bags])
    assert cuda.take_errors() == 2


def test_too_many_uses():
    with pytest.raises(ValueError, match=r"uses must be at most 32 with .* got 33 with 33"):
        op.step(op.ops, "adagrad", op.start("adagrad", 2, 2), [op.token_use(1, 2, 2)] * 33)
