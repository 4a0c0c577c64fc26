# SPDX-License-Identifier: Apache-2.0
"""Our parameters and transformers' files are the same model, both ways, and nothing that does not fit gets in."""

import json
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import load_pretrained, parameter_shapes, save_pretrained
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTraining, parameters, with_parameters

SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "embedding_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "small": {},
    "two groups": {"num_hidden_groups": 2},
    "five layers over two groups": {"num_hidden_layers": 5, "num_hidden_groups": 2},
    "two layers in a group": {"inner_group_num": 2},
    "embedding as wide as hidden": {"embedding_size": 48},
    "exact gelu": {"hidden_act": "gelu"},
    "relu": {"hidden_act": "relu"},
    "like base": {"hidden_size": 192, "embedding_size": 128, "intermediate_size": 768, "num_hidden_layers": 12},
}
TABLE = "albert.embeddings.word_embeddings.weight"


def config(name: str = "two groups") -> AlbertConfig:
    """One of the architectures above."""
    return AlbertConfig(**(SMALL | ARCHITECTURES[name]))


def random_parameters(config: AlbertConfig, seed: int = 0) -> dict[str, Any]:
    """Every parameter random, biases and LayerNorm too, so that none can be mistaken for another."""
    rng = np.random.default_rng(seed)
    flat = {
        tuple(path.split("/")): (0.1 * rng.standard_normal(shape) + path.endswith("scale")).astype(np.float32)
        for path, shape in parameter_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two nested dicts hold the same arrays, bit for bit."""
    first, second = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    return first.keys() == second.keys() and all(
        np.asarray(first[k]).dtype == np.asarray(second[k]).dtype and np.array_equal(first[k], second[k]) for k in first
    )


def batch(config: AlbertConfig) -> dict[str, np.ndarray]:
    """Three rows with token types, padding at the right and at the left, and labels of both kinds."""
    rng = np.random.default_rng(1)
    slots = 20
    mask = np.ones((3, slots), np.int64)
    mask[1, 13:] = 0
    mask[2, :6] = 0
    ids = np.where(mask == 1, rng.integers(5, config.vocab_size, mask.shape), 0)
    labels = np.where(
        (rng.random(mask.shape) < 0.3) & (mask == 1), rng.integers(5, config.vocab_size, mask.shape), -100
    )
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (np.arange(slots) > 9).astype(np.int64) * mask,
        "labels": labels,
        "sentence_order_label": np.array([0, 1, 1]),
    }


def torch_class(name: str = "AlbertForPreTraining") -> Any:
    """A class of transformers, or a skip."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return getattr(transformers, name)


def shared_parameters_in_torch(model: Any) -> int:
    """Parameters of a torch model, each counted once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


# --- the same model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_computes_from_our_files_what_we_compute(name: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_class()
    import torch

    params = random_parameters(config(name))
    save_pretrained(tmp_path, params, config(name))
    model, info = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert shared_parameters_in_torch(model) == config(name).pretraining_parameters()
    inputs = batch(config(name))
    with torch.no_grad():
        wanted = model.eval()(**{k: torch.tensor(v) for k, v in inputs.items()}, output_hidden_states=True)

    abstract = nnx.eval_shape(lambda: FlaxAlbertForPreTraining(config(name), rngs=nnx.Rngs(0)))
    ours: Any = with_parameters(abstract, params)
    got = ours(**{k: jnp.asarray(v) for k, v in inputs.items()}, output_hidden_states=True)
    assert wanted.prediction_logits.abs().max() > 0.5  # otherwise a small difference would mean nothing
    np.testing.assert_allclose(got.prediction_logits, wanted.prediction_logits, atol=1e-5, rtol=0)
    np.testing.assert_allclose(got.sop_logits, wanted.sop_logits, atol=1e-5, rtol=0)
    np.testing.assert_allclose(got.loss, wanted.loss, atol=1e-5, rtol=0)
    if config(name).inner_group_num > 1:
        return  # transformers 4 and 5 disagree on how many hidden states there are
    assert len(got.hidden_states) == len(wanted.hidden_states) == config(name).num_hidden_layers + 1
    for layer, (a, b) in enumerate(zip(got.hidden_states, wanted.hidden_states, strict=True)):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0, err_msg=f"hidden state {layer}")


@pytest.mark.parametrize("name", ["two groups", "embedding as wide as hidden"])
def test_our_file_has_exactly_the_tensors_that_transformers_writes(name: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_class()
    save_pretrained(tmp_path / "ours", random_parameters(config(name)), config(name))
    theirs.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    first = load_file(tmp_path / "ours" / "model.safetensors")
    second = load_file(tmp_path / "theirs" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first)


def test_our_config_json_says_to_transformers_what_it_says_to_us(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = config()
    save_pretrained(tmp_path, random_parameters(ours), ours)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == "albert" and theirs.architectures == ["AlbertForPreTraining"]
    assert {name: getattr(theirs, name) for name in ours.to_dict()} == ours.to_dict()
    assert AlbertConfig.from_pretrained(tmp_path) == ours


@pytest.mark.parametrize("name", ["small", "two groups"])
def test_what_transformers_saves_loads_here_bit_for_bit(name: str, tmp_path: pathlib.Path) -> None:
    theirs, settings = torch_class(), torch_class("AlbertConfig")
    model = theirs(settings(**config(name).to_dict()))
    model.save_pretrained(tmp_path)
    params, loaded, missing = load_pretrained(tmp_path)
    assert (loaded, missing) == (config(name), [])
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    flat = traverse_util.flatten_dict(params, sep=".")
    assert len(flat) == len(state) - 2  # the two second names of tied tensors
    for path, value in flat.items():
        key = re.sub(r"\.(kernel|scale|embedding)$", ".weight", path)
        assert np.array_equal(value, state[key].T if path.endswith(".kernel") else state[key]), path


def test_a_checkpoint_without_the_sop_head_loads_and_names_what_it_lacks(tmp_path: pathlib.Path) -> None:
    theirs, settings = torch_class("AlbertForMaskedLM"), torch_class("AlbertConfig")
    theirs(settings(**config().to_dict())).save_pretrained(tmp_path)
    params, _, missing = load_pretrained(tmp_path)
    head = ["sop_classifier.classifier.weight", "sop_classifier.classifier.bias"]
    assert sorted(missing) == sorted(["albert.pooler.weight", "albert.pooler.bias", *head])
    assert "sop_classifier" not in params and "pooler" not in params["albert"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_round_trip_through_the_files_changes_no_bit(name: str, tmp_path: pathlib.Path) -> None:
    params = random_parameters(config(name))
    save_pretrained(tmp_path, params, config(name))
    loaded, found, missing = load_pretrained(tmp_path)
    assert (found, missing) == (config(name), [])
    assert same(loaded, params)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mapping_covers_exactly_the_models_parameters(name: str) -> None:
    tree = nnx.eval_shape(lambda: parameters(FlaxAlbertForPreTraining(config(name), rngs=nnx.Rngs(0))))
    assert {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep="/").items()} == parameter_shapes(config(name))


# --- what gets in and what does not -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a whole checkpoint."""
    save_pretrained(tmp_path, random_parameters(config()), config())
    return tmp_path


def rewrite(directory: pathlib.Path, change: Any) -> None:
    """Applies `change` to the tensors of model.safetensors."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_second_copy_of_the_tied_table_is_accepted_if_equal_and_refused_if_not(saved: pathlib.Path) -> None:
    original, _, _ = load_pretrained(saved)
    copies = {"predictions.decoder.weight": TABLE, "predictions.decoder.bias": "predictions.bias"}
    rewrite(saved, lambda t: t.update({copy: t[first].copy() for copy, first in copies.items()}))
    assert same(load_pretrained(saved)[0], original)
    for copy in copies:
        rewrite(saved, lambda t, copy=copy: t.update({copy: t[copy] + 1}))
        with pytest.raises(UserError, match=copy):
            load_pretrained(saved)
        rewrite(saved, lambda t, copy=copy: t.update({copy: t[copies[copy]].copy()}))


def test_a_tied_tensor_that_is_stored_under_its_second_name_alone_is_found(saved: pathlib.Path) -> None:
    original, _, _ = load_pretrained(saved)
    rewrite(saved, lambda t: t.update({"predictions.decoder.bias": t.pop("predictions.bias")}))
    assert same(load_pretrained(saved)[0], original)


def test_index_buffers_of_old_files_are_passed_over(saved: pathlib.Path) -> None:
    original, _, _ = load_pretrained(saved)
    rewrite(saved, lambda t: t.update({"albert.embeddings.position_ids": np.arange(32)[None]}))
    assert same(load_pretrained(saved)[0], original)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_become_float32(dtype: str, saved: pathlib.Path) -> None:
    original, _, _ = load_pretrained(saved)
    rewrite(saved, lambda t: t.update({k: v.astype(jnp.dtype(dtype)) for k, v in t.items()}))
    loaded, _, _ = load_pretrained(saved)
    rounded = {
        k: np.asarray(v.astype(jnp.dtype(dtype)), np.float32) for k, v in traverse_util.flatten_dict(original).items()
    }
    assert same(loaded, traverse_util.unflatten_dict(rounded))


def test_a_tensor_without_a_place_is_refused_by_name(saved: pathlib.Path) -> None:
    rewrite(saved, lambda t: t.update({"qa_outputs.weight": np.zeros((2, 48), np.float32)}))
    with pytest.raises(UserError, match=r"qa_outputs\.weight"):
        load_pretrained(saved)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(saved: pathlib.Path) -> None:
    name = "albert.encoder.embedding_hidden_mapping_in.weight"
    rewrite(saved, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    with pytest.raises(UserError, match=r"mapping_in\.weight .*\(24, 48\).*\(48, 24\)"):
        load_pretrained(saved)


def test_damaged_missing_and_foreign_files_are_refused_with_a_sentence(saved: pathlib.Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", b"\xff" * 200, whole[:9] + b"\x00" + whole[10:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or no safetensors file"):
            load_pretrained(saved)
    file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        load_pretrained(saved)
    file.write_bytes(whole)
    (saved / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert'"):
        load_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_pretrained(saved)


def test_parameters_that_do_not_fit_or_are_not_finite_are_not_saved(tmp_path: pathlib.Path) -> None:
    params = random_parameters(config())
    params["predictions"]["bias"][3] = np.nan
    with pytest.raises(UserError, match="predictions/bias holds values that are not finite"):
        save_pretrained(tmp_path, params, config())
    with pytest.raises(UserError, match=r"albert_layer_groups/1"):
        save_pretrained(tmp_path, random_parameters(config()), config("small"))
    with pytest.raises(UserError, match="shape"):
        save_pretrained(tmp_path, random_parameters(config("exact gelu")), config("embedding as wide as hidden"))
    assert list(tmp_path.iterdir()) == []
