"""Training on the device."""

import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import pylum
from pylum import HSTUConfig, LUMConfig, Ranker
from pylum.rank import Feature, Schema
from pylum.train import checkpoint, pretrain
from pylum.train import run as run_module
from pylum.train.objective import Objective
from tests.cuda_emulator.library.worlds import CLOSE, there
from tests.model.world import ITEMS, make_events, make_model
from tests.second_device import CUDA, trainable
from tests.tolerance import MODEL
from tests.train.chains import make_data
from tests.train.test_hstu import LIKES, tastes

SMALL = LUMConfig(dim=16, layers=1, max_length=8, dropout=0.1)
FAST = {"epochs": 2, "batch_tokens": 96, "warmup": 3, "progress": False}


@pytest.fixture
def train(device):
    """pretrain on the device."""
    with nullcontext() if device.waits is None else trainable():
        yield lambda *args, **options: pretrain(*args, **{**FAST, "device": "cuda", **options})


@pytest.fixture(scope="module")
def parts():
    return make_data(users=5).split("loo-full")


def weights(model):
    return {name: x.cpu() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("negatives", ["full", "in_batch", 7])
@pytest.mark.parametrize("changes", [{}, {"any_targets": True}], ids=["plain", "any"])
def test_loss_and_gradients(device, negatives, changes):
    events = make_events([6, 0, 11, 1])
    events = replace(events, targets=torch.arange(18) % 3 != 1)
    mine = make_model(id_dropout=0.0, any_dropout=0.0, **changes).train()
    theirs = there(mine)
    objective = Objective.of(negatives, events, ITEMS)
    # A GPU draws other numbers from one seed.
    drawn = negatives == "full" or device.waits is not None
    with device.host():
        torch.manual_seed(3)
        expected = objective.loss(mine, events)
        expected.backward()
    torch.manual_seed(3)
    loss = objective.loss(theirs, events.to(CUDA))
    loss.backward()
    assert loss.device == CUDA
    if drawn:
        torch.testing.assert_close(loss.detach().cpu(), expected.detach(), rtol=CLOSE, atol=0)
    grads = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        assert (p.grad is None) == (grads[name].grad is None), name
        if p.grad is not None and drawn:
            error = (grads[name].grad.cpu() - p.grad).norm() / p.grad.norm().clamp_min(1e-3)
            assert error < CLOSE, name


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        pytest.param("float32", {}, id="float32"),
        pytest.param("bfloat16", {}, id="bfloat16"),
        pytest.param("float32", {"negatives": 7, "valid_time": True}, id="drawn"),
    ],
)
def test_learns_as_on_the_cpu(device, train, parts, precision, changes):
    """From the same random numbers, where the device has the host's."""
    seen, expected = [], []
    options = {"epochs": 1, "valid": parts[1], "precision": precision, **changes}
    found = train(SMALL, parts[0], on_epoch=seen.append, **options)
    with device.host():
        pretrain(SMALL, parts[0], on_epoch=expected.append, **{**FAST, **options})
    assert found.device == CUDA and not found.training
    assert all(p.dtype == torch.float32 for p in found.parameters())
    far = MODEL[getattr(torch, precision)] if device.waits is not None else 0.05
    for there_now, here in zip(seen, expected, strict=True):
        assert abs(there_now["loss"] / here["loss"] - 1) < far


@pytest.mark.parametrize("config", ["lum", "hstu"])
def test_interrupted_and_resumed_is_uninterrupted(train, parts, tmp_path, config):
    """Ctrl-C once the random numbers of a step are drawn, then on from the checkpoint."""
    small = SMALL if config == "lum" else HSTUConfig(dim=16, layers=1, max_length=8, dropout=0.1)
    data, valid, _ = parts
    whole = weights(train(small, data, valid=valid))
    path, backward = tmp_path / "run.safetensors", run_module.Run._backward

    def interrupted(self, part):
        out = backward(self, part)
        if self.steps == 1:
            signal.raise_signal(signal.SIGINT)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Run, "_backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small, data, valid=valid, checkpoint=path)
    assert checkpoint.load(path)[0]["steps"] == 1
    assert same(weights(train(small, data, valid=valid, resume=path)), whole)
    with pytest.raises(ValueError, match=r"same arguments: \['device'\] differ"):
        pretrain(small, data, valid=valid, resume=path, **FAST)


def test_stops_early_saved_there_loaded_here(device, train, parts, tmp_path):
    seen = []
    options = {"epochs": "auto", "patience": 1, "lr": 1e-6, "on_epoch": seen.append}
    made = train(SMALL, parts[0], valid=parts[1], **options)
    assert len(seen) == 1 + max(range(len(seen)), key=lambda n: seen[n]["ndcg@10"]) + 1
    made.save_pretrained(tmp_path / "model")
    here = pylum.LUM.from_pretrained(tmp_path / "model")
    again = pylum.LUM.from_pretrained(tmp_path / "model", device="cuda")
    assert here.device.type == "cpu" and again.device == CUDA
    assert same(weights(here), weights(made)) and same(weights(again), weights(made))
    assert here.fingerprint() == made.fingerprint() == again.fingerprint()
    here.save_pretrained(tmp_path / "model")
    assert pylum.LUM.from_pretrained(tmp_path / "model").fingerprint() == made.fingerprint()


@pytest.mark.parametrize("variant", ["research", "production"])
def test_ranking(device, train, variant):
    config = HSTUConfig(
        variant=variant, task="ranking", tasks=LIKES, dim=16, layers=1, max_length=8
    )
    data, valid, test = tastes(users=12).split("loo-full")
    made = train(config, data, valid=valid)
    report = pylum.evaluate(made, test, samples=10)
    with device.host():
        expected = pylum.evaluate(made.to("cpu"), test, samples=10)
    found, wanted = report["liked"], expected["liked"]
    assert {n: x.value for n, x in found.items()} == pytest.approx(
        {n: x.value for n, x in wanted.items()}, abs=CLOSE, nan_ok=True
    )


def test_the_callers_random_numbers_go_on(device, train, parts, monkeypatch):
    """Those of other devices too: nothing is seeded everywhere."""
    monkeypatch.setattr(torch, "manual_seed", None)
    states = torch.get_rng_state(), torch.cuda.get_rng_state("cuda")
    train(SMALL, parts[0], epochs=1)
    with device.host():
        pretrain(SMALL, parts[0], **{**FAST, "epochs": 1})
        rows = {"user": ["a", "b"] * 8, "item": [*range(16)], "label": [0, 1, 1, 0] * 4}
        schema = Schema((Feature("user"), Feature("item")), label="label")
        Ranker("dlrm", schema, epochs=1).fit(rows)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state("cuda"), states[1])


def test_float16_is_no_precision_of_training(train, parts):
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16"):
        train(SMALL, parts[0], precision="float16")
