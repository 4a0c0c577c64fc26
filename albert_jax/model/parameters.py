# SPDX-License-Identifier: Apache-2.0
"""Parameters as a plain nested dict of arrays, the form in which they are optimised, saved and converted."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from albert_jax.errors import UserError

Model = TypeVar("Model", bound=nnx.Module)
Parameters = dict[str, Any]  # nested; keys are attribute names and list indices as strings, leaves float32 arrays


def parameters(model: nnx.Module) -> Parameters:
    """The model's parameters as a nested dict with string keys; shared ones once, under their first name."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return traverse_util.unflatten_dict({tuple(map(str, path)): leaf[...] for path, leaf in flat})


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Path ("/"-joined) -> shape of each of the model's parameters; the model may be abstract."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.shape(leaf.get_value()) for path, leaf in flat}


def with_parameters(model: Model, values: Mapping[str, Any]) -> Model:
    """A model of the same structure that holds `values`; `model` itself is left as it is and may be abstract.

    Raises:
      UserError: naming parameters that are missing, unexpected or of another shape.
    """
    graph, state = nnx.split(model, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    given = traverse_util.flatten_dict(values)
    names = {tuple(map(str, path)): path for path in flat}
    missing, unexpected = sorted(names.keys() - given.keys()), sorted(given.keys() - names.keys())
    if missing or unexpected:
        raise UserError(
            f"these parameters do not fit the model: {len(missing)} missing {['/'.join(p) for p in missing[:3]]}, "
            f"{len(unexpected)} unexpected {['/'.join(p) for p in unexpected[:3]]}; check the model's configuration."
        )
    for name, path in names.items():
        if np.shape(given[name]) != np.shape(flat[path].get_value()):
            raise UserError(
                f"parameter {'/'.join(name)} has shape {np.shape(given[name])} where the model's configuration wants "
                f"{np.shape(flat[path].get_value())}; check the model's configuration."
            )
    new = nnx.from_flat_state([(path, flat[path].replace(jnp.asarray(given[name]))) for name, path in names.items()])
    return nnx.merge(graph, new)
