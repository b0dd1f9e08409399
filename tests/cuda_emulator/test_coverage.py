"""The emulator runs the tests of the ops by their names and cases, but for those of left_out.py."""

from pathlib import Path

import pytest

from tests.cuda_emulator.left_out import LEFT_OUT, lines, plain, reasons

HERE = Path(__file__).parent
OPS = HERE.parent / "ops"
# The ops that have CUDA kernels, and where their tests are.
FILES = {
    "append_pages": ["append_pages"],
    "attention": ["attention", "attention_interface"],
    "attention_bias": ["attention_bias", "attention_bias_interface"],
    "dot_interaction": ["dot_interaction"],
    "embedding_bag": ["embedding_bag"],
    "embedding_sequence": ["embedding_sequence"],
    "prefix_attention": ["prefix_attention"],
    "residual_norm": ["residual_norm"],
    "rotary": ["rotary"],
    "row_wise": ["row_wise"],
    "sampled_softmax": ["sampled_softmax"],
    "swiglu": ["swiglu"],
    "topk": ["topk"],
}


def names(session, path):
    return {plain(test.name) for test in pytest.Module.from_parent(session, path=path).collect()}


@pytest.mark.parametrize("op", FILES)
def test_every_case_of_the_op_runs_here(request, op):
    wanted = set().union(*(names(request.session, OPS / f"test_{file}.py") for file in FILES[op]))
    here = names(request.session, HERE / f"test_{op}.py")
    assert len(wanted) > 5
    assert not {name for name in wanted - here if not reasons(op, name)}
    # No line stands for nothing.
    assert lines(op) == {line for name in wanted for line in reasons(op, name)}


def test_every_op_with_kernels_is_looked_at():
    rooms = (HERE.parent.parent / "cmake" / "PylumRooms.cmake").read_text()
    added = [part.split(")")[0].split() for part in rooms.split("pylum_add_op(")[1:]]
    with_kernels = {words[0] for words in added if {"CUDA", "CUDA_IN_COMMON"} & set(words)}
    assert with_kernels and with_kernels == set(FILES) - {"attention_bias"}
    assert all(set(ops) <= set(FILES) for ops in LEFT_OUT.values())
