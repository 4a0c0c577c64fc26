# SPDX-License-Identifier: Apache-2.0
"""Where a new run's parameters come from: fresh, from another run, or from a checkpoint of Hugging Face or Google."""

import functools
import logging
import pathlib
from collections.abc import Collection
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath
from flax import nnx, traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import load_google_checkpoint
from albert_jax.convert.huggingface import Checkpoint, fit, read_checkpoint
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters
from albert_jax.model.parameters import parameter_shapes
from albert_jax.remote import directory, is_remote
from albert_jax.tokenization.vocabulary import parse_vocabulary, read_vocabulary
from albert_jax.training.data import vocabulary_file
from albert_jax.training.restoring import load_parameters
from albert_jax.training.step import initial_parameters
from albert_jax.training.tables import with_positions, with_vocabulary

_log = logging.getLogger(__name__)

Flat = dict[str, np.ndarray]
_WORDS = "albert/embeddings/word_embeddings/embedding"
_POSITIONS = "albert/embeddings/position_embeddings/embedding"
_WORD_BIAS = "predictions/bias"
# Fields by which weights mean something: with other ones they have no place or compute something else. A model may
# have more groups and inner layers than the weights, which then begin afresh.
_FIXED = (
    *("embedding_size", "hidden_size", "intermediate_size", "type_vocab_size"),
    *("num_attention_heads", "hidden_act", "layer_norm_eps"),
)
_GROWING = ("num_hidden_groups", "inner_group_num")
_ADAPTED = ("vocab_size", "max_position_embeddings")  # see `init_vocabulary` and `init_positions`


class Trained(NamedTuple):
    """Weights that a run starts from.

    Attributes:
      source: what they are, for messages.
      architecture: theirs.
      pieces: of their vocabulary; None where it does not lie beside them.
      params: path -> float32 array. Heads may be absent.
    """

    source: str
    architecture: AlbertConfig
    pieces: tuple[str, ...] | None
    params: Flat


def take_architecture(
    config: ml_collections.ConfigDict, given: Collection[str], saved: dict[str, Any] | None = None
) -> None:
    """Gives a config the model fields of the weights that `init_from` names, but for those that were asked for by name.

    The size of the vocabulary is that of their vocabulary, whose table may be padded. With `init_vocabulary` it is the
    recipe's, as the weights say nothing about the new one.

    Args:
      config: the run's, changed in place.
      given: full names of the fields that were asked for by name, such as "model.num_hidden_layers".
      saved: `run.json` of a run that goes on. It has taken its fields already, and needs its source no more.

    Raises:
      UserError: where `init_from` is nothing that a run can start from, or not with what was asked for by name.
    """
    if saved is not None and saved["config"].get("init_from"):
        source, fields = saved["config"]["init_from"], dict(saved["config"]["model"])
    elif saved is None and config.init_from:
        trained = _trained(config.init_from)
        source, fields = trained.source, trained.architecture.to_dict()
        if trained.pieces is not None:
            fields["vocab_size"] = len(trained.pieces)
        if config.init_vocabulary:
            del fields["vocab_size"]
    else:
        return
    taken = {
        name: value
        for name, value in fields.items()
        if f"model.{name}" not in given and name in config.model and config.model[name] != value
    }
    if taken:
        told = ", ".join(f"{name} {value!r} (the recipe has {config.model[name]!r})" for name, value in taken.items())
        _log.info("the model is that of %s: %s.", source, told)
    with config.unlocked():
        config.model.update(taken)
    if saved is None:
        _check_architecture(trained, AlbertConfig.from_dict(config.model.to_dict()))


def starting_parameters(config: ml_collections.ConfigDict) -> Parameters:
    """Fresh parameters, overlaid by those of `config.init_from` where it is given; the optimizer always starts afresh.

    What `init_from` lacks (a head, further groups) stays fresh and is named in the log, and so is what is left out.

    Args:
      config: the run's; `init_from` is a workdir of ours, a directory with a Hugging Face checkpoint, or a checkpoint
        of Google's code.

    Raises:
      UserError: where `init_from` is none of them, computes otherwise (sizes, heads, activation), or is of another
        vocabulary or another number of positions and the config does not say how to adapt it.
    """
    fresh = traverse_util.flatten_dict(initial_parameters(config), sep="/")
    if not config.init_from:
        return traverse_util.unflatten_dict(fresh, sep="/")
    trained, wanted = _trained(config.init_from), AlbertConfig.from_dict(config.model.to_dict())
    _trained.cache_clear()  # the weights need not be kept while the run trains
    _check_architecture(trained, wanted)
    _log.info("starting from %s, with a fresh optimizer.", trained.source)
    _tell_differences(trained, wanted)
    params = dict(trained.params)
    params[_POSITIONS] = with_positions(
        params[_POSITIONS], wanted.max_position_embeddings, config.init_positions, trained.source
    )
    tables = {name: params[name] for name in (_WORDS, _WORD_BIAS) if name in params}
    pieces = Vocabulary.load(vocabulary_file(config)).pieces
    params |= with_vocabulary(tables, trained.pieces, pieces, config.init_vocabulary, trained.source)
    return _overlay(fresh, params, trained.source)


