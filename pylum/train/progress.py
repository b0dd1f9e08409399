"""What a run shows of itself: a progress bar, TensorBoard, a callback."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from pylum.train.run import Run


class Reporter:
    """Reports steps and epochs; a context manager.

    Args:
        progress: show a bar on standard error.
        tensorboard: folder of event files, or None.
        on_epoch: called with each epoch's figures, or None.
    """

    def __init__(
        self,
        progress: bool,
        tensorboard: str | os.PathLike[str] | None,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.on_epoch = on_epoch
        self.writer = None if tensorboard is None else _writer(tensorboard)
        self.bar = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]}  {task.fields[score]}"),
            console=Console(stderr=True),
            disable=not progress,
            transient=True,
        )
        self.task = self.bar.add_task("", epoch="1", loss="-", rate="", score="")
        self.score = ""

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def begin_epoch(self, run: Run, events: int) -> None:
        self.begin, self.events = time.perf_counter(), 0
        fields = {**self.bar.tasks[0].fields, "epoch": f"{run.epoch + 1}/{run.recipe.epochs}"}
        self.bar.reset(self.task, total=events, **fields)

    def step(self, run: Run, events: int) -> None:
        self.events += events
        if self.bar.disable:
            return
        rate = self.events / (time.perf_counter() - self.begin)
        self.bar.update(
            self.task,
            advance=events,
            loss=f"{run.loss_sum / max(1, run.loss_count):.3f}",
            rate=f"{rate:,.0f} behaviours/s",
            score=self.score,
        )

    def end_epoch(self, entry: dict[str, Any]) -> None:
        for name in ("ndcg@10", "auc"):
            if name in entry:
                self.score = f"{name.upper()} {entry[name]:.4f}"
        if self.writer is not None:
            for name in ("loss", "ndcg@10", "hr@10", "auc", "logloss"):
                if name in entry:
                    self.writer.add_scalar(name.replace("@", "_at_"), entry[name], entry["steps"])
        if self.on_epoch is not None:
            self.on_epoch(dict(entry))


def _writer(folder: str | os.PathLike[str]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard needs the package tensorboard: pip install 'pylum[tensorboard]'"
        ) from None
    return SummaryWriter(os.fspath(folder))
