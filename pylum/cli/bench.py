"""``pylum bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pylum.cli import outputs

app = typer.Typer(help="Kernels beside their fastest peers on this machine.", no_args_is_help=True)

Only = Annotated[str, typer.Option(help="Ops whose name contains this.")]
Seconds = Annotated[float, typer.Option(min=0, help="Seconds of each contestant, at least.")]
Json = Annotated[Path | None, typer.Option(help="JSON file to write the rows to.")]


@app.callback()
def group() -> None:
    """Kernels beside their fastest peers on this machine."""


@app.command()
def cpu(
    only: Only = "",
    seconds: Seconds = 1.0,
    calls: Annotated[int, typer.Option(min=1, help="Calls of each contestant, at least.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of all contestants.")] = 1,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows at most; none: all.")] = None,
    processor_time: Annotated[
        bool, typer.Option(help="Time the processor, not the clock: one thread on a busy machine.")
    ] = False,
    json: Json = None,
) -> None:
    """CPU kernels beside the fastest peer and the ceiling, with what is wanted of both.

    Ratios come from contestants called in turn. The share is that of the higher rate of torch's
    matrix product and multiply-adds from registers, or of reading the op's bytes, all measured in
    the same turns. Each row says whether its goal is met; benchmarks/CPU_CEILINGS.md says what
    bounds those that are not, and what was tried.

    Example: [bold]pylum bench cpu --only "group query" --json results.json[/bold]
    """
    import torch

    from pylum.bench.cpu import table

    kept = _kept(json)
    if processor_time and threads != 1:
        raise ValueError(f"threads must be 1 with processor time, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        table(only, seconds, rows, calls=calls, processor_time=processor_time, each=kept)
    finally:
        torch.set_num_threads(before)


@app.command()
def threads(
    only: Only = "",
    seconds: Seconds = 1.0,
    calls: Annotated[int, typer.Option(min=1, help="Calls of each contestant, at least.")] = 5,
    threads: Annotated[int, typer.Option(min=2, help="Threads compared with one.")] = 2,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows at most; none: all.")] = None,
    json: Json = None,
) -> None:
    """CPU kernels on one thread and on several, in turn, by the clock of a quiet machine.

    Beside each op stand a matrix product of torch and a read of the op's bytes on as many threads.
    Rows of 5 ms or more on one thread have a goal: nine tenths of the threads.

    Example: [bold]pylum bench threads --only "packed causal"[/bold]
    """
    from pylum.bench.scaling import table

    kept = _kept(json)
    table(only, seconds, rows, calls=calls, threads=threads, each=kept)


@app.command()
def cuda(
    only: Only = "",
    seconds: Seconds = 0.5,
    cold: Annotated[bool, typer.Option(help="Overwrite the L2 cache before every call.")] = False,
    device: Annotated[str, typer.Option(help="cuda, or cpu: only whether the calls run.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="Small sizes: only whether the calls run.")] = False,
    json: Json = None,
) -> None:
    """CUDA kernels beside torch's backends, with the share of the measured ceiling.

    Contestants are called in turn and timed by events; * marks a goal that was missed. The share is
    that of a bfloat16 (or the row's dtype) matrix product, or of a copy on the device.

    Example: [bold]pylum bench cuda --only "packed causal" --json results.json[/bold]
    """
    import torch

    from pylum.bench.cuda import table

    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where CUDA is not available, got {device}")
    kept = _kept(json)
    table(only, seconds, device=device, tiny=tiny, cold=cold, each=kept)


def _kept(json: Path | None) -> Callable[[dict[str, Any]], None] | None:
    """Writes the rows so far, so that what was measured outlasts an interruption."""
    if json is None:
        return None
    from pylum.bench.harness import save

    json.parent.mkdir(parents=True, exist_ok=True)
    outputs.writable(json, "json")
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        save(json, rows)

    return keep
