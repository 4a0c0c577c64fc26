# SPDX-License-Identifier: Apache-2.0
"""`init_from` takes weights from another run or from Hugging Face's format, and nothing else."""

import json
import logging
import pathlib
import shlex
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import save_google_checkpoint
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTraining
from albert_jax.tokenization import AlbertTokenizer
from albert_jax.tokenization.vocabulary import parse_vocabulary
from albert_jax.training import initialization
from albert_jax.training.initialization import starting_parameters, take_architecture
from albert_jax.training.interruption import Interruption
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.loop import Run
from albert_jax.training.restoring import load_parameters
from albert_jax.training.step import initial_parameters
from configs import quickstart
from tests.runs import ROOT, TINY, make_data, make_vocabulary

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


def with_pieces(directory: pathlib.Path, pieces: dict[int, str]) -> bytes:
    """A directory's vocabulary with other pieces under some ids."""
    proto = parse_vocabulary((directory / "spiece.model").read_bytes())
    for i, piece in pieces.items():
        proto.pieces[i].piece = piece
    return proto.SerializeToString()


def with_files(directory: pathlib.Path, exported: pathlib.Path, vocabulary: bytes | None) -> pathlib.Path:
    """The exported weights with another vocabulary beside them."""
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((exported / name).read_bytes())
    if vocabulary is not None:
        (directory / "spiece.model").write_bytes(vocabulary)
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
    told = f"2 parameters are not in the Hugging Face checkpoint {tmp_path} and are initialised anew: {names}."
    assert told in caplog.text


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
def test_another_depth_takes_all_weights_and_is_told(straight, trained, caplog):
    caplog.set_level(logging.INFO, logger="albert_jax")
    config = config_of(straight, num_hidden_layers=5)
    config.init_from = str(straight)
    started = leaves(starting_parameters(config))
    assert all(same(started[name], trained[name]) for name in started) and "anew" not in caplog.text
    assert "num_hidden_layers 5 (it has 2)." in caplog.text


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
    (tmp_path / "30k-clean.model").write_bytes(with_pieces(pathlib.Path(config.data.path), {17: "new"}))
    with pytest.raises(UserError, match=r"another vocabulary.*by_piece to take over the rows of the 499 pieces of 500"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_weights_of_another_shape_are_refused_by_name(straight, exported):
    config = config_of(straight, hidden_size=64)
    config.init_from = str(straight)
    for source in (straight, exported):
        config.init_from = str(source)
        with pytest.raises(
            UserError, match=f"{source} was trained with hidden_size 32, not 64; pass --config.model.hid"
        ):
            starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_weights_that_the_model_has_no_place_for_are_refused_by_name(straight, tmp_path):
    two = config_of(straight, num_hidden_groups=2)
    save(tmp_path, starting_parameters(two), AlbertConfig.from_dict(two.model.to_dict()))
    config = config_of(straight)
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=r"num_hidden_groups 2, not 1; pass --config\.model\.num_hidden_groups=2"):
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


# --- other positions, another vocabulary, another depth ---------------------------------------------------------------

WORDS, POSITIONS = (f"albert/embeddings/{name}_embeddings/embedding" for name in ("word", "position"))


def test_the_model_is_the_checkpoints_but_for_what_is_asked_for_by_name(straight, exported, caplog):
    caplog.set_level(logging.INFO, logger="albert_jax")
    wanted = json.loads((straight / "run.json").read_text())["config"]["model"]
    for source in (straight, exported):
        config = quickstart.get_config()  # 4 layers of 128
        config.init_from, config.model.num_hidden_layers = str(source), 6
        take_architecture(config, ["model.num_hidden_layers"])
        assert config.model.to_dict() == wanted | {"num_hidden_layers": 6}
        assert config.is_locked
    assert "hidden_size 32 (the recipe has 128)" in caplog.text
    config = quickstart.get_config()
    config.init_from, config.model.hidden_size = str(straight), 64
    with pytest.raises(UserError, match="was trained with hidden_size 32, not 64"):
        take_architecture(config, ["model.hidden_size"])


def test_a_run_that_goes_on_has_its_model_and_needs_its_source_no_more(straight):
    saved = json.loads((straight / "run.json").read_text())
    saved["config"]["init_from"] = "gone"
    for init_from in ("gone", ""):
        config = quickstart.get_config()
        config.init_from = init_from
        take_architecture(config, [], saved)
        assert config.model.to_dict() == saved["config"]["model"]


