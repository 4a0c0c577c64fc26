# SPDX-License-Identifier: Apache-2.0
"""Promises of albert_jax/config.py."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError

SIZES = ("base", "large", "xlarge", "xxlarge")
# Encoder with pooler, and with both heads. The first column also stands in keras-hub's presets.
PARAMETERS = {
    "base": (11_683_584, 11_813_810),
    "large": (17_683_968, 17_847_474),
    "xlarge": (58_724_864, 59_021_490),
    "xxlarge": (222_595_584, 223_158_450),
}


def transformers_model(name: str, config: AlbertConfig):
    """transformers' model of this configuration, without memory for its weights."""
    torch = pytest.importorskip("torch", reason="torch is not installed: transformers' models cannot be built")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        return getattr(transformers, name)(transformers.AlbertConfig(**config.to_dict()))


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_parameter_counts(size):
    config = AlbertConfig.published(size)
    assert (config.encoder_parameters(), config.pretraining_parameters()) == PARAMETERS[size]


@pytest.mark.parametrize(
    "config",
    [
        *(AlbertConfig.published(size) for size in SIZES),
        AlbertConfig(
            vocab_size=101, embedding_size=12, hidden_size=24, num_hidden_layers=6, num_hidden_groups=3,
            inner_group_num=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=33,
            type_vocab_size=3,
        ),
    ],
    ids=[*SIZES, "groups"],
)  # fmt: skip
def test_parameter_counts_are_those_of_transformers(config):
    for name, count in (
        ("AlbertModel", config.encoder_parameters()),
        ("AlbertForPreTraining", config.pretraining_parameters()),
    ):
        assert sum(p.numel() for p in transformers_model(name, config).parameters()) == count


@pytest.mark.parametrize("size", SIZES)
def test_defaults_are_those_of_transformers(size):
    transformers = pytest.importorskip("transformers")
    ours, theirs = AlbertConfig().to_dict(), transformers.AlbertConfig()
    assert ours.pop("shared_across_groups") == "nothing"  # ours alone
    assert {name: getattr(theirs, name) for name in ours} == ours | {
        # transformers names no dropout for its heads where we keep ALBERT's own, and this is the same number.
        "classifier_dropout_prob": ours["classifier_dropout_prob"]
    }


