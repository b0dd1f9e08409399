"""The CUDA kernel of append_pages in the emulator: the tests of the op, and what only CUDA has."""

import dataclasses

import pytest
import torch

import pylum
from tests.cuda_emulator.test_attention import few
from tests.ops import test_append_pages as op
from tests.ops.packed import Case, cases, empty_prefix

pytestmark = pytest.mark.usefixtures("cuda")

test_pages_hold_what_was_appended = few(op.test_pages_hold_what_was_appended, cases(), examples=10)
test_only_the_slots_of_the_new_tokens_change = op.test_only_the_slots_of_the_new_tokens_change
test_opcheck = op.test_opcheck
test_accepts_what_broken_starts_from = op.test_accepts_what_broken_starts_from
test_errors_name_what_is_wrong = op.test_errors_name_what_is_wrong
test_prefix_checks_its_fields = op.test_prefix_checks_its_fields


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given_positions", [False, True])
def test_rotated_keys_equal_reference(dtype, given_positions):
    op.test_rotated_keys_equal_reference(dtype, given_positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wide_rows_have_the_bits_of_rotary(dtype):
    """Views of a fused projection, 16 bytes a lane: keys as rotary gives them."""
    case = Case([70, 3], [0] * 2, [[]] * 2, None, None, None, kv_heads=2, dtype=dtype)
    _, k, v = dataclasses.replace(case, head_dim=32).qkv()
    prefix = empty_prefix(case, k, v)
    cos, sin = op.rotary(100, 16)
    pylum.ops.append_pages(
        prefix, k, v, case.offsets, starts=torch.zeros(2, dtype=torch.int64), cos=cos, sin=sin
    )
    prefix.lengths.copy_(torch.tensor(case.history))
    got_k, got_v, _ = pylum.ops.gather_pages(prefix)
    keys = k.flatten(1)
    positions = torch.cat([torch.arange(70), torch.arange(3)])
    _, turned, _ = pylum.ops.rotary(
        torch.cat([keys, keys], 1), positions, cos, sin, heads=0, kv_heads=2
    )
    assert torch.equal(got_k, turned)
    assert torch.equal(got_v, v)


def appended(case, k, v, prefix, **changes):
    arguments = {"offsets": case.offsets, "starts": torch.zeros(2, dtype=torch.int64)} | changes
    pylum.ops.append_pages(prefix, k, v, **arguments)
    prefix.lengths.copy_(torch.tensor(case.history))
    return prefix


CASE = Case([70, 66], [0] * 2, [[]] * 2, None, None, None)


def test_a_token_without_a_page_is_not_written_and_noted(cuda):
    _, k, v = CASE.qkv()
    prefix = empty_prefix(CASE, k, v)
    good = dataclasses.replace(prefix, k=prefix.k.clone(), v=prefix.v.clone())
    appended(CASE, k, v, good)
    lost = prefix.table[1, 1].clone()
    for page in (99, -1):
        prefix.table[1, 1] = page
        appended(CASE, k, v, prefix)
        assert cuda.take_errors() == 8
        keep = torch.arange(len(prefix.k)) != lost
        for found, wanted in ((prefix.k, good.k), (prefix.v, good.v)):
            assert torch.equal(found[keep].isfinite(), wanted[keep].isfinite())
            assert torch.equal(found[keep].nan_to_num(), wanted[keep].nan_to_num())
            assert found[lost].isnan().all()
    prefix.k.fill_(torch.nan)
    appended(CASE, k, v, prefix, starts=torch.tensor([-1, 65]))
    assert cuda.take_errors() == 8
    assert int(prefix.k.isfinite().sum()) == 0


@pytest.mark.parametrize("offsets", [[0, 70, 130], [2, 70, 136], [0, 136, 100]])
def test_rows_that_offsets_give_to_no_sequence_are_noted(cuda, offsets):
    _, k, v = CASE.qkv()
    prefix = appended(CASE, k, v, empty_prefix(CASE, k, v), offsets=torch.tensor(offsets))
    assert cuda.take_errors() & 2
    assert int(prefix.k.isfinite().sum()) < k.numel()


def test_a_position_without_an_angle_is_nan_and_noted(cuda):
    _, k, v = CASE.qkv()
    cos, sin = op.rotary(136, 8)
    positions = torch.arange(136)
    positions[[3, 100]] = torch.tensor([136, -1])
    prefix = empty_prefix(CASE, k, v)
    appended(CASE, k, v, prefix, positions=positions, cos=cos, sin=sin)
    assert cuda.take_errors() == 1
    got_k, got_v, _ = pylum.ops.gather_pages(prefix)
    assert torch.equal(got_k.isnan().all(2)[:, 0].nonzero()[:, 0], torch.tensor([3, 100]))
    assert torch.equal(got_v, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 20])
def test_blocks_in_either_order(both_orders, dtype, head_dim):
    """Rows of 16 bytes a lane and rows that are not, rotated, behind tokens that are there."""
    case = dataclasses.replace(CASE, head_dim=head_dim, kv_heads=2, dtype=dtype)
    _, k, v = case.qkv()
    cos, sin = op.rotary(200, head_dim // 2)
    offsets, starts = torch.tensor([0, 50, 136]), torch.tensor([20, 3])

    empty = empty_prefix(dataclasses.replace(case, history=[70, 89]), k, v)

    def call():
        prefix = dataclasses.replace(empty, k=empty.k.clone(), v=empty.v.clone())
        pylum.ops.append_pages(prefix, k, v, offsets, starts=starts, cos=cos, sin=sin)
        assert int(prefix.k.isfinite().sum()) == k.numel()
        return prefix.k.nan_to_num(), prefix.v.nan_to_num()

    both_orders(call)
