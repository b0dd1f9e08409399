"""Sizes and switches of HSTU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pylum import checks
from pylum.model.config import ModelConfig

SELECTORS = ("recency", "greedy", "uniform")


@dataclass(frozen=True)
class Task:
    """What a past choice came to: a yes or no, e.g. ``Task("liked", "rating", (4, 5))``, or a
    number, e.g. ``Task("watched", "seconds")``: engagement and consumption of arXiv 2402.17152.

    Args:
        name: of the task.
        field: an outcome field: a category, or a number where ``values`` is empty; or ``"item"``
            without values: was it chosen, or only shown beside what was
            (:meth:`pylum.Interactions.beside`).
        values: raw values of the field that mean yes. A choice whose outcome is unknown has no
            label.
    """

    name: str
    field: str
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))

    @property
    def binary(self) -> bool:
        """Whether a probability is predicted, not a number."""
        return self.of_choice or bool(self.values)

    @property
    def of_choice(self) -> bool:
        """Whether it asks for the choice itself: shown items are its negatives."""
        return self.field == "item"


@dataclass(frozen=True)
class HSTUConfig(ModelConfig):
    """The shape of an HSTU (arXiv 2402.17152) and of what it is trained to do.

    Args:
        dim: width of answers and item vectors, which have unit length.
        layers: HSTU layers.
        width: of the residual stream; default ``dim``.
        heads: attention heads.
        head_dim: width of a head's queries and keys; default ``width // heads``.
        value_dim: width of a head's values and gate; default ``head_dim``.
        variant: ``"research"``: norms without weights, in each layer a relative bias of position
            and time, no ``1 / sqrt(head_dim)``, output of ``u * norm(attention)``.
            ``"production"``: norms and projection with weights and biases, embeddings of position
            and time added to the input, scores divided by ``sqrt(head_dim)``, output of
            ``[u, attention, u * norm(attention)]``, SiLU on ``u`` only; ``window``, ``min_full``
            and ``context`` may be set.
        task: ``"retrieval"``: a token per behaviour, which answers for the next item;
            ``"ranking"``: item and action tokens in turn, item tokens predict ``tasks``.
        tasks: what ranking predicts.
        time: read timestamps.
        time_buckets: of the time bias or embedding; default 128 for research, 2,048 for
            production.
        max_length: behaviours the model sees: the last ones of a history. SiLU scores are divided
            by the tokens that makes, never by a batch's longest.
        window_step: as of :class:`pylum.LUMConfig`.
        window: production: tokens a row sees, itself included (``max_attn_len`` of the published
            code); 0: all.
        min_full: production: the last tokens of a history that see all of it all the same, as
            every question does (``min_full_attn_seq_len``); 0: none. Which ones these are changes
            as a history grows, so what is deeper than the first layer cannot be kept between
            requests: :class:`pylum.UserCache` refuses such a model.
        context: production: condition fields of the user, not of the choice (age, country). Each
            is a token before the history, which every row sees and the window spares, with the
            value it has at the first behaviour the model sees, and no part of any choice's token.
            An empty history has that of the first candidate shown, else a missing value.
        dropout: of embeddings and of each layer's gated output.
        temperature: divides the inner product of unit vectors.
        id_dropout: probability that an item with features is trained without its id.
        feature_dim: embedding width of every field but the item's id; default ``min(width, 32)``.
        tie: read item vectors off the input item tokens; otherwise a second id table.
        project: linear layers make tokens of items, answers of hidden states and item vectors of
            item tokens. False: none of the three, as in the published code (items with features
            keep the first): ``dim`` is ``width``, an answer is the direction of a hidden state, an
            item vector that of its row, and rows are ``sqrt(width)`` times as long as input, which
            makes them learn as much faster. This wants more dropout and a lower rate of learning.
        initial_scale: deviation of all initial embeddings.
        length_alpha: stochastic length (section 3.3): in training, a history of ``n`` behaviours of
            at most ``N = max_length`` is kept whole with probability ``N^alpha / n^2``, else cut to
            ``N^(alpha / 2)`` of them; between 1 and 2, or 0: every history is whole.
        length_selector: which ones: ``"recency"``: drawn, old ones less often; ``"greedy"``: the
            last; ``"uniform"``: drawn alike.

    Raises:
        ValueError: a size, probability or name is out of range.
        TypeError: an argument has the wrong type.
    """

    any_targets: ClassVar[bool] = False
    query_time: ClassVar[bool] = False  # type: ignore[misc]
    calendar: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]

    dim: int = 64
    layers: int = 2
    width: int = 0
    heads: int = 1
    head_dim: int = 0
    value_dim: int = 0
    variant: str = "research"
    task: str = "retrieval"
    tasks: tuple[Task, ...] = ()
    time: bool = True
    time_buckets: int = 0
    max_length: int = 200
    window_step: int = 1
    window: int = 0
    min_full: int = 0
    context: tuple[str, ...] = ()
    dropout: float = 0.2
    temperature: float = 0.05
    id_dropout: float = 0.1
    feature_dim: int = 0
    tie: bool = True
    project: bool = True
    initial_scale: float = 0.02
    length_alpha: float = 0.0
    length_selector: str = "recency"

    def __post_init__(self) -> None:
        self._check_types()
        checks.one_of(self, ("research", "production"), "variant")
        checks.one_of(self, ("retrieval", "ranking"), "task")
        checks.one_of(self, SELECTORS, "length_selector")
        tasks = tuple(t if isinstance(t, Task) else Task(**t) for t in self.tasks)
        names = [t.name for t in tasks]
        if bool(tasks) != (self.task == "ranking") or len(set(names)) < len(names):
            raise ValueError(
                "tasks must be given with task='ranking', each under its own name, "
                f"got {names} with {self.task!r}"
            )
        width = self.width or self.dim
        head_dim = self.head_dim or max(1, width // max(1, self.heads))
        buckets = 128 if self.variant == "research" else 2048
        for name, value in (
            ("context", tuple(self.context)),
            ("tasks", tasks),
            ("width", width),
            ("head_dim", head_dim),
            ("value_dim", self.value_dim or head_dim),
            ("time_buckets", self.time_buckets or buckets),
            ("feature_dim", self.feature_dim or min(width, 32)),
        ):
            object.__setattr__(self, name, value)
        self._check_shared()
        checks.at_least(self, 1, "head_dim", "value_dim", "time_buckets")
        checks.at_most(self, 256, "head_dim", "value_dim")
        checks.at_least(self, 0, "window", "min_full")
        if self.length_alpha and not 1 < self.length_alpha <= 2:
            raise ValueError(f"length_alpha must be in (1, 2], or 0, got {self.length_alpha}")
        if not self.project and self.dim != width:
            raise ValueError(f"dim must be width = {width} with project=False, got {self.dim}")
        if self.min_full and any(task.of_choice for task in tasks):
            raise ValueError(
                "min_full must be 0 with a task of the item itself: what is shown is trained after "
                f"every prefix of a history in one pass, got {self.min_full}"
            )
        for name in ("window", "min_full", "context"):
            if self.variant == "research" and getattr(self, name):
                raise ValueError(
                    f"{name} must be left out of the research variant, got {getattr(self, name)}"
                )
        if self.min_full and not self.window:
            raise ValueError(
                f"min_full must be 0 without window, which it lifts, got {self.min_full}"
            )
        if len(set(self.context)) < len(self.context):
            raise ValueError(f"context must name each field once, got {list(self.context)}")

    @property
    def tokens_per_behaviour(self) -> int:
        """Item and action in turn where it ranks, else the item alone."""
        return 2 if self.task == "ranking" else 1

    @property
    def context_tokens(self) -> int:
        """One for each field of ``context``, in front of the history."""
        return len(self.context)

    @property
    def passing_tokens(self) -> int:
        """One where it ranks, which a question writes behind the history and leaves."""
        return 1 if self.task == "ranking" else 0

    @property
    def whole_history(self) -> bool:
        """Whether some tokens see the whole history, so that none can be cached."""
        return self.min_full > 0

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Heads of keys and values, width of a key, width of a value."""
        return self.heads, self.head_dim, self.value_dim

    @property
    def max_tokens(self) -> int:
        """Of a history: context, one that begins it, and those of ``max_length`` behaviours."""
        return self.context_tokens + 1 + self.tokens_per_behaviour * self.max_length
