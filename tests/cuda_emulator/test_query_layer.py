"""query_layer as it runs on CUDA, its single ops in the emulator: the tests of the op."""

import importlib

import pytest
import torch

import pylum
from pylum.ops.mask import flatten
from pylum.ops.residual_norm import EPS
from tests.ops import test_query_layer as op
from tests.ops.test_query_layer import (  # noqa: F401
    test_another_user_of_nan_moves_nothing,
    test_equals_reference,
)
from tests.tolerance import assert_close


@pytest.fixture(scope="module", autouse=True)
def composed(cuda):
    """What torch calls for CUDA tensors, with the emulator's, which are the host's."""
    run = importlib.import_module("pylum.ops.query_layer")._cuda

    def query_layer(x, offsets, positions, cos, sin, weights, prefix, mask, *, heads, eps=EPS):
        pages = (prefix.k, prefix.v, prefix.table, prefix.lengths)
        angles = (positions, cos, sin)
        return run(x, offsets, *angles, *weights, *pages, *flatten(mask), heads, eps)

    before = pylum.ops.query_layer
    pylum.ops.query_layer = query_layer
    yield
    pylum.ops.query_layer = before


def test_float16_equals_reference():
    layer = op.Layer([0, 130, 64], [2, 0, 5], dtype=torch.float16)
    out = pylum.ops.query_layer(**layer.arguments())
    exact = pylum.reference.query_layer(**layer.arguments(x=layer.x.double()))
    assert out.dtype == torch.float16
    assert_close(out, exact, op.plain(layer))


def test_bad_positions_and_pages_are_nan_and_noted(cuda):
    layer = op.Layer([70, 20], [2, 3])
    clean = pylum.ops.query_layer(**layer.arguments())
    layer.positions[1] = 30
    found = pylum.ops.query_layer(**layer.arguments())
    assert cuda.take_errors() == 1
    assert found[1].isnan().all() and torch.equal(found[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])
    layer.positions[1] = 0
    layer.prefix.table[1, 0] = 99
    found = pylum.ops.query_layer(**layer.arguments())
    assert cuda.take_errors() == 8
    assert found[2:].isnan().all() and found[0].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 47)}, ValueError, r"attention_norm must be \[47\], got \[48\]"),
        ({"x": torch.zeros(2, 48).bfloat16()}, TypeError, "attention_norm must be torch.bfloat16"),
        ({"heads": 3}, ValueError, "qkv must be"),
    ],
)
def test_errors_name_what_is_wrong(changes, error, message):
    layer = op.Layer([70], [2])
    with pytest.raises(error, match=message):
        pylum.ops.query_layer(**layer.arguments(**changes))
