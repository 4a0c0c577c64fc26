# SPDX-License-Identifier: Apache-2.0
"""Labels are looked at before a loss is computed from them, where their values are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model.losses import IGNORED_LABEL, classification_kind

Array = jax.Array | np.ndarray


def as_array(name: str, value: Any) -> Array:
    """Labels as an array of numbers.

    Raises:
      UserError: where they are no numbers, or rows of different lengths.
    """
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError as e:
        raise UserError(f"{name} has rows of different lengths; pad them with {IGNORED_LABEL}.") from e
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        first = array.ravel()[0] if array.size else value
        raise UserError(f"{name} holds {str(first)!r}; give numbers: config.label2id has those of the classes' names.")
    return array


def check_classes(name: str, labels: Array, shape: tuple[int, ...], classes: int | None) -> None:
    """Refuses labels that are not one class of several each.

    Args:
      name: of the argument.
      labels: as given.
      shape: that they must have.
      classes: how many there are; None where a label is a slot, which may lie beyond the row and then does not count.

    Raises:
      UserError: naming the shape, the dtype, or the first value that is no class.
    """
    if labels.shape != shape:
        raise UserError(f"{name} has shape {labels.shape}; give integers of shape {shape}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f"{name} has dtype {labels.dtype}; give integers of shape {shape}.")
    values = _known(labels)
    if values is None:
        return
    if classes is None:
        if (values < 0).any():
            raise UserError(f"{name} holds {values[values < 0][0]}; give a slot, or one beyond the row for no loss.")
        return
    counted = values[values != IGNORED_LABEL]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise UserError(
            f"{name} holds {wrong[0]}; the classes are 0 to {classes - 1}, and {IGNORED_LABEL} where there is no loss."
        )
    if values.size and not counted.size:
        raise UserError(f"{name} is {IGNORED_LABEL} everywhere, and a mean over nothing is no loss; leave it away.")


def check_classification(labels: Array, rows: int, config: AlbertConfig) -> None:
    """Refuses labels that the sequence classifier has no loss for; see `classification_loss`.

    Args:
      labels: as given.
      rows: B.
      config: of the model.

    Raises:
      UserError: naming what is wrong with them.
    """
    kind, several = classification_kind(labels.dtype, config), (rows, config.num_labels)
    if kind == "single_label_classification":
        check_classes("labels", labels, (rows,), config.num_labels)
        return
    shapes = (several, (rows,)) if config.num_labels == 1 else (several,)
    if labels.shape not in shapes:
        one = ""
        if config.problem_type is None and config.num_labels > 1:
            one = f", or integers of shape ({rows},) for one class a row"
        raise UserError(
            f"labels has dtype {labels.dtype} and shape {labels.shape}; {kind.replace('_', ' ')} with num_labels "
            f"{config.num_labels} has numbers of shape {several}: give these{one}."
        )
    values = _known(labels)
    if values is not None and not np.isfinite(values).all():
        raise UserError(f"labels holds {values[~np.isfinite(values)][0]}; leave out rows whose value is not known.")
    if values is not None and kind != "regression" and ((values < 0) | (values > 1)).any():
        wrong = values[(values < 0) | (values > 1)][0]
        raise UserError(f"labels holds {wrong}; several classes at once are numbers from 0, absent, to 1, present.")


def _known(labels: Array) -> np.ndarray | None:
    """The values, unless they are being traced or lie in other processes."""
    if isinstance(labels, jax.core.Tracer) or (isinstance(labels, jax.Array) and not labels.is_fully_addressable):
        return None
    return np.asarray(jax.device_get(labels))
