"""Saved and loaded models are the same; broken files are named."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.model import LUM, TrainingRecord
from tests.model.world import answers, make_events, make_model


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    events = np.array([3, 5, 2**64 - 1], np.uint64)
    model.record = TrainingRecord(1763760000, events, "abc")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_round_trip(saved):
    model, path = saved
    state = torch.get_rng_state()
    loaded = LUM.from_pretrained(path)
    assert torch.equal(state, torch.get_rng_state())
    assert not loaded.training
    assert loaded.fingerprint() == model.fingerprint()
    assert (loaded.config, loaded.schema) == (model.config, model.schema)
    assert loaded.vocabs.fingerprint() == model.vocabs.fingerprint()
    assert loaded.record.cut == 1763760000 and loaded.record.data == "abc"
    assert loaded.record.seen(np.array([3, 4, 2**64 - 1], np.uint64)).tolist() == [
        True,
        False,
        True,
    ]
    events = make_events([9, 4])
    assert torch.equal(answers(loaded, events), answers(model, events))
    assert torch.equal(loaded.item_vectors(), model.item_vectors())
    assert sorted(os.listdir(path.parent)) == ["model"]
    assert not any(file.endswith((".bin", ".pt", ".pkl")) for file in os.listdir(path))


def test_titles_are_kept(tmp_path):
    model = make_model()
    titles = pa.array([None, *(f"t{n}" for n in range(29))], pa.large_string())
    object.__setattr__(model.items, "titles", titles)
    object.__setattr__(model.items, "title_column", "title")
    model.save_pretrained(tmp_path / "model")
    loaded = LUM.from_pretrained(tmp_path / "model")
    assert loaded.items.names([0, 3]) == [None, "t2"]


def test_saving_again_replaces(saved):
    model, path = saved
    with torch.no_grad():
        model.answer.weight += 1
    model.save_pretrained(path)
    assert LUM.from_pretrained(path).fingerprint() == model.fingerprint()
    assert sorted(os.listdir(path.parent)) == ["model"]


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="path must be new or an earlier save"):
        make_model().save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "vocabs.arrow", "config.json"])
def test_missing_file(saved, name):
    _, path = saved
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        LUM.from_pretrained(path)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabs.arrow", "config.json"])
def test_truncated_file(saved, name):
    _, path = saved
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{name}.* truncated or altered"):
        LUM.from_pretrained(path)


def test_one_flipped_bit(saved):
    _, path = saved
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="checksum does not match"):
        LUM.from_pretrained(path)


def test_altered_manifest(saved):
    _, path = saved
    about = json.loads((path / "config.json").read_text())
    about["config"]["temperature"] = 0.5
    (path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"config\.json is altered"):
        LUM.from_pretrained(path)


def test_fingerprint_follows_weights_config_and_vocabularies():
    model = make_model()
    first = model.fingerprint()
    assert model.fingerprint() == first
    with torch.no_grad():
        model.answer.weight[0, 0] += 1
    second = model.fingerprint()
    assert second != first
    with torch.no_grad():
        model.answer.weight[0, 0] -= 1
    changed = make_model(temperature=0.1)
    changed.load_state_dict(model.state_dict())
    assert changed.fingerprint() not in (first, second)


def test_joined_records():
    one = TrainingRecord(5, np.array([1, 4], np.uint64), "a")
    two = TrainingRecord(3, np.array([2, 4], np.uint64), "b")
    joined = one.joined(two)
    assert joined.cut == 5 and joined.events.tolist() == [1, 2, 4] and joined.data == "b"
    assert TrainingRecord().joined(TrainingRecord()).cut is None
