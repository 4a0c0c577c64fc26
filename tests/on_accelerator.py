# SPDX-License-Identifier: Apache-2.0
"""What is run on the stand-in for an accelerator beside the project's own programs.

python tests/on_accelerator.py family OUT.npz           # every class of the model family
python tests/on_accelerator.py logits MODEL OUT.npz     # those of a directory that export.py made
python tests/on_accelerator.py pages PLACE OUT.json     # the examples of docs/, in a directory with their model
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import albert_jax
from tests import architectures, pages

Named = dict[str, np.ndarray]


# --- the model family -------------------------------------------------------------------------------------------------


def family() -> Named:
    """What every class computes, by names like 'FlaxAlbertModel/pooler_output'.

    A transfer guard stands around each call, as a user may have it: what goes in is on the device, what comes out is
    fetched.
    """
    with tempfile.TemporaryDirectory() as directory:
        found = {head: _class_results(head, pathlib.Path(directory) / head) for head in architectures.HEADS}
    return {f"{head}/{name}": value for head, results in found.items() for name, value in results.items()}


def _class_results(head: str, directory: pathlib.Path) -> Named:
    labels_of = {} if head.endswith("QuestionAnswering") else {"num_labels": 3}
    config = albert_jax.AlbertConfig(**architectures.SMALL | {"num_hidden_layers": 2} | labels_of)
    model, drawn = architectures.model(head, config)
    inputs, labels = architectures.inputs_and_labels(head, config)
    inputs, labels, params = jax.device_put((inputs, labels, drawn))
    found = _trained(model, params, inputs, labels, config.initializer_range)
    model.save_pretrained(directory, params)
    loaded = type(model).from_pretrained(directory)
    with jax.transfer_guard("disallow"):
        output = jax.device_get(dict(loaded(**inputs, output_hidden_states=True, output_attentions=True)))
    for name, value in output.items():
        found |= {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
    for path, value in traverse_util.flatten_dict(jax.device_get(loaded.params), sep="/").items():
        found[f"saved/{path}"] = value
    return found


def _trained(model: Any, params: Any, inputs: Any, labels: Any, rate: float) -> Named:
    """One step of training with dropout, as the pages of docs/ have it."""
    optimizer = optax.adamw(rate)

    @jax.jit
    def step(params: Any, state: Any, inputs: Any, labels: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            output = model(**inputs, **labels, params=params, dropout_rng=key, train=True)
            return output.loss if labels else jnp.mean(jnp.sin(output.last_hidden_state))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return value, gradient, optax.apply_updates(params, updates), state

    state, key = optimizer.init(params), jax.random.key(0)
    with jax.transfer_guard("disallow"):
        value, gradient, params, state = step(params, state, inputs, labels, key)
        value, gradient = jax.device_get((value, gradient))
    return {"loss": value} | {f"gradient/{k}": g for k, g in traverse_util.flatten_dict(gradient, sep="/").items()}


# --- a model ----------------------------------------------------------------------------------------------------------


def logits(directory: pathlib.Path) -> Named:
    """The inputs and both heads' logits of a saved pretraining model."""
    model = albert_jax.FlaxAlbertForPreTraining.from_pretrained(directory)
    inputs = architectures.rows(model.config)
    return inputs | jax.device_get(dict(model(**inputs)))


# --- the pages of docs/ -----------------------------------------------------------------------------------------------


def run_pages(place: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Of each page, what its training reached, where it has one; also the migration's example as it is afterwards."""
    found = {}
    for page in pages.PAGES:
        names = pages.run_page(page, place)
        found[page] = {
            "devices": jax.device_count(),
            "loss": float(names["loss"]) if page in pages.TRAINED else None,
            "compiled": names["train_step"]._cache_size() if page in pages.TRAINED else None,
        }
    return found


def main(what: str, *paths: str) -> None:
    *directories, out = map(pathlib.Path, paths)
    assert jax.default_backend() == "standin"
    if what == "pages":
        out.write_text(json.dumps(run_pages(*directories)))
    else:
        np.savez(out, **({"family": family, "logits": logits}[what](*directories)))  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
