"""Files of public data sets: in a folder, in a zip archive, or downloaded once into a cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"


class Archive:
    """Files by name, in a folder or anywhere in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.folder = path if path.is_dir() else None
        self.zip: zipfile.ZipFile | None = None
        if path.is_file() and zipfile.is_zipfile(path):
            self.zip = zipfile.ZipFile(path)
        elif self.folder is None:
            raise ValueError(f"path must be a folder or a zip archive, got {path}")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        if self.zip is not None:
            self.zip.close()

    def _member(self, name: str) -> str | None:
        names = self.zip.namelist() if self.zip else []
        return next((n for n in names if n.rsplit("/", 1)[-1] == name), None)

    def has(self, name: str) -> bool:
        if self.folder is not None:
            return (self.folder / name).is_file()
        return self._member(name) is not None

    def open(self, name: str) -> IO[bytes]:
        if self.folder is not None:
            return (self.folder / name).open("rb")
        assert self.zip is not None
        return self.zip.open(self._member(name) or name)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()


def cache_directory() -> Path:
    """Where downloads are kept."""
    if chosen := os.environ.get("PYLUM_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pylum"


def recbole_wheel() -> Path:
    """The wheel that contains MovieLens 100K, downloaded by pip when the cache lacks it.

    Raises:
        ConnectionError: it cannot be downloaded.
        ValueError: the file in the cache is another.
    """
    folder = cache_directory()
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1"]
        done = subprocess.run(
            [*command, "-d", str(folder), WHEEL], capture_output=True, text=True, check=False
        )
        if done.returncode or not path.is_file():
            reason = (done.stderr.strip().splitlines() or ["no such file"])[-1]
            raise ConnectionError(
                f"MovieLens 100K is not in {folder} and could not be downloaded ({reason}): pass "
                f"path=, the wheel of {WHEEL} or the folder ml-100k of "
                "https://grouplens.org/datasets/movielens/100k/"
            )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(f"{path} must have sha256 {WHEEL_SHA256}, got {found}: remove it")
    return path
