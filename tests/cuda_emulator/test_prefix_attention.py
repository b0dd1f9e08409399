"""The CUDA kernels of prefix_attention in the emulator, over pages filled by the reference."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st

import pylum
from pylum.ragged import lengths_to_offsets
from tests.cuda_emulator.test_attention import few
from tests.ops import test_prefix_attention as op
from tests.ops.packed import Case, cases, filled_prefix, split

pytestmark = pytest.mark.usefixtures("cuda", "pages_of_reference")


@pytest.fixture(scope="module")
def pages_of_reference():
    before = pylum.ops.append_pages
    pylum.ops.append_pages = pylum.reference.append_pages
    yield
    pylum.ops.append_pages = before


test_equals_reference = few(op.test_equals_reference, cases(), examples=10)
test_targets_over_pages_equal_attention_on_the_whole = few(
    op.test_targets_over_pages_equal_attention_on_the_whole, cases(), examples=8
)
test_history_appended_in_chunks_equals_the_whole = few(
    op.test_history_appended_in_chunks_equals_the_whole, cases(), st.data(), examples=8
)
test_nan_in_an_unseen_block_and_in_a_page_tail_moves_nothing = (
    op.test_nan_in_an_unseen_block_and_in_a_page_tail_moves_nothing
)
test_opcheck_and_one_graph = op.test_opcheck_and_one_graph
test_has_no_gradient = op.test_has_no_gradient
test_accepts_what_broken_starts_from = op.test_accepts_what_broken_starts_from
test_errors_name_what_is_wrong = op.test_errors_name_what_is_wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_condition_alone_equals_it_among_many(dtype):
    op.check_conditions_alone(dtype, 577, 35, [(0, 1), (8, 3), (2, 33)])


def test_targets_across_chunks_equal_reference():
    op.check_targets_across_chunks(
        Case([577, 3], [0, 0], [[1] * 20, [1]], None, None, None, heads=1)
    )


def over_pages(case, q, k, v, prefix):
    targets = [part for _, part in split(case, q, k, v)]
    return pylum.ops.prefix_attention(
        *(torch.cat([part[i] for part in targets]) for i in range(3)),
        lengths_to_offsets(torch.tensor(case.targets)),
        prefix,
        case.mask(),
        **case.options,
    )


@pytest.mark.parametrize("score", ["softmax", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_apart_equal_chunks_in_turn(dtype, score):
    """Over pages each chunk has blocks of its own; on the whole one block takes them in turn."""
    case = Case([600, 513, 3], [0, 2, 0], [[1] * 3, [2], [1]], None, None, None, dtype=dtype)
    case = dataclasses.replace(case, score=score, heads=1)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    apart = over_pages(case, q, k, v, prefix)
    with torch.no_grad():
        whole = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    assert torch.equal(apart, torch.cat([part[0] for _, part in split(case, whole)]))


def test_a_page_outside_the_pool_is_nan_and_noted(cuda):
    case = Case([70, 65], [0, 0], [[1, 1], [1]], None, None, None)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    clean = over_pages(case, q, k, v, prefix)
    prefix.table[1, 1] = 99
    out = over_pages(case, q, k, v, prefix)
    assert cuda.take_errors() == 8
    assert torch.equal(out[:2], clean[:2])
    assert out[2].isnan().all()


def test_a_length_past_the_table_is_nan_and_noted(cuda):
    case = Case([70, 65], [0, 0], [[1, 1], [1]], None, None, None)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    prefix = dataclasses.replace(prefix, lengths=torch.tensor([70, 200]))
    assert over_pages(case, q, k, v, prefix).isnan().all()
    assert cuda.take_errors() == 2
