# SPDX-License-Identifier: Apache-2.0
"""Our parameters <-> the names and files of transformers' ALBERT classes.

The mapping is mechanical, because the attribute names agree: a path's parts are joined by "." and the leaf renamed. A
kernel is the transpose of torch's `weight`; a LayerNorm's `scale` and a table's `embedding` are its `weight` unchanged.
transformers 4's Flax classes use our own names. The MLM head's output table is the input table, so it is stored once.

Here parameters are flat: path ("albert/pooler/kernel") -> array. JAX is not needed.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.numpy import save_file

from albert_jax.config import AlbertConfig
from albert_jax.convert.weight_files import read_weights
from albert_jax.errors import UserError

Flat = dict[str, np.ndarray]
Shape = tuple[int, ...]

_log = logging.getLogger(__name__)
_ENCODER = ("embeddings/", "encoder/", "pooler/")  # what transformers calls AlbertModel, and stores without a prefix
_PREFIX = "albert/"
_TABLE = "albert/embeddings/word_embeddings/embedding"
# Not parameters: index tables that old versions of transformers stored.
_BUFFERS = ("embeddings/position_ids", "embeddings/token_type_ids")
_OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_OTHERS = ("flax_model.msgpack", "flax_model.msgpack.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class Checkpoint(NamedTuple):
    """Somebody's parameters.

    Attributes:
      tensors: path -> array, in the dtype in which it is stored.
      source: the file, for messages.
      spell: gives the checkpoint's own name of a path.
    """

    tensors: Flat
    source: str
    spell: Callable[[str], str]


class Fitted(NamedTuple):
    """What a checkpoint gives to a model.

    Attributes:
      params: path -> array, for all that both have.
      missing: the model's paths that the checkpoint lacks.
      unexpected: the checkpoint's own names of what the model lacks.
      mismatched: the model's paths that have another shape in the checkpoint, where that is allowed.
    """

    params: Flat
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


# --- names ------------------------------------------------------------------------------------------------------------


def tensor_name(path: str) -> str:
    """transformers' name of a parameter: "albert/pooler/kernel" is "albert.pooler.weight"."""
    *module, leaf = path.split("/")
    return ".".join([*module, "bias" if leaf == "bias" else "weight"])


def _path(name: str, array: np.ndarray) -> str:
    """Our path of transformers' name, old spellings (gamma, beta) included."""
    *module, leaf = name.split(".")
    if leaf == "weight" or leaf == "gamma":
        table = bool(module) and module[-1].endswith("_embeddings")
        leaf = "embedding" if table else "scale" if array.ndim == 1 else "kernel"
    return "/".join([*module, "bias" if leaf == "beta" else leaf])


def turned(path: str, array: np.ndarray) -> np.ndarray:
    """Between torch's [out, in] and our [in, out]: its own inverse."""
    return np.ascontiguousarray(array.T) if path.endswith("/kernel") else array


def _from_torch(tensors: Mapping[str, np.ndarray]) -> Flat:
    flat = {}
    for name, array in tensors.items():
        path = _path(name, array)
        flat[path] = turned(path, array)
    return flat


# --- in ---------------------------------------------------------------------------------------------------------------


def read_checkpoint(directory: str | pathlib.Path, from_pt: bool = False) -> Checkpoint:
    """Reads the weights of a directory that transformers or this project saved; see `read_weights` for the files.

    Args:
      directory: holds them.
      from_pt: take a file of torch's where there are others too.

    Raises:
      UserError: where there is none, or it is damaged or holds more than weights.
    """
    weights, file = read_weights(pathlib.Path(directory), from_pt)
    if any(name.endswith((".weight", ".gamma")) for name in weights):
        return Checkpoint(_from_torch(weights), str(file), tensor_name)
    return Checkpoint({name.replace(".", "/"): array for name, array in weights.items()}, str(file), str)


def fit(checkpoint: Checkpoint, shapes: Mapping[str, Shape], ignore_mismatched_sizes: bool = False) -> Fitted:
    """Finds a model's parameters in a checkpoint of any ALBERT class.

    Args:
      checkpoint: of any head or none; a stored second copy of a tied tensor is compared and dropped.
      shapes: path -> shape of each of the model's parameters.
      ignore_mismatched_sizes: whether a parameter of another shape counts as lacking; otherwise it is refused.

    Raises:
      UserError: where a tensor has another shape or contradicts the tying, or nothing fits.
    """
    rest = _with_prefix_of(shapes, checkpoint.tensors)
    if any(path.startswith("predictions/") for path in shapes):
        _untie(rest, checkpoint)
    params, missing, mismatched = {}, [], []
    for path, shape in shapes.items():
        if path not in rest:
            missing.append(path)
        elif rest[path].shape != shape:
            if not ignore_mismatched_sizes:
                _refuse_shape(checkpoint, path, rest[path], shape)
            mismatched.append(path)
            del rest[path]
        else:
            params[path] = rest.pop(path)
    if not params:
        raise UserError(f"{checkpoint.source} holds no weights of an ALBERT model; check what it is.")
    unexpected = [checkpoint.spell(path) for path in rest if not path.removeprefix(_PREFIX).startswith(_BUFFERS)]
    return Fitted(params, missing, sorted(unexpected), mismatched)


