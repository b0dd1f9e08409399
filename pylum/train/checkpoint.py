"""The state of a training run in one file, so that it goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pylum.model.files import write_tensors


def save(
    path: str | os.PathLike[str], about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write ``tensors`` and JSON to a file beside ``path``, then rename it to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_tensors(flat, aside, metadata={"about": text, "checksum": _checksum(text, flat)})
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, altered, or no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"resume must be a checkpoint file, got {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated, altered, or no checkpoint: {error}") from None
    if "about" not in metadata:
        raise ValueError(f"{path} is no checkpoint: it holds tensors only")
    if _checksum(metadata["about"], tensors) != metadata.get("checksum"):
        raise ValueError(f"{path} is altered: its checksum does not match")
    return json.loads(metadata["about"]), tensors


def _checksum(about: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
