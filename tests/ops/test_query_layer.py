"""query_layer against its reference, and a row alone against it among many."""

import dataclasses

import pytest
import torch

import pylum
from pylum.ops import LayerWeights, Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets
from tests.ops.packed import Case, filled_prefix
from tests.tolerance import assert_close


@dataclasses.dataclass
class Layer:
    """Sequences of cached history with ``targets[b]`` targets each."""

    history: list[int]
    targets: list[int]
    width: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 12
    ffn: int = 70
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        kv = Case(
            self.history,
            [0] * len(self.history),
            [[] for _ in self.history],
            None,
            None,
            None,
            heads=self.kv_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            dtype=self.dtype,
        )
        _, k, v = kv.qkv()
        self.prefix = filled_prefix(kv, k, v)
        inner, fused = self.heads * self.head_dim, self.heads + 2 * self.kv_heads
        self.weights = LayerWeights(
            *(
                torch.randn(shape).mul(shape[-1] ** -0.5).to(self.dtype)
                for shape in (
                    (self.width,),
                    (fused * self.head_dim, self.width),
                    (self.width, inner),
                    (self.width,),
                    (2 * self.ffn, self.width),
                    (self.width, self.ffn),
                )
            )
        )
        total = sum(self.targets)
        self.x = torch.randn(total, self.width).to(self.dtype)
        self.positions = torch.randint(0, 30, (total,))
        angle = torch.arange(30)[:, None] * 100.0 ** (-torch.arange(self.head_dim // 2) / 8)
        self.cos, self.sin = angle.cos(), angle.sin()

    def arguments(self, **changes):
        """Of the op, in order, and ``heads``."""
        counts = torch.tensor(self.targets, dtype=torch.int64)
        arguments = {
            "x": self.x,
            "offsets": lengths_to_offsets(counts),
            "positions": self.positions,
            "cos": self.cos,
            "sin": self.sin,
            "weights": self.weights,
            "prefix": self.prefix,
            "mask": Mask(num_targets=counts),
            "heads": self.heads,
        }
        return arguments | changes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(Layer([70], [1]), id="one-row"),
        pytest.param(Layer([0, 130, 64], [2, 0, 5]), id="ragged"),
        pytest.param(Layer([5], [67], width=64, ffn=176, head_dim=16), id="whole-vectors"),
        pytest.param(Layer([9], [3], width=7, ffn=1, heads=1, kv_heads=1, head_dim=2), id="narrow"),
    ],
)
def test_equals_reference(layer, dtype):
    layer = dataclasses.replace(layer, dtype=dtype)
    out = pylum.ops.query_layer(**layer.arguments())
    exact = pylum.reference.query_layer(**layer.arguments(x=layer.x.double()))
    assert out.dtype == dtype
    # Plain PyTorch rounds every step, as layers of single ops do.
    assert_close(out, exact, plain(layer))


def plain(layer):
    """Single ops in the layer's dtype."""
    w, arguments = layer.weights, layer.arguments()
    total, h = pylum.ops.residual_norm(layer.x, None, w.attention_norm)
    q, k, v = pylum.ops.rotary(
        h @ w.qkv.T,
        layer.positions,
        layer.cos,
        layer.sin,
        heads=layer.heads,
        kv_heads=layer.kv_heads,
    )
    attended = pylum.ops.prefix_attention(
        q, k, v, arguments["offsets"], layer.prefix, arguments["mask"]
    )
    total, h = pylum.ops.residual_norm(attended.flatten(1) @ w.out.T, total, w.ffn_norm)
    return total + pylum.ops.swiglu(h @ w.gate_up.T) @ w.down.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_equals_it_among_many(dtype):
    layer = Layer([600], [43], width=64, ffn=176, head_dim=16, dtype=dtype)
    many = pylum.ops.query_layer(**layer.arguments())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(many, pylum.ops.query_layer(**layer.arguments()))
    torch.set_num_threads(threads)
    for first, count in ((0, 1), (3, 2), (7, 5), (42, 1), (10, 33)):
        rows = slice(first, first + count)
        part = pylum.ops.query_layer(
            **layer.arguments(
                x=layer.x[rows],
                positions=layer.positions[rows],
                offsets=torch.tensor([0, count]),
                mask=Mask(num_targets=[count]),
            )
        )
        assert torch.equal(part, many[rows])


def test_another_user_of_nan_moves_nothing():
    layer = Layer([70, 20], [2, 3])
    clean = pylum.ops.query_layer(**layer.arguments())
    layer.x[2:] = torch.nan
    assert torch.equal(pylum.ops.query_layer(**layer.arguments())[:2], clean[:2])


def test_opcheck():
    layer = Layer([70], [2])
    a = layer.arguments()
    prefix, mask = layer.prefix, a["mask"]
    torch.library.opcheck(
        torch.ops.pylum.query_layer.default,
        (
            *(a[name] for name in ("x", "offsets", "positions", "cos", "sin")),
            *layer.weights,
            *(torch.zeros_like(prefix.k), torch.zeros_like(prefix.v)),
            *(prefix.table, prefix.lengths, None, mask.num_targets, None, None, 0, 0),
            *(layer.heads, 1e-6),
        ),
    )


def test_has_no_gradient():
    layer = Layer([70], [2])
    layer.x.requires_grad_()
    with pytest.raises(RuntimeError, match="has no gradient"):
        pylum.ops.query_layer(**layer.arguments()).sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 47)}, ValueError, "attention_norm must be"),
        ({"x": torch.zeros(2, 3, 16)}, ValueError, r"x must be \[targets, width\]"),
        ({"x": torch.zeros(2, 48).bfloat16()}, TypeError, "attention_norm must be bfloat16 like x"),
        ({"heads": 3}, ValueError, "qkv must be"),
        ({"positions": torch.tensor([0, 30])}, ValueError, r"positions\[1\] must be in \[0, 30"),
        ({"mask": Mask(num_targets=[1])}, ValueError, "num_targets must count every row"),
        ({"offsets": torch.tensor([0, 3])}, ValueError, "offsets must run from 0 to 2"),
        ({"cos": torch.zeros(30, 5)}, ValueError, "cos must be"),
    ],
)
def test_errors_name_what_is_wrong(changes, error, message):
    layer = Layer([70], [2])
    with pytest.raises(error, match=message):
        pylum.ops.query_layer(**layer.arguments(**changes))


def test_prefix_must_be_of_the_same_dtype():
    layer = Layer([70], [2])
    other = PagedPrefix(
        layer.prefix.k.bfloat16(),
        layer.prefix.v.bfloat16(),
        layer.prefix.table,
        layer.prefix.lengths,
    )
    with pytest.raises(TypeError, match=r"prefix.k must be float32"):
        pylum.ops.query_layer(**layer.arguments(prefix=other))
