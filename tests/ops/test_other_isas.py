"""The attention ops compiled for each lesser instruction set of this CPU."""

import os
import subprocess
import sys

import pytest

import pylum

ISAS = ["base", "avx2", "avx512", "avx512_bf16", "amx"]
TESTS = """
import torch
from tests.ops import test_attention as t, test_attention_bias as b
from tests.ops import test_prefix_attention as p, test_query_layer as l
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for score in ("softmax", "silu"):
        t.test_equals_reference(t.LENGTHS, 4, 2, 24, 40, t.FULL, dtype, score)
    b.test_equals_reference(t.LENGTHS, 4, 2, 24, 40, t.FULL, dtype, "both")
    p.test_a_condition_alone_equals_it_among_many(dtype)
    l.test_equals_reference(l.Layer([5, 70], [6, 1], width=64, ffn=176, head_dim=16), dtype)
b.test_targets_over_pages_equal_reference()
p.test_nan_in_an_unseen_block_and_in_a_page_tail_moves_nothing()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names the ISAs of x86")
def test_other_instruction_sets():
    best = pylum._C.build_info()["isa_best"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TESTS],
            env=os.environ | {"PYLUM_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for isa in ISAS[: ISAS.index(best)]
    ]
    assert [run.wait() for run in runs] == [0] * len(runs)
