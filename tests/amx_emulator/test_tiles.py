"""The emulated tiles against the instructions' description, and their faults."""

import pytest
import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Products of bfloat16 are exact in float64, and so is nearly every sum with a float32."""
    return flushed((a.double() * b.double() + flushed(c).double()).float())


def flushed(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, torch.zeros_like(x), x)


def product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``c + a b``; even and odd depths sum apart."""
    even, odd = torch.zeros_like(c), torch.zeros_like(c)
    a, b = flushed(a.float()), flushed(b.float())
    for d in range(0, a.shape[1], 2):
        even = fma(a[:, d, None], b[d], even)
        odd = fma(a[:, d + 1, None], b[d + 1], odd)
    return flushed(flushed(c) + flushed(even + odd))


def emulated(module, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    pairs = b.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()
    out = c.clone()
    sizes = (a.shape[0], a.shape[1], b.shape[1])
    module.multiply(a.data_ptr(), pairs.data_ptr(), out.data_ptr(), *sizes)
    assert module.take_fault() == ""
    return out


@pytest.mark.parametrize(("rows", "depth", "columns"), [(16, 32, 16), (1, 2, 1), (5, 14, 9)])
def test_a_product_of_any_shape(emulated_module, rows, depth, columns):
    a = torch.randn(rows, depth).bfloat16()
    b = torch.randn(depth, columns).bfloat16()
    c = torch.randn(rows, columns)
    assert torch.equal(emulated(emulated_module, a, b, c), product(a, b, c))


def test_denormals_are_zero_and_nan_stays_in_its_row_and_column(emulated_module):
    a = torch.full((16, 32), 2.0**-70).bfloat16()
    b = torch.full((32, 16), 2.0**-70).bfloat16()
    c = torch.full((16, 16), 1e-39)
    assert not emulated(emulated_module, a, b, c).any()
    a[:, 0] = 1e-39
    b[0] = 1e38
    assert not emulated(emulated_module, a, b, c).any()
    a[3, 5] = torch.nan
    b[7, 2] = torch.inf
    out = emulated(emulated_module, a, b, c)
    assert out[3].isnan().all()
    assert out[:3, 2].isposinf().all()
    assert not out[:3, :2].any()


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("unconfigured", "tilezero without a configuration"),
        ("nested", "a configuration within another"),
        ("palette", "a configuration of palette 2"),
        ("shape", "tile 0 of 16 rows of 128 bytes"),
        ("rows", "tilezero of tile 2, which has no rows"),
        ("same", "tdpbf16ps of tiles 0, 1, 1, whose shapes do not fit"),
    ],
)
def test_misuse_is_a_fault(emulated_module, how, fault):
    emulated_module.misuse(how)
    assert emulated_module.take_fault() == fault
