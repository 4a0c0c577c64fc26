# SPDX-License-Identifier: Apache-2.0
"""What docs/from_transformers_flax.md says is different, found out with whichever package is given.

    python flax_differences.py DIRECTORY OUT.json      # with transformers 4.57, in an environment that has it and Flax

Each function below is a row of the page's table; test_docs.py compares what it returns with both packages.
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
IDS = np.array([[2, 5, 9, 3]])
KEY = jax.random.PRNGKey(0)


@functools.cache
def make(family: Any, name: str, **options: Any) -> Any:
    """A small model of fresh parameters; the same one each time, as making one takes seconds."""
    config = family.AlbertConfig(**SHAPE, classifier_dropout_prob=0.5)
    dtype = jnp.bfloat16 if name == "ForSequenceClassification" else jnp.float32
    return getattr(family, f"FlaxAlbert{name}")(config, dtype=dtype, **options)


def outcome(action: Callable[[], Any]) -> str:
    """The base among Python's errors of what an action raises, or "taken"."""
    try:
        action()
    except Exception as e:
        known = (ValueError, TypeError, NotImplementedError, AttributeError)
        return next((base.__name__ for base in known if isinstance(e, base)), "another error")
    return "taken"


def is_nan(family: Any, ids: Any) -> Any:
    """Whether the scores of ids are NaN somewhere, or how they are refused."""
    model = make(family, "ForMaskedLM")
    refusal = outcome(lambda: model(ids))
    return bool(np.isnan(np.asarray(model(ids).logits)).any()) if refusal == "taken" else refusal


def labels(family: Any) -> str:
    model = make(family, "ForMaskedLM")
    return outcome(lambda: model(IDS, labels=IDS).loss)


def logits_dtype(family: Any) -> str:
    return str(make(family, "ForSequenceClassification")(IDS).logits.dtype)


def output_class(family: Any) -> str:
    return type(make(family, "ForMaskedLM")(IDS)).__name__


def hidden_states(family: Any) -> int:
    return len(make(family, "Model")(IDS, output_hidden_states=True).hidden_states)


def module(family: Any) -> bool:
    return hasattr(make(family, "Model").module, "apply")


def programs(family: Any) -> bool:
    """Whether a call is more than a handful of programs."""
    model = make(family, "Model")
    return len(jax.make_jaxpr(lambda ids: model(ids).last_hidden_state)(jnp.asarray(IDS)).eqns) > 20


def checkpointing(family: Any) -> bool:
    """Whether the backward pass computes layers anew."""
    model = make(family, "Model")
    gradient = jax.grad(lambda params: model(IDS, params=params).last_hidden_state.sum())
    program = str(jax.make_jaxpr(gradient)(model.params))
    return "remat" in program or "checkpoint[" in program


def lists(family: Any) -> str:
    model = make(family, "ForMaskedLM")
    return outcome(lambda: model(IDS.tolist()))


def ids_outside(family: Any) -> Any:
    return is_nan(family, np.array([[2, 500, 3]]))


def long_rows(family: Any) -> Any:
    return is_nan(family, np.full((1, 40), 7))


def no_key(family: Any) -> str:
    model = make(family, "ForSequenceClassification")
    return outcome(lambda: model(IDS, train=True))


def unexpected_parameters(family: Any) -> str:
    model = make(family, "Model")
    params = model.params | {"extra": {"kernel": jnp.ones(3)}}
    return outcome(lambda: model(IDS, params=params))


def initial_weights(family: Any) -> list[bool]:
    """Whether anything goes beyond two deviations, in the encoder and in the head."""
    params = make(family, "ForSequenceClassification").params
    kernels = params["albert"]["encoder"]["embedding_hidden_mapping_in"]["kernel"], params["classifier"]["kernel"]
    return [bool(jnp.abs(kernel).max() > 0.0401) for kernel in kernels]


