"""The benchmark of CUDA kernels runs, in tiny sizes and by the clock of the host."""

import importlib.util
import json

import pytest
import torch

from pylum.bench import cuda_attention, cuda_peers, cuda_rows
from pylum.bench.cuda import table


@pytest.fixture
def uncompiled(monkeypatch):
    """Peers as they are written: compiling them takes longer than all the rest."""

    def same(function=None, **_):
        return same if function is None else function

    monkeypatch.setattr(torch, "compile", same)


def test_every_row_runs(uncompiled, capsys):
    rows = table(seconds=0.0, device="cpu", tiny=True)
    made = [*cuda_attention.entries(True), *cuda_rows.entries(True)]
    assert len(rows) == len(made)
    assert {row["op"] for row in rows} == {op for op, _ in made}
    for row in rows:
        assert row["ms"]["pylum"][1] > 0 and row["share"] > 0 and row["ratio"] >= 0
        # What no CPU has; everything else must run.
        absent = {"SDPA cuDNN", "SDPA of jagged tensors", "varlen_attn"}
        absent |= {"FlexAttention"} if "backward" in row["op"] else set()
        absent |= {cuda_peers.FBGEMM} if importlib.util.find_spec("fbgemm_gpu") is None else set()
        absent.add(cuda_peers.FLASHINFER)
        assert set(row["refused"]) <= absent
    assert len(capsys.readouterr().out.splitlines()) > len(rows)
    json.dumps(rows)


def test_rows_can_be_chosen(uncompiled):
    rows = table("top-k", seconds=0.0, device="cpu", tiny=True)
    assert {row["op"] for row in rows} == {"top-k"}
