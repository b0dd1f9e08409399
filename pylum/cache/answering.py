"""A pass over a batch whose users are in the cache, or will be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from pylum import ops
from pylum.cache.pages.pool import Pool
from pylum.cache.users.directory import Directory
from pylum.cache.users.slots import Slot
from pylum.cache.warm import Call, WarmQuestions
from pylum.data.events import Events
from pylum.generation.packing import Asking, Candidates, answer
from pylum.model import UserModel
from pylum.transfer import moved


class Answering:
    """Reuses what histories have in pages, computes and keeps what is new, and answers.

    Args:
        model, pool: of the cache.
        directory: of its users.
        warm: answers where nothing is new; None: the model does, as ever.
    """

    def __init__(
        self, model: UserModel, pool: Pool, directory: Directory, warm: WarmQuestions | None
    ) -> None:
        self.model, self.pool, self.directory, self.warm = model, pool, directory, warm
        self._counts = dict.fromkeys(("tokens_computed", "tokens_reused"), 0)

    @property
    def counts(self) -> dict[str, int]:
        """Since the beginning."""
        recorded = {"recordings": 0, "replays": 0} if self.warm is None else self.warm.counts
        return {**self._counts, **self.directory.counts, **recorded}

    def answer(
        self, users: Sequence[Hashable], whole: Events, events: Events, questions: Asking
    ) -> tuple[torch.Tensor, dict[str, int]]:
        """Answers and counts, as :meth:`pylum.UserCache.answer` gives them."""
        admitted = self.directory.admit(users, whole, events)
        slots, lent = admitted.slots, admitted.lent
        if not len(lent):
            out = self._run(slots, events, questions)
        else:
            held = torch.tensor([slot.row for slot in slots], dtype=torch.int64)
            asked, lines = questions.users(held)
            kept = self._run(slots, events.users(held), asked)
            out = kept.new_empty(len(questions), kept.shape[1])
            out[moved(lines, out.device)] = kept
            asked, lines = questions.users(lent)
            out[moved(lines, out.device)] = answer(self.model, events.users(lent), asked)
        admitted.complete()
        reused = self.pool.tokens(sum(slot.reused for slot in slots))
        computed = self.pool.tokens(events.total) - reused + len(questions)
        if isinstance(questions, Candidates):
            computed += len(events)
        warm = sum(slot.reused > 0 for slot in slots)
        computed += self.model.config.context_tokens * (len(events) - warm)
        reused += self.model.config.context_tokens * warm
        self._counts["tokens_computed"] += computed
        self._counts["tokens_reused"] += reused
        work = {
            "tokens_computed": computed,
            "tokens_reused": reused,
            "approximate_users": sum(slot.approximate for slot in slots),
        }
        return out, work

    def _run(self, slots: list[Slot], events: Events, questions: Asking) -> torch.Tensor:
        """Compute what is new, keep it, and answer."""
        reused = torch.tensor([slot.reused for slot in slots], dtype=torch.int64)
        answers = None
        tables = [slot.entry.pages for slot in slots]

        def prefixes(lengths: torch.Tensor) -> Sequence[ops.PagedPrefix]:
            return self.pool.prefixes(tables, lengths)

        if self.warm is not None and torch.equal(reused, events.lengths):
            answers = self.warm.answer(Call(tables, events, questions))
        if answers is None:
            answers = answer(self.model, events, questions, reused, prefixes)
        return answers
