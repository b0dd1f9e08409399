"""Tests of the ops that the emulator leaves out, by reason, op and name.

A test stands with parts of its cases' names, or with none for all of them.
"""

from __future__ import annotations

VALUES = "No check on the host reads the device's values; tests in and_noted say what bad ones do."
THREADS = "The host's threads run no part of a kernel; blocks_in_either_order is tested here."
HALF = "float16 is no error on CUDA."
BYTES = "Only the CPU op judges pairs by bytes; test_result_is_the_querys_own runs."
HUGE = "More than 2^31 elements take the emulator hours."

LEFT_OUT: dict[str, dict[str, dict[str, list[str]]]] = {
    VALUES: {
        "append_pages": {
            "test_errors_name_what_is_wrong": [
                "starts[0] must be at least 0",
                "prefix.table must hold 3 pages",
                "prefix.table[0, 1] must be a page in",
                "offsets must run from 0 to 70",
                "cos must be of at least 70 angles",
                "positions[69] must be in",
            ]
        },
        "attention": {
            "test_errors_name_what_is_wrong": [
                "offsets must run from 0 to 6",
                "offsets must be non-decreasing",
                "num_targets[0] must be in",
                "num_context[1] must be in",
                "group_offsets must start a group",
                "visible[1] must be",
            ]
        },
        "attention_bias": {
            "test_errors_name_what_is_wrong": ["thresholds[1]", "thresholds[0]"],
            "test_pages_need_the_times_of_whole_histories": [],
        },
        "embedding_bag": {
            "test_errors_name_the_argument": [
                "indices[0].*-1 at 1",
                "indices[0].*got 5 at 0",
                "offsets[0].*0 to 2.*0 to 3",
                "offsets[0].*got 1 to 2",
                "2 before 1",
            ]
        },
        "embedding_sequence": {
            "test_errors_name_the_argument": [
                "indices[0].*-1 at 1",
                "indices[0] must be rows of tables[0]",
                "positions[1].*3",
            ]
        },
        "prefix_attention": {
            "test_errors_name_what_is_wrong": [
                "prefix.table must hold 4 pages",
                "prefix.table[0, 1] must be a page in",
                "num_context[0] must be in",
                "k must be of the batch's",
            ],
            "test_new_history_must_be_counted": [],
        },
        "rotary": {"test_errors": ["position"]},
        "row_wise": {
            "test_errors_name_the_argument_and_write_nothing": [
                "uses[1] indices.*5), got 5 at 1",
                "uses[0] indices.*got -1 at 0",
                "uses[0] offsets.*0 to 3",
            ]
        },
        "sampled_softmax": {
            "test_errors": ["target-row", "negative-row", "negative-weight", "nan-weight"]
        },
        "topk": {"test_errors": ["row"]},
    },
    THREADS: {
        "attention": {"test_threads_change_nothing": []},
        "attention_bias": {"test_threads_change_nothing": []},
        "dot_interaction": {"test_threads_and_neighbours_do_not_change_a_bit": []},
        "embedding_bag": {"test_threads_do_not_change_a_bit": []},
        "embedding_sequence": {"test_threads_do_not_change_a_bit": []},
        "residual_norm": {"test_threads_do_not_change_a_bit": []},
        "rotary": {"test_threads_do_not_change_a_bit": []},
        "row_wise": {"test_threads_do_not_change_a_bit": []},
        "sampled_softmax": {"test_threads_and_runs_change_nothing": []},
        "swiglu": {"test_threads_do_not_change_a_bit": []},
    },
    HALF: {"embedding_sequence": {"test_errors_name_the_argument": ["dtype must be"]}},
    BYTES: {"topk": {"test_many_queries_get_what_each_alone_gets": []}},
    HUGE: {
        "embedding_bag": {"test_more_than_2_31_elements": []},
        "embedding_sequence": {"test_more_than_2_31_elements": []},
        "row_wise": {"test_more_than_2_31_elements": []},
    },
}


def plain(name: str) -> str:
    """A test's name as pytest gives it, without the device's."""
    return name.replace("[emulated]", "").replace("[emulated-", "[")


def reasons(op: str, name: str) -> list[tuple[str, str]]:
    """The lines above that leave this test out, as test and part of the case's name."""
    test, _, case = plain(name).replace("\\", "").partition("[")
    found = []
    for ops in LEFT_OUT.values():
        parts = ops.get(op, {}).get(test)
        if parts is not None:
            found += [(test, part) for part in parts or [""] if part in case]
    return found


def lines(op: str) -> set[tuple[str, str]]:
    """All of the op's."""
    return {
        (test, part)
        for ops in LEFT_OUT.values()
        for test, parts in ops.get(op, {}).items()
        for part in parts or [""]
    }
