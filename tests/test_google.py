# SPDX-License-Identifier: Apache-2.0
"""Google's TensorFlow checkpoints and ours are the same model, both ways; what is another's is refused.

TensorFlow itself writes and reads in another process; see originals.py.
"""

import json
import logging
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx, traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import google_variables, load_google_checkpoint, save_google_checkpoint
from albert_jax.convert.tensor_bundle import TensorBundle, write_tensor_bundle
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, with_parameters

pytest_plugins = ["tests.originals"]

ARCHITECTURES = ("one", "groups", "inner", "equal")  # as in tensorflow_checkpoints.py
MAPPING = "albert/encoder/embedding_hidden_mapping_in"
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "embedding_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
}
Arrays = dict[str, np.ndarray]


def stored(file: pathlib.Path) -> Arrays:
    """The arrays of an .npz."""
    with np.load(file) as arrays:
        return dict(arrays)


RENAMED = (
    (r"^bert/", "albert/"),
    (r"transformer/group_(\d+)/inner_group_(\d+)", r"albert_layer_groups/\1/albert_layers/\2"),
    (r"(?<=[0-9])/LayerNorm/", "/attention/LayerNorm/"),
    (r"/LayerNorm_1/", "/full_layer_layer_norm/"),
    (r"attention_1/(self|output)", "attention"),
    (r"ffn_1/intermediate/output/dense", "ffn_output"),
    (r"ffn_1/intermediate/dense", "ffn"),
    (r"pooler/dense", "pooler"),
    (r"cls/predictions/(transform/)?", "predictions/"),
    (r"cls/seq_relationship/", "sop_classifier/classifier/"),
    (r"cls/squad/", "qa_outputs/"),
    (r"^output_", "classifier/output_"),
    (r"output_weights", "kernel"),
    (r"output_bias", "bias"),
    (r"gamma$", "scale"),
    (r"beta$", "bias"),
    (r"_embeddings$", "_embeddings/embedding"),
)


def ours(theirs: Arrays) -> Arrays:
    """The original's arrays under our paths and in our layout, by rules written for this test."""
    renamed = {}
    for name, array in theirs.items():
        path = name
        for pattern, replacement in RENAMED:
            path = re.sub(pattern, replacement, path)
        renamed[path] = array.T if name.endswith("output_weights") else array
    return renamed


def assert_same(got: Arrays, wanted: Arrays) -> None:
    """Same names, float32, and every bit."""
    assert sorted(got) == sorted(wanted)
    for name, array in got.items():
        assert array.dtype == np.float32 and array.shape == wanted[name].shape, name
        assert array.tobytes() == np.ascontiguousarray(wanted[name]).tobytes(), name


