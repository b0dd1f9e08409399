"""What ptxas made of each kernel: registers, local and shared memory, and the instructions used.

Read from the objects of a build by cuobjdump and nvdisasm (PyPI: ``nvidia-cuda-cuobjdump`` and
``nvidia-cuda-nvdisasm``), so nothing is compiled again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MATRIX = ("HGMMA", "HMMA", "IMMA")
# Bytes of an access by its suffix; without one, 4.
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
# Global memory: loads, stores, copies to shared memory behind the thread's back.
GLOBAL = ("LDG", "STG", "LDGSTS", "UBLKCP", "UTMALDG", "UTMASTG")

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture.

    Args:
        arch: such as ``sm_90a``.
        file: below csrc.
        name: demangled, without ``pylum::`` and arguments.
        registers: of a thread.
        stack: bytes of a thread's frame, which lies in local memory.
        shared: static bytes of a block, the 1,024 the driver keeps included.
        local: bytes of all loads and stores of local memory in the code: spills, and arrays that
            are indexed.
        wide: whether global memory is accessed 128 bits at a time, or in bulk.
        matrix: the matrix unit's instruction, or "-".
    """

    arch: str
    file: str
    name: str
    registers: int
    stack: int
    shared: int
    local: int = 0
    wide: bool = False
    matrix: str = "-"

    @property
    def key(self) -> Key:
        return self.arch, self.file, self.name


def kernels_of(build: Path) -> list[Kernel]:
    """The kernels of every ``.cu`` object of a CMake build folder, sorted.

    Raises:
        FileNotFoundError: there is no object, or a tool is missing.
    """
    objects = sorted(build.glob("CMakeFiles/pylum_cuda.dir/csrc/**/*.cu.o"))
    if not objects:
        raise FileNotFoundError(f"{build} holds no object of target pylum_cuda")
    found = []
    for path in objects:
        file = path.as_posix().rpartition("/csrc/")[2].removesuffix(".o")
        kernels = read_usage(_run("cuobjdump", "-res-usage", path), file)
        found += read_code(_run("cuobjdump", "-sass", path), kernels)
    return sorted(_demangled(found), key=lambda kernel: kernel.key)


def toolkit_of(build: Path) -> str:
    """Version of the nvcc that made the build."""
    for path in build.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"):
        version = re.search(r'CMAKE_CUDA_COMPILER_VERSION "([\d.]+)"', path.read_text())
        if version:
            return version[1]
    raise FileNotFoundError(f"{build} was not configured with CUDA")


def read_usage(lines: Iterable[str], file: str) -> dict[tuple[str, str], Kernel]:
    """By architecture and mangled name, from ``cuobjdump -res-usage``."""
    found: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in lines:
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif name and (match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line)):
            numbers = [int(number) for number in match.groups()]
            found[arch, name] = Kernel(arch, file, name, *numbers)
            name = ""
    return found


def read_code(lines: Iterable[str], kernels: dict[tuple[str, str], Kernel]) -> list[Kernel]:
    """The same kernels with what their instructions say, from ``cuobjdump -sass``."""
    found = dict(kernels)
    arch, key = "", None
    local, wide, matrix = 0, False, "-"

    def close() -> None:
        if key is not None:
            found[key] = replace(found[key], local=local, wide=wide, matrix=matrix)

    for line in lines:
        if match := re.match(r"\s*(?:arch = |Function : )(\S+)", line):
            close()
            key, local, wide, matrix = None, 0, False, "-"
            if "arch =" in line:
                arch = match[1]
            else:
                key = arch, match[1]
            continue
        match = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
        if key is None or match is None:
            continue
        instruction, *suffixes = match[1].split(".")
        if instruction in ("LDL", "STL"):
            local += next((WIDTHS[s] for s in suffixes if s in WIDTHS), 4)
        if instruction in GLOBAL and ("128" in suffixes or instruction.startswith("U")):
            wide = True
        if instruction in MATRIX and (matrix == "-" or instruction == "HGMMA"):
            matrix = instruction
    close()
    return list(found.values())


def _demangled(kernels: list[Kernel]) -> Iterator[Kernel]:
    names = "\n".join(kernel.name for kernel in kernels)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    for kernel, name in zip(kernels, done.stdout.splitlines(), strict=True):
        yield replace(kernel, name=plain_name(name))


def plain_name(name: str) -> str:
    """A demangled kernel without result, arguments and namespaces."""
    name = name.replace("(anonymous namespace)::", "").replace("pylum::", "")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == "(":
            name = name[:at]
            break
    name = re.sub(r"\((?:cuda::)?[\w:]+\)", "", name)  # casts of template arguments
    return name.removeprefix("void ").replace("__nv_bfloat16", "bfloat16").replace("__half", "half")


def _run(tool: str, option: str, path: Path) -> Iterator[str]:
    beside = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin"
    places = [str(beside), None]
    program = next((p for at in places if (p := shutil.which(tool, path=at))), None)
    if program is None:
        raise FileNotFoundError(f"{tool} was not found: pip install nvidia-cuda-{tool}")
    disassembler = shutil.which("nvdisasm", path=str(beside)) or shutil.which("nvdisasm")
    if disassembler is None:
        raise FileNotFoundError("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    environment = {"PATH": f"{Path(disassembler).parent}:/usr/bin:/bin"}
    with subprocess.Popen(
        [program, option, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"{tool} {option} {path} failed")
