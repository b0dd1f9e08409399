"""A saved model of whichever kind."""

from __future__ import annotations

import os

import torch

from pylum.model.base import UserModel
from pylum.model.files import kind_of
from pylum.model.hstu import HSTU
from pylum.model.lum import LUM

KINDS: dict[str, type[UserModel]] = {"LUM": LUM, "HSTU": HSTU}


def load_model(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> UserModel:
    """The LUM or HSTU that ``save_pretrained`` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is truncated or altered, or the folder holds something else.
    """
    kind = kind_of(path)
    if kind not in KINDS:
        raise ValueError(f"{path} must hold a {' or '.join(KINDS)}, got {kind!r}")
    return KINDS[kind].from_pretrained(path, device=device)
