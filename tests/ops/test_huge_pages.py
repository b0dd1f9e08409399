"""Large pages under a tensor: what is asked for, and that nothing else changes."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from pylum.ops import huge_pages, pages_like

HUGE = 1 << 21
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
available = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or not SETTING.exists()
    or "[never]" in SETTING.read_text(),
    reason="the system has no large pages",
)


def advised(tensor):
    """Whether the middle of the tensor is in a mapping marked for large pages ("hg")."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            inside = low <= middle < high
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return False


@available
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_tensor(dtype):
    # A mapping of its own: the allocator's may be marked already, from a tensor freed earlier.
    table = torch.frombuffer(mmap.mmap(-1, 4 * HUGE), dtype=dtype)
    table.copy_(torch.arange(len(table)))
    before = table.clone()
    assert not advised(table)
    count = huge_pages(table)
    assert count % HUGE == 0 and 3 * HUGE <= count <= 4 * HUGE
    assert advised(table)
    assert torch.equal(table, before)


@available
def test_pools_lie_on_large_pages():
    k, v = torch.empty(0, 8, 64), torch.empty(0, 8, 64)
    assert all(advised(pool) for pool in pages_like(k, v, 64))


@pytest.mark.parametrize("elements", [0, 1, HUGE // 4 - 1])
def test_small_tensor_is_left_alone(elements):
    assert huge_pages(torch.zeros(elements)) == 0


def test_strided_tensor_is_an_error():
    with pytest.raises(ValueError, match="tensor must be contiguous"):
        huge_pages(torch.zeros(4, 4).T)


def test_other_devices_are_left_alone():
    assert huge_pages(torch.zeros(4 * HUGE, device="meta")) == 0
