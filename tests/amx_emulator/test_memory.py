"""Kernels for AMX read whole tiles, yet nothing past their tensors: pages around are locked."""

import ctypes
import mmap

import pytest
import torch

import pylum
from tests.ops.packed import Case, filled_prefix

pytestmark = pytest.mark.usefixtures("amx")

PAGE = mmap.PAGESIZE


@pytest.fixture
def locked():
    """``f(x, end)``: ``x`` at the end, or the start, of pages with a locked one on either side."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = []

    def place(x: torch.Tensor, end: bool) -> torch.Tensor:
        size = x.numel() * x.element_size()
        pages = -(-size // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for at in (base, base + (pages + 1) * PAGE):
            assert libc.mprotect(ctypes.c_void_p(at), PAGE, 0) == 0, ctypes.get_errno()
        kept.append((memory, base, pages))
        first = PAGE + (pages * PAGE - size if end else 0)
        placed = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=first)
        return placed.view(x.shape).copy_(x)

    yield place
    for _, base, pages in kept:
        libc.mprotect(ctypes.c_void_p(base), (pages + 2) * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (33, 17)])
def test_attention(locked, head_dim, value_dim, end):
    case = Case([70, 3], [1, 0], [[1] * 5, [2]], None, None, None, kv_heads=1, heads=2)
    case.head_dim, case.value_dim, case.dtype = head_dim, value_dim, torch.bfloat16
    rows = [x.contiguous() for x in case.qkv()]
    q, k, v = (locked(x, end).requires_grad_() for x in rows)
    out = pylum.ops.attention(q, k, v, case.offsets, case.mask(), **case.options)
    gradients = torch.autograd.grad(out, (q, k, v), locked(torch.ones_like(out), end))
    assert all(x.isfinite().all() for x in (out, *gradients))


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (33, 17)])
def test_prefix_attention(locked, head_dim, value_dim, end):
    case = Case([128, 70], [0, 0], [[1] * 3, [1]], None, None, None, kv_heads=1, heads=2)
    case.head_dim, case.value_dim, case.dtype = head_dim, value_dim, torch.bfloat16
    q, k, v = (x.contiguous() for x in case.qkv())
    prefix = filled_prefix(case, k, v)
    pages = locked(prefix.k, end), locked(prefix.v, end)
    prefix = pylum.ops.PagedPrefix(*pages, prefix.table, prefix.lengths)
    q, k, v = (locked(x[:4].contiguous(), end) for x in (q, k, v))
    offsets = torch.tensor([0, 3, 4])
    out = pylum.ops.prefix_attention(q, k, v, offsets, prefix, case.mask(), **case.options)
    assert out.isfinite().all()


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dim", [64, 33, 1])
def test_topk(locked, dim, end):
    queries, items = torch.randn(17, dim).bfloat16(), torch.randn(70, dim).bfloat16()
    expected = pylum.ops.topk(queries, items, 5)
    for actual, wanted in zip(
        pylum.ops.topk(locked(queries, end), locked(items, end), 5), expected, strict=True
    ):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dim", [64, 33])
def test_sampled_softmax(locked, dim, end):
    queries, items = torch.randn(50, dim).bfloat16(), torch.randn(70, dim).bfloat16()
    leaves = [locked(x, end).requires_grad_() for x in (queries, items)]
    loss = pylum.ops.sampled_softmax(*leaves, torch.arange(50), temperature=1.0)
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss, leaves))
