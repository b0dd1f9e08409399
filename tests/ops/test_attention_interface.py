"""attention as PyTorch meets it: registration, graphs, autocast; what it says of wrong calls."""

import pytest
import torch

import pylum
from pylum.ops import Mask
from tests.ops.packed import Case
from tests.ops.test_attention import make


def operands(case, requires_grad):
    q, k, v = (x.contiguous().requires_grad_(requires_grad) for x in case.qkv())
    mask = case.mask()
    return (
        q,
        k,
        v,
        case.offsets,
        mask.num_context,
        mask.num_targets,
        mask.group_offsets,
        mask.visible,
        case.window or 0,
        case.min_full or 0,
        False,
        0.25,
        None,
        0.0,
        *[None] * 5,
    )


SMALL = Case([9, 3], [1, 0], [[1, 2], [1]], [[2, 8], [3]], 4, 2)


def test_opcheck():
    torch.library.opcheck(torch.ops.pylum.attention.default, operands(SMALL, True))


def test_compiles_as_one_graph_and_exports():
    case = SMALL
    q, k, v = case.qkv()
    mask = case.mask()

    class Module(torch.nn.Module):
        def forward(self, q, k, v, offsets):
            return pylum.ops.attention(q * 2, k, v, offsets, mask) + 1

    expected = Module()(q, k, v, case.offsets)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, case.offsets), expected)
    exported = torch.export.export(Module(), (q, k, v, case.offsets))
    assert torch.equal(exported.module()(q, k, v, case.offsets), expected)


def test_double_backward_is_an_error():
    q, k, v, offsets = make([5], 1, 1, 4, 4, torch.float32)
    out = pylum.ops.attention(q, k, v, offsets)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_autocast_gives_q_k_v_one_dtype():
    q, k, v, offsets = make([10], 2, 2, 8, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pylum.ops.attention(q.bfloat16(), k, v, offsets)
    expected = pylum.ops.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), offsets)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


def test_meta_tensors_give_shapes_and_other_arrays_an_error():
    q = torch.empty(10, 2, 8, device="meta")
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    assert pylum.ops.attention(q, q, q, offsets).shape == (10, 2, 8)
    real = torch.zeros(10, 2, 8)
    with pytest.raises(TypeError, match=r"k must be a torch.Tensor, got ndarray"):
        pylum.ops.attention(real, real.numpy(), real, torch.tensor([0, 4, 10]))


Q = torch.zeros(6, 2, 8)
OFFSETS = torch.tensor([0, 4, 6])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": Q[0]}, ValueError, r"q must be \[total, heads, head_dim\]"),
        ({"q": Q.double()}, TypeError, "q must be float32(,| or) bfloat16.* got .* float64"),
        ({"k": Q.bfloat16()}, TypeError, "k must be float32 like q"),
        ({"k": torch.zeros(6, 4, 8)}, ValueError, "k must be of a number of heads that divides"),
        ({"k": torch.zeros(5, 2, 8)}, ValueError, "k must be of 6 rows like q"),
        ({"v": torch.zeros(6, 1, 8)}, ValueError, "v must be of 2 heads like k"),
        ({"v": Q.transpose(1, 2).transpose(1, 2)[..., ::2]}, ValueError, "v must be .*contiguous"),
        ({"q": torch.zeros(6, 2, 257)}, ValueError, "q must be of a head_dim of 1 to 256"),
        ({"offsets": torch.tensor([0, 4, 5])}, ValueError, "offsets must run from 0 to 6"),
        ({"offsets": torch.tensor([0, 5, 4, 6])}, ValueError, "offsets must be non-decreasing"),
        ({"offsets": OFFSETS.int()}, TypeError, "offsets must be int64"),
        ({"mask": Mask(num_targets=[1])}, ValueError, r"num_targets must be \[batch = 2\]"),
        ({"mask": Mask(num_targets=[5, 0])}, ValueError, r"num_targets\[0\] must be in \[0, 4"),
        ({"mask": Mask(num_context=[0, 3])}, ValueError, r"num_context\[1\] must be in \[0, 2"),
        (
            {"mask": Mask(num_targets=[1, 1], group_offsets=[0, 2])},
            ValueError,
            "group_offsets must start a group",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[2, 1])},
            ValueError,
            r"visible\[1\] must be non-decreasing",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[1, 2], group_offsets=[0, 2])},
            ValueError,
            r"visible\[1\] must be constant in a group",
        ),
        (
            {"mask": Mask(num_targets=[2, 0], visible=[1, 3])},
            ValueError,
            r"visible\[1\] must be in \[0, 2",
        ),
        ({"score": "tanh"}, ValueError, "score must be"),
        ({"score": "silu"}, ValueError, "score_scale must be given"),
        ({"score_scale": 1.0}, ValueError, "score_scale must be None"),
        (
            {"score": "silu", "score_scale": torch.ones(5)},
            ValueError,
            r"score_scale must be \[total = 6\]",
        ),
    ],
)
def test_errors_name_what_is_wrong(changes, error, message):
    arguments = {"q": Q, "k": Q, "v": Q, "offsets": OFFSETS} | changes
    with pytest.raises(error, match=message):
        pylum.ops.attention(**arguments)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"visible": [1]}, ValueError, "num_targets must be given too"),
        ({"num_context": torch.zeros(2)}, TypeError, "num_context must be int64"),
        ({"num_targets": torch.zeros(1, 1, dtype=torch.int64)}, ValueError, "one dimension"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"min_full": 3}, ValueError, "window must be given too"),
        ({"min_full": 0, "window": 2}, ValueError, "min_full must be at least 1"),
    ],
)
def test_mask_checks_its_fields(fields, error, message):
    with pytest.raises(error, match=message):
        Mask(**fields)
