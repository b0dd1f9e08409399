"""A child forked after its parent ran kernels for AMX on several threads."""

import os
import signal

import pytest
import torch

import pylum

pytestmark = pytest.mark.usefixtures("amx")


def test_a_forked_child_computes_the_same():
    # Fewer elements than torch itself gives to threads, in which a child would hang.
    q = torch.randn(200, 2, 64).bfloat16()
    offsets = torch.tensor([0, 120, 200])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = pylum.ops.attention(q, q, q, offsets)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            same = torch.equal(pylum.ops.attention(q, q, q, offsets), expected)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)
