"""What bounds the kernels for AMX: a product of tiles takes 16 cycles, a load of a tile 8."""

import pytest
import torch

import pylum
from tests.amx_emulator.emulated import Emulated, emulating
from tests.ops.packed import Case, filled_prefix


@pytest.fixture
def counted(emulated_module):
    """``f(call)``: tile products of a call, and loads for each of them."""

    def run(call):
        with emulating(Emulated(emulated_module, pylum._C)):
            emulated_module.take_counts()
            call()
            products, loads, _ = emulated_module.take_counts()
        return products, loads / products

    return run


def least(flops: float) -> float:
    """Products of 16 by 16 by 32."""
    return flops / (2 * 16 * 16 * 32)


@pytest.mark.parametrize("dim", [64, 128])
def test_causal_forward_and_backward(counted, dim):
    q = torch.randn(512, 1, dim).bfloat16().requires_grad_()
    pairs = 512 * 513 / 2
    out = []
    products, loads = counted(
        lambda: out.append(pylum.ops.attention(q, q, q, torch.tensor([0, 512])))
    )
    assert products <= 1.1 * least(4 * pairs * dim)
    assert loads <= 1.3
    products, loads = counted(lambda: out[0].sum().backward())
    assert products <= 1.1 * least(10 * pairs * dim)
    assert loads <= 1.3


@pytest.mark.parametrize("rows", [1, 16, 17, 64])
def test_few_rows_cost_as_much_as_16(counted, rows):
    case = Case([1024], [0], [[1] * rows], None, None, None, 1, 1, 64, 64, dtype=torch.bfloat16)
    q, k, v = case.qkv()
    prefix = filled_prefix(case, k, v)
    q, k, v = (x[1024:] for x in (q, k, v))
    products, loads = counted(
        lambda: pylum.ops.prefix_attention(
            q, k, v, torch.tensor([0, rows]), prefix, case.mask(), **case.options
        )
    )
    assert products == least(4 * 1024 * 64 * -(-rows // 16) * 16)
    assert loads <= 1.3


@pytest.mark.parametrize("rows", [1, 48])
def test_topk(counted, rows):
    queries, items = torch.randn(rows, 64).bfloat16(), torch.randn(640, 64).bfloat16()
    products, loads = counted(lambda: pylum.ops.topk(queries, items, 3))
    assert products == least(2 * 640 * 64 * -(-rows // 16) * 16)
    assert loads <= 1.3
