"""The kernels of attention for AMX: the tests of the op, in bfloat16."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import test_attention as op
from tests.ops.packed import cases

pytestmark = pytest.mark.usefixtures("amx")


def bfloat16(**options):
    return cases(**options).map(lambda case: dataclasses.replace(case, dtype=torch.bfloat16))


def drawn(test, *strategies, examples=30):
    """A hypothesis test of the op over other strategies."""
    inner = test.hypothesis.inner_test
    return settings(deadline=None, max_examples=examples)(given(*strategies)(inner))


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), op.CASES
)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask, score):
    op.test_equals_reference(
        lengths, heads, kv_heads, head_dim, value_dim, mask, torch.bfloat16, score
    )


randoms = st.randoms(use_true_random=False)
test_every_mask_equals_reference = drawn(op.test_every_mask_equals_reference, bfloat16())
test_an_unseen_row_of_nan_moves_nothing = drawn(
    op.test_an_unseen_row_of_nan_moves_nothing, bfloat16(), randoms
)
test_an_unseen_row_of_nan_moves_no_gradient = drawn(
    op.test_an_unseen_row_of_nan_moves_no_gradient, bfloat16(), randoms
)
test_grouped_equals_alone_in_any_order = drawn(
    op.test_grouped_equals_alone_in_any_order, bfloat16(visible=False), randoms
)
test_packed_equals_alone_and_run_twice = drawn(
    op.test_packed_equals_alone_and_run_twice, bfloat16()
)
test_another_user_of_nan_moves_nothing = drawn(
    op.test_another_user_of_nan_moves_nothing, bfloat16(), randoms
)
