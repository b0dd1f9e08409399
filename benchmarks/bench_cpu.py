"""The table of CPU kernels, as ``pylum bench cpu``.

python -m benchmarks.bench_cpu [--only TEXT] [--seconds 1] [--threads 1] [--json PATH]
"""

import typer

from pylum.cli.bench import cpu

if __name__ == "__main__":
    typer.run(cpu)