def padding_row(family: Any) -> bool:
    """Whether padding moves its own row of the word table."""
    model = make(family, "Model")
    ids = np.array([[2, 5, 0, 0]])
    gradient = jax.grad(lambda params: jnp.sin(model(ids, params=params).last_hidden_state).sum())(model.params)
    return bool(jnp.abs(gradient["embeddings"]["word_embeddings"]["embedding"][0]).max() > 0)


def choice_dropout(family: Any) -> bool:
    """Whether classifier_dropout_prob reaches the multiple-choice head, where it has nothing else to act on."""
    config = family.AlbertConfig(**(SHAPE | {"attention_probs_dropout_prob": 0.0}), classifier_dropout_prob=0.5)
    model = family.FlaxAlbertForMultipleChoice(config)
    ids = np.stack([IDS, IDS + 1], axis=1)
    return not np.array_equal(model(ids).logits, model(ids, train=True, dropout_rng=KEY).logits)


def attention_dropout(family: Any) -> bool:
    """Whether equal rows of a batch are dropped out differently."""
    model = make(family, "Model")
    rows = model(np.tile(IDS, (2, 1)), train=True, dropout_rng=KEY).last_hidden_state
    return not np.array_equal(rows[0], rows[1])


def dropout_noise(family: Any) -> Any:
    """Whether a row's noise is the same in any batch that it is in."""
    model = make(family, "Model")
    keys = jax.random.split(jax.random.key(0), 4)
    try:
        whole = model(np.tile(IDS, (4, 1)), train=True, dropout_rng=keys).last_hidden_state
        half = model(np.tile(IDS, (2, 1)), train=True, dropout_rng=keys[2:]).last_hidden_state
    except Exception:
        return "no keys of rows"
    return bool(np.allclose(whole[2:], half, atol=1e-6))


def untied(family: Any) -> str:
    return outcome(lambda: family.FlaxAlbertForMaskedLM(family.AlbertConfig(**SHAPE, tie_word_embeddings=False)))


def torn_encoder(family: Any, saved: pathlib.Path) -> str:
    other = family.AlbertConfig(**(SHAPE | {"num_hidden_groups": 2}))
    return outcome(lambda: family.FlaxAlbertModel.from_pretrained(str(saved), config=other))


def params_apart(family: Any, saved: pathlib.Path) -> str:
    return outcome(lambda: family.FlaxAlbertModel.from_pretrained(str(saved), _do_init=False, from_pt=True))


def saved_files(family: Any) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        make(family, "Model").save_pretrained(directory)
        return sorted(path.name for path in pathlib.Path(directory).iterdir())


def other_format(family: Any) -> str:
    with tempfile.TemporaryDirectory() as directory:
        return outcome(lambda: make(family, "Model").save_pretrained(directory, safe_serialization=False))


def other_methods(family: Any) -> list[bool]:
    model = make(family, "Model")
    return [hasattr(model, name) for name in ("push_to_hub", "can_generate", "_from_config")]


def auto_classes(family: Any) -> bool:
    return hasattr(family, "FlaxAutoModelForMaskedLM")


# --- what stays, of which doubts are possible -------------------------------------------------------------------------


def stays_half(family: Any) -> list[str]:
    """dtypes of parameters that were stored in half precision."""
    with tempfile.TemporaryDirectory() as directory:
        model = make(family, "Model")
        model.save_pretrained(directory, params=model.to_bf16(model.params))
        loaded = type(model).from_pretrained(directory)
    return sorted({str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(loaded.params)})


def stays_without_pooler(family: Any) -> list[str]:
    model = make(family, "Model", add_pooling_layer=False)
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
    functions = {name: entry[0] for name, entry in (DIFFERENCES | SAME).items()}
    stored = (torn_encoder, params_apart)
    return {name: check(family, saved) if check in stored else check(family) for name, check in functions.items()}


def main() -> None:
    """Runs them with transformers."""
    import transformers

    results = run(transformers, pathlib.Path(sys.argv[1]))
    pathlib.Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
