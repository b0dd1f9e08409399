"""The kernels of prefix_attention for AMX: the tests of the op, in bfloat16."""

import pytest
import torch
from hypothesis import strategies as st

from tests.amx_emulator.test_attention import bfloat16, drawn
from tests.ops import test_prefix_attention as op

pytestmark = pytest.mark.usefixtures("amx")

test_equals_reference = drawn(op.test_equals_reference, bfloat16())
test_targets_over_pages_equal_attention_on_the_whole = drawn(
    op.test_targets_over_pages_equal_attention_on_the_whole, bfloat16()
)
test_history_appended_in_chunks_equals_the_whole = drawn(
    op.test_history_appended_in_chunks_equals_the_whole, bfloat16(), st.data()
)


def test_a_condition_alone_equals_it_among_many():
    op.test_a_condition_alone_equals_it_among_many(torch.bfloat16)