def _with_prefix_of(shapes: Mapping[str, Shape], tensors: Flat) -> Flat:
    """The tensors, with the prefix "albert/" put before the encoder's or taken away, as the model has it."""
    wanted = any(path.startswith(_PREFIX) for path in shapes)
    if wanted and not any(path.startswith(_PREFIX) for path in tensors):
        return {_PREFIX + path if path.startswith(_ENCODER) else path: array for path, array in tensors.items()}
    return dict(tensors) if wanted else {path.removeprefix(_PREFIX): array for path, array in tensors.items()}


def _untie(tensors: Flat, checkpoint: Checkpoint) -> None:
    """Removes second copies of tied tensors; one that stands alone takes its first name."""
    tied = {"predictions/decoder/kernel": _TABLE, "predictions/decoder/bias": "predictions/bias"}
    for second, first in tied.items():
        if second not in tensors:
            continue
        copy = turned(second, tensors.pop(second))
        if not np.array_equal(tensors.setdefault(first, copy), copy):
            raise UserError(
                f"{checkpoint.spell(second)} of {checkpoint.source} differs from {checkpoint.spell(first)}, and the "
                "output layer of ALBERT is its input table; give a checkpoint that was trained tied."
            )


def _refuse_shape(checkpoint: Checkpoint, path: str, array: np.ndarray, shape: Shape) -> None:
    found, expected = array.shape, shape
    if checkpoint.spell is tensor_name and path.endswith("/kernel"):  # name the shapes as the file has them
        found, expected = found[::-1], expected[::-1]
    raise UserError(
        f"{checkpoint.spell(path)} of {checkpoint.source} has shape {found}, but the model's configuration asks for "
        f"{expected}; give the configuration that it was saved with."
    )


# --- models that the format has no form for -------------------------------------------------------------------------


def unshared(params: Mapping[str, Any], config: AlbertConfig) -> tuple[Flat, AlbertConfig]:
    """The same network with a copy for each group of what its groups share; it computes the same outputs.

    Hugging Face's format knows nothing shared across groups. What is trained on from the result is not shared any more.

    Args:
      params: path -> array, of a model with `config.shared_across_groups`.
      config: its architecture.

    Returns:
      Parameters and configuration of a model that shares nothing across groups.
    """
    flat = {path: np.asarray(value) for path, value in params.items()}
    parts = {"nothing": (), "attention": ("attention/",), "ffn": ("ffn/", "ffn_output/", "full_layer_layer_norm/")}
    copies: Flat = {}
    for path, value in flat.items():
        start, found, layer = path.partition("albert_layer_groups/0/")
        if found and layer.split("/", 2)[2].startswith(parts[config.shared_across_groups]):
            copies |= {f"{start}albert_layer_groups/{g}/{layer}": value for g in range(1, config.num_hidden_groups)}
    return flat | copies, dataclasses.replace(config, shared_across_groups="nothing")


# --- out --------------------------------------------------------------------------------------------------------------


def save_checkpoint(
    directory: str | pathlib.Path,
    params: Mapping[str, Any],
    config: AlbertConfig,
    architecture: str,
    max_shard_size: int | str = "10GB",
) -> list[pathlib.Path]:
    """Writes config.json and model.safetensors, which transformers 4 and 5 load as the class `architecture`.

    Args:
      directory: made if need be; files of these names are replaced.
      params: path -> array; each is stored in its own dtype.
      config: their architecture.
      architecture: name of transformers' torch class.
      max_shard_size: weights beyond this are split over several files and an index; bytes, or like "5GB".

    Returns:
      The files written.

    Raises:
      UserError: where a parameter is not finite, the format has no form for the model, or the directory cannot be
        written.
    """
    directory = pathlib.Path(directory)
    tensors = {tensor_name(path): turned(path, _finite(path, np.asarray(value))) for path, value in params.items()}
    dtypes = sorted({str(array.dtype) for array in tensors.values()})
    values = config.to_hub_dict(architecture, dtypes[0] if len(dtypes) == 1 else "float32")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files = _save_weights(directory, tensors, max_shard_size)
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as e:
        raise UserError(f"{directory} cannot be written ({e}); make room or choose another directory.") from e
    for name in _OTHERS:
        if (directory / name).exists():
            _log.warning("%s still lies beside the weights just saved, and some programs prefer it.", directory / name)
    return [directory / "config.json", *files]


def _finite(path: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array.astype(np.float32)).all():
        raise UserError(f"parameter {path} holds values that are not finite; take an earlier checkpoint.")
    return np.ascontiguousarray(array)


def _save_weights(directory: pathlib.Path, tensors: Flat, max_shard_size: int | str) -> list[pathlib.Path]:
    """Writes one file, or shards and their index, and removes what an earlier save left under such names."""
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda array: array.nbytes,
        get_storage_id=lambda array: None,  # no two arrays share memory
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    written = []
    for name, keys in split.filename_to_tensors.items():
        new = directory / f"{name}.new"  # renamed when whole, so that a killed save leaves no half of a file behind
        new.touch()
        mode = new.stat().st_mode  # by the umask; safetensors makes files that are their owner's alone
        save_file({key: tensors[key] for key in keys}, new, metadata={"format": "pt"})  # transformers 4 asks for it
        new.chmod(mode)
        written.append((new, directory / name))
    if split.is_sharded:
        new = directory / "model.safetensors.index.json.new"
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        new.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written.append((new, directory / "model.safetensors.index.json"))
    for new, file in written:
        os.replace(new, file)
    names = {file.name for _, file in written}
    for old in directory.iterdir():
        if _OURS.fullmatch(old.name) and old.name not in names:
            old.unlink()
    return [file for _, file in written]
