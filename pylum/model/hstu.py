"""HSTU, the generative recommender of arXiv 2402.17152: retrieval and ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pylum import ops
from pylum.data.events import ANY_ROW, Events
from pylum.data.items import ItemTable
from pylum.data.schema import Schema
from pylum.data.vocabs import Vocabs
from pylum.model.base import UserModel
from pylum.model.features import Features, normal
from pylum.model.hstu_cached import Cached, cached_rows
from pylum.model.hstu_config import HSTUConfig
from pylum.model.hstu_layer import Attend, HSTULayer
from pylum.model.hstu_places import Clock, Places
from pylum.model.hstu_tasks import TaskHead
from pylum.modes import on_host_or_meta
from pylum.transfer import moved


class HSTU(UserModel):
    """A history of ``n`` behaviours is ``p_0, ..., p_n`` (retrieval) or ``p_0, i_0, ..., p_n``,
    behind the tokens of ``config.context``.

    ``p_0`` begins every sequence; ``p_k`` is what is known once behaviour ``k - 1`` has passed, and
    ``i_k`` the item of behaviour ``k`` under its conditions. Retrieval answers at ``p_k`` for the
    item of behaviour ``k``. Ranking, where ``p_k`` is the action taken on ``i_{k-1}``, predicts
    ``config.tasks`` at item tokens; a candidate is one more of those.

    The clock of a row is that of the token after it, as the published code has it: ``p_n`` changes
    with the time of the question. So a cache holds all but it, and it is computed each time.

    Args:
        config: sizes.
        schema, vocabs, items: of the data; they belong to the model and are saved with it.

    Raises:
        ValueError: a task's field is no such outcome of the schema, or lacks a value; a field of
            the context is no condition.
    """

    config_class = HSTUConfig
    config: HSTUConfig

    @on_host_or_meta
    def __init__(
        self, config: HSTUConfig, schema: Schema, vocabs: Vocabs, items: ItemTable
    ) -> None:
        super().__init__(config, schema, vocabs, items)
        width, scale = config.width, config.initial_scale
        self.context_encoder = _context(config, schema, vocabs)
        self.begin = normal(width, scale=scale)
        self.action_bias = normal(width, scale=scale) if config.task == "ranking" else None
        self.layers = nn.ModuleList(HSTULayer(config) for _ in range(config.layers))
        self.places = Places(config)
        self._make_answers()
        self.tasks = TaskHead(width, config.tasks, schema, vocabs) if config.tasks else None
        self.float()  # whatever torch's default dtype is

    def _choice_schema(self) -> Schema:
        context = self.config.context
        kept = tuple(f for f in self.schema.conditions if f.name not in context)
        return replace(self.schema, conditions=kept)

    def standardise(self, events: Events) -> None:
        super().standardise(events)
        if self.context_encoder is not None:
            self.context_encoder.standardise(events.conditions)
        if self.tasks is not None:
            self.tasks.standardise(events.outcomes)

    def context_tokens(self, columns: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
        """``[count, fields, width]`` tokens of ``count`` users; a field left out is missing."""
        if self.context_encoder is None:
            return self.begin.new_empty(count, 0, self.config.width)
        return torch.stack(self.context_encoder(columns, count), 1)

    def passed_tokens(
        self, events: Events, *, item_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[N, width]`` what is known once each behaviour has passed.

        Retrieval: its item, conditions and outcomes. Ranking: its outcomes, the action.

        Args:
            item_tokens: ``[N, width]`` tokens of ``events.items``, where they are known already.
        """
        if self.action_bias is not None:
            tokens = self.action_bias.expand(events.total, -1)
        else:
            tokens = self.choice_tokens(events.items, events.conditions, item_tokens=item_tokens)
        if self.outcome_encoder is None:
            return tokens
        return tokens + self.outcome_encoder(events.outcomes, events.total)

    def choice_tokens(
        self,
        rows: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
        *,
        item_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[C, width]`` tokens of items and the conditions under which they were chosen or shown.

        Args:
            rows: ``[C]`` int64 of the item vocabulary.
            conditions: columns of ``C`` rows by field; a field left out is ANY, those of the
                context are not read.
            item_tokens: ``[C, width]`` tokens of ``rows``, where they are known already.
        """
        tokens = self.item_tokens(rows) if item_tokens is None else item_tokens
        if not self.config.project:
            tokens = tokens * self.config.width**0.5
        return tokens + self.condition_encoder(conditions, len(rows))

    def run(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        clock: Clock,
        mask: ops.Mask | None = None,
    ) -> torch.Tensor:
        """One causal pass over packed sequences.

        Args:
            x: ``[T, width]`` tokens of each sequence: context, history, targets.
            offsets: ``[B + 1]`` int64, in tokens; it and all that follow may be on the host.
            positions: ``[T]`` int64 in ``[0, config.max_tokens]``, in tokens.
            clock: of the tokens, which are both keys and rows.
            mask: which tokens are targets and what they see, in tokens; None: causal.

        Returns:
            ``[T, width]`` hidden states.
        """
        device = x.device
        mask, clock = self.masked(mask, len(offsets) - 1), clock.to(device)
        offsets, positions = moved(offsets, device), moved(positions, device)

        def attend(
            bias: ops.RelativeBias | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> torch.Tensor:
            return ops.attention(q, k, v, offsets, mask, bias=bias, **self._score)

        x = self.places(x, positions, clock.query_times, clock.timestamps)
        return self._pass(x, [partial(attend, bias) for bias in self.places.biases(clock)])

    def run_cached(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        clock: Clock,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None = None,
    ) -> torch.Tensor:
        """The pass of :meth:`run` over tokens whose earlier history lies in pages. Inference only.

        New history rows are written to the pages; targets are not. The last one is to be written
        again by the next pass.

        Args:
            x: ``[T, width]`` tokens; of each sequence its new history tokens, then its targets.
                Context counts as history here.
            offsets: ``[B + 1]`` int64, in tokens; it, ``positions``, ``clock`` and ``mask`` best on
                the host, where it is found out which rows are new, also for a model on a GPU.
            positions: ``[T]`` int64 in ``[0, config.max_tokens]``, in tokens.
            clock: timestamps of whole histories and targets, query times of the rows of ``x``.
            prefixes: one per layer, sharing ``table`` and ``lengths``. Lengths count the new
                history rows already, and the table has pages for them.
            mask: how many targets each sequence has and what they see; None: no targets.

        Returns:
            ``[T, width]`` hidden states.
        """
        if len(prefixes) != len(self.layers):
            raise ValueError(
                f"prefixes must be one per layer = {len(self.layers)}, got {len(prefixes)}"
            )
        rows = cached_rows(offsets, positions, clock, mask, prefixes[0].lengths)
        return self.run_rows(x, rows, prefixes, self.masked(mask, len(offsets) - 1))

    def run_rows(
        self,
        x: torch.Tensor,
        rows: Cached,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None,
    ) -> torch.Tensor:
        """The pass of :meth:`run_cached` once its rows are sorted.

        Reads no value on the host: what it does depends on shapes alone, and a CUDA graph may hold
        it.

        Args:
            x: ``[T, width]`` tokens.
            rows: of the pass; like all here on the device of ``x``.
            prefixes: one per layer, sharing ``table`` and ``lengths``.
            mask: as :meth:`masked` gives it.

        Returns:
            ``[T, width]`` hidden states.
        """

        def attend(
            prefix: ops.PagedPrefix,
            bias: ops.RelativeBias | None,
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
        ) -> torch.Tensor:
            rows.append(prefix, k, v)
            asked = (q, rows.of_targets(k), rows.of_targets(v), rows.offsets, prefix, mask)
            return ops.prefix_attention(*asked, bias=bias, **self._score)

        x = self.places(x, rows.positions, rows.clock.query_times, rows.own)
        each = zip(prefixes, self.places.biases(rows.clock), strict=True)
        return self._pass(x, [partial(attend, prefix, bias) for prefix, bias in each])

    def masked(self, mask: ops.Mask | None, context: torch.Tensor | int) -> ops.Mask | None:
        """A mask of targets with what the config adds, on the model's device.

        Args:
            context: ``[B]`` int64 context tokens of each sequence, or ``B``: all have theirs.
        """
        config = self.config
        if config.window:
            mask = replace(
                mask or ops.Mask(), window=config.window, min_full=config.min_full or None
            )
        if config.context:
            if isinstance(context, int):
                context = torch.full((context,), config.context_tokens, device=self.device)
            mask = replace(mask or ops.Mask(), num_context=context)
        return None if mask is None else mask.to(self.device)

    @property
    def _score(self) -> dict[str, Any]:
        research = self.config.variant == "research"
        return {
            "score": "silu",
            "scale": 1.0 if research else self.config.head_dim**-0.5,
            "score_scale": 1.0 / self.config.max_tokens,
        }

    def _pass(self, x: torch.Tensor, attends: Sequence[Attend]) -> torch.Tensor:
        x = nn.functional.dropout(x, self.config.dropout, self.training)
        for layer, attend in zip(self.layers, attends, strict=True):
            x = layer(x, attend)
        return x


def _context(config: HSTUConfig, schema: Schema, vocabs: Vocabs) -> Features | None:
    """Encoder of the context's fields, each as wide as a token."""
    kinds = {f.name: f for f in schema.conditions}
    strangers = [name for name in config.context if name not in kinds]
    if strangers:
        raise ValueError(f"context must be among the conditions {[*kinds]}, got {strangers}")
    if not config.context:
        return None
    sizes = {name: len(vocab) for name, vocab in vocabs.conditions.items()}
    fields = [kinds[name] for name in config.context]
    return Features(fields, sizes, config.width, ANY_ROW, config.initial_scale)
