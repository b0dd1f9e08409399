"""Configure, build and install ``pylum._C`` with CMake and ninja.

Environment: ``PYLUM_CUDA`` = AUTO (default) | ON | OFF, ``PYLUM_CUDA_ARCHS`` = e.g. "90a".
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if sys.platform == "win32":
            raise RuntimeError("pylum builds on Linux and macOS; on Windows use WSL")
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPYLUM_CUDA={os.environ.get('PYLUM_CUDA', 'AUTO')}",
            f"-DPYLUM_CUDA_ARCHS={os.environ.get('PYLUM_CUDA_ARCHS', '')}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / output.name, output)


setup(ext_modules=[Extension("pylum._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
