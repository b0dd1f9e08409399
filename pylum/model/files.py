"""Models and checkpoints on disk: safetensors and JSON, checksummed, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

MANIFEST = "config.json"


def write_folder(
    path: str | os.PathLike[str],
    about: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    more: Callable[[Path], None] | None = None,
) -> None:
    """Write a folder aside and rename it into place.

    Args:
        path: replaced only where it holds a manifest of ours.
        about: JSON, stored in ``config.json`` beside the checksum of every file.
        tensors: stored in ``model.safetensors``.
        more: writes further files into the folder it is given.

    Raises:
        ValueError: ``path`` is a file, or a folder that is not ours.
    """
    path = replaceable(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir()
    try:
        flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
        write_tensors(flat, aside / "model.safetensors")
        if more is not None:
            more(aside)
        sums = {file.name: _checksum(file) for file in sorted(aside.iterdir())}
        manifest = {**about, "files": sums}
        text = json.dumps({**manifest, "checksum": _digest(manifest)}, indent=1)
        (aside / MANIFEST).write_text(text + "\n")
        for file in aside.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def in_place(aside: Path, path: Path) -> None:
    """Rename a folder that is whole to ``path``, and remove what was there."""
    if not path.exists():
        aside.rename(path)
        return
    # A folder cannot be replaced in one step: the old one stays readable under its other name until
    # the new one stands.
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    path.rename(old)
    aside.rename(path)
    shutil.rmtree(old)


def write_tensors(
    tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file.

    Raises:
        OSError: it cannot be written; safetensors has an error of its own for that.
    """
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error


def replaceable(path: str | os.PathLike[str]) -> Path:
    """That a folder may be written at ``path``, whose parents are made; for before long work.

    Raises:
        ValueError: ``path`` is a file, or a folder that is not ours.
        OSError: its parents cannot be made.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(f"path must be new or an earlier save, got {path} without {MANIFEST}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read_folder(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What :func:`write_folder` wrote, every file checked against its checksum first.

    Args:
        kind: what ``about["kind"]`` must be.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is truncated, altered, or of another kind.
    """
    path = Path(path)
    about = _manifest(path)
    if about.get("kind") != kind:
        raise ValueError(f"{path} must hold a {kind}, got {about.get('kind')!r}")
    for name, expected in about["files"].items():
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        if _checksum(file) != expected:
            raise ValueError(f"{file} is truncated or altered: its checksum does not match")
    try:
        return about, load_file(path / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path / 'model.safetensors'} cannot be read: {error}") from None


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """``about["kind"]`` of a folder; errors as for :func:`read_folder`."""
    return _manifest(Path(path)).get("kind")


def _manifest(path: Path) -> dict[str, Any]:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"path must be a folder with {MANIFEST}, got {path}")
    try:
        about: dict[str, Any] = json.loads(manifest.read_text())
        checksum = about.pop("checksum")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{manifest} is truncated or altered: {error}") from None
    if _digest(about) != checksum:
        raise ValueError(f"{manifest} is altered: its checksum does not match")
    return about


def _checksum(path: Path) -> str:
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
