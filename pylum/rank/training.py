"""The updates of a ranker, and its start from an older one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pylum.data.vocab import Vocab
from pylum.knowledge import Knowledge
from pylum.rank.coding import Coded
from pylum.rank.din import DIN
from pylum.rank.dlrm import DLRM
from pylum.rank.embeddings import Embeddings
from pylum.rank.ftrl import FTRL
from pylum.rank.joining import Joined
from pylum.rank.known import Known, KnownSizes
from pylum.rank.network import Network, Read
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings
from pylum.rank.sim import SIM
from pylum.rank.utilisation import Inputs
from pylum.rank.wide_deep import WideDeep

NETWORKS: dict[str, type[Network]] = {
    "wide_deep": WideDeep,
    "dlrm": DLRM,
    "din": DIN,
    "sim_rank": SIM,
}


class Batches:
    """Rows beside what is known of them, taken by index.

    Args:
        rows: coded.
        knowledge, inputs, joined: or None for a ranker without.
    """

    def __init__(
        self,
        rows: Coded,
        knowledge: Knowledge | None = None,
        inputs: Inputs | None = None,
        joined: Joined | None = None,
    ) -> None:
        self.rows, self.knowledge, self.inputs, self.joined = rows, knowledge, inputs, joined

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: torch.Tensor) -> tuple[Coded, Known | None]:
        if self.inputs is None or self.knowledge is None or self.joined is None:
            return self.rows.take(index), None
        return self.rows.take(index), self.inputs.gather(self.knowledge, self.joined, index)


def build(
    name: str, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
) -> Network:
    """A network with weights drawn by the seed, the caller's random numbers left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return NETWORKS[name](schema, vocabs, settings, known)


def train(
    network: Network, batches: Batches, settings: Settings, valid: Batches | None
) -> list[dict[str, float]]:
    """Fit in place; with ``valid`` the weights of the epoch with the least loss there are kept.

    Returns:
        For each epoch its mean training loss and, with ``valid``, the same there.
    """
    steps = _optimisers(network, settings)
    history: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    wide = network.wide if isinstance(network, WideDeep) else None
    # Rows come in one order whatever else is drawn, so that arms differ in their inputs alone.
    order = torch.Generator().manual_seed(settings.seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        for epoch in range(settings.epochs):
            network.train()
            total = 0.0
            for index in torch.randperm(len(batches), generator=order).split(settings.batch_rows):
                rows, known = batches.at(index)
                assert rows.labels is not None
                read = network.read(rows)
                if known is not None and settings.knowledge_dropout:
                    known = known.dropped(settings.knowledge_dropout)
                main = _both(network, read, known, rows.labels)
                searched = [_loss(logits, rows.labels) for logits in read.auxiliary]
                # Each answer weighs as the only one of a ranker without knowledge does, and so
                # beside weight decay and L1 as well.
                answers = 1 if known is None else 2
                loss = torch.stack([answers * main, *searched]).sum()
                if not bool(loss.isfinite()):
                    raise FloatingPointError(
                        f"the loss is {float(loss.detach())} in epoch {epoch + 1}: "
                        f"lower lr = {settings.lr}"
                    )
                loss.backward()
                if wide is not None and wide.grad is not None:
                    # FTRL counts examples: its L1 and learning rate are those of their sum.
                    wide.grad.mul_(len(index))
                for step in steps:
                    step.step()
                    step.zero_grad()
                total += float(main.detach()) * len(index)
            entry = {"epoch": epoch + 1, "loss": total / len(batches)}
            if valid is not None:
                entry["valid"] = _score(network, valid, settings)
                if entry["valid"] <= min([e["valid"] for e in history], default=torch.inf):
                    best = {n: t.detach().clone() for n, t in network.state_dict().items()}
            history.append(entry)
    if best:
        network.load_state_dict(best)
    network.eval()
    return history


def logits(network: Network, batches: Batches, batch_rows: int) -> Iterator[torch.Tensor]:
    """Of all rows, batch by batch."""
    network.eval()
    with torch.inference_mode():
        for index in torch.arange(len(batches)).split(batch_rows):
            yield network(*batches.at(index))


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
            if name.startswith("informed.") and not keep_knowledge:
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


def _optimisers(network: Network, settings: Settings) -> list[torch.optim.Optimizer]:
    if not isinstance(network, WideDeep):
        adam = torch.optim.Adam(
            network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        return [adam]
    deep = [p for name, p in network.named_parameters() if name != "wide"]
    return [
        torch.optim.Adagrad(deep, lr=settings.lr, weight_decay=settings.weight_decay),
        FTRL(
            [network.wide],
            alpha=settings.ftrl_alpha,
            l1=settings.ftrl_l1,
            l2=settings.ftrl_l2,
        ),
    ]


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def _both(network: Network, read: Read, known: Known | None, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of the answers without and with knowledge; without any, of the one."""
    alone, informed = network.answers(read, known)
    if informed is None:
        return _loss(alone, labels)
    return (_loss(alone, labels) + _loss(informed, labels)) / 2


def _score(network: Network, batches: Batches, settings: Settings) -> float:
    """What training minimises, on other rows."""
    total = 0.0
    network.eval()
    with torch.inference_mode():
        for index in torch.arange(len(batches)).split(settings.batch_rows):
            rows, known = batches.at(index)
            assert rows.labels is not None
            found = _both(network, network.read(rows), known, rows.labels)
            total += float(found) * len(index)
    return total / len(batches)
