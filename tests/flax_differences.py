# SPDX-License-Identifier: Apache-2.0
"""What docs/from_transformers_flax.md says is different, found out with whichever package is given.

    python flax_differences.py DIRECTORY OUT.json      # with transformers 4.57, in an environment that has it and Flax

DIRECTORY holds a saved model for each of `NAMES`. Each function below is a row of the page's table; test_docs.py
compares what it returns with both packages.
"""

import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "embedding_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
    "inner_group_num": 2,
    "attention_probs_dropout_prob": 0.5,
}
NAMES = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice")
IDS = np.array([[2, 5, 9, 3]])
KEY = jax.random.PRNGKey(0)


@functools.cache
def load(family: Any, saved: pathlib.Path, name: str, **options: Any) -> Any:
    """A model from the directory that holds one for each of `NAMES`; the same one each time."""
    dtype = jnp.bfloat16 if name == "ForSequenceClassification" else jnp.float32
    return getattr(family, f"FlaxAlbert{name}").from_pretrained(str(saved / name), dtype=dtype, **options)


def outcome(action: Callable[[], Any]) -> str:
    """The base among Python's errors of what an action raises, or "taken"."""
    try:
        action()
    except Exception as e:
        known = (ValueError, TypeError, NotImplementedError, AttributeError)
        return next((base.__name__ for base in known if isinstance(e, base)), "another error")
    return "taken"


def is_nan(family: Any, saved: pathlib.Path, ids: Any) -> Any:
    """Whether the scores of ids are NaN somewhere, or how they are refused."""
    model = load(family, saved, "ForMaskedLM")
    refusal = outcome(lambda: model(ids))
    return bool(np.isnan(np.asarray(model(ids).logits)).any()) if refusal == "taken" else refusal


def labels(family: Any, saved: pathlib.Path) -> str:
    model = load(family, saved, "ForMaskedLM")
    return outcome(lambda: model(IDS, labels=IDS).loss)


def logits_dtype(family: Any, saved: pathlib.Path) -> str:
    return str(load(family, saved, "ForSequenceClassification")(IDS).logits.dtype)


def output_class(family: Any, saved: pathlib.Path) -> str:
    return type(load(family, saved, "ForMaskedLM")(IDS)).__name__


def hidden_states(family: Any, saved: pathlib.Path) -> int:
    return len(load(family, saved, "Model")(IDS, output_hidden_states=True).hidden_states)


def module(family: Any, saved: pathlib.Path) -> bool:
    return hasattr(load(family, saved, "Model").module, "apply")


def programs(family: Any, saved: pathlib.Path) -> bool:
    """Whether a call is more than a handful of programs."""
    model = load(family, saved, "Model")
    return len(jax.make_jaxpr(lambda ids: model(ids).last_hidden_state)(jnp.asarray(IDS)).eqns) > 20


def checkpointing(family: Any, saved: pathlib.Path) -> bool:
    """Whether the backward pass computes layers anew."""
    model = load(family, saved, "Model")
    gradient = jax.grad(lambda params: model(IDS, params=params).last_hidden_state.sum())
    program = str(jax.make_jaxpr(gradient)(model.params))
    return "remat" in program or "checkpoint[" in program


def lists(family: Any, saved: pathlib.Path) -> str:
    model = load(family, saved, "ForMaskedLM")
    return outcome(lambda: model(IDS.tolist()))


def ids_outside(family: Any, saved: pathlib.Path) -> Any:
    return is_nan(family, saved, np.array([[2, 500, 3]]))


def long_rows(family: Any, saved: pathlib.Path) -> Any:
    return is_nan(family, saved, np.full((1, 40), 7))


def no_key(family: Any, saved: pathlib.Path) -> str:
    model = load(family, saved, "ForSequenceClassification")
    return outcome(lambda: model(IDS, train=True))


def unexpected_parameters(family: Any, saved: pathlib.Path) -> str:
    model = load(family, saved, "Model")
    params = model.params | {"extra": {"kernel": jnp.ones(3)}}
    return outcome(lambda: model(IDS, params=params))


def initial_weights(family: Any, saved: pathlib.Path) -> list[bool]:
    """Whether anything goes beyond two deviations, in the encoder and in the head."""
    params = family.FlaxAlbertForSequenceClassification(family.AlbertConfig(**SHAPE)).params
    kernels = params["albert"]["encoder"]["embedding_hidden_mapping_in"]["kernel"], params["classifier"]["kernel"]
    return [bool(jnp.abs(kernel).max() > 0.0401) for kernel in kernels]


def padding_row(family: Any, saved: pathlib.Path) -> bool:
    """Whether padding moves its own row of the word table."""
    model = load(family, saved, "Model")
    ids = np.array([[2, 5, 0, 0]])
    gradient = jax.grad(lambda params: jnp.sin(model(ids, params=params).last_hidden_state).sum())(model.params)
    return bool(jnp.abs(gradient["embeddings"]["word_embeddings"]["embedding"][0]).max() > 0)


