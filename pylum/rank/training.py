"""The updates of a ranker, and its start from an older one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from pylum.data.vocab import Vocab
from pylum.modes import seeded
from pylum.rank.answers import Batches, First, Second
from pylum.rank.din import DIN
from pylum.rank.dlrm import DLRM
from pylum.rank.embeddings import Embeddings
from pylum.rank.ftrl import FTRL
from pylum.rank.known import KnownSizes
from pylum.rank.network import Network
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.sim import SIM
from pylum.rank.wide_deep import WideDeep

NETWORKS: dict[str, type[Network]] = {
    "wide_deep": WideDeep,
    "dlrm": DLRM,
    "din": DIN,
    "sim_rank": SIM,
}
INFORMED = "informed."  # how the names of the weights that knowledge is read by begin


def build(
    name: str, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
) -> Network:
    """A network with weights drawn by the seed, the caller's random numbers left alone."""
    with seeded(settings.seed):
        # Whatever torch's default dtype is.
        return NETWORKS[name](schema, vocabs, settings, known).float()


def train(
    network: Network,
    batches: Batches,
    settings: Settings,
    valid: Batches | None,
    only_knowledge: bool = False,
) -> list[dict[str, float]]:
    """Fit in place: first the answer of the rows alone, then what knowledge changes of it.

    The first is trained as a ranker without knowledge is, to the same weights. The second is
    trained on what the first reads, which stays as it is: weights that both moved would come to
    lean on knowledge, and answer worse where there is none.

    With ``valid`` each keeps the weights of its epoch with the least loss there, and the second
    those it began with if no epoch has less: knowledge that does not help there changes nothing.

    Args:
        only_knowledge: leave the first as it is.

    Returns:
        For each epoch its mean training loss and, with ``valid``, the same there; the second's
        epochs count from 1 again and hold ``"knowledge"``: 1.
    """
    named = dict(network.named_parameters())
    second = {name: p for name, p in named.items() if name.startswith(INFORMED)}
    history: list[dict[str, float]] = []
    if not only_knowledge:
        first = {name: p for name, p in named.items() if name not in second}
        held = None if valid is None else First(network, valid)
        history = _fit(network, first, settings, First(network, batches), held, network)
    network.eval()
    if network.informed is not None:
        size = settings.batch_rows
        rows = Second(network, batches, settings.knowledge_dropout, size)
        later = None if valid is None else Second(network, valid, 0, size)
        slower = replace(settings, lr=settings.lr * settings.knowledge_lr)
        found = _fit(network, second, slower, rows, later, network.informed)
        history += [{**entry, "knowledge": 1} for entry in found]
    return history


def _fit(
    network: Network,
    trained: dict[str, nn.Parameter],
    settings: Settings,
    rows: First | Second,
    valid: First | Second | None,
    module: nn.Module,
) -> list[dict[str, float]]:
    """Train one of the two answers, by its own weights; ``module`` is what holds these."""
    steps = _optimisers(network, trained, settings)
    history: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    least = torch.inf
    if valid is not None and isinstance(valid, Second):
        least, best = _score(valid, settings, module), _copy(trained)
    # Rows come in one order whatever else is drawn, so that arms differ in their inputs alone.
    order = torch.Generator().manual_seed(settings.seed + 1)
    with seeded(settings.seed + 1):
        for epoch in range(settings.epochs):
            module.train()
            total = 0.0
            for index in torch.randperm(len(rows), generator=order).split(settings.batch_rows):
                losses = rows.losses(index)
                loss = torch.stack(losses).sum()
                if not bool(loss.isfinite()):
                    raise FloatingPointError(
                        f"the loss is {float(loss.detach())} in epoch {epoch + 1}: "
                        f"lower lr = {settings.lr}"
                    )
                loss.backward()
                wide = trained.get("wide")
                if wide is not None and wide.grad is not None:
                    # FTRL counts examples: its L1 and learning rate are those of their sum.
                    wide.grad.mul_(len(index))
                for step in steps:
                    step.step()
                    step.zero_grad()
                total += float(losses[0].detach()) * len(index)
            entry = {"epoch": epoch + 1, "loss": total / len(rows)}
            if valid is not None:
                entry["valid"] = _score(valid, settings, module)
                if entry["valid"] <= least:
                    least, best = entry["valid"], _copy(trained)
            history.append(entry)
    with torch.no_grad():
        for name, kept in best.items():
            trained[name].copy_(kept)
    module.eval()
    return history


def logits(network: Network, batches: Batches, batch_rows: int) -> Iterator[torch.Tensor]:
    """Of all rows, batch by batch."""
    network.eval()
    with torch.inference_mode():
        for index in torch.arange(len(batches)).split(batch_rows):
            yield network(batches.rows.take(index), batches.known(index))


def carry_over(old: Network, new: Network, keep_knowledge: bool) -> None:
    """Give ``new`` the weights of ``old``, so that it predicts the same.

    Tables have grown at their end: a new row begins as the unknown value. Knowledge that the old
    one did not have, or had of another user model, begins by changing nothing.

    Raises:
        ValueError: the two have other sizes.
    """
    before = dict(old.named_parameters())
    tables = {
        f"{place}.tables.{n}"
        for place, module in new.named_modules()
        if isinstance(module, Embeddings)
        for n in range(len(module.tables))
    }
    with torch.no_grad():
        for name, p in new.named_parameters():
            if name.startswith(INFORMED) and not keep_knowledge:
                continue
            if name in tables and before[name].shape[1:] == p.shape[1:]:
                p.copy_(before[name][0].expand_as(p))
                p[: len(before[name])] = before[name]
            elif name in before and before[name].shape == p.shape:
                p.copy_(before[name])
            else:
                got = list(before[name].shape) if name in before else "nothing"
                raise ValueError(
                    f"init must have the sizes of this ranker: {name} is {list(p.shape)}, "
                    f"init has {got}"
                )


def _optimisers(
    network: Network, trained: dict[str, nn.Parameter], settings: Settings
) -> list[torch.optim.Optimizer]:
    deep = [p for name, p in trained.items() if name != "wide"]
    if not isinstance(network, WideDeep):
        adam = torch.optim.Adam(
            deep, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        return [adam]
    steps: list[torch.optim.Optimizer] = [
        torch.optim.Adagrad(deep, lr=settings.lr, weight_decay=settings.weight_decay)
    ]
    if "wide" in trained:
        steps.append(
            FTRL(
                [trained["wide"]],
                alpha=settings.ftrl_alpha,
                l1=settings.ftrl_l1,
                l2=settings.ftrl_l2,
            )
        )
    return steps


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.items()}


def _score(rows: First | Second, settings: Settings, module: nn.Module) -> float:
    """What training minimises, on other rows."""
    total = 0.0
    module.eval()
    with torch.inference_mode():
        for index in torch.arange(len(rows)).split(settings.batch_rows):
            total += float(rows.losses(index)[0]) * len(index)
    return total / len(rows)
