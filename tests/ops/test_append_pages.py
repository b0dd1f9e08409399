"""append_pages against its reference; pages read back by gather_pages."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings

import pylum
from pylum.ops import PagedPrefix, gather_pages
from pylum.ragged import lengths_to_offsets
from tests.ops.packed import Case, cases, empty_prefix, filled_prefix, split
from tests.tolerance import assert_close


@settings(deadline=None, max_examples=40)
@given(cases())
def test_pages_hold_what_was_appended(case):
    _, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    got_k, got_v, offsets = gather_pages(prefix)
    parts = [history for history, _ in split(case, k, v)]
    assert offsets.tolist() == lengths_to_offsets(torch.tensor(case.history)).tolist()
    assert torch.equal(got_k, torch.cat([part[0] for part in parts]))
    assert torch.equal(got_v, torch.cat([part[1] for part in parts]))


def rotary(angles: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.arange(angles)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given_positions", [False, True])
def test_rotated_keys_equal_reference(dtype, given_positions):
    case = Case([130, 0, 65], [0] * 3, [[]] * 3, None, None, None, kv_heads=2, dtype=dtype)
    case = dataclasses.replace(case, head_dim=20)
    _, k, v = case.qkv()
    prefix = empty_prefix(case, k, v)
    expected = dataclasses.replace(prefix, k=prefix.k.double(), v=prefix.v.double())
    cos, sin = rotary(200, 10)
    starts = torch.zeros(3, dtype=torch.int64)
    options = {"starts": starts, "cos": cos, "sin": sin}
    if given_positions:
        options["positions"] = torch.arange(len(k)) // 2
    pylum.ops.append_pages(prefix, k, v, case.offsets, **options)
    pylum.reference.append_pages(expected, k, v, case.offsets, **options)
    for prefix_of in (prefix, expected):
        prefix_of.lengths.copy_(torch.tensor(case.history))
    (k, v, _), (exact_k, exact_v, _) = gather_pages(prefix), gather_pages(expected)
    assert_close(k, exact_k, exact_k.to(dtype))
    assert_close(v, exact_v, exact_v.to(dtype))


def test_only_the_slots_of_the_new_tokens_change():
    case = Case([70], [0], [[]], None, None, None)
    _, k, v = case.qkv()
    prefix = empty_prefix(case, k, v)
    pylum.ops.append_pages(prefix, k[:3], v[:3], torch.tensor([0, 3]), starts=torch.tensor([62]))
    assert int(prefix.k.isfinite().sum()) == k[:3].numel()
    assert int(prefix.v.isfinite().sum()) == v[:3].numel()
    got_k, got_v, _ = gather_pages(dataclasses.replace(prefix, lengths=torch.tensor([65])))
    assert torch.equal(got_k[62:], k[:3]) and torch.equal(got_v[62:], v[:3])


def broken(**changes):
    case = Case([70], [0], [[]], None, None, None)
    _, k, v = case.qkv()
    prefix = empty_prefix(case, k, v)
    arguments = {
        "prefix": prefix,
        "k": k,
        "v": v,
        "offsets": torch.tensor([0, 70]),
        "starts": torch.tensor([0]),
    }
    if "table" in changes:
        changes = {"prefix": dataclasses.replace(prefix, table=changes["table"])}
    pylum.ops.append_pages(**(arguments | changes))


def test_accepts_what_broken_starts_from():
    broken()


COS = torch.zeros(70, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"starts": torch.tensor([-1])}, ValueError, r"starts\[0\] must be at least 0"),
        ({"starts": torch.tensor([60])}, ValueError, "prefix.table must hold 3 pages"),
        ({"starts": torch.tensor([0.0])}, TypeError, "starts must be int64"),
        ({"table": torch.tensor([[0, 9]])}, ValueError, r"prefix.table\[0, 1\] must be a page in"),
        ({"offsets": torch.tensor([0, 71])}, ValueError, "offsets must run from 0 to 70"),
        ({"cos": COS}, ValueError, "cos and sin must be given together"),
        ({"cos": COS[:9], "sin": COS[:9]}, ValueError, "cos must be of at least 70 angles"),
        ({"cos": COS[:, :3], "sin": COS[:, :3]}, ValueError, "cos must be"),
        ({"positions": torch.arange(70)}, ValueError, "positions choose rows of cos and sin"),
        (
            {"cos": COS, "sin": COS, "positions": torch.arange(70) + 1},
            ValueError,
            r"positions\[69\] must be in \[0, 70 angles\)",
        ),
        ({"k": torch.zeros(70, 1, 16).bfloat16()}, TypeError, "v must be bfloat16 like k"),
    ],
)
def test_errors_name_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        broken(**changes)


def test_prefix_checks_its_fields():
    k = torch.zeros(2, 1, 64, 4)
    table, lengths = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    PagedPrefix(k, k, table, lengths)
    with pytest.raises(ValueError, match=r"prefix.k must be \[pages, kv_heads, 64, dim\]"):
        PagedPrefix(k[:, :, :32], k, table, lengths)
    with pytest.raises(TypeError, match=r"prefix\.table must be int64"):
        PagedPrefix(k, k, table.int(), lengths)
    with pytest.raises(ValueError, match=r"prefix.lengths must be \[batch = 1\]"):
        PagedPrefix(k, k, table, torch.zeros(2, dtype=torch.int64))


def test_opcheck():
    case = Case([70], [0], [[]], None, None, None)
    _, k, v = case.qkv()
    prefix = empty_prefix(case, k, v)
    cos, sin = rotary(70, 8)
    torch.library.opcheck(
        torch.ops.pylum.append_pages.default,
        (
            torch.zeros_like(prefix.k),
            torch.zeros_like(prefix.v),
            prefix.table,
            k.contiguous(),
            v.contiguous(),
            torch.tensor([0, 70]),
            torch.tensor([0]),
            None,
            cos,
            sin,
        ),
    )
