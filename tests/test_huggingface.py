# SPDX-License-Identifier: Apache-2.0
"""Files: what transformers saves loads here and the reverse, bit for bit, and nothing damaged or foreign does."""

import io
import json
import logging
import os
import pathlib
import pickle
import shutil
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

import albert_jax
from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import fit, read_checkpoint, tensor_name, turned
from albert_jax.errors import UserError
from albert_jax.model import parameter_shapes
from tests.architectures import ARCHITECTURES, HEADS, config, model, torch_class
from tests.tokenizer_samples import spiece

TABLE = "albert.embeddings.word_embeddings.weight"
SOP = ["sop_classifier.classifier.bias", "sop_classifier.classifier.weight"]
POOLER = ["albert.pooler.bias", "albert.pooler.weight"]


def load(directory: pathlib.Path, head: str = "FlaxAlbertForPreTraining", **options: Any) -> Any:
    """A model from a directory."""
    return getattr(albert_jax, head).from_pretrained(directory, **options)


def save(directory: pathlib.Path, head: str = "FlaxAlbertForPreTraining", shape: AlbertConfig | None = None) -> Any:
    """Saves a model of random parameters, which are returned."""
    ours, params = model(head, shape or config())
    ours.save_pretrained(directory, params)
    return params


def same(a: Any, b: Any) -> bool:
    """Whether two nested dicts hold the same arrays, bit for bit."""
    first, second = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    return first.keys() == second.keys() and all(
        np.asarray(first[k]).dtype == np.asarray(second[k]).dtype and np.array_equal(first[k], second[k]) for k in first
    )


