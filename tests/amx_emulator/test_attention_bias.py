"""Relative bias on the kernels of attention for AMX: the tests of the op, in bfloat16."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st

from tests.amx_emulator.test_attention import drawn
from tests.ops import test_attention_bias as op

pytestmark = pytest.mark.usefixtures("amx")


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim", "value_dim", "mask"), op.CASES
)
def test_equals_reference(lengths, heads, kv_heads, head_dim, value_dim, mask):
    op.test_equals_reference(
        lengths, heads, kv_heads, head_dim, value_dim, mask, torch.bfloat16, "both"
    )


def bfloat16(**options):
    return op.biased_cases(**options).map(
        lambda drawn: (dataclasses.replace(drawn[0], dtype=torch.bfloat16), *drawn[1:])
    )


test_packed_equals_alone_and_run_twice = drawn(
    op.test_packed_equals_alone_and_run_twice, bfloat16(), examples=15
)
test_an_unseen_row_of_nan_moves_nothing = drawn(
    op.test_an_unseen_row_of_nan_moves_nothing,
    bfloat16(),
    st.randoms(use_true_random=False),
    examples=15,
)
test_history_appended_in_chunks_equals_the_whole = drawn(
    op.test_history_appended_in_chunks_equals_the_whole, bfloat16(), st.data(), examples=15
)
