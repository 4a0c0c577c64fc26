# SPDX-License-Identifier: Apache-2.0
"""What users of transformers 4's Flax ALBERT write, run with whichever package is given.

    python flax_calls.py DIRECTORY OUT.npz      # with transformers 4.57, in an environment that has it and Flax

DIRECTORY holds a saved model for each class, DIRECTORY/NAME. What comes out, arrays, shapes and names, is compared
between transformers' classes and ours by test_flax_drop_in.py.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

Results = dict[str, Any]
SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "embedding_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_hidden_groups": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
}
NAMES = (
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
# It takes seconds to make a model, and to differentiate one, so some stand for all.
MADE = ("Model", "ForPreTraining")
TRAINED = ("ForPreTraining", "ForMultipleChoice")


def shapes_of(params: Any) -> list[str]:
    """Each parameter's path and shape."""
    return sorted(f"{'/'.join(path)} {tuple(leaf.shape)}" for path, leaf in flatten_dict(params).items())


def inputs_for(name: str) -> dict[str, np.ndarray]:
    """Rows with padding, two token types and unusual positions; several choices a row where the class wants them."""
    rng = np.random.default_rng(3)
    shape = (2, 3, 10) if name == "ForMultipleChoice" else (2, 10)
    mask = np.ones(shape, np.int64)
    mask[0, ..., 7:] = 0
    return {
        "input_ids": rng.integers(5, 96, shape),  # no padding token: its row's gradient is one of the differences
        "attention_mask": mask,
        "token_type_ids": (np.arange(10) > 4) * mask,
        "position_ids": np.broadcast_to(rng.permutation(32)[:10], shape).copy(),
    }


def call_every_way(model: Any, name: str) -> Results:
    """The call with its arguments by name, by place, left out and as tuples; outputs by attribute, name and place."""
    inputs = inputs_for(name)
    full = model(**inputs, output_hidden_states=True, output_attentions=True)
    out: Results = {"keys": list(full.keys()), "length": len(full)}
    for key in full.keys():  # noqa: SIM118  (transformers' outputs are no plain mappings)
        values = full[key] if isinstance(full[key], tuple) else (full[key],)
        out |= {f"{key}/{i}": value for i, value in enumerate(values)}
    out["first"] = full[0]
    out["tuple"] = len(full.to_tuple())
    out["plain"] = model(inputs["input_ids"])[0]
    ids, mask, types, positions = inputs.values()
    out["by place"] = model(ids, mask, types, positions, model.params, None, False)[0]
    out["lists"] = model(jnp.array(ids), attention_mask=jnp.array(mask), return_dict=False)[0]
    out["of bfloat16"] = model(ids, params=model.to_bf16(model.params))[0].shape
    key = jax.random.PRNGKey(0)
    out["train"] = model(**inputs, params=model.params, dropout_rng=key, train=True)[0].shape
    return out


def differentiate(model: Any, name: str) -> Results:
    """A training step as the example scripts have it: a loss of the logits, its gradient, an update."""
    inputs = inputs_for(name)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(model(**inputs, params=params, train=False)[0].astype(jnp.float32)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    optimizer = optax.sgd(0.1)
    updates, _ = optimizer.update(gradient, optimizer.init(model.params), model.params)
    model.params = optax.apply_updates(model.params, updates)
    out: Results = {"loss": value, "after": model(**inputs)[0]}
    return out | {f"gradient {'/'.join(path)}": leaf for path, leaf in flatten_dict(gradient).items()}


def make_and_cast(family: Any, name: str) -> Results:
    """Fresh models with and without parameters, casts with and without a mask, the parameters' setter."""
    cls = getattr(family, f"FlaxAlbert{name}")
    config = family.AlbertConfig(**SHAPE)
    shape = (1, 1) if name == "ForMultipleChoice" else (1, 8)
    bare = cls(config, input_shape=shape, seed=1, dtype=jnp.float32, _do_init=False)
    out: Results = {"tree": shapes_of(bare.params_shape_tree), "width": bare.config.hidden_size}
    out["required"] = sorted("/".join(path) for path in bare.required_params)
    if name not in MADE:
        return out
    model = cls(config, shape, 1)
    out["tree of the whole"] = shapes_of(model.params)
    params = bare.init_weights(jax.random.PRNGKey(2), shape)
    out["tree of init_weights"] = shapes_of(params)
    out["call with params"] = bare(inputs_for(name)["input_ids"], params=params)[0].shape
    for action in (lambda: bare.params, lambda: setattr(model, "params", {})):
        out[f"refused {len(out)}"] = raises(action)
    mask = unflatten_dict({path: path[-1] == "kernel" for path in flatten_dict(params)})
    for cast in (bare.to_bf16, bare.to_fp16, bare.to_fp32):
        out[f"{cast.__name__}"] = sorted({str(x.dtype) for x in jax.tree_util.tree_leaves(cast(params))})
    out["masked"] = sorted(f"{'/'.join(p)} {x.dtype}" for p, x in flatten_dict(bare.to_bf16(params, mask)).items())
    return out


def raises(action: Callable[[], Any]) -> str:
    """Which of Python's errors an action raises."""
    try:
        action()
    except ValueError:
        return "ValueError"
    return "nothing"


def load_and_save(family: Any, name: str, directory: pathlib.Path) -> Results:
    """Loading with its arguments, saving, loading again."""
    cls = getattr(family, f"FlaxAlbert{name}")
    ids = inputs_for(name)["input_ids"]
    loaded = cls.from_pretrained(str(directory), from_pt=True, dtype=jnp.float32, local_files_only=True)
    out: Results = {"from_pt": loaded(ids)[0], "tree": shapes_of(loaded.params)}
    with tempfile.TemporaryDirectory() as saved:
        loaded.save_pretrained(saved)
        again = cls.from_pretrained(saved)
        out["again"] = again(ids)[0]
        model, params = cls.from_pretrained(saved, _do_init=False)
        out["apart"] = model(ids, params=params)[0]
        if name in ("ForSequenceClassification", "ForTokenClassification"):
            other = cls.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)
            out["other head"] = other(ids)[0].shape
            out["labels"] = sorted(other.config.id2label.values())
    return out


def run(family: Any, directory: pathlib.Path) -> Results:
    """Everything above for every class; names of results -> arrays, numbers or lists of strings."""
    results: Results = {}
    for name in NAMES:
        model = getattr(family, f"FlaxAlbert{name}").from_pretrained(str(directory / name))
        parts = {
            "call": call_every_way(model, name),
            "make": make_and_cast(family, name),
            "files": load_and_save(family, name, directory / name),
        }
        if name in TRAINED:
            parts["train"] = differentiate(model, name)
        for part, values in parts.items():
            results |= {f"{name}: {part}: {key}": value for key, value in values.items()}
    return results


def main() -> None:
    """Runs the calls with transformers, and leaves behind files that its Flax classes write."""
    import transformers

    directory, out = pathlib.Path(sys.argv[1]), sys.argv[2]
    results = run(transformers, directory)
    for name in NAMES:
        model = getattr(transformers, f"FlaxAlbert{name}").from_pretrained(str(directory / name))
        model.save_pretrained(directory / f"{name}-msgpack")
        model.save_pretrained(directory / f"{name}-flax-safetensors", safe_serialization=True)
        model.save_pretrained(directory / f"{name}-sharded", max_shard_size="40KB")
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in results.items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
