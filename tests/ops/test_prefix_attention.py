"""prefix_attention: the reference, and bit for bit attention on the whole sequence."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum.ops import Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets
from tests.ops.packed import Case, cases, empty_prefix, filled_prefix, split
from tests.tolerance import assert_close


@settings(deadline=None, max_examples=60)
@given(cases())
def test_targets_over_pages_equal_attention_on_the_whole(case):
    q, k, v = case.qkv()
    whole = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    prefix = filled_prefix(case, k, v)
    targets = [part for _, part in split(case, q, k, v, whole)]
    out = pylum.ops.prefix_attention(
        *(torch.cat([part[i] for part in targets]) for i in range(3)),
        lengths_to_offsets(torch.tensor(case.targets)),
        prefix,
        case.mask(),
        **case.options,
    )
    assert torch.equal(out, torch.cat([part[3] for part in targets]))


@settings(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_history_appended_in_chunks_equals_the_whole(case, data):
    q, k, v = case.qkv()
    case = dataclasses.replace(case, min_full=None)  # depends on the length a history has reached
    whole = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    prefix = empty_prefix(case, k, v)
    parts = split(case, q, k, v, whole)
    lengths = torch.zeros(len(case.history), dtype=torch.int64)
    chunks = data.draw(st.integers(1, 3))
    for chunk in range(chunks):
        last = chunk == chunks - 1
        # Context tokens see each other, so they come all at once.
        starts, ends = lengths, lengths.clone()
        for b, h in enumerate(case.history):
            low = max(int(starts[b]), case.context[b])
            ends[b] = h if last else data.draw(st.integers(low, h))
        new = [
            [x[int(starts[b]) : int(ends[b])] for x in history]
            for b, (history, _) in enumerate(parts)
        ]
        pylum.ops.append_pages(
            prefix,
            torch.cat([rows[1] for rows in new]),
            torch.cat([rows[2] for rows in new]),
            lengths_to_offsets(ends - starts),
            starts=starts,
        )
        lengths = ends
        prefix = dataclasses.replace(prefix, lengths=lengths)
        rows = [
            torch.cat([fresh[0], targets[0]]) if last else fresh[0]
            for fresh, (_, targets) in zip(new, parts, strict=True)
        ]
        expected = [
            torch.cat([fresh[3], targets[3]]) if last else fresh[3]
            for fresh, (_, targets) in zip(new, parts, strict=True)
        ]
        mask = case.mask()
        if not last:
            mask = Mask(num_context=case.context, window=case.window)
        out = pylum.ops.prefix_attention(
            torch.cat(rows),
            torch.cat([part[1] for _, part in parts]) if last else k[:0],
            torch.cat([part[2] for _, part in parts]) if last else v[:0],
            lengths_to_offsets(torch.tensor([len(r) for r in rows])),
            prefix,
            mask,
            **case.options,
        )
        assert torch.equal(out, torch.cat(expected))


@settings(deadline=None, max_examples=30)
@given(cases())
def test_equals_reference(case):
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    targets = [part for _, part in split(case, q, k, v)]
    q, k, v = (torch.cat([part[i] for part in targets]) for i in range(3))
    offsets = lengths_to_offsets(torch.tensor(case.targets))
    args = (k, v, offsets, prefix, case.mask())
    out = pylum.ops.prefix_attention(q, *args, **case.options)
    plain = pylum.reference.prefix_attention(q, *args, **case.options)
    exact = pylum.reference.prefix_attention(q.double(), *args, **case.options)
    assert_close(out, exact, plain)


def long_case(**options) -> Case:
    return Case([1100, 3], [0, 0], [[1] * 40, [1]], None, None, None, **options)


def check_targets_across_chunks(case):
    q, k, v = case.qkv()
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask())
    exact = pylum.reference.attention(q.double(), k, v, case.offsets, case.mask())
    assert_close(out, exact, exact.float())


def test_targets_across_chunks_equal_reference():
    check_targets_across_chunks(long_case())


def check_conditions_alone(dtype, history, targets, parts):
    """A part is the first of some targets, and how many."""
    case = Case([history], [0], [[1] * targets], None, None, None, head_dim=40, value_dim=72)
    q, k, v = dataclasses.replace(case, dtype=dtype).qkv()
    prefix = filled_prefix(case, k, v)
    q, k, v = (x[history:] for x in (q, k, v))
    many = pylum.ops.prefix_attention(q, k, v, torch.tensor([0, targets]), prefix, case.mask())
    for first, count in parts:
        rows = slice(first, first + count)
        offsets = torch.tensor([0, count])
        mask = Mask(num_targets=[count])
        part = pylum.ops.prefix_attention(q[rows], k[rows], v[rows], offsets, prefix, mask)
        assert torch.equal(part, many[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_condition_alone_equals_it_among_many(dtype):
    parts = [(0, 1), (5, 2), (8, 3), (30, 5), (70, 1), (2, 64)]
    check_conditions_alone(dtype, 1101, 71, parts)


def test_nan_in_an_unseen_block_and_in_a_page_tail_moves_nothing():
    case = dataclasses.replace(long_case(), visible=[[70] * 40, [3]])
    q, k, v = case.qkv()
    clean = pylum.ops.attention(q, k, v, case.offsets, case.mask())
    prefix = filled_prefix(case, k, v)  # page tails are NaN
    for page in range(2, 18):
        prefix.k[prefix.table[0, page]] = torch.nan
        prefix.v[prefix.table[0, page]] = torch.nan
    targets = [part for _, part in split(case, q, k, v, clean)]
    out = pylum.ops.prefix_attention(
        *(torch.cat([part[i] for part in targets]) for i in range(3)),
        lengths_to_offsets(torch.tensor(case.targets)),
        prefix,
        case.mask(),
    )
    assert torch.equal(out, torch.cat([part[3] for part in targets]))


def test_has_no_gradient():
    case = long_case()
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    targets = [part for _, part in split(case, q, k, v)]
    q, k, v = (torch.cat([part[i] for part in targets]) for i in range(3))
    q.requires_grad_()
    offsets = lengths_to_offsets(torch.tensor(case.targets))
    out = pylum.ops.prefix_attention(q, k, v, offsets, prefix, case.mask())
    with pytest.raises(RuntimeError, match="has no gradient"):
        out.sum().backward()


def test_opcheck_and_one_graph():
    case = Case([70, 3], [0, 0], [[1, 2], [1]], None, None, None)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    targets = [part for _, part in split(case, q, k, v)]
    q, k, v = (torch.cat([part[i] for part in targets]) for i in range(3))
    offsets = lengths_to_offsets(torch.tensor(case.targets))
    mask = case.mask()
    pages = (prefix.k, prefix.v, prefix.table, prefix.lengths)
    numbers = (mask.num_context, mask.num_targets, mask.group_offsets, None, 0, 0, False, 0.25)
    torch.library.opcheck(
        torch.ops.pylum.prefix_attention.default,
        (q, k, v, offsets, *pages, *numbers, None, 0.0, *[None] * 5),
    )

    def call(q, k, v):
        return pylum.ops.prefix_attention(q * 2, k, v, offsets, prefix, mask)

    with torch.inference_mode():
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v), call(q, k, v))


def broken(**changes):
    case = Case([70, 3], [2, 0], [[1, 1], [1]], None, None, None)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    arguments = {
        "q": q[:3].contiguous(),
        "k": k[:3].contiguous(),
        "v": v[:3].contiguous(),
        "offsets": torch.tensor([0, 2, 3]),
        "prefix": prefix,
        "mask": case.mask(),
    }
    fields = {name: change for name, change in changes.items() if name in ("table", "lengths")}
    arguments["prefix"] = dataclasses.replace(prefix, **fields)
    arguments |= {name: change for name, change in changes.items() if name not in fields}
    return pylum.ops.prefix_attention(**arguments)


def test_accepts_what_broken_starts_from():
    assert broken().shape == (3, 2, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": torch.tensor([200, 3])}, "prefix.table must hold 4 pages"),
        ({"table": torch.tensor([[0, 99], [1, 0]])}, r"prefix.table\[0, 1\] must be a page in"),
        ({"lengths": torch.tensor([1, 3])}, r"num_context\[0\] must be in \[0, 1 history"),
        ({"mask": None}, "k must be of the batch's 0 targets only"),
        ({"offsets": torch.tensor([0, 3])}, "prefix.table must be"),
        ({"mask": Mask(num_targets=[1, 1])}, "k must be of the batch's 2 targets only"),
        ({"score": "silu"}, "score_scale must be given"),
    ],
)
def test_errors_name_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        broken(**changes)


def test_new_history_must_be_counted():
    case = Case([70], [0], [[]], None, None, None)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    short = PagedPrefix(prefix.k, prefix.v, prefix.table, torch.tensor([5]))
    with pytest.raises(ValueError, match="must be appended first"):
        pylum.ops.prefix_attention(q, k[:0], v[:0], torch.tensor([0, 70]), short)
