# SPDX-License-Identifier: Apache-2.0
"""`init_from` takes weights from another run or from Hugging Face's format, and nothing else."""

import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import save_google_checkpoint
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTraining
from albert_jax.training import initialization
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.interruption import Interruption
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.loop import Run
from albert_jax.training.restoring import load_parameters
from albert_jax.training.step import initial_parameters
from tests.runs import TINY

pytest_plugins = ["tests.runs"]


def config_of(workdir: pathlib.Path, **model: Any) -> ml_collections.ConfigDict:
    """The configuration of a run, some fields of the model changed."""
    config = ml_collections.ConfigDict(json.loads((workdir / "run.json").read_text())["config"])
    config.model.update(model)
    return config


def leaves(params: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in found}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh parameters of the right shapes without compiling the real initializers."""

    def fresh(config: ml_collections.ConfigDict) -> Any:
        shapes, rng = jax.eval_shape(lambda: initial_parameters(config)), np.random.default_rng(0)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)

    monkeypatch.setattr(initialization, "initial_parameters", fresh)


@pytest.fixture(scope="module")
def trained(straight: pathlib.Path) -> dict[str, np.ndarray]:
    """The straight run's parameters."""
    return leaves(load_parameters(straight)[0])


def save(directory: pathlib.Path, params: Any, config: AlbertConfig) -> None:
    """Writes parameters in Hugging Face's format."""
    FlaxAlbertForPreTraining(config, _do_init=False).save_pretrained(directory, params)


@pytest.fixture(scope="module")
def exported(straight: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The straight run's weights in Hugging Face's format."""
    directory = tmp_path_factory.mktemp("exported")
    params, meta = load_parameters(straight)
    save(directory, params, AlbertConfig.from_dict(meta["model"]))
    return directory


@pytest.mark.parametrize("kind", ["workdir", "Hugging Face"])
def test_a_run_starts_with_exactly_these_weights_and_a_fresh_optimizer(
    kind, straight, exported, trained, tmp_path, caplog
):
    caplog.set_level(logging.INFO, logger="albert_jax")
    config = config_of(straight)
    config.init_from = str(straight if kind == "workdir" else exported)
    config.mesh.data = 1
    with Interruption() as interruption, WorkdirLock(tmp_path / "w") as lock:
        run = Run(config, tmp_path / "w", lock, interruption)
    run.checkpoints.close()
    assert run.telemetry is not None
    run.telemetry.close()
    params = leaves(run.state.params)
    assert params.keys() == trained.keys() and all(same(params[name], trained[name]) for name in trained)
    assert (run.step, run.position, int(run.state.step)) == (0, 0, 0)
    slots = leaves(run.state.opt_state)
    assert slots and all(not np.any(slot) for slot in slots.values())
    said = {
        "workdir": f"starting from step {TINY['steps']} of",
        "Hugging Face": "starting from the Hugging Face checkp",
    }
    assert said[kind] in caplog.text and config.init_from in caplog.text and "with a fresh optimizer" in caplog.text
    assert "initialised anew" not in caplog.text


def test_without_init_from_the_weights_are_fresh(straight, trained):
    fresh = leaves(starting_parameters(config_of(straight)))
    assert not same(
        fresh["albert/embeddings/word_embeddings/embedding"], trained["albert/embeddings/word_embeddings/embedding"]
    )


@pytest.mark.usefixtures("quickly")
def test_a_missing_head_stays_fresh_and_is_named(straight, exported, trained, tmp_path, caplog):
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    tensors = load_file(exported / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("sop_classifier")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = config_of(straight)
    fresh = leaves(starting_parameters(config))
    config.init_from = str(tmp_path)
    started = leaves(starting_parameters(config))
    assert started.keys() == trained.keys()
    for name, value in started.items():
        assert same(value, fresh[name] if "sop_classifier" in name else trained[name]), name
    names = "sop_classifier/classifier/bias, sop_classifier/classifier/kernel"
    assert f"2 parameters are not in {tmp_path} and are initialised anew: {names}." in caplog.text


@pytest.mark.usefixtures("quickly")
def test_further_groups_stay_fresh_and_are_named(straight, trained, caplog):
    config = config_of(straight, num_hidden_groups=2)
    config.init_from = str(straight)
    started = leaves(starting_parameters(config))
    second = [name for name in started if "albert_layer_groups/1/" in name]
    assert started.keys() - trained.keys() == set(second)
    assert all(same(started[name], trained[name]) for name in trained)
    assert f"{len(second)} parameters are not in" in caplog.text and all(name in caplog.text for name in second)


@pytest.mark.usefixtures("quickly")
def test_another_depth_takes_all_weights(straight, trained, caplog):
    config = config_of(straight, num_hidden_layers=5)
    config.init_from = str(straight)
    started = leaves(starting_parameters(config))
    assert all(same(started[name], trained[name]) for name in started) and "anew" not in caplog.text


def test_a_checkpoint_of_googles_starts_a_run_with_exactly_its_weights(straight, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="albert_jax")
    config = config_of(straight)
    architecture = AlbertConfig.from_dict(config.model.to_dict())
    save_google_checkpoint(tmp_path, trained, architecture)
    (tmp_path / "30k-clean.model").write_bytes((pathlib.Path(config.data.path) / "spiece.model").read_bytes())
    config.init_from = str(tmp_path)
    started = leaves(starting_parameters(config))
    assert all(same(started[name], trained[name]) for name in started) and "anew" not in caplog.text
    assert "starting from Google's checkpoint" in caplog.text
    (tmp_path / "30k-clean.model").write_bytes(b"another vocabulary")
    with pytest.raises(UserError, match="trained with another vocabulary"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_weights_of_another_shape_are_refused_by_name(straight, exported):
    config = config_of(straight, hidden_size=64)
    config.init_from = str(straight)
    with pytest.raises(UserError, match=f"has shape .*32.* in {straight} and .*64.* in this model; change config"):
        starting_parameters(config)
    config.init_from = str(exported)
    with pytest.raises(UserError, match=f"of {exported}/.* has shape .*32.*, but the model's configuration .*64"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_weights_that_the_model_has_no_place_for_are_refused_by_name(straight, tmp_path):
    two = config_of(straight, num_hidden_groups=2)
    save(tmp_path, starting_parameters(two), AlbertConfig.from_dict(two.model.to_dict()))
    config = config_of(straight)
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=r"albert_layer_groups\.1\..*, which this model does not have"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_a_damaged_or_foreign_source_is_refused(straight, exported, tmp_path):
    config = config_of(straight)
    config.init_from = str(tmp_path)
    with pytest.raises(
        UserError, match=r"no training workdir and no Hugging Face directory; as Google.s: there is no TensorFlow"
    ):
        starting_parameters(config)
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    raw = (exported / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="is damaged"):
        starting_parameters(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert', not 'albert'"):
        starting_parameters(config)
