# SPDX-License-Identifier: Apache-2.0
"""Where a new run's parameters come from: fresh, from another run, or from a checkpoint of Hugging Face or Google."""

import hashlib
import logging
import pathlib

import ml_collections
import numpy as np
from flax import traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import load_google_checkpoint
from albert_jax.convert.huggingface import Checkpoint, fit, read_checkpoint
from albert_jax.errors import UserError
from albert_jax.model import Parameters
from albert_jax.remote import directory, is_remote
from albert_jax.training.data import vocabulary_file
from albert_jax.training.restoring import load_parameters
from albert_jax.training.step import initial_parameters

_log = logging.getLogger(__name__)


def starting_parameters(config: ml_collections.ConfigDict) -> Parameters:
    """Fresh parameters, overlaid by those of `config.init_from` where it is given; the optimizer always starts afresh.

    What `init_from` lacks (a head, further groups) stays fresh and is named in the log.

    Args:
      config: the run's; `init_from` is a workdir of ours, a directory with a Hugging Face checkpoint, or a checkpoint
        of Google's code.

    Raises:
      UserError: where `init_from` is none of them, is of another vocabulary or computes otherwise (heads, activation),
        or holds an array that the model has no place of that shape for.
    """
    fresh = initial_parameters(config)
    if not config.init_from:
        return fresh
    source = directory(config.init_from)
    if (source / "checkpoints").is_dir():
        given, meta = load_parameters(source)
        architecture, vocabulary = AlbertConfig.from_dict(meta["config"]["model"]), meta["vocabulary_sha256"]
        _log.info("starting from step %s of %s, with a fresh optimizer.", meta["step"], source)
    elif is_remote(source):
        raise UserError(
            f"init_from {source} is no training workdir, and other checkpoints are read from a disk only; copy it."
        )
    elif (source / "config.json").is_file():
        architecture, vocabulary = AlbertConfig.from_pretrained(source), _vocabulary_of(source)
        given = _fitting(read_checkpoint(source), fresh)
        _log.info("starting from the Hugging Face checkpoint %s, with a fresh optimizer.", source)
    else:
        try:
            google = load_google_checkpoint(source)
        except UserError as e:
            raise UserError(f"init_from is no training workdir and no Hugging Face directory; as Google's: {e}") from e
        architecture = google.config
        vocabulary = None if google.vocabulary is None else hashlib.sha256(google.vocabulary).hexdigest()
        given = _fitting(Checkpoint(google.tensors, google.source, str), fresh)
        _log.info("starting from Google's checkpoint %s, with a fresh optimizer.", google.source)
    _check_vocabulary(vocabulary, _vocabulary_of(vocabulary_file(config).parent), source)
    _check_arithmetic(architecture, AlbertConfig.from_dict(config.model.to_dict()), source)
    return _overlay(fresh, given, source)


def _fitting(checkpoint: Checkpoint, fresh: Parameters) -> Parameters:
    """The parameters of a checkpoint, as float32, all of which the model must have."""
    shapes = {path: np.shape(value) for path, value in traverse_util.flatten_dict(fresh, sep="/").items()}
    fitted = fit(checkpoint, shapes)
    if fitted.unexpected:
        raise UserError(
            f"{checkpoint.source} holds {fitted.unexpected[0]}, which this model does not have; change config.model to "
            "fit."
        )
    return traverse_util.unflatten_dict({k: np.float32(v) for k, v in fitted.params.items()}, sep="/")


def _check_vocabulary(given: str | None, wanted: str | None, source: pathlib.Path) -> None:
    """Refuses the embeddings of another vocabulary: they would mean other words."""
    if given is None or wanted is None:
        _log.warning("%s has no spiece.model: whether its vocabulary is the data set's cannot be checked.", source)
    elif given != wanted:
        raise UserError(
            f"{source} was trained with another vocabulary than the data set's ({given[:12]}, not {wanted[:12]}); "
            "build the data set with its spiece.model."
        )


def _vocabulary_of(directory: pathlib.Path) -> str | None:
    """sha256 of a directory's spiece.model, if it has one."""
    file = directory / "spiece.model"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _check_arithmetic(given: AlbertConfig, wanted: AlbertConfig, source: pathlib.Path) -> None:
    """Refuses weights whose shapes fit but which were trained to be computed with otherwise."""
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        old, new = getattr(given, name), getattr(wanted, name)
        if old != new:
            raise UserError(f"{source} was trained with {name} {old!r}, not {new!r}; pass --config.model.{name}={old}.")


def _overlay(fresh: Parameters, given: Parameters, source: pathlib.Path) -> Parameters:
    """`fresh` with the values of `given` wherever it has one."""
    new, old = traverse_util.flatten_dict(fresh, sep="/"), traverse_util.flatten_dict(given, sep="/")
    for name, value in old.items():
        if name not in new:
            raise UserError(f"{source} holds {name}, which this model does not have; change config.model to fit.")
        if np.shape(value) != np.shape(new[name]):
            raise UserError(
                f"{name} has shape {np.shape(value)} in {source} and {np.shape(new[name])} in this model; change "
                "config.model to fit."
            )
    anew = sorted(new.keys() - old.keys())
    if anew:
        _log.warning("%s parameters are not in %s and are initialised anew: %s.", len(anew), source, ", ".join(anew))
    return traverse_util.unflatten_dict(new | old, sep="/")
