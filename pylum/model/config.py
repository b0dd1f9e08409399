"""Sizes and switches of the Large User Model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from pylum import checks

CALENDAR = {"hour": 24, "weekday": 7}

# Sizes the paper does not publish. The figure is the transformer's parameters, without tables.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"dim": 64, "width": 64, "layers": 2, "heads": 1, "max_length": 200},
    "small": {"dim": 64, "width": 256, "layers": 4, "heads": 4, "max_length": 256},
    "30m": {"dim": 64, "width": 512, "layers": 10, "heads": 8, "max_length": 256},
    "300m": {"dim": 128, "width": 1024, "layers": 24, "heads": 16, "max_length": 4096},
    "500m": {"dim": 128, "width": 1280, "layers": 26, "heads": 20, "max_length": 4096},
    "1b": {"dim": 128, "width": 2048, "layers": 20, "heads": 16, "max_length": 4096},
    "3b": {"dim": 256, "width": 3072, "layers": 26, "heads": 24, "max_length": 4096},
    "7b": {"dim": 256, "width": 4096, "layers": 34, "heads": 32, "max_length": 4096},
}


class ModelConfig(ABC):
    """What the configurations of all user models have."""

    dim: int
    layers: int
    width: int
    heads: int
    feature_dim: int
    max_length: int
    window_step: int
    dropout: float
    temperature: float
    id_dropout: float
    query_time: bool
    calendar: tuple[str, ...]
    tie: bool
    project: bool
    initial_scale: float

    @property
    def tokens_per_behaviour(self) -> int:
        """Tokens of a behaviour that a cache keeps."""
        return 2

    @property
    def context_tokens(self) -> int:
        """Tokens before those of the behaviours, which a cache keeps with them."""
        return 0

    @property
    def passing_tokens(self) -> int:
        """Tokens after those of the behaviours that a question writes to a cache's pages, though
        they are not kept."""
        return 0

    @property
    def whole_history(self) -> bool:
        """What a behaviour comes to depends on how many follow it, though not on which: a prefix
        of a history cannot be kept, nor be asked about beside longer ones."""
        return False

    @property
    @abstractmethod
    def cache_shape(self) -> tuple[int, int, int]:
        """Heads of keys and values, width of a key, width of a value."""

    def _check_types(self) -> None:
        kinds = {"int": int, "bool": bool, "str": str, "float": (int, float)}
        for f in fields(self):  # type: ignore[arg-type]
            value, kind = getattr(self, f.name), f.type
            if kind not in kinds:
                continue
            # A bool is an int to Python.
            wrong = isinstance(value, bool) and kind != "bool"
            if wrong or not isinstance(value, kinds[kind]):  # type: ignore[index, arg-type]
                raise TypeError(f"{f.name} must be {kind}, got {value!r}")

    def _check_shared(self) -> None:
        """What every model has."""
        checks.at_least(self, 1, "dim", "layers", "width", "heads", "feature_dim", "max_length")
        checks.shares(self, "dropout", "id_dropout")
        checks.positive(self, "temperature", "initial_scale")
        checks.finite(self, "temperature", "initial_scale")
        if not 1 <= self.window_step <= self.max_length:
            raise ValueError(
                f"window_step must be in [1, max_length = {self.max_length}], "
                f"got {self.window_step}"
            )

    def window_start(self, length: int) -> int:
        """First behaviour the model sees of a history of ``length`` behaviours."""
        over = max(0, length - self.max_length)
        return -(-over // self.window_step) * self.window_step

    def replace(self: Config, **changes: Any) -> Config:
        return replace(self, **changes)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, as they come back from a file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return plain

    @classmethod
    def from_json(cls: type[Config], data: dict[str, Any]) -> Config:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"config has unknown entries {unknown}: written by a newer version?")
        return cls(**data)


Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True)
class LUMConfig(ModelConfig):
    """The shape of a model and of what it is trained to do.

    Args:
        dim: width of answers and item vectors, which have unit length.
        layers: transformer blocks.
        width: of the transformer; default ``dim``.
        heads: attention heads; ``width`` is divided among them.
        kv_heads: heads of keys and values, shared by groups of query heads; default ``heads``.
        ffn: hidden width of the gated feed-forward layer as a multiple of ``width``.
        feature_dim: embedding width of every field but the item's id; default ``min(width, 32)``.
        max_length: behaviours the model sees: the last ones of a history. Where the window begins
            moves in steps of ``window_step``, so that a cached prefix stays a prefix.
        dropout: of embeddings and of each residual branch.
        temperature: divides the inner product of unit vectors, in training and in answers.
        any_dropout: probability that a condition field, or the query time, is replaced by ANY
            (for the time: unknown) in training.
        id_dropout: probability that an item with features is trained without its id.
        any_targets: train one ANY target more per behaviour, at its condition's position.
        query_time: put the time since the event before into the condition token.
        calendar: fields of the clock in the condition token: ``"hour"``, ``"weekday"`` (UTC).
        tie: read item vectors off the input item tokens; otherwise a second id table.
        initial_scale: deviation of all initial embeddings, of ids and fields alike, so that none
            drowns the others. A larger one learns faster at first and overfits sooner.
        rotary_base: wavelength of the slowest rotary pair, in behaviours over 2 pi.

    Raises:
        ValueError: a size or probability is out of range.
        TypeError: an argument has the wrong type.
    """

    project: ClassVar[bool] = True  # type: ignore[misc]

    dim: int = 64
    layers: int = 2
    width: int = 0
    heads: int = 1
    kv_heads: int = 0
    ffn: float = 8 / 3
    feature_dim: int = 0
    max_length: int = 200
    window_step: int = 1
    dropout: float = 0.2
    temperature: float = 0.05
    any_dropout: float = 0.15
    id_dropout: float = 0.1
    any_targets: bool = False
    query_time: bool = False
    calendar: tuple[str, ...] = ()
    tie: bool = True
    initial_scale: float = 0.02
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        self._check_types()
        set_ = object.__setattr__
        set_(self, "width", self.width or self.dim)
        set_(self, "kv_heads", self.kv_heads or self.heads)
        set_(self, "feature_dim", self.feature_dim or min(self.width, 32))
        set_(self, "calendar", tuple(self.calendar))
        self._check_shared()
        checks.at_least(self, 1, "kv_heads")
        checks.shares(self, "any_dropout")
        checks.positive(self, "ffn", "rotary_base")
        checks.finite(self, "ffn", "rotary_base")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be an even multiple of heads = {self.heads}, got {self.width}"
            )
        if self.width // self.heads > 256:
            raise ValueError(f"width / heads must be at most 256, got {self.width // self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")
        unknown = [name for name in self.calendar if name not in CALENDAR]
        if unknown:
            raise ValueError(f"calendar knows {', '.join(CALENDAR)}, got {unknown}")

    @property
    def head_dim(self) -> int:
        """Width of a query, a key and a value."""
        return self.width // self.heads

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Heads of keys and values, width of a key, width of a value."""
        return self.kv_heads, self.head_dim, self.head_dim

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward layer: a multiple of 8, of 64 from 512 on."""
        step = 64 if self.width >= 512 else 8
        return max(step, round(self.width * self.ffn / step) * step)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LUMConfig:
        """A named size, e.g. ``LUMConfig.preset("300m", dropout=0.1)``.

        Args:
            name: ``tiny``, ``small``, ``30m``, ``300m``, ``500m``, ``1b``, ``3b`` or ``7b``: the
                parameters of the transformer, without tables. The paper publishes no sizes.
            changes: fields of the config that are to be otherwise.

        Raises:
            ValueError: there is no such size, or a field is out of range.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **changes})
