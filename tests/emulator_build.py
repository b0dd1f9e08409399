"""Configures and compiles the module of an emulator, and imports it."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pybind11


def build(source: Path, where: Path, module: str, *options: str) -> Any:
    """The module of ``source/CMakeLists.txt``, compiled in ``where`` what is newer there.

    Raises:
        RuntimeError: CMake or ninja is missing or fails; the message is what it printed.
    """
    cmake = _program("cmake")
    configure = [
        cmake, "-S", str(source), "-B", str(where), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options,
    ]  # fmt: skip
    # A sanitizer that is preloaded for the tests would make the compiler several times slower.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    for command in (configure, [cmake, "--build", str(where)]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    sys.path.insert(0, str(where))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(where))


def _program(name: str) -> str:
    """Beside this Python, whose environment the build's tools are installed in, or on the path."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise RuntimeError(f"the emulator is built with {name}, which was not found")
    return found
