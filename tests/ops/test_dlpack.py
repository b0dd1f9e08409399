"""Tensors of a torch that has ``__dlpack__`` alone, as before 2.10."""

import torch

import pylum
from pylum import _C
from pylum.ops._library import run_on


class Exported:
    """A tensor that offers nothing else; with a gradient, as torch, not even that."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.requires_grad = tensor.requires_grad

    def detach(self):
        return Exported(self.tensor.detach())

    def __dlpack__(self):
        return self.tensor.__dlpack__()


def test_whether_it_has_a_gradient_or_not():
    gate_up = torch.randn(3, 8)
    expected = pylum.ops.swiglu(gate_up)
    for recorded in (False, True):
        out = torch.empty(3, 4)
        given = Exported(gate_up.clone().requires_grad_(recorded))
        _C.swiglu_forward(given, Exported(out), run_on(out))
        assert torch.equal(out, expected)
