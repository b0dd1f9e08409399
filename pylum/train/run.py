"""The steps of a training run and its state."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pylum import checks
from pylum.data.events import Events
from pylum.model.base import UserModel
from pylum.model.hstu_config import HSTUConfig
from pylum.train import checkpoint
from pylum.train.interrupts import deferred
from pylum.train.objective import Objective
from pylum.train.packing import gather, plan_epoch
from pylum.train.progress import Reporter
from pylum.train.ranking import RankingObjective, RankingValidation
from pylum.train.stochastic_length import shortened
from pylum.train.validation import Validation

LEAST_LR = 0.02


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run; arguments as for :func:`pylum.pretrain`."""

    epochs: int
    patience: int | None
    lr: float
    batch_tokens: int
    accumulate: int
    weight_decay: float
    schedule: str
    warmup: int
    clip: float
    seed: int
    user_rate: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())  # as JSON has it
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be an integer in [0, 2**32), got {self.seed!r}")
        checks.positive(self, "lr", "clip")
        checks.finite(self, "lr", "weight_decay", "user_rate")
        checks.at_least(self, 1, "batch_tokens", "accumulate")
        checks.at_least(self, 0, "warmup", "weight_decay", "user_rate")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """A run that can stop after any step and go on from there."""

    def __init__(
        self,
        model: UserModel,
        recipe: Recipe,
        objective: Objective | RankingObjective,
        events: Events,
        validation: Validation | RankingValidation | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        tokens: int,
    ) -> None:
        self.model, self.recipe, self.objective = model, recipe, objective
        self.events, self.validation, self.autocast = events, validation, autocast
        self.batch_events = max(1, recipe.batch_tokens // tokens)
        self.any_targets = tokens == 3
        self.device = model.device
        self.parameters = dict(model.named_parameters())
        matrices = [p for p in self.parameters.values() if p.dim() > 1]
        vectors = [p for p in self.parameters.values() if p.dim() <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.identity: dict[str, Any] = {}
        self.epoch, self.batch, self.steps = 0, 0, 0
        self.loss_sum, self.loss_count, self.seconds = 0.0, 0, 0.0
        self.best_score, self.best_epoch = -math.inf, 0
        self.best: dict[str, torch.Tensor] = {}

    def go(self, reporter: Reporter, path: str | os.PathLike[str] | None, every: float) -> None:
        """Train to the end; the model then holds the best weights."""
        self.model.train()
        saved = time.monotonic()
        try:
            while self.epoch < self.recipe.epochs and not self._out_of_patience():
                plan = self._plan()
                reporter.begin_epoch(self, sum(int(n.sum()) for _, n in plan))
                while self.batch < len(plan):
                    begin = time.perf_counter()
                    done = self._step(plan)
                    self.seconds += time.perf_counter() - begin
                    reporter.step(self, done)
                    if path is not None and time.monotonic() - saved >= every:
                        self.save(path)
                        saved = time.monotonic()
                self._end_epoch(reporter)
                if path is not None:
                    self.save(path)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if path is not None:
                self.save(path)
            raise
        if self.best:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(self.best[name])
        broken = [n for n, p in self.parameters.items() if not bool(p.isfinite().all())]
        if broken:
            raise FloatingPointError(
                f"weights are not finite after step {self.steps}, {broken[0]} and "
                f"{len(broken) - 1} more: lower lr = {self.recipe.lr}"
            )

    def _plan(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of this epoch: a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        return plan_epoch(
            self.events.offsets,
            self.model.config.max_length,
            self.batch_events,
            generator,
            self.recipe.user_rate,
        )

    def _step(self, plan: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """One update, done whole or not at all; returns the behaviours it read."""
        rng, steps = _rng(self.device), self.steps
        part = plan[self.batch : self.batch + self.recipe.accumulate]
        try:
            goals, total = self._backward(part)
            with deferred():
                if goals:
                    for group in self.optimiser.param_groups:
                        group["lr"] = self._lr(len(plan))
                    self.optimiser.step()
                    self.optimiser.zero_grad()
                self.loss_sum += total
                self.loss_count += goals
                self.steps += 1
                self.batch += len(part)
        except BaseException:
            if self.steps == steps:
                # Where it was before the step, so that a checkpoint written now can repeat it.
                _set_rng(self.device, rng)
                self.optimiser.zero_grad()
            raise
        return sum(int(lengths.sum()) for _, lengths in part)

    def _backward(self, part: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, float]:
        """Clipped gradients of some batches; returns their targets and the sum of the loss."""
        batches = [self._shorten(gather(self.events, *windows)) for windows in part]
        counts = [b.total if b.targets is None else int(b.targets.sum()) for b in batches]
        goals, total = sum(counts), 0.0
        for events, count in zip(batches, counts, strict=True):
            if count == 0:
                continue
            with self.autocast():
                loss = self.objective.loss(self.model, events.to(self.device))
            sites = count * (2 if self.any_targets else 1)
            (loss * (count / (goals * sites))).backward()
            total += float(loss.detach()) * count / sites
        if goals:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
            if not math.isfinite(total) or not math.isfinite(float(norm)):
                raise FloatingPointError(
                    f"loss {total / goals} and gradient norm {float(norm)} at step "
                    f"{self.steps + 1} "
                    f"(epoch {self.epoch + 1}, batch {self.batch + 1}): lower lr = "
                    f"{self.recipe.lr}, or look for infinite numbers in the features"
                )
        return goals, total

    def _shorten(self, events: Events) -> Events:
        config = self.model.config
        if not isinstance(config, HSTUConfig) or not config.length_alpha:
            return events
        return shortened(events, config.max_length, config.length_alpha, config.length_selector)

    def _lr(self, batches: int) -> float:
        recipe = self.recipe
        # No longer than an epoch: a small data set has few steps in all.
        warmup = max(1, min(recipe.warmup, batches // recipe.accumulate))
        lr = recipe.lr * min(1.0, (self.steps + 1) / warmup)
        if recipe.schedule == "constant":
            return lr
        # Epochs differ by a batch or so: the end is known by position, not by counting steps.
        part = min(1.0, (self.epoch + self.batch / batches) / recipe.epochs)
        return lr * (LEAST_LR + (1 - LEAST_LR) * 0.5 * (1 + math.cos(math.pi * part)))

    def _end_epoch(self, reporter: Reporter) -> None:
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "steps": self.steps,
            "loss": self.loss_sum / max(1, self.loss_count),
            "seconds": self.seconds,
        }
        # A run that is stopped here validates when it goes on.
        found = {} if self.validation is None else self.validation.scores(self.model)
        with deferred():
            self.epoch, self.batch = self.epoch + 1, 0
            self.loss_sum, self.loss_count = 0.0, 0
            score = -math.inf if self.validation is None else found[self.validation.chosen_by]
            if score > self.best_score:
                self.best_score, self.best_epoch = score, self.epoch
                self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
        reporter.end_epoch(entry | found)

    def _out_of_patience(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def save(self, path: str | os.PathLike[str]) -> None:
        """The state of this run, exact to the bit."""
        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimiser.state.get(p, {}).items():
                tensors[f"optimiser/{name}/{key}"] = value
        tensors |= {f"rng/{name}": state for name, state in _rng(self.device).items()}
        about = {name: getattr(self, name) for name in _COUNTERS}
        checkpoint.save(path, {"kind": "pretrain", "run": self.identity, **about}, tensors)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of a run with other arguments or data.
        """
        about, tensors = checkpoint.load(path)
        if about.get("kind") != "pretrain":
            raise ValueError(f"resume must be a checkpoint of pretrain, got {path}")
        differ = [n for n in self.identity if about["run"].get(n) != self.identity[n]]
        if differ:
            raise ValueError(f"resume must be of a run with the same arguments: {differ} differ")
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "rng": {}}
        states: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            if group == "optimiser":
                parameter, _, key = rest.rpartition("/")
                states.setdefault(parameter, {})[key] = tensor
            else:
                groups[group][rest] = tensor
        self.model.load_state_dict(groups["model"])
        self.best = {name: t.to(self.device) for name, t in groups["best"].items()}
        for name, state in states.items():
            p = self.parameters[name]
            self.optimiser.state[p] = {
                key: t.to(p.device) if key != "step" or p.device.type != "cpu" else t
                for key, t in state.items()
            }
        for name in _COUNTERS:
            setattr(self, name, about[name])
        _set_rng(self.device, groups["rng"])


_COUNTERS = (
    *("epoch", "batch", "steps", "loss_sum", "loss_count"),
    *("seconds", "best_score", "best_epoch"),
)


def _rng(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_rng(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