@pytest.mark.parametrize(("layers", "groups"), [(12, 1), (12, 12), (12, 4), (12, 5), (7, 3), (24, 7)])
def test_layers_map_to_groups_as_in_transformers(layers, groups):
    torch = pytest.importorskip("torch", reason="torch is not installed: transformers' models cannot be run")
    transformers = pytest.importorskip("transformers")
    config = AlbertConfig(
        vocab_size=11, embedding_size=4, hidden_size=4, num_hidden_layers=layers, num_hidden_groups=groups,
        num_attention_heads=1, intermediate_size=4, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.AlbertModel(transformers.AlbertConfig(**config.to_dict()))
    used = []
    for number, group in enumerate(model.encoder.albert_layer_groups):
        group.register_forward_hook(lambda *_, number=number: used.append(number))
    model(torch.tensor([[2, 5, 3]]))
    assert [config.group_of_layer(layer) for layer in range(layers)] == used


def matmul_flops(jaxpr) -> int:
    """Two FLOPs a multiply-add, over all dot products of a jaxpr without loops."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            total += matmul_flops(inner) if inner is not None else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total


def matmuls_of_pretraining(weights, ids, slots, starts, config: AlbertConfig):
    """One row through ALBERT's matmuls, layer after layer; everything else is left out."""
    x = weights["table"][ids] @ weights["mapping"]  # which the model has where E = H too
    split = (len(ids), config.num_attention_heads, -1)
    for _ in range(config.num_hidden_layers):
        q, k, v = ((x @ weights[name]).reshape(split) for name in ("query", "key", "value"))
        mixed = jnp.einsum("nqk,knd->qnd", jax.nn.softmax(jnp.einsum("qnd,knd->nqk", q, k)), v)
        x = mixed.reshape(len(ids), -1) @ weights["out"]
        x = jnp.tanh(x @ weights["ffn"]) @ weights["ffn_out"]
    mlm = jnp.tanh(x[slots] @ weights["transform"]) @ weights["table"].T
    sop = jnp.tanh(x[starts] @ weights["pooler"]) @ weights["classifier"]
    return jnp.sum(mlm**2) + jnp.sum(sop**2)


@pytest.mark.parametrize("embedding", [8, 16])
def test_the_flop_formula_counts_every_matmul_of_forward_and_backward(embedding):
    h, f, v, s, m, p = 16, 40, 50, 24, 5, 3
    config = AlbertConfig(
        vocab_size=v, embedding_size=embedding, hidden_size=h, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=f, max_position_embeddings=s,
    )  # fmt: skip
    shapes = {"table": (v, embedding), "mapping": (embedding, h), "query": (h, h), "key": (h, h), "value": (h, h)}
    shapes |= {
        "out": (h, h),
        "ffn": (h, f),
        "ffn_out": (f, h),
        "transform": (h, embedding),
        "pooler": (h, h),
        "classifier": (h, 2),
    }
    weights = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments = (weights, jnp.zeros(s, int), jnp.zeros(m, int), jnp.zeros(p, int))
    step = jax.make_jaxpr(jax.grad(functools.partial(matmuls_of_pretraining, config=config)))(*arguments)
    assert matmul_flops(step.jaxpr) == config.train_flops_per_row(s, m, p)


def test_base_at_128_slots_costs_what_the_sum_by_hand_gives():
    # 12 layers x (24 H^2 + 4 S H) + mapping 2 E H a token; 20 slots x (2 H E + 2 E V); pooler and head once; times 3.
    token = 12 * (24 * 768**2 + 4 * 128 * 768) + 2 * 128 * 768
    row = 128 * token + 20 * (2 * 768 * 128 + 2 * 128 * 30000) + 2 * 768**2 + 4 * 768
    assert AlbertConfig.published("base").train_flops_per_row(128, 20) == 3 * row


@pytest.mark.parametrize("size", SIZES)
def test_only_version_1_has_dropout_and_xxlarge_never(size):
    for version, expected in ((1, 0.0 if size == "xxlarge" else 0.1), (2, 0.0)):
        config = AlbertConfig.published(size, version)
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == expected
        assert config.hidden_act == "gelu_new"


def test_a_config_survives_its_dictionary_and_a_hugging_face_directory(tmp_path):
    config = AlbertConfig.published("large", 1)
    assert AlbertConfig.from_dict(config.to_dict()) == config
    extra = {"model_type": "albert", "architectures": ["AlbertForPreTraining"], "transformers_version": "5.0"}
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | extra))
    assert AlbertConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"hidden_sise": 768}, "'hidden_sise'; the nearest is 'hidden_size'"),
        ({"num_heads": 12}, "no field 'num_heads'; the nearest is"),
        (
            {"hidden_size": 100, "num_attention_heads": 12},
            "hidden_size 100 must be a multiple of num_attention_heads 12",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, not 0"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\), not 1.0"),
        ({"num_hidden_layers": 2, "num_hidden_groups": 3}, "num_hidden_groups 3 must not exceed num_hidden_layers 2"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu, gelu_new, relu, not 'swish'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not ALBERT"),
    ],
)
def test_a_wrong_field_is_refused_by_a_sentence_that_names_it(values, sentence):
    with pytest.raises(UserError, match=sentence):
        AlbertConfig.from_dict(values)


def test_an_unknown_size_or_version_is_refused_with_the_list():
    for arguments in (("small",), ("base", 3)):
        with pytest.raises(UserError, match="sizes are base, large, xlarge, xxlarge, versions 1 and 2"):
            AlbertConfig.published(*arguments)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist; give a directory that holds a Hugging Face config.json"),
        ("{", "is not valid JSON"),
        ('{"model_type": "bert"}', "type 'bert', not 'albert'"),
        ('{"position_embedding_type": "relative_key"}', "'relative_key' positions"),
    ],
)
def test_a_wrong_hugging_face_directory_is_refused_by_a_sentence(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        AlbertConfig.from_pretrained(tmp_path)
