"""Settings of LUM that `ml100k` tries on MovieLens-100K: where it starts, and the changes."""

from typing import Any

START: dict[str, Any] = {
    "data": "ids",
    "config": {"dim": 64, "layers": 2, "dropout": 0.4, "max_length": 200},
    "run": {"epochs": 30, "lr": 3e-3, "batch_tokens": 8192},
}
MOVES: list[dict[str, Any]] = [
    {},
    {"config": {"temperature": 0.07}},
    {"config": {"dropout": 0.3}},
    {"config": {"layers": 1}},
    {"run": {"lr": 1e-3}},
    {"config": {"heads": 2}},
    {"config": {"dropout": 0.3, "heads": 2}},
    {"config": {"dropout": 0.2}},
    {"config": {"dropout": 0.3}, "run": {"batch_tokens": 4096}},
    {"config": {"dropout": 0.3, "heads": 2, "temperature": 0.07}},
    {"config": {"dropout": 0.3, "any_targets": True}},
    {"config": {"dropout": 0.3}, "run": {"weight_decay": 0.3}},
    {"config": {"dropout": 0.3, "heads": 4}},
    {"config": {"dropout": 0.3, "initial_scale": 0.05}},
    {"config": {"dropout": 0.2, "heads": 2}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 0.3}},
    {"config": {"dropout": 0.2}, "run": {"batch_tokens": 4096}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 1.0}},
    {"config": {"dropout": 0.1}, "run": {"weight_decay": 0.3}},
    {"config": {"dropout": 0.2, "temperature": 0.07}, "run": {"weight_decay": 0.3}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 0.3, "batch_tokens": 4096}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 3.0}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 1.0, "batch_tokens": 4096}},
    {"config": {"dropout": 0.2, "heads": 2}, "run": {"weight_decay": 1.0}},
    {"config": {"dropout": 0.3}, "run": {"weight_decay": 1.0}},
    {"config": {"dropout": 0.2, "width": 96}, "run": {"weight_decay": 1.0}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 1.0, "batch_tokens": 2048}},
    {"config": {"dropout": 0.2}, "run": {"weight_decay": 1.0, "batch_tokens": 4096, "epochs": 45}},
    {
        "data": "ids, ratings",
        "config": {"dropout": 0.2},
        "run": {"weight_decay": 1.0, "batch_tokens": 4096},
    },
    {
        "data": "ids, genres, year",
        "config": {"dropout": 0.2},
        "run": {"weight_decay": 1.0, "batch_tokens": 4096},
    },
    {"config": {"dropout": 0.2, "layers": 3}, "run": {"weight_decay": 1.0, "batch_tokens": 2048}},
    {"config": {"dropout": 0.2, "dim": 48}, "run": {"weight_decay": 1.0, "batch_tokens": 2048}},
    {
        "config": {"dropout": 0.2},
        "run": {"weight_decay": 1.0, "batch_tokens": 2048, "lr": 5e-3},
    },
]
# With query time: the settings of the best so far without.
TIMED_MOVES: list[dict[str, Any]] = [
    {"config": {"dropout": 0.2, "query_time": True}, "run": {"weight_decay": 1.0}},
    {
        "data": "ids, ratings",
        "config": {"dropout": 0.2, "query_time": True},
        "run": {"weight_decay": 1.0, "batch_tokens": 4096},
    },
    {
        "config": {"dropout": 0.2, "query_time": True},
        "run": {"weight_decay": 1.0, "batch_tokens": 2048},
    },
]


def merged(settings: dict[str, Any], move: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {**value, **move.get(key, {})} if isinstance(value, dict) else move.get(key, value)
        for key, value in settings.items()
    }