def torch_state(name: str, shape: AlbertConfig, **changes: Any) -> Any:
    """A model of transformers with random weights."""
    return torch_class(name)(torch_class("AlbertConfig")(**(shape.to_hub_dict(name, "float32") | changes)))


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a whole checkpoint."""
    save(tmp_path)
    return tmp_path


def rewrite(directory: pathlib.Path, change: Any) -> None:
    """Applies `change` to the tensors of model.safetensors."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_what_transformers_saves_comes_back_from_us_byte_for_byte(head: str, tmp_path: pathlib.Path) -> None:
    name = head.removeprefix("Flax")
    theirs = torch_state(name, config(), net_structure_type=0, gap_size=0, my_own_field={"deep": [1, 2]})
    theirs.save_pretrained(tmp_path / "theirs")
    load(tmp_path / "theirs", head).save_pretrained(tmp_path / "ours")
    first, second = (load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert all(first[k].dtype == second[k].dtype and np.array_equal(first[k], second[k]) for k in first)
    assert (tmp_path / "ours" / "config.json").read_bytes() == (tmp_path / "theirs" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_we_save_comes_back_from_transformers_bit_for_bit(name: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_class("AlbertForPreTraining")
    params = save(tmp_path / "ours", shape=config(name))
    theirs.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert same(again.params, params) and again.config == config(name)
    assert same(load(tmp_path / "ours").params, params)


def test_a_published_kind_of_config_is_kept_to_the_last_field(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "a")
    old = json.loads((tmp_path / "a" / "config.json").read_text())
    old |= {"down_scale_factor": 1, "net_structure_type": 0, "num_memory_blocks": 0, "hidden_dropout_prob": 0}
    old |= {"transformers_version": "2.2.1", "torch_dtype": "float32", "layers_to_keep": []}
    old |= {"id2label": {"0": "x", "1": "x"}, "label2id": {"x": 0}, "num_labels": 2}
    del old["tie_word_embeddings"], old["dtype"], old["classifier_dropout_prob"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")
    load(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()


def test_names_of_classes_and_other_settings_travel_both_ways(tmp_path: pathlib.Path) -> None:
    torch_class("AlbertConfig")
    import transformers

    head = "FlaxAlbertForSequenceClassification"
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    save(tmp_path / "a", head, config(id2label=names, problem_type="single_label_classification"))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    assert theirs.config.id2label == names and theirs.config.label2id == {v: k for k, v in names.items()}
    assert theirs.config.problem_type == "single_label_classification"
    theirs.save_pretrained(tmp_path / "b")
    ours = load(tmp_path / "b", head)
    assert (ours.config.num_labels, ours.config.id2label) == (3, names)
    assert ours.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("head", HEADS)
def test_weights_split_over_files_are_the_same_to_us_and_to_transformers(head: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_class(head.removeprefix("Flax"))
    ours, params = model(head, config())
    ours.save_pretrained(tmp_path / "ours", params, max_shard_size="40KB")
    shards = sorted((tmp_path / "ours").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "ours" / "model.safetensors").exists()
    assert same(load(tmp_path / "ours", head).params, params)
    loaded, info = theirs.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    loaded.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert same(load(tmp_path / "theirs", head).params, params)


def test_an_earlier_saves_shards_do_not_outlive_it(tmp_path: pathlib.Path) -> None:
    ours, params = model("FlaxAlbertForMaskedLM", config())
    ours.save_pretrained(tmp_path, params, max_shard_size="40KB")
    ours.save_pretrained(tmp_path, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    ours.save_pretrained(tmp_path, params, max_shard_size="40KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert same(load(tmp_path, "FlaxAlbertForMaskedLM").params, params)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bfloat16", "sharded"])
def test_torch_pickles_old_and_new_load(kind: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_state("AlbertForPreTraining", config())
    import torch

    state = theirs.state_dict()
    (tmp_path / "config.json").write_text(json.dumps(config().to_hub_dict("AlbertForPreTraining", "float32")))
    if kind == "bfloat16":
        state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    if kind == "sharded":
        half = sorted(state)[::2]
        parts = [{k: v for k, v in state.items() if (k in half) == first} for first in (True, False)]
        places: dict[str, str] = {}
        for i, part in enumerate(parts):
            torch.save(part, tmp_path / f"pytorch_model-{i}.bin")
            places |= {name: f"pytorch_model-{i}.bin" for name in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=kind != "legacy")
    flat = traverse_util.flatten_dict(load(tmp_path).params, sep="/")
    for path, value in flat.items():
        wanted = turned(path, state[tensor_name(path)].float().numpy())
        assert np.array_equal(np.asarray(value, np.float32), wanted), path
        assert str(value.dtype) == ("bfloat16" if kind == "bfloat16" else "float32")


@pytest.mark.parametrize("head", HEADS)
def test_files_of_transformers_4s_flax_classes_load(head: str, tmp_path: pathlib.Path) -> None:
    params = save(tmp_path / "ours", head)
    for kind in ("flax_model.msgpack", "model.safetensors"):
        directory = tmp_path / kind
        directory.mkdir()
        shutil.copy(tmp_path / "ours" / "config.json", directory)
        if kind.endswith("msgpack"):
            (directory / kind).write_bytes(serialization.msgpack_serialize(params))
        else:
            flat = traverse_util.flatten_dict(params, sep=".")
            save_file(flat, directory / kind, metadata={"format": "flax"})
        assert same(load(directory, head).params, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_stay_what_they_are_and_are_named(
    dtype: str, saved: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(saved, lambda t: t.update({k: v.astype(jnp.dtype(dtype)) for k, v in t.items()}))
    ours = load(saved)
    assert f"stores {dtype}; use to_fp32" in caplog.text
    ours.save_pretrained(tmp_path / "again")
    first, second = load_file(saved / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert all(first[k].dtype == second[k].dtype and np.array_equal(first[k], second[k]) for k in first)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == dtype
    wide = ours.to_fp32(ours.params)
    assert {str(x.dtype) for x in traverse_util.flatten_dict(wide).values()} == {"float32"}


# --- from one class to another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("target", HEADS)
def test_any_class_takes_from_any_other_what_both_have_and_names_the_rest(
    source: str, target: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = traverse_util.flatten_dict(save(tmp_path, source), sep="/")
    classes = {name: 1 if "MultipleChoice" in name else 2 for name in HEADS if "Classification" in name or "Ch" in name}
    if classes.get(source, 0) * classes.get(target, 0) == 2:  # both have a `classifier`, of one class and of two
        with pytest.raises(UserError, match=r"classifier\.bias"):
            load(tmp_path, target)
        return
    ours, info = load(tmp_path, target, output_loading_info=True)
    flat = traverse_util.flatten_dict(ours.params, sep="/")

    def bare(names: Any) -> set[str]:
        return {name.removeprefix("albert/").removeprefix("albert.") for name in names}

    given, wanted = {tensor_name(p) for p in params}, {tensor_name(p) for p in flat}
    assert bare(info["missing_keys"]) == bare(wanted) - bare(given)
    assert bare(info["unexpected_keys"]) == bare(given) - bare(wanted)
    for key in info["missing_keys"] + info["unexpected_keys"]:
        assert key in caplog.text
    plain = {path.removeprefix("albert/"): value for path, value in params.items()}
    for path, value in flat.items():
        bare_path = path.removeprefix("albert/")
        assert bare_path not in plain or np.array_equal(value, plain[bare_path]), path


def test_a_classifier_of_another_size_is_refused_or_made_anew_on_demand(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = "FlaxAlbertForSequenceClassification"
    save(tmp_path, head, config(num_labels=3))
    with pytest.raises(UserError, match=r"classifier\.bias .* \(3,\), but .* asks for \(5,\)"):
        load(tmp_path, head, num_labels=5)
    ours, info = load(tmp_path, head, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True)
    assert ours.params["classifier"]["kernel"].shape == (48, 5)
    assert sorted(info["mismatched_keys"]) == ["classifier.bias", "classifier.weight"]
    assert "initialised anew" in caplog.text and "classifier.weight" in caplog.text


def test_a_second_copy_of_the_tied_table_is_accepted_if_equal_and_refused_if_not(saved: pathlib.Path) -> None:
    original = load(saved).params
    copies = {"predictions.decoder.weight": TABLE, "predictions.decoder.bias": "predictions.bias"}
    rewrite(saved, lambda t: t.update({copy: t[first].copy() for copy, first in copies.items()}))
    assert same(load(saved).params, original)
    for copy in copies:
        rewrite(saved, lambda t, copy=copy: t.update({copy: t[copy] + 1}))
        for head in ("FlaxAlbertForPreTraining", "FlaxAlbertForMaskedLM"):
            with pytest.raises(UserError, match=f"{copy} of .* differs"):
                load(saved, head)
        rewrite(saved, lambda t, copy=copy: t.update({copy: t[copies[copy]].copy()}))


def test_old_spellings_and_second_names_are_understood(saved: pathlib.Path) -> None:
    original = load(saved).params

    def age(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            if "norm" in name.lower():
                old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
                tensors[old] = tensors.pop(name)
        tensors["predictions.decoder.bias"] = tensors.pop("predictions.bias")
        tensors["albert.embeddings.position_ids"] = np.arange(32)[None]

    rewrite(saved, age)
    ours, info = load(saved, output_loading_info=True)
    assert same(ours.params, original) and not any(info.values())


def test_parameters_apart_are_those_of_the_model(saved: pathlib.Path) -> None:
    ours, params = load(saved, _do_init=False)
    assert same(params, load(saved).params)
    with pytest.raises(UserError, match="_do_init=False"):
        _ = ours.params


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_repository_named_by_the_user_comes_from_the_hubs_cache(
    saved: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("hub")
    snapshot = tmp_path / "cache" / "models--somebody--tiny-albert" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    albert_jax.AlbertTokenizer(spiece(tmp_path)).save_pretrained(saved)
    for file in saved.iterdir():
        shutil.copy(file, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    ours = load(pathlib.Path("somebody/tiny-albert"), cache_dir=tmp_path / "cache", local_files_only=True)
    assert same(ours.params, load(saved).params)
    hub = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    tokenizer = albert_jax.AlbertTokenizer.from_pretrained("somebody/tiny-albert", do_lower_case=False, **hub)
    assert albert_jax.AlbertConfig.from_pretrained("somebody/tiny-albert", num_labels=5, **hub).num_labels == 5
    assert len(tokenizer) == len(albert_jax.AlbertTokenizer.from_pretrained(saved)) and not tokenizer.do_lower_case


@pytest.mark.parametrize("name", ["somebody/nothing", "no such/directory/at all", "./absent"])
def test_a_model_that_is_nowhere_is_refused_with_a_sentence(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        albert_jax.FlaxAlbertModel.from_pretrained(name, cache_dir=tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        albert_jax.AlbertTokenizer.from_pretrained(name, cache_dir=tmp_path)


# --- what does not get in ---------------------------------------------------------------------------------------------


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(saved: pathlib.Path) -> None:
    name = "albert.encoder.embedding_hidden_mapping_in.weight"
    rewrite(saved, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    with pytest.raises(UserError, match=r"mapping_in\.weight .*\(24, 48\).*\(48, 24\)"):
        load(saved)


def test_an_encoder_that_is_not_whole_or_another_one_is_refused(saved: pathlib.Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    for groups, sentence in ((2, "of another encoder than the configuration's, such as .*groups.2"), (4, "lacks 16 ")):
        (saved / "config.json").write_text(json.dumps(values | {"num_hidden_groups": groups}))
        with pytest.raises(UserError, match=sentence):
            load(saved)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 50}, r"word_embeddings.weight .*\(96, 24\).*\(50, 24\)"),
        ({"vocab_size": 10**12}, "parameters; check"),
        ({"hidden_size": 10**9}, "parameters; check"),
        ({"num_hidden_layers": 10**9}, "blocks; check"),
        ({"num_hidden_groups": 10**9}, "must not exceed num_hidden_layers"),
        ({"hidden_size": -48}, "hidden_size must be at least 1, not -48"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"intermediate_size": "80"}, "intermediate_size must be of type int, not '80'"),
        ({"id2label": {"0": "a", "5": "b"}}, "id2label must map 0, 1, 2"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not ALBERT"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' positions"),
        ({"model_type": "bert"}, "type 'bert', not 'albert'"),
    ],
)
def test_a_config_of_another_model_or_of_none_is_refused_with_a_sentence(
    changes: dict[str, Any], sentence: str, saved: pathlib.Path
) -> None:
    values = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(UserError, match=sentence):
        load(saved)


def test_damaged_and_missing_files_are_refused_with_a_sentence(saved: pathlib.Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", b"\xff" * 200, whole[:9] + b"\x00" + whole[10:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or no safetensors file"):
            load(saved)
    file.unlink()
    with pytest.raises(UserError, match=r"holds none of model\.safetensors, flax_model\.msgpack, pytorch_model\.bin"):
        load(saved)
    packed = serialization.msgpack_serialize({"albert": {"x": np.ones(3, np.float32)}})
    for damaged in (
        packed[:-2],
        b"",
        b"\xc1" * 20,
        serialization.msgpack_serialize({"a": "text"}),
        b"version https://",
    ):
        (saved / "flax_model.msgpack").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or no msgpack file"):
            load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load(saved)


def test_flipped_bytes_of_a_header_never_crash_the_reader(saved: pathlib.Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    chance = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    shapes = parameter_shapes(model("FlaxAlbertForPreTraining", config())[0].module)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.integers(header)] ^= 1 << chance.integers(8)
        file.write_bytes(bytes(damaged))
        try:
            fit(read_checkpoint(saved), shapes)
        except UserError:
            refused += 1
    assert refused > 100


def test_shards_that_are_lost_or_lie_elsewhere_are_refused(tmp_path: pathlib.Path) -> None:
    ours, params = model("FlaxAlbertForMaskedLM", config())
    ours.save_pretrained(tmp_path, params, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    one = sorted(whole["weight_map"])[0]
    for shard, sentence in (("../elsewhere.safetensors", "not a file beside it"), ("gone.safetensors", "is not there")):
        index.write_text(json.dumps({"weight_map": whole["weight_map"] | {one: shard}}))
        with pytest.raises(UserError, match=sentence):
            load(tmp_path, "FlaxAlbertForMaskedLM")
    lacking = {name: shard for name, shard in whole["weight_map"].items() if name != one}
    index.write_text(json.dumps({"weight_map": lacking}))
    with pytest.raises(UserError, match="do not hold the tensors"):
        load(tmp_path, "FlaxAlbertForMaskedLM")
    index.write_text("[]")
    with pytest.raises(UserError, match="no index of shards"):
        load(tmp_path, "FlaxAlbertForMaskedLM")


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, mark: pathlib.Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("kind", ["bare", "zip", "beside weights", "garbage", "cut"])
def test_a_pickle_with_code_in_it_or_damage_is_refused_and_nothing_in_it_is_run(
    kind: str, tmp_path: pathlib.Path
) -> None:
    theirs = torch_state("AlbertForMaskedLM", config())
    import torch

    mark, file = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    (tmp_path / "config.json").write_text(json.dumps(config().to_hub_dict("AlbertForMaskedLM", "float32")))
    if kind == "bare":
        file.write_bytes(pickle.dumps({"predictions.bias": Bomb(mark)}))
    elif kind == "garbage":
        file.write_bytes(b"\x80\x02garbage" * 99)
    else:
        bomb = {"bomb": Bomb(mark)} if kind != "cut" else {}
        torch.save(theirs.state_dict() | bomb, file)
        if kind == "cut":
            file.write_bytes(file.read_bytes()[:-5000])
        if kind == "zip":
            packed = io.BytesIO()
            with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
                for item in old.namelist():
                    evil = item.endswith("data.pkl")
                    new.writestr(item, pickle.dumps(Bomb(mark), protocol=2) if evil else old.read(item))
            file.write_bytes(packed.getvalue())
    with pytest.raises(UserError, match=r"damaged or holds more than weights .*nothing in it was run"):
        load(tmp_path, "FlaxAlbertForMaskedLM")
    assert not mark.exists()
    if kind in ("bare", "beside weights"):  # the bomb is real
        torch.load(file, weights_only=False) if kind == "beside weights" else pickle.loads(file.read_bytes())
        assert mark.exists()


def test_a_file_of_something_else_is_refused(saved: pathlib.Path) -> None:
    save_file({"bert.pooler.dense.weight": np.ones((2, 2), np.float32)}, saved / "model.safetensors")
    with pytest.raises(UserError, match="holds no weights of an ALBERT"):
        load(saved)


def test_parameters_that_do_not_fit_or_are_not_finite_are_not_saved(tmp_path: pathlib.Path) -> None:
    ours, params = model("FlaxAlbertForPreTraining", config())
    params["predictions"]["bias"][3] = np.nan
    with pytest.raises(UserError, match="predictions/bias holds values that are not finite"):
        ours.save_pretrained(tmp_path, params)
    other, _ = model("FlaxAlbertForPreTraining", config("relu"))
    with pytest.raises(UserError, match=r"albert_layer_groups/1"):
        other.save_pretrained(tmp_path, params)
    assert list(tmp_path.iterdir()) == []


def test_several_files_are_told_apart_and_the_choice_is_logged(
    saved: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="albert_jax")
    original = load(saved).params
    changed = traverse_util.unflatten_dict({k: v + 1 for k, v in traverse_util.flatten_dict(original).items()})
    (saved / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(changed))
    assert same(load(saved).params, original)
    assert "also holds flax_model.msgpack; model.safetensors is read" in caplog.text
    (saved / "model.safetensors").unlink()
    assert same(load(saved).params, changed)
    with pytest.raises(UserError, match="holds none of"):
        load(saved, from_pt=True)
