"""Sizes, their checks, and the presets on the meta device."""

import json

import pytest
import torch

from pylum.data import ItemTable, Schema, Vocab, Vocabs
from pylum.model import LUM, LUMConfig
from pylum.model.config import PRESETS


@pytest.mark.parametrize(
    "changes, error, words",
    [
        pytest.param({"dim": 0}, ValueError, "dim must be at least 1, got 0", id="dim"),
        pytest.param({"layers": 1.5}, TypeError, "layers must be int, got 1.5", id="layers"),
        pytest.param({"heads": 3}, ValueError, "even multiple of heads = 3, got 64", id="heads"),
        pytest.param({"width": 512}, ValueError, "at most 256, got 512", id="head-dim"),
        pytest.param({"heads": 4, "kv_heads": 3}, ValueError, "divide heads = 4", id="kv-heads"),
        pytest.param({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)", id="dropout"),
        pytest.param({"temperature": 0}, ValueError, "temperature must be pos", id="temperature"),
        pytest.param({"temperature": float("inf")}, ValueError, "must be finite", id="infinite"),
        pytest.param({"window_step": 201}, ValueError, "window_step must be", id="window"),
        pytest.param({"calendar": ("month",)}, ValueError, "hour, weekday, got", id="calendar"),
        pytest.param({"tie": 1}, TypeError, "tie must be bool, got 1", id="tie"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(changes, error, words):
    with pytest.raises(error, match=words):
        LUMConfig(**changes)


def test_json_and_unknown_names():
    config = LUMConfig(dim=32, calendar=("hour",), temperature=0.1)
    assert LUMConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match=r"unknown entries \['depth'\]"):
        LUMConfig.from_json({**config.to_json(), "depth": 3})
    with pytest.raises(ValueError, match=r"preset must be one of tiny, .*got 'huge'"):
        LUMConfig.preset("huge")


@pytest.mark.parametrize("step", [1, 8, 50])
def test_window_start(step):
    config = LUMConfig(max_length=50, window_step=step)
    assert [config.window_start(n) for n in (0, 49, 50)] == [0, 0, 0]
    for n in range(51, 200):
        start = config.window_start(n)
        assert start % step == 0 and 50 - step < n - start <= 50


@pytest.mark.parametrize("name", PRESETS)
def test_presets_on_meta(name):
    config = LUMConfig.preset(name)
    with torch.device("meta"):
        model = LUM(config, Schema(), Vocabs(Vocab(["a", "b"])), ItemTable(3))
    width, hidden = config.width, config.ffn_width
    block = 2 * width + 4 * width**2 + 3 * width * hidden
    encoder = sum(p.numel() for p in model.user_encoder.parameters())
    assert encoder == config.layers * block + width
    named = {"m": 10**6, "b": 10**9}.get(name[-1])
    if named:
        assert 0.9 < encoder / (float(name[:-1]) * named) < 1.1
    rest = sum(p.numel() for p in model.parameters()) - encoder
    assert rest == 3 * width + width**2 + width + 2 * width * config.dim


@pytest.mark.parametrize("name", ["tiny", "30m"])
def test_presets_run_on_meta(name):
    config = LUMConfig.preset(name)
    with torch.device("meta"):
        model = LUM(config, Schema(), Vocabs(Vocab(["a", "b"])), ItemTable(3))
        assert model.item_vectors().shape == (3, config.dim)
        hidden = torch.empty(4, config.width)
        assert model.answers(hidden).shape == (4, config.dim)
