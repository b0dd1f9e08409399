"""Ctrl-C at any moment leaves a checkpoint from which the run is the uninterrupted one."""

import signal
import threading

import pytest
import torch

from pylum.train import checkpoint, pretrain
from pylum.train.interrupts import deferred
from pylum.train.objective import Objective
from pylum.train.validation import Validation
from tests.train.chains import make_data
from tests.train.test_pretrain import FAST, SMALL, same, weights


@pytest.fixture(scope="module")
def parts():
    return make_data().split("loo-full")


@pytest.fixture(scope="module")
def whole(parts):
    return weights(pretrain(SMALL, parts[0], valid=parts[1], **FAST))


def interrupting(patch, owner, name, call, behind=False):
    """Ctrl-C in the given call of a method, before its work or behind it."""
    work, calls = getattr(owner, name), iter(range(10**6))

    def interrupted(*args, **kwargs):
        now = next(calls) == call
        if now and not behind:
            signal.raise_signal(signal.SIGINT)
        out = work(*args, **kwargs)
        if now and behind:
            signal.raise_signal(signal.SIGINT)
        return out

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "call", "behind", "steps"),
    [
        pytest.param(Objective, "loss", 5, False, 5, id="before-the-loss"),
        pytest.param(Objective, "loss", 5, True, 5, id="random-numbers-drawn"),
        pytest.param(torch.nn.utils, "clip_grad_norm_", 5, True, 5, id="gradients-made"),
        pytest.param(torch.optim.AdamW, "step", 5, False, 6, id="before-the-update"),
        pytest.param(torch.optim.AdamW, "step", 5, True, 6, id="in-the-update"),
        pytest.param(Validation, "scores", 1, False, 0, id="before-validation"),
        pytest.param(Validation, "scores", 1, True, 0, id="behind-validation"),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    parts, whole, tmp_path, owner, name, call, behind, steps
):
    train, valid, _ = parts
    path = tmp_path / "run.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        interrupting(patch, owner, name, call, behind)
        with pytest.raises(KeyboardInterrupt):
            pretrain(SMALL, train, valid=valid, checkpoint=path, **FAST)
    about, _ = checkpoint.load(path)
    if steps:
        assert about["steps"] == steps
    else:
        assert about["epoch"] == 1 and about["batch"] > 0
    seen = []
    options = {"resume": path, "on_epoch": seen.append, **FAST}
    assert same(weights(pretrain(SMALL, train, valid=valid, **options)), whole)
    assert [entry["epoch"] for entry in seen] == list(range(1 + about["epoch"], 4))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_deferred_loses_no_interrupt_and_hides_no_error():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    with pytest.raises(ValueError, match="wrong"), deferred():
        raise ValueError("wrong")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_trains_too():
    def work():
        with deferred():
            done.append(threading.current_thread())

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [thread]
