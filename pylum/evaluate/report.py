"""What :func:`pylum.evaluate` gives back: a table, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pylum.evaluate.intervals import Interval


@dataclass(frozen=True, eq=False)
class Report:
    """Accuracy of a model, beside the floors it must beat.

    Args:
        protocol, part: of the data, e.g. ``"loo-full"`` and ``"test"``.
        conditions: what was asked of each event.
        exclude: ``"history"`` where seen items were removed, else ``"none"``.
        query_time: whether the model read the time of the target.
        seeds: models that were scored.
        users, events: that were scored.
        items: of the catalogue.
        unknown_targets: targets the model does not know: always missed.
        repeated_targets: targets among the removed items: always missed, by every contestant.
        values: by contestant and metric, the model first.
        gains: by floor and metric, the model's value less the floor's, on the same users.
    """

    protocol: str
    part: str
    conditions: str
    exclude: str
    query_time: bool
    seeds: int
    users: int
    events: int
    items: int
    unknown_targets: int
    repeated_targets: int
    values: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]

    def __getitem__(self, metric: str) -> Interval:
        """The model's value of a metric, e.g. ``report["HR@10"]``."""
        return next(iter(self.values.values()))[metric]

    def __str__(self) -> str:
        metrics = list(next(iter(self.values.values())))
        lines = [
            f"{self.protocol}, {self.part}: {self.events:,} events of {self.users:,} users, "
            f"{self.items:,} items, seen items {'removed' if self.exclude == 'history' else 'kept'}"
            f", conditions: {self.conditions}, query time: {'yes' if self.query_time else 'no'}"
        ]
        if self.unknown_targets or self.repeated_targets:
            lines.append(
                f"missed by rule: {self.unknown_targets} unknown items, "
                f"{self.repeated_targets} seen before"
            )
        rows = [["", *metrics]]
        rows += [[name, *map(str, self.values[name].values())] for name in self.values]
        rows += [
            [f"gain over {name}", *(signed(interval) for interval in row.values())]
            for name, row in self.gains.items()
        ]
        lines += aligned(rows)
        over = f"{self.seeds} seeds and users" if self.seeds > 1 else "users"
        lines.append(f"Brackets: 95 % intervals, bootstrap over {over}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        plain = {
            name: value for name, value in vars(self).items() if name not in ("values", "gains")
        }
        for group in ("values", "gains"):
            plain[group] = {
                name: {metric: interval.to_dict() for metric, interval in row.items()}
                for name, row in getattr(self, group).items()
            }
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table, columns below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def signed(gain: Interval) -> str:
    """With its sign and its bounds."""
    return f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