# --- what init_from names ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # a start asks twice: for the architecture, and for the weights
def _trained(path: str) -> Trained:
    """Reads a workdir, a Hugging Face directory or a checkpoint of Google's."""
    source = directory(path)
    if (source / "checkpoints").is_dir():
        params, meta = load_parameters(source)
        model = AlbertConfig.from_dict(meta["config"]["model"])
        flat = traverse_util.flatten_dict(params, sep="/")
        return Trained(f"step {meta['step']} of {source}", model, _pieces_beside(source), flat)
    if is_remote(source):
        raise UserError(
            f"init_from {source} is no training workdir, and other checkpoints are read from a disk only; copy it."
        )
    if (source / "config.json").is_file():
        model = AlbertConfig.from_pretrained(source)
        params = _fitting(read_checkpoint(source), model)
        return Trained(f"the Hugging Face checkpoint {source}", model, _pieces_beside(source), params)
    try:
        google = load_google_checkpoint(source)
    except UserError as e:
        raise UserError(f"init_from is no training workdir and no Hugging Face directory; as Google's: {e}") from e
    name, params = google.source, _fitting(Checkpoint(google.tensors, google.source, str), google.config)
    pieces = None if google.vocabulary is None else _pieces(google.vocabulary, name)
    return Trained(f"Google's checkpoint {name}", google.config, pieces, params)


def _fitting(checkpoint: Checkpoint, config: AlbertConfig) -> Flat:
    """What a checkpoint holds of its own architecture with both pretraining heads, as float32; other heads are named.

    Raises:
      UserError: where it holds another encoder than its configuration says.
    """
    shapes = parameter_shapes(nnx.eval_shape(lambda: FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))))
    fitted = fit(checkpoint, shapes)
    torn = [path for path in fitted.missing if path.startswith(("albert/embeddings/", "albert/encoder/"))]
    if torn:
        raise UserError(
            f"{checkpoint.source} lacks {len(torn)} parameters of the encoder, such as {checkpoint.spell(torn[0])}; "
            "it is not whole, or its configuration is another model's; copy both again."
        )
    foreign = [name for name in fitted.unexpected if "encoder" in name or "embeddings" in name]
    if foreign:
        raise UserError(
            f"{checkpoint.source} holds {foreign[0]}, which the model of its configuration does not have; give it the "
            "configuration that it was saved with."
        )
    if fitted.unexpected:
        names = ", ".join(fitted.unexpected)
        _log.warning("pretraining has no place for these of %s, which are left out: %s.", checkpoint.source, names)
    return {path: np.asarray(value, np.float32) for path, value in fitted.params.items()}


def _pieces_beside(source: epath.Path) -> tuple[str, ...] | None:
    """The pieces of the vocabulary in a directory, if it has one."""
    if (source / "spiece.model").is_file():
        return _pieces((source / "spiece.model").read_bytes(), source / "spiece.model")
    if (source / "tokenizer.json").is_file():
        return tuple(piece.piece for piece in read_vocabulary(pathlib.Path(source / "tokenizer.json")).pieces)
    return None


def _pieces(model: bytes, source: object) -> tuple[str, ...]:
    """The pieces of a spiece.model's bytes."""
    try:
        return tuple(piece.piece for piece in parse_vocabulary(model).pieces)
    except Exception as e:  # protobuf's DecodeError has no stable home across its implementations
        raise UserError(f"the vocabulary of {source} is not a SentencePiece model ({e}); copy it again.") from e


# --- what is made of it -----------------------------------------------------------------------------------------------


def _check_architecture(trained: Trained, wanted: AlbertConfig) -> None:
    """Refuses weights that would have no place or mean something else."""
    old, new = trained.architecture.to_dict(), wanted.to_dict()
    for name in (*_FIXED, *_GROWING):
        if new[name] != old[name] and (name in _FIXED or new[name] < old[name]):
            raise UserError(
                f"{trained.source} was trained with {name} {old[name]!r}, not {new[name]!r}; pass "
                f"--config.model.{name}={old[name]}."
            )


def _tell_differences(trained: Trained, wanted: AlbertConfig) -> None:
    """Says which fields of the model are not those of the weights, such as its depth."""
    old, new = trained.architecture.to_dict(), wanted.to_dict()
    others = [name for name in old if name not in (*_FIXED, *_ADAPTED) and old[name] != new[name]]
    if others:
        told = ", ".join(f"{name} {new[name]!r} (it has {old[name]!r})" for name in others)
        _log.info("as the config asks, otherwise than %s: %s.", trained.source, told)


def _overlay(fresh: Flat, given: Flat, source: str) -> Parameters:
    """`fresh` with the values of `given` wherever it has one."""
    for name in given:
        if name not in fresh:
            raise UserError(
                f"{source} holds {name}, which this model does not have; leave the fields --config.model.* away, or "
                "give those that it was trained with."
            )
    anew = sorted(fresh.keys() - given.keys())
    if anew:
        _log.warning("%s parameters are not in %s and are initialised anew: %s.", len(anew), source, ", ".join(anew))
    return traverse_util.unflatten_dict(fresh | given, sep="/")
