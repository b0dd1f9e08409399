"""The state in which a model is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pylum.model import UserModel
from pylum.modes import autocast_off


@contextmanager
def asking(model: UserModel) -> Iterator[None]:
    """No gradients, no dropout and no autocast; the model is left as it was.

    Precision is that of the weights. Keys, values and item vectors are kept between calls: what a
    caller's autocast rounded would be read by those who called without it.
    """
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode(), autocast_off(model.device):
            yield
    finally:
        if training:
            model.train()
