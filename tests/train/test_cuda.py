"""pretrain on a GPU: learns as on the CPU, repeats itself, stops and resumes to the bit."""

import pytest
import torch

from pylum.train import checkpoint, pretrain
from pylum.train import run as run_module
from tests.train.chains import make_data
from tests.train.test_pretrain import FAST, SMALL, same, weights

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def parts():
    return make_data().split("loo-full")


def curve(train, valid, device, precision="float32"):
    seen = []
    options = {**FAST, "epochs": 6, "device": device, "precision": precision}
    pretrain(SMALL, train, valid=valid, on_epoch=seen.append, **options)
    return [entry["loss"] for entry in seen]


@pytest.mark.parametrize(
    ("precision", "apart"),
    [pytest.param("float32", 0.02, id="float32"), pytest.param("bfloat16", 0.05, id="bfloat16")],
)
def test_learns_as_on_the_cpu(parts, precision, apart):
    """Other random numbers, the same objective: the losses end up close to each other."""
    train, valid, _ = parts
    there, here = curve(train, valid, "cuda", precision), curve(train, valid, "cpu")
    assert there[-1] < 0.95 * there[0]
    assert abs(there[-1] / here[-1] - 1) < apart


def test_stopped_and_resumed_is_uninterrupted(parts, tmp_path, monkeypatch):
    options = {**FAST, "device": "cuda", "precision": "float32"}
    train, valid, _ = parts
    whole = pretrain(SMALL, train, valid=valid, **options)
    assert whole.device.type == "cuda"
    assert same(weights(whole), weights(pretrain(SMALL, train, valid=valid, **options)))
    path = tmp_path / "run.safetensors"
    step = run_module.Run._step

    def interrupted(self, plan):
        if self.steps == 4:
            raise KeyboardInterrupt
        return step(self, plan)

    monkeypatch.setattr(run_module.Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(SMALL, train, valid=valid, checkpoint=path, **options)
    monkeypatch.undo()
    assert checkpoint.load(path)[0]["steps"] == 4
    resumed = pretrain(SMALL, train, valid=valid, resume=path, **options)
    assert same(weights(resumed), weights(whole))