# --- reading what TensorFlow wrote ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_released_directory_is_read_bit_for_bit(name: str, originals: pathlib.Path) -> None:
    found = load_google_checkpoint(originals / name)
    wanted = ours(stored(originals / f"{name}.npz"))
    if name == "equal":  # E = H: the original has no mapping
        wanted |= {f"{MAPPING}/kernel": np.eye(48, dtype=np.float32), f"{MAPPING}/bias": np.zeros(48, np.float32)}
    assert_same(found.tensors, wanted)
    assert found.unused == [] and found.vocabulary == b"the vocabulary"
    assert found.source == str(originals / name / "model.ckpt-best")
    values = json.loads((originals / name / "albert_config.json").read_text())
    act = values.pop("hidden_act")
    assert found.config.hidden_act == {"gelu": "gelu_new", "relu": "relu"}[act]
    for field, value in values.items():
        assert getattr(found.config, field, found.config.hub_fields.get(field)) == value, field


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar"])
def test_a_released_archive_is_read_as_its_directory_is(
    ending: str, originals: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    archive = tmp_path / f"albert_base{ending}"
    with tarfile.open(archive, "w" if ending == ".tar" else "w:gz") as tar:
        tar.add(originals / "one", "albert_base")
    found, wanted = load_google_checkpoint(archive), load_google_checkpoint(originals / "one")
    assert_same(found.tensors, wanted.tensors)
    assert (found.config, found.vocabulary) == (wanted.config, b"the vocabulary")
    assert found.source == f"{archive}/albert_base/model.ckpt-best"


@pytest.mark.parametrize("ending", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_any_file_of_a_checkpoint_names_it(ending: str, originals: pathlib.Path) -> None:
    found = load_google_checkpoint(originals / "training" / f"model.ckpt-9{ending}")
    assert_same(found.tensors, ours(stored(originals / "training.npz")))


def test_the_checkpoint_that_tensorflow_lists_is_taken_else_the_best_else_the_last(
    originals: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = shutil.copytree(originals / "training", tmp_path / "moved")
    found = load_google_checkpoint(directory)
    assert found.source.endswith("model.ckpt-9") and "3 checkpoints; reading model.ckpt-9" in caplog.text
    assert_same(found.tensors, ours(stored(originals / "training.npz")))
    (directory / "checkpoint").write_text('model_checkpoint_path: "gs://elsewhere/model.ckpt-5"\n')
    assert load_google_checkpoint(directory).source.endswith("model.ckpt-5")
    (directory / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
    with pytest.raises(UserError, match=r"names the checkpoint 'model.ckpt-7', which is not there"):
        load_google_checkpoint(directory)
    (directory / "checkpoint").unlink()
    assert load_google_checkpoint(directory).source.endswith("model.ckpt-10")
    for ending in ("index", "data-00000-of-00001"):
        shutil.copy(directory / f"model.ckpt-5.{ending}", directory / f"model.ckpt-best.{ending}")
    assert load_google_checkpoint(directory).source.endswith("model.ckpt-best")


def test_a_tf_hub_module_is_read_with_a_config_given_and_has_no_sentence_order_head(originals: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"no albert_config.json with .*; put its own there"):
        load_google_checkpoint(originals / "hub")
    found = load_google_checkpoint(originals / "hub", originals / "one" / "albert_config.json")
    assert_same(found.tensors, ours(stored(originals / "hub.npz")))
    assert not any(path.startswith("sop_classifier") for path in found.tensors)
    assert found.unused == [] and found.vocabulary == b"the vocabulary"


@pytest.mark.parametrize("place", ["variables", "assets", "."])
def test_a_config_inside_a_module_is_found(place: str, originals: pathlib.Path, tmp_path: pathlib.Path) -> None:
    module = shutil.copytree(originals / "hub", tmp_path / "module")
    shutil.copy(originals / "one" / "albert_config.json", module / place)
    found = load_google_checkpoint(module)
    with tarfile.open(tmp_path / "hub.tar.gz", "w:gz") as tar:
        tar.add(module, ".")
    for again in (load_google_checkpoint(tmp_path / "hub.tar.gz"), load_google_checkpoint(module / "variables")):
        assert_same(again.tensors, found.tensors)
        assert again.config == found.config and again.vocabulary == found.vocabulary == b"the vocabulary"


def test_several_data_files_are_read_and_each_is_missed(originals: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = originals / "one" / "albert_config.json"
    directory = shutil.copytree(originals / "sharded", tmp_path / "sharded")
    found = load_google_checkpoint(directory, config)
    assert_same(found.tensors, ours(stored(originals / "sharded.npz")))
    files = sorted(directory.glob("*.data-*"))
    assert len(files) == 3
    for file in files:
        aside = file.rename(tmp_path / "aside")
        with pytest.raises(UserError, match=re.escape(f"{file} cannot be read")):
            load_google_checkpoint(directory, config)
        aside.rename(file)


@pytest.mark.parametrize("name", ["classifier", "race", "squad"])
def test_a_fine_tuned_head_is_read(name: str, originals: pathlib.Path) -> None:
    found = load_google_checkpoint(originals / name)
    assert_same(found.tensors, ours(stored(originals / f"{name}.npz")))
    assert found.config.num_labels == {"classifier": 3, "race": 1, "squad": 2}[name]
    assert found.unused == []


def test_the_head_for_squad_2_is_reported_as_unused(originals: pathlib.Path) -> None:
    found = load_google_checkpoint(originals / "squad2")
    theirs = stored(originals / "squad2.npz")
    assert found.unused == sorted(name for name in theirs if not name.startswith("bert/"))
    assert_same(found.tensors, ours({name: a for name, a in theirs.items() if name.startswith("bert/")}))


def test_every_dtype_is_read_and_the_rest_is_refused_by_name(originals: pathlib.Path) -> None:
    bundle = TensorBundle(originals / "types" / "model.ckpt")
    wanted = stored(originals / "types.npz")
    assert set(bundle.names) == wanted.keys() | {"text", "truth", "parts"}
    assert bundle.dtype("of/bfloat16") == "bfloat16" and bundle.dtype("text") == "string"
    for name, array in wanted.items():
        got = bundle.read(name)
        assert got.dtype.name == bundle.dtype(name) and got.shape == bundle.shape(name) == array.shape
        np.testing.assert_array_equal(got.astype(np.float64), array)
    for name, why in {"text": "has type string", "truth": "has type bool", "parts": "is partitioned"}.items():
        with pytest.raises(UserError, match=f"variable {name} .* {why}"):
            bundle.read(name)
    with pytest.raises(UserError, match="no variable nothing"):
        bundle.read("nothing")


# --- the same arithmetic ----------------------------------------------------------------------------------------------


def original_forward(v: Arrays, config: dict[str, Any], inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The original's logits in float64, step by step: masked-LM [B, S, V] and sentence order [B, 2]."""
    v = {name: array.astype(np.float64) for name, array in v.items()}

    def dense(x: np.ndarray, scope: str) -> np.ndarray:
        return x @ v[f"{scope}/kernel"] + v[f"{scope}/bias"]

    def layer_norm(x: np.ndarray, scope: str) -> np.ndarray:
        deviation = x - x.mean(-1, keepdims=True)
        scaled = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * v[f"{scope}/gamma"] + v[f"{scope}/beta"]

    def activation(x: np.ndarray) -> np.ndarray:
        if config["hidden_act"] == "relu":
            return np.maximum(x, 0)
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config["num_attention_heads"], -1).swapaxes(1, 2)

    def block(x: np.ndarray, scope: str) -> np.ndarray:
        q, k, value = (heads(dense(x, f"{scope}/attention_1/self/{part}")) for part in ("query", "key", "value"))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores + (1.0 - inputs["attention_mask"][:, None, None, :]) * -10000.0
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = (weights / weights.sum(-1, keepdims=True)) @ value
        context = context.swapaxes(1, 2).reshape(x.shape)
        x = layer_norm(x + dense(context, f"{scope}/attention_1/output/dense"), f"{scope}/LayerNorm")
        inner = activation(dense(x, f"{scope}/ffn_1/intermediate/dense"))
        return layer_norm(x + dense(inner, f"{scope}/ffn_1/intermediate/output/dense"), f"{scope}/LayerNorm_1")

    ids = inputs["input_ids"]
    x = v["bert/embeddings/word_embeddings"][ids]
    x = x + v["bert/embeddings/token_type_embeddings"][inputs["token_type_ids"]]
    x = layer_norm(x + v["bert/embeddings/position_embeddings"][: ids.shape[1]], "bert/embeddings/LayerNorm")
    if config["embedding_size"] != config["hidden_size"]:
        x = dense(x, "bert/encoder/embedding_hidden_mapping_in")
    layers = config["num_hidden_layers"]
    for layer in range(layers):
        group = math.floor(layer / layers * config["num_hidden_groups"])
        for inner in range(config["inner_group_num"]):
            x = block(x, f"bert/encoder/transformer/group_{group}/inner_group_{inner}")
    pooled = np.tanh(dense(x[:, 0], "bert/pooler/dense"))
    order = pooled @ v["cls/seq_relationship/output_weights"].T + v["cls/seq_relationship/output_bias"]
    words = activation(dense(x, "cls/predictions/transform/dense"))
    words = layer_norm(words, "cls/predictions/transform/LayerNorm")
    return words @ v["bert/embeddings/word_embeddings"].T + v["cls/predictions/output_bias"], order


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_model_computes_from_a_checkpoint_what_the_original_does(name: str, originals: pathlib.Path) -> None:
    found = load_google_checkpoint(originals / name)
    rng = np.random.default_rng(1)
    mask = np.ones((3, 20), np.int32)
    mask[1, 13:] = 0
    ids = np.where(mask == 1, rng.integers(5, 99, mask.shape), 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (np.arange(20) > 9).astype(np.int32) * mask}
    config = json.loads((originals / name / "albert_config.json").read_text())
    words, order = original_forward(stored(originals / f"{name}.npz"), config, inputs)

    abstract = nnx.eval_shape(lambda: FlaxAlbertForPreTrainingModule(found.config, rngs=nnx.Rngs(0)))
    model = with_parameters(abstract, traverse_util.unflatten_dict(found.tensors, sep="/"))
    got = model(**{key: jnp.asarray(value) for key, value in inputs.items()})
    assert np.abs(words).max() > 0.5 and np.abs(order).max() > 0.5
    np.testing.assert_allclose(got.prediction_logits, words, atol=2e-5, rtol=0)
    np.testing.assert_allclose(got.sop_logits, order, atol=2e-5, rtol=0)


# --- the way back -----------------------------------------------------------------------------------------------------


def random_tensors(config: AlbertConfig, *heads: str) -> Arrays:
    """Every parameter of the encoder and of these heads, random, under our paths."""
    rng = np.random.default_rng(0)
    named = {path: rng.standard_normal(v.our_shape).astype(np.float32) for path, v in google_variables(config).items()}
    if config.embedding_size == config.hidden_size:
        named |= {
            f"{MAPPING}/kernel": np.eye(config.hidden_size, dtype=np.float32),
            f"{MAPPING}/bias": np.zeros(48, "f"),
        }
    return {path: array for path, array in named.items() if path.split("/")[0] in ("albert", *heads)}


PRETRAINING = ("predictions", "sop_classifier")


@pytest.mark.parametrize("heads", [PRETRAINING, (), ("predictions",), ("classifier",), ("qa_outputs",)])
@pytest.mark.parametrize("changes", [{}, {"num_hidden_groups": 2, "inner_group_num": 2}, {"embedding_size": 48}])
def test_what_is_saved_is_loaded_again_bit_for_bit(
    changes: dict[str, Any], heads: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    config = AlbertConfig(**(SMALL | changes), num_labels=3)
    tensors = random_tensors(config, *heads)
    files = save_google_checkpoint(tmp_path / "new", tensors, config)
    assert sorted(files) == sorted((tmp_path / "new").iterdir())
    found = load_google_checkpoint(tmp_path / "new")
    assert_same(found.tensors, tensors)
    assert found.unused == [] and found.vocabulary is None
    assert found.config.to_dict() == config.to_dict()
    assert found.config.num_labels == (3 if heads == ("classifier",) else 2)


def test_tensorflow_reads_and_restores_what_is_saved(tensorflow: Callable[..., None], tmp_path: pathlib.Path) -> None:
    config = AlbertConfig(**SMALL, num_hidden_groups=2)
    tensors = random_tensors(config, *PRETRAINING)
    save_google_checkpoint(tmp_path, tensors, config)
    arrays: Arrays = {"scalar": np.array(3, np.int64), "empty": np.zeros((0, 2), np.float16), "a/b": np.ones((2, 1, 3))}
    arrays["x.bfloat16"] = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    write_tensor_bundle(tmp_path / "types", arrays)
    tensorflow("read", tmp_path / "model.ckpt-best", tmp_path / "types")
    assert_same(ours(stored(tmp_path / "model.ckpt-best.npz")), tensors)
    found = stored(tmp_path / "types.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.astype(found[name].dtype))
        assert found[name].dtype == array.dtype or name == "x.bfloat16"


def test_transformers_own_converter_puts_every_tensor_where_we_do(
    tensorflow: Callable[..., None], originals: pathlib.Path
) -> None:
    tensorflow("transformers", originals / "groups-adam" / "model.ckpt-best")
    theirs = stored(originals / "groups-adam" / "model.ckpt-best.npz")
    tied = {"predictions.decoder.weight", "predictions.decoder.bias"}
    found = load_google_checkpoint(originals / "groups-adam").tensors
    expected = {}
    for path, array in found.items():
        name = re.sub(r"\.(kernel|scale|embedding)$", ".weight", path.replace("/", "."))
        expected[name] = array.T if path.endswith("kernel") else array
    assert expected.keys() == theirs.keys() - tied
    for name, array in expected.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


def test_googles_config_goes_there_and_back_with_what_means_nothing_here(tmp_path: pathlib.Path) -> None:
    config = AlbertConfig(**SMALL)
    save_google_checkpoint(tmp_path, random_tensors(config), config)
    file = tmp_path / "albert_config.json"
    values = json.loads(file.read_text())
    assert values["hidden_act"] == "gelu" and values["net_structure_type"] == 0 and "layer_norm_eps" not in values
    values |= {"gap_size": 7, "layers_to_keep": [1], "unheard_of": "x"}
    file.write_text(json.dumps(values))
    found = load_google_checkpoint(tmp_path)
    save_google_checkpoint(tmp_path / "again", found.tensors, found.config)
    assert json.loads((tmp_path / "again" / "albert_config.json").read_text()) == values


# --- refusals ---------------------------------------------------------------------------------------------------------


def checkpoint(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A checkpoint of the pretraining model, whose configuration then says something else."""
    config = AlbertConfig(**SMALL, num_hidden_groups=2)
    save_google_checkpoint(directory, random_tensors(config, *PRETRAINING), config)
    file = directory / "albert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_groups": 3}, r"lacks bert/encoder/transformer/group_2/.*\(48, 48\); give the albert_config.json"),
        (
            {"num_hidden_groups": 1},
            r"holds bert/encoder/transformer/group_1/.* num_hidden_groups 1 and inner_group_num 1",
        ),
        ({"inner_group_num": 2}, r"lacks bert/encoder/transformer/group_0/inner_group_1/"),
        ({"vocab_size": 98}, r"word_embeddings has shape \(99, 24\), but its configuration asks for \(98, 24\); give"),
        ({"max_position_embeddings": 512}, r"position_embeddings has shape \(32, 24\), but .* asks for \(512, 24\)"),
        ({"embedding_size": 48}, r"has shape \(99, 24\), but"),
        ({"hidden_act": "tanh"}, r"albert_config.json has hidden_act 'tanh'; only gelu and relu"),
        ({"hidden_act": ["gelu"]}, r"has hidden_act \['gelu'\]"),
        ({"num_attention_heads": 5}, r"albert_config.json: hidden_size 48 must be a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 18, "num_hidden_groups": 14}, r"Google's code rounds layer 9 into group 7"),
    ],
)
def test_a_config_that_does_not_fit_the_checkpoint_is_refused(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_google_checkpoint(checkpoint(tmp_path, **changes))


def test_a_part_of_a_head_and_an_integer_parameter_are_refused(tmp_path: pathlib.Path) -> None:
    bundle = TensorBundle(checkpoint(tmp_path) / "model.ckpt-best")
    arrays = {name: bundle.read(name) for name in bundle.names}
    bias = arrays.pop("cls/seq_relationship/output_bias")
    write_tensor_bundle(tmp_path / "model.ckpt-best", arrays)
    with pytest.raises(UserError, match=r"lacks cls/seq_relationship/output_bias"):
        load_google_checkpoint(tmp_path)
    write_tensor_bundle(
        tmp_path / "model.ckpt-best", arrays | {"cls/seq_relationship/output_bias": bias.astype(np.int32)}
    )
    with pytest.raises(UserError, match=r"output_bias has type int32, but a parameter is a float"):
        load_google_checkpoint(tmp_path)
    half = {name: array.astype(np.float16) for name, array in arrays.items() if "seq_relationship" not in name}
    write_tensor_bundle(tmp_path / "model.ckpt-best", half)
    found = load_google_checkpoint(tmp_path).tensors
    assert_same(found, ours({name: array.astype(np.float32) for name, array in half.items()}))


def as_keras_names_them(arrays: Arrays, layers: int, groups: int) -> Arrays:
    """A checkpoint as Google's code writes it under TensorFlow 2, where each layer makes layer norms of its own."""
    named = {name: array for name, array in arrays.items() if "LayerNorm" not in name}
    for leaf in ("beta", "gamma"):
        named[f"bert/embeddings/layer_normalization/{leaf}"] = arrays[f"bert/embeddings/LayerNorm/{leaf}"]
        last = f"cls/predictions/transform/layer_normalization_{2 * layers + 1}/{leaf}"
        named[last] = arrays[f"cls/predictions/transform/LayerNorm/{leaf}"]
        for layer in range(layers):
            group = f"group_{layer * groups // layers}"
            scope = f"bert/encoder/transformer/{group}{f'_{layer}' if layer else ''}/layer_{layer}/inner_group_0"
            for number, name in ((2 * layer + 1, "LayerNorm"), (2 * layer + 2, "LayerNorm_1")):
                value = arrays[f"bert/encoder/transformer/{group}/inner_group_0/{name}/{leaf}"]
                named[f"{scope}/layer_normalization_{number}/{leaf}"] = value
                named[f"{scope}/layer_normalization_{number}/{leaf}/adam_m"] = value
    return named


def test_layer_norms_that_keras_has_named_are_found_and_where_layers_differ_refused(tmp_path: pathlib.Path) -> None:
    wanted = load_google_checkpoint(checkpoint(tmp_path)).tensors
    bundle = TensorBundle(tmp_path / "model.ckpt-best")
    layers = AlbertConfig(**SMALL).num_hidden_layers
    named = as_keras_names_them({name: bundle.read(name) for name in bundle.names}, layers, 2)
    write_tensor_bundle(tmp_path / "model.ckpt-best", named)
    found = load_google_checkpoint(tmp_path)
    assert_same(found.tensors, wanted)
    assert found.unused == []
    one = next(name for name in named if re.search(r"layer_1/.*layer_normalization_3/beta$", name))
    write_tensor_bundle(tmp_path / "model.ckpt-best", named | {one: named[one] + 1})
    with pytest.raises(UserError, match=r"layer norms of its own for each layer \(.*; it cannot be converted\.$"):
        load_google_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bert/encoder/layer_shared/attention_1/self/query/kernel", "is of brightmart's albert_zh"),
        ("bert/encoder/layer_3/attention/self/query/kernel", "is a BERT, whose layers share nothing"),
        ("model/layer_with_weights-0/embeddings/.ATTRIBUTES/VARIABLE_VALUE", "of TensorFlow 2's objects"),
    ],
)
def test_checkpoints_of_other_programs_are_called_what_they_are(name: str, what: str, tmp_path: pathlib.Path) -> None:
    checkpoint(tmp_path)
    arrays = {name: np.zeros((2, 2), "f"), "bert/embeddings/word_embeddings": np.zeros((99, 24), "f")}
    write_tensor_bundle(tmp_path / "model.ckpt-best", arrays)
    with pytest.raises(UserError, match=f"{what}.*; it cannot be converted"):
        load_google_checkpoint(tmp_path)


def test_a_path_without_a_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    directory = checkpoint(tmp_path / "a")
    for path, message in {
        tmp_path / "nothing": "is neither a directory nor .tar, .tar.gz, .tgz nor",
        tmp_path: "there is no TensorFlow checkpoint",
    }.items():
        with pytest.raises(UserError, match=message):
            load_google_checkpoint(path)
    write_tensor_bundle(tmp_path / "other", {"layer/kernel": np.zeros((2, 2), "f")})
    with pytest.raises(UserError, match="other has no variables under bert/; only checkpoints of Google's ALBERT code"):
        load_google_checkpoint(tmp_path / "other", directory / "albert_config.json")
    for name in ("x", "y"):
        shutil.copy(directory / "model.ckpt-best.index", directory / f"{name}.index")
    (directory / "model.ckpt-best.index").unlink()
    with pytest.raises(UserError, match="holds the checkpoints x, y; give the path of one"):
        load_google_checkpoint(directory)
    (directory / "albert_config.json").write_text("[1]")
    with pytest.raises(UserError, match="is not valid JSON, or no object"):
        load_google_checkpoint(directory / "x")


def test_a_damaged_archive_is_refused_and_nothing_leaves_its_directory(tmp_path: pathlib.Path) -> None:
    directory = checkpoint(tmp_path / "albert")
    whole = tmp_path / "whole.tar.gz"
    with tarfile.open(whole, "w:gz") as tar:
        tar.add(directory, "albert")
    content = whole.read_bytes()
    damaged = tmp_path / "damaged.tar.gz"
    for cut in (0, 10, 1000, len(content) // 2):
        damaged.write_bytes(content[:cut])
        with pytest.raises(UserError):
            load_google_checkpoint(damaged)
    with tarfile.open(tmp_path / "outside.tar", "w") as tar:
        tar.add(directory / "model.ckpt-best.index", "../escaped.index")
    with pytest.raises(UserError, match="cannot be unpacked"):
        load_google_checkpoint(tmp_path / "outside.tar")
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        tar.add(directory, "a")
        tar.add(directory, "b")
    with pytest.raises(UserError, match="in 2 directories; unpack it"):
        load_google_checkpoint(tmp_path / "two.tar")
    with tarfile.open(tmp_path / "half.tar", "w") as tar:
        tar.add(directory / "model.ckpt-best.index", "a/model.ckpt-best.index")
    with pytest.raises(
        UserError, match=re.escape(f"no albert_config.json with {tmp_path}/half.tar/a/model.ckpt-best;")
    ):
        load_google_checkpoint(tmp_path / "half.tar")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r'"gelu" is the exact one'),
        ({"layer_norm_eps": 1e-5}, r"layer_norm_eps is 1e-05"),
        ({"num_hidden_layers": 18, "num_hidden_groups": 14}, r"rounds layer 9 into group 7"),
        ({"num_hidden_groups": 2, "shared_across_groups": "ffn"}, r"cannot share the ffn weights"),
    ],
)
def test_a_model_that_googles_code_does_not_compute_is_not_saved(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    config = AlbertConfig(**(SMALL | changes))
    with pytest.raises(UserError, match=message):
        save_google_checkpoint(tmp_path / "new", random_tensors(config), config)
    assert not (tmp_path / "new").exists()


def test_parameters_that_google_has_no_name_for_or_that_do_not_fit_are_not_saved(tmp_path: pathlib.Path) -> None:
    config = AlbertConfig(**SMALL)
    whole = random_tensors(config, *PRETRAINING)
    kernel, order = "albert/pooler/kernel", "sop_classifier/classifier/kernel"
    for change, message in (
        ({"token_head/kernel": np.zeros((48, 9), "f")}, r"without a name there \['token_head/kernel'\]"),
        ({kernel: np.zeros((48, 47), "f")}, r"albert/pooler/kernel has shape \(48, 47\), .* asks for \(48, 48\)"),
        ({order: np.zeros((48, 3), "f")}, r"classifier/kernel has shape \(48, 3\), .* asks for \(48, 2\)"),
        ({kernel: np.full((48, 48), np.nan, "f")}, r"albert/pooler/kernel holds values that are not finite"),
    ):
        with pytest.raises(UserError, match=message):
            save_google_checkpoint(tmp_path / "new", whole | change, config)
    with pytest.raises(UserError, match=r"missing \['albert/pooler/kernel'\]"):
        save_google_checkpoint(tmp_path / "new", {p: a for p, a in whole.items() if p != kernel}, config)
    square = AlbertConfig(**(SMALL | {"embedding_size": 48}))
    tensors = random_tensors(square) | {f"{MAPPING}/bias": np.full(48, 1e-9, "f")}
    with pytest.raises(UserError, match="is not the identity"):
        save_google_checkpoint(tmp_path / "new", tensors, square)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_google_checkpoint(tmp_path / "file" / "new", whole, config)
    with pytest.raises(UserError, match="cannot be written"):
        write_tensor_bundle(tmp_path / "none" / "new", {"a": np.zeros(2)})
    with pytest.raises(UserError, match="a has dtype complex64"):
        write_tensor_bundle(tmp_path / "new", {"a": np.zeros(2, np.complex64)})


def test_conversion_needs_neither_jax_nor_tensorflow() -> None:
    check = "import sys, albert_jax.convert.google; print({'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