def choice_dropout(family: Any, saved: pathlib.Path) -> bool:
    """Whether classifier_dropout_prob reaches the multiple-choice head, where it has nothing else to act on."""
    options = {"attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.5}
    model = load(family, saved, "ForMultipleChoice", **options)
    ids = np.stack([IDS, IDS + 1], axis=1)
    return not np.array_equal(model(ids).logits, model(ids, train=True, dropout_rng=KEY).logits)


def attention_dropout(family: Any, saved: pathlib.Path) -> bool:
    """Whether equal rows of a batch are dropped out differently."""
    model = load(family, saved, "Model")
    rows = model(np.tile(IDS, (2, 1)), train=True, dropout_rng=KEY).last_hidden_state
    return not np.array_equal(rows[0], rows[1])


def dropout_noise(family: Any, saved: pathlib.Path) -> Any:
    """Whether a row's noise is the same in any batch that it is in."""
    model = load(family, saved, "Model")
    keys = jax.random.split(jax.random.key(0), 4)
    try:
        whole = model(np.tile(IDS, (4, 1)), train=True, dropout_rng=keys).last_hidden_state
        half = model(np.tile(IDS, (2, 1)), train=True, dropout_rng=keys[2:]).last_hidden_state
    except Exception:
        return "no keys of rows"
    return bool(np.allclose(whole[2:], half, atol=1e-6))


def untied(family: Any, saved: pathlib.Path) -> str:
    return outcome(lambda: family.FlaxAlbertForMaskedLM(family.AlbertConfig(**SHAPE, tie_word_embeddings=False)))


def torn_encoder(family: Any, saved: pathlib.Path) -> str:
    other = family.AlbertConfig(**(SHAPE | {"num_hidden_groups": 2}))
    return outcome(lambda: family.FlaxAlbertModel.from_pretrained(str(saved / "Model"), config=other))


def params_apart(family: Any, saved: pathlib.Path) -> str:
    return outcome(lambda: family.FlaxAlbertModel.from_pretrained(str(saved / "Model"), _do_init=False, from_pt=True))


def saved_files(family: Any, saved: pathlib.Path) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        load(family, saved, "Model").save_pretrained(directory)
        return sorted(path.name for path in pathlib.Path(directory).iterdir())


def other_format(family: Any, saved: pathlib.Path) -> str:
    with tempfile.TemporaryDirectory() as directory:
        return outcome(lambda: load(family, saved, "Model").save_pretrained(directory, safe_serialization=False))


def other_methods(family: Any, saved: pathlib.Path) -> list[bool]:
    model = load(family, saved, "Model")
    return [hasattr(model, name) for name in ("push_to_hub", "can_generate", "_from_config")]


def auto_classes(family: Any, saved: pathlib.Path) -> bool:
    return hasattr(family, "FlaxAutoModelForMaskedLM")


# --- what stays, of which doubts are possible -------------------------------------------------------------------------


def stays_half(family: Any, saved: pathlib.Path) -> list[str]:
    """dtypes of parameters that were stored in half precision."""
    with tempfile.TemporaryDirectory() as directory:
        model = load(family, saved, "Model")
        model.save_pretrained(directory, params=model.to_bf16(model.params))
        loaded = type(model).from_pretrained(directory)
    return sorted({str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(loaded.params)})


def stays_without_pooler(family: Any, saved: pathlib.Path) -> list[str]:
    model = load(family, saved, "Model", add_pooling_layer=False)
    return [*sorted(model.params), *model(IDS).keys()]


# The page's rows, by their first cell, and the function; then what transformers 4.57 and what albert_jax give.
DIFFERENCES: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "labels": (labels, "TypeError", "taken"),
    "dtype of scores": (logits_dtype, "bfloat16", "float32"),
    "names of output classes": (output_class, "FlaxMaskedLMOutput", "MaskedLMOutput"),
    "`hidden_states` where `inner_group_num` > 1": (hidden_states, 3, 5),
    "`model.module`": (module, True, False),
    "calls outside `jax.jit`": (programs, True, False),
    "gradient checkpointing": (checkpointing, False, True),
    "lists as inputs": (lists, "TypeError", "taken"),
    "ids outside their table": (ids_outside, True, "ValueError"),
    "rows longer than the position table": (long_rows, True, "ValueError"),
    "`train=True` without `dropout_rng`": (no_key, "another error", "ValueError"),
    "unexpected parameters in `params=`": (unexpected_parameters, "taken", "ValueError"),
    "initial weights": (initial_weights, [True, True], [False, False]),
    "padding row of the word table": (padding_row, True, False),
    "dropout before the multiple-choice head": (choice_dropout, False, True),
    "attention dropout": (attention_dropout, False, True),
    "dropout noise": (dropout_noise, "no keys of rows", True),
    "`tie_word_embeddings=False`": (untied, "taken", "ValueError"),
    "encoder not whole in a checkpoint": (torn_encoder, "taken", "ValueError"),
    "`_do_init=False` with `from_pt=True`": (params_apart, "ValueError", "taken"),
    "`save_pretrained`": (saved_files, ["config.json", "flax_model.msgpack"], ["config.json", "model.safetensors"]),
    "`safe_serialization=False`": (other_format, "taken", "ValueError"),
    "other methods": (other_methods, [True] * 3, [False] * 3),
    "Auto classes": (auto_classes, True, False),
}
SAME: dict[str, tuple[Callable[..., Any], Any]] = {
    "half precision": (stays_half, ["bfloat16"]),
    "without pooler": (stays_without_pooler, ["embeddings", "encoder", "last_hidden_state"]),
}


def run(family: Any, saved: pathlib.Path) -> dict[str, Any]:
    """What each of the functions returns."""
    return {name: entry[0](family, saved) for name, entry in (DIFFERENCES | SAME).items()}


def main() -> None:
    """Runs them with transformers."""
    import transformers

    results = run(transformers, pathlib.Path(sys.argv[1]))
    pathlib.Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