@pytest.mark.usefixtures("quickly")
def test_more_positions_are_made_of_the_checkpoints_as_the_config_says(straight, trained, caplog):
    caplog.set_level(logging.INFO, logger="albert_jax")
    config = config_of(straight, max_position_embeddings=95)
    config.init_from = str(straight)
    with pytest.raises(UserError, match=r"48 positions, and the model 95; pass --config\.init_positions=repeat or"):
        starting_parameters(config)
    old = trained[POSITIONS]
    config.init_positions = "repeat"
    started = leaves(starting_parameters(config))
    assert same(started[POSITIONS], np.concatenate([old, old[:47]]))
    assert all(same(started[name], trained[name]) for name in trained if name != POSITIONS)
    assert "95 are made of the 48" in caplog.text
    config.init_positions = "interpolate"  # 94 steps over 47: between each two positions lies one
    stretched = leaves(starting_parameters(config))[POSITIONS]
    np.testing.assert_array_equal(stretched[::2], old)
    np.testing.assert_allclose(stretched[1::2], (old[:-1] + old[1:]) / 2, rtol=1e-6)
    config.model.max_position_embeddings = 24
    with pytest.raises(UserError, match=r"pass --config\.model\.max_position_embeddings=48"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_a_new_vocabulary_takes_over_the_rows_of_its_pieces_and_begins_the_others_with_the_mean(
    straight, exported, trained, tmp_path, caplog
):
    caplog.set_level(logging.INFO, logger="albert_jax")
    config = config_of(straight)
    own = parse_vocabulary((pathlib.Path(config.data.path) / "spiece.model").read_bytes()).pieces
    # The checkpoint's vocabulary has two pieces the other way round, and two that the data's lacks.
    old = {20: own[30].piece, 30: own[20].piece, 40: "new", 50: "newer"}
    config.init_from = str(with_files(tmp_path, exported, with_pieces(pathlib.Path(config.data.path), old)))
    with pytest.raises(UserError, match=r"pass --config\.init_vocabulary=by_piece .* 498 pieces of 500"):
        starting_parameters(config)
    config.init_vocabulary = "by_piece"
    started = leaves(starting_parameters(config))
    for name in (WORDS, "predictions/bias"):
        wanted = trained[name].copy()
        wanted[[20, 30]] = wanted[[30, 20]]
        wanted[[40, 50]] = trained[name].mean(0)
        np.testing.assert_array_equal(started[name], wanted)
    assert "498 of its 500 pieces" in caplog.text and "2 are new" in caplog.text and "2 of its 500" in caplog.text


@pytest.mark.usefixtures("quickly")
def test_rows_of_a_padded_table_are_left_out_and_counted(straight, trained, tmp_path, caplog):
    architecture = AlbertConfig.from_dict(config_of(straight, vocab_size=512).model.to_dict())
    padded = {n: np.pad(v, [(0, 12), *[(0, 0)] * (v.ndim - 1)]) if len(v) == 500 else v for n, v in trained.items()}
    save(tmp_path, traverse_util.unflatten_dict(padded, sep="/"), architecture)
    config = config_of(straight)
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=r"512 rows of embeddings and the data set 500 pieces, and no vocabulary"):
        starting_parameters(config)
    (tmp_path / "spiece.model").write_bytes((pathlib.Path(config.data.path) / "spiece.model").read_bytes())
    initialization._trained.cache_clear()
    taken = quickstart.get_config()
    taken.init_from = str(tmp_path)
    take_architecture(taken, [])
    assert taken.model.vocab_size == 500
    started = leaves(starting_parameters(config))
    assert all(same(started[name], trained[name]) for name in trained)
    assert "12 rows of embeddings beyond the 500 pieces of" in caplog.text


@pytest.mark.usefixtures("quickly")
def test_a_vocabulary_is_read_from_tokenizer_json_too(straight, exported, tmp_path):
    config = config_of(straight)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "spiece.model").write_bytes(with_pieces(pathlib.Path(config.data.path), {17: "▁zzz"}))
    config.init_from = str(with_files(tmp_path, exported, None))
    AlbertTokenizer.from_pretrained(tmp_path / "v").save_pretrained(tmp_path)
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(UserError, match="trained with another vocabulary"):
        starting_parameters(config)


@pytest.mark.usefixtures("quickly")
def test_a_fine_tuned_head_is_left_out_by_name(straight, exported, trained, tmp_path, caplog):
    tensors = load_file(exported / "model.safetensors") | {"classifier.bias": np.zeros(3, np.float32)}
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = config_of(straight)
    config.init_from = str(tmp_path)
    assert leaves(starting_parameters(config)).keys() == trained.keys()
    assert "left out: classifier.bias." in caplog.text


def commands(page: str) -> list[list[str]]:
    """The training commands of a page of docs/, as their arguments."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", "")
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("    python train.py ")]


def test_the_pages_commands_say_what_they_do(runs, straight, data, vocabulary, text, tmp_path):
    smaller = make_data(text, make_vocabulary(text, tmp_path / "v", 480), tmp_path / "other")
    places = {
        "runs/quickstart/train": straight,
        "runs/more": data,
        "runs/other": smaller,
        "vocab_size=8000": "vocab_size=480",
    }
    told = []
    for command in commands("continued_training"):
        for name, place in places.items():
            command = [argument.replace(name, str(place)) for argument in command]
        small = ["--config.batch.size=8", "--config.data.sequence_length=48"]  # the last of two flags counts
        done = runs.train([command[0], *small, *command[1:], "--check=config"])
        assert done.status == 0, done.err
        assert f"from {straight}" in done.out
        told.append(done.out)
    assert len(told) == 4
