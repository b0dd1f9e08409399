"""The wrappers of sm_90's engines against plain products, and planted bugs in their use."""

import pytest
import torch

from tests.cuda_emulator.emulated import SANITIZE


@pytest.fixture
def product(emulated_module):
    def run(dtype=torch.bfloat16, count=8, transposed=False, registers=False, first=3, bug=""):
        columns, depth = 8 * count, 64
        a = torch.randint(-3, 4, (64, depth)).to(dtype)
        # Two heads of a fused tensor; what lies past it reads as zero.
        shape = (70, 3, columns + 8) if transposed else (columns + 6, 3, depth + 8)
        whole = torch.randint(-3, 4, shape).to(dtype)
        b = whole[:, 1:, : columns if transposed else depth]
        out = torch.randint(-3, 4, (64, columns)).float()
        padded = torch.cat([b[:, 1], torch.zeros(200, b.shape[2])])
        part = padded[first : first + (depth if transposed else columns)].float()
        wanted = out + a.float() @ (part if transposed else part.T)
        emulated_module.clear_memory()
        for x, name in ((a, "a"), (whole, "b"), (out, "out")):
            emulated_module.add_memory(x.data_ptr(), x.numel() * x.element_size(), name)
        of_b = [b.shape[2], 2, b.shape[0], b.stride(1), b.stride(0)]
        emulated_module.tile_product(
            bug, dtype == torch.float16, count, transposed, registers,
            a.data_ptr(), b.data_ptr(), out.data_ptr(), of_b, 1, first,
        )  # fmt: skip
        return out, wanted

    yield run
    emulated_module.set_backwards(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(
    ("count", "registers"),
    [
        pytest.param(8, False, id="64-tiles"),
        pytest.param(8, True, id="64-registers"),
        pytest.param(16, True, id="128-registers"),
    ],
)
def test_products_of_tiles(product, count, registers, transposed, dtype):
    out, wanted = product(dtype, count, transposed, registers)
    assert torch.equal(out, wanted)


def test_a_box_past_the_tensor_is_zero(product):
    out, wanted = product(first=60)
    assert torch.equal(out, wanted)


REPORTED = {
    "missing_wait": "access to a copy in flight|a tile|never|nobody waited",
    "wrong_parity": "access to a copy in flight",
    "missing_proxy_fence": "a tile written by thread .* with no fence_proxies",
    "missing_group_fence": "no group_fence",
    "wrong_bytes": "threads of a block wait at different places|wait at",
    "early_overwrite": "race: write after a read|reads a tile in flight",
    "wrong_number": "wait at",
    "wrong_registers": "registers change the other way",
    "too_many_registers": "registers change the other way|took more registers",
    "missing_barrier_fence": "no fence_barriers",
    "missing_expect": "access to a copy in flight|nobody waited",
    "barrier_before_its_time": "race: read after a write|a barrier that no thread has made",
    "data_over_barrier": "access to a barrier",
    "late_proxy_fence": "a tile written by thread .* with no fence_proxies",
    "fence_before_wait": "a tile written by thread .* with no fence_proxies",
    "engine_over_threads": "a tile written by thread .* with no fence_proxies",
    "thread_over_product": "race: write after a read|overwritten while a product read it",
    "written_sums": "the sums of a product under way were written to",
    "touched_sums": "touched with no group_fence",
    "other_tiles": "threads of a warpgroup wait for different products",
}
# What a thread writes itself, of which a sanitizer's build does not tell the emulator.
OF_THREADS = {
    "missing_proxy_fence", "late_proxy_fence", "engine_over_threads", "data_over_barrier",
}  # fmt: skip


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("bug", REPORTED)
def test_planted_bug_is_reported(product, emulated_module, bug, backwards):
    if SANITIZE and bug in OF_THREADS:
        pytest.skip("a sanitizer's build does not tell the emulator of what a thread writes")
    emulated_module.set_backwards(backwards)
    with pytest.raises(RuntimeError, match=REPORTED[bug]):
        product(bug=bug)


@pytest.mark.parametrize("bug", ["wrong_swizzle", "missing_group_wait"])
def test_planted_bug_shows_in_the_result(product, bug):
    out, wanted = product(bug=bug)
    assert not torch.equal(out, wanted)
    assert out.isnan().all() == (bug == "missing_group_wait")


def test_a_tensor_the_engine_does_not_take(product, emulated_module):
    x = torch.zeros(64, 65).bfloat16()
    out = torch.zeros(64, 64)
    with pytest.raises(ValueError, match="does not take the tensor"):
        emulated_module.tile_product(
            "", False, 8, False, False, x.data_ptr(), x.data_ptr(), out.data_ptr(),
            [64, 1, 64, 64, 65], 0, 0,
        )  # fmt: skip
