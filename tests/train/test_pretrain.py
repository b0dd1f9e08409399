"""The training loop: what it learns, that it repeats itself, stops and resumes to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pylum.data import OOV_ROW, Interactions
from pylum.model import LUMConfig
from pylum.train import checkpoint, pretrain
from pylum.train import run as run_module
from tests.train.chains import make_data

SMALL = LUMConfig(dim=16, layers=1, max_length=16, dropout=0.1)
FAST = {"epochs": 3, "batch_tokens": 256, "warmup": 5, "progress": False}


@pytest.fixture(scope="module")
def parts():
    return make_data().split("loo-full")


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_learns_what_the_condition_says():
    train, valid, _ = make_data(users=200).split("loo-full")
    seen = []
    model = pretrain(
        SMALL.replace(any_dropout=0.0),
        train,
        valid=valid,
        epochs=20,
        lr=1e-2,
        batch_tokens=512,
        warmup=10,
        progress=False,
        on_epoch=seen.append,
    )
    # The next item follows from the last one and the condition; a popularity ranking finds a third.
    assert max(entry["hr@10"] for entry in seen) == pytest.approx(1.0, abs=0.02)
    assert max(entry["ndcg@10"] for entry in seen) > 0.9
    assert [entry["epoch"] for entry in seen] == list(range(1, 21))
    assert seen[-1]["loss"] < 0.3 * seen[0]["loss"]
    assert not model.training


def test_the_unknown_item_learns_that_nobody_chose_it(parts):
    """Items have no features here: those that nobody chose are all the unknown one."""
    begun, model = (
        pretrain(SMALL, parts[0], weight_decay=0.0, **{**FAST, "epochs": n}) for n in (0, 1)
    )
    before, after = (m.item_encoder.ids[OOV_ROW].detach() for m in (begun, model))
    assert (before != after).all()


def test_record_says_what_was_trained_on(parts):
    train, _, test = parts
    model = pretrain(SMALL, train, epochs=0, progress=False)
    assert (
        model.record.cut == int(train.events.times[train.events.targets].max())
        if (train.events.targets is not None)
        else int(train.events.times.max())
    )
    assert model.record.seen(train.event_hashes()).all()
    assert not model.record.seen(test.event_hashes()).any()
    assert model.record.data == train.fingerprint


def test_one_seed_one_model(parts):
    state = torch.get_rng_state()
    first = weights(pretrain(SMALL, parts[0], seed=1, **FAST))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(77)
    assert same(first, weights(pretrain(SMALL, parts[0], seed=1, **FAST)))
    assert not same(first, weights(pretrain(SMALL, parts[0], seed=2, **FAST)))


def test_best_weights_come_back(parts):
    train, valid, _ = parts
    scores = []
    model = pretrain(
        SMALL,
        train,
        valid=valid,
        lr=3e-2,
        batch_tokens=512,
        warmup=1,
        patience=3,
        progress=False,
        on_epoch=lambda entry: scores.append(entry["ndcg@10"]),
    )
    best = int(np.argmax(scores)) + 1
    assert len(scores) == best + 3
    shorter = pretrain(
        SMALL,
        train,
        epochs=best,
        schedule="constant",
        lr=3e-2,
        batch_tokens=512,
        warmup=1,
        progress=False,
    )
    assert same(weights(model), weights(shorter))


@pytest.mark.parametrize("changes", [{}, {"any_targets": True}], ids=["plain", "any-targets"])
def test_accumulated_batches_are_one_step(parts, changes):
    config = SMALL.replace(dropout=0.0, any_dropout=0.0, id_dropout=0.0, **changes)
    options = {**FAST, "epochs": 1, "schedule": "constant"}
    whole = pretrain(config, parts[0], **{**options, "batch_tokens": 10**6})
    tokens = 3 if changes else 2
    half = tokens * int(parts[0].events.total) // 2 + 1
    two = pretrain(config, parts[0], **{**options, "batch_tokens": half}, accumulate=2)
    for name, p in whole.named_parameters():
        assert torch.allclose(p, dict(two.named_parameters())[name], atol=2e-5), name


def test_killed_and_resumed_is_uninterrupted(parts, tmp_path):
    """SIGKILL in the middle of an epoch; the checkpoint on disk goes on to the same bits."""
    path = tmp_path / "run.safetensors"
    code = (
        "import sys; from tests.train.test_pretrain import *\n"
        "train, valid, _ = make_data().split('loo-full')\n"
        "step = run_module.Run._step\n"
        "def counted(self, plan):\n"
        "    done = step(self, plan)\n"
        "    print(self.epoch, self.batch, len(plan), flush=True)\n"
        "    time.sleep(0.05)\n"
        "    return done\n"
        "run_module.Run._step = counted\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "torch.use_deterministic_algorithms(True, warn_only=True)\n"
        f"pretrain(SMALL, train, valid=valid, checkpoint={str(path)!r}, checkpoint_seconds=0,"
        " **FAST)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    for line in process.stdout:
        epoch, batch, batches = map(int, line.split())
        # Its checkpoint may or may not be written yet: either way it is one of a middle.
        if epoch == 1 and 2 <= batch < batches - 1:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    about, _ = checkpoint.load(path)
    assert about["epoch"] == 1 and about["batch"] > 0
    train, valid, _ = parts
    resumed = pretrain(SMALL, train, valid=valid, resume=path, **FAST)
    assert same(weights(resumed), weights(pretrain(SMALL, train, valid=valid, **FAST)))


def test_interrupt_leaves_a_checkpoint(parts, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    step = run_module.Run._step

    def interrupted(self, plan):
        if self.steps == 4:
            raise KeyboardInterrupt
        return step(self, plan)

    monkeypatch.setattr(run_module.Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(SMALL, parts[0], checkpoint=path, **FAST)
    monkeypatch.undo()
    assert checkpoint.load(path)[0]["steps"] == 4
    resumed = pretrain(SMALL, parts[0], resume=path, **FAST)
    assert same(weights(resumed), weights(pretrain(SMALL, parts[0], **FAST)))


def test_resume_of_another_run(parts, tmp_path):
    path = tmp_path / "run.safetensors"
    pretrain(SMALL, parts[0], checkpoint=path, **FAST)
    with pytest.raises(ValueError, match=r"same arguments: \['recipe'\] differ"):
        pretrain(SMALL, parts[0], resume=path, **{**FAST, "batch_tokens": 128})
    with pytest.raises(ValueError, match=r"same arguments: \['config'\] differ"):
        pretrain(SMALL.replace(dropout=0.3), parts[0], resume=path, **FAST)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated, altered, or no checkpoint"):
        pretrain(SMALL, parts[0], resume=path, **FAST)
    flipped = bytearray(data)
    flipped[-3] ^= 4
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="checksum does not match"):
        pretrain(SMALL, parts[0], resume=path, **FAST)
    with pytest.raises(FileNotFoundError, match="resume must be a checkpoint file"):
        pretrain(SMALL, parts[0], resume=tmp_path / "none", **FAST)


def test_init_continues(parts):
    train = parts[0]
    first = pretrain(SMALL, train, **FAST)
    again = pretrain(SMALL, train, init=first, **{**FAST, "epochs": 0})
    assert same(weights(first), weights(again))
    assert again is not first
    with pytest.raises(ValueError, match="init must have the shape of cfg"):
        pretrain(SMALL.replace(layers=2), train, init=first, **FAST)
    other = make_data(items=9).split("loo-full")[0]
    with pytest.raises(ValueError, match="init must have the schema and vocabularies"):
        pretrain(SMALL, other, init=first, **FAST)


def test_a_loss_that_is_not_finite_names_the_step(parts):
    train = parts[0]
    model = pretrain(SMALL, train, epochs=0, progress=False)
    with torch.no_grad():
        model.answer.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"at step 1 \(epoch 1, batch 1\)"):
        pretrain(SMALL, train, init=model, **FAST)


@pytest.mark.parametrize(
    "options, words",
    [
        pytest.param({"epochs": "many"}, "epochs must be auto or a number", id="epochs"),
        pytest.param({"epochs": -1}, "epochs must be auto or a number", id="negative"),
        pytest.param({"lr": 0}, "lr must be positive, got 0", id="lr"),
        pytest.param({"batch_tokens": 0}, "batch_tokens must be at least 1", id="tokens"),
        pytest.param({"user_rate": -1.0}, "user_rate must be at least 0", id="rate"),
        pytest.param({"schedule": "step"}, "schedule must be auto, cosine", id="schedule"),
        pytest.param({"precision": "int8"}, "precision must be auto, float32", id="precision"),
        pytest.param({"negatives": "none"}, "negatives must be auto, full", id="negatives"),
    ],
)
def test_errors(parts, options, words):
    with pytest.raises(ValueError, match=words):
        pretrain(SMALL, parts[0], **{**FAST, **options})


def test_cuda_without_cuda(parts):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device must be cpu where CUDA is not available"):
        pretrain(SMALL, parts[0], device="cuda", **FAST)


def test_bfloat16_learns(parts):
    losses = []
    pretrain(
        SMALL,
        parts[0],
        precision="bfloat16",
        on_epoch=lambda entry: losses.append(entry["loss"]),
        **{**FAST, "lr": 1e-2},
    )
    assert losses[-1] < 0.9 * losses[0]


def test_no_targets():
    n = 6
    data = Interactions.from_arrays([1] * n, list(range(n)), list(range(n)), target=[False] * n)
    with pytest.raises(ValueError, match="train must have at least one target"):
        pretrain(SMALL, data, **FAST)


def test_tensorboard(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pylum\[tensorboard\]'"):
        pretrain(SMALL, parts[0], tensorboard=tmp_path, **FAST)
    assert not os.listdir(tmp_path)


__all__ = ["FAST", "SMALL", "make_data", "pretrain", "run_module", "time", "torch"]


def test_wrong_types_are_named(parts):
    with pytest.raises(TypeError, match="train must be Interactions, got NoneType"):
        pretrain(SMALL, None)
    with pytest.raises(TypeError, match="cfg must be LUMConfig or HSTUConfig, got dict"):
        pretrain({}, parts[0])
    with pytest.raises(TypeError, match="init must be LUM or HSTU or None, got str"):
        pretrain(SMALL, parts[0], init="model")
