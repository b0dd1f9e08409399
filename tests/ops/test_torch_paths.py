"""What is given to torch stands in the report, and the report says the truth."""

import ast
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pylum
from pylum import ops
from pylum.ops._library import TORCH_PATHS
from pylum.ops.linear import LARGEST

# Layers and functions of torch that multiply matrices, attend or look rows up.
NAMES = {
    "Linear", "Embedding", "EmbeddingBag", "linear", "embedding", "embedding_bag", "matmul", "mm",
    "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention", "conv1d",
}  # fmt: skip
PACKAGE = Path(pylum.__file__).parent


def uses_torch(source):
    """Whether a module calls or extends torch's own, or writes a matrix product."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return True
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            owner = ast.unparse(node.value)
            if owner in ("nn", "F", "torch", "torch.nn", "torch.nn.functional"):
                return True
    return False


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("y = x @ w", True),
        ("y = torch.nn.functional.linear(x, w)", True),
        ("class Head(nn.Linear): pass", True),
        ("y = ops.linear(x, w)", False),
    ],
)
def test_what_counts(source, found):
    assert uses_torch(source) is found


def test_every_module_that_uses_torch_is_reported():
    report = pylum.show_config()
    modules = set()
    for folder in ("ops", "model"):
        for path in (PACKAGE / folder).glob("*.py"):
            if uses_torch(path.read_text()):
                modules.add(f"pylum.{folder}.{path.stem}")
    # Its products are ops.linear's; whether they are in one call is its own rule.
    assert modules | {"pylum.model.transformer"} == set(TORCH_PATHS)
    for module, what in TORCH_PATHS.items():
        assert f"{module}: {what}" in report


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "depth", "ours"),
    [
        (torch.float32, LARGEST, True),
        (torch.float32, LARGEST + 1, False),
        (torch.bfloat16, 8, False),
        (torch.float64, 8, False),
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_linear_is_given_to_torch_by_its_rule(dtype, depth, ours, rows):
    x, weight = torch.randn(rows, depth, dtype=dtype), torch.randn(5, depth, dtype=dtype)
    with Calls() as calls:
        ops.linear(x, weight)
    assert ("pylum::linear" in calls.names) is ours
