"""What was built, what this machine offers, and what was chosen."""

from __future__ import annotations

import platform

import torch

from pylum import _C

AMX_AVAILABLE = "available (its kernels were tested on emulated tiles, not yet on a CPU)"


def show_config() -> str:
    """A report of the build and of the machine, one fact a line, as text.

    ``pylum info`` prints it; paste it into bug reports. The last lines name the work of ops and
    models that torch does, and when: by dtype, device and sizes of weights, never by counts.
    """
    info = _C.build_info()
    wish = "" if info["isa"] == info["isa_best"] else f" (by PYLUM_ISA; best {info['isa_best']})"
    if not info["cuda_built"]:
        cuda = "not built"
    else:
        version = info["cuda_runtime"]
        cuda = (
            f"built for {info['cuda_architectures']} with runtime "
            f"{version // 1000}.{version % 1000 // 10}; {info['cuda_devices']} device(s) here"
        )
    from pylum import __version__
    from pylum.model import LUM  # noqa: F401  # its modules say what they give to torch
    from pylum.ops._library import TORCH_PATHS

    amx = f"unavailable: {info['amx_missing']}" if info["amx_missing"] else AMX_AVAILABLE
    facts = {
        "pylum": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "compiler": info["compiler"],
        "cpu kernels": info["isa"] + wish,
        "amx": amx,
        "threads": f"{torch.get_num_threads()} (OpenMP {'on' if info['openmp'] else 'off'})",
        "cuda": cuda,
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    given = [f"  {module}: {TORCH_PATHS[module]}" for module in sorted(TORCH_PATHS)]
    return "\n".join([*lines, "computed by torch", *given])
