# SPDX-License-Identifier: Apache-2.0
"""Our parameters <-> the files of transformers' `AlbertForPreTraining`: config.json and model.safetensors.

The mapping is mechanical, because the attribute names agree: a path's parts are joined by "." and the leaf renamed. A
kernel is the transpose of torch's `weight`; a LayerNorm's `scale` and a table's `embedding` are its `weight` unchanged.
The MLM head's output table is the input table, so it is in neither file. NumPy only: neither torch nor JAX is needed.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  (gives NumPy the bfloat16 that some checkpoints are stored in)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError

Parameters = dict[str, Any]  # nested; as albert_jax.model.Parameters
Tensors = dict[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_TABLE = "albert.embeddings.word_embeddings.weight"
# Second names of a tied tensor, and the name that it goes by here.
_TIED = {"predictions.decoder.weight": _TABLE, "predictions.decoder.bias": "predictions.bias"}
# Not parameters: index tables that old versions of transformers stored.
_BUFFERS = ("albert.embeddings.position_ids", "albert.embeddings.token_type_ids")


# --- the mapping ------------------------------------------------------------------------------------------------------


def parameter_shapes(config: AlbertConfig) -> dict[str, tuple[int, ...]]:
    """Path ("/"-joined) -> shape of every parameter of the pretraining model, as our model has them."""
    v, e, h, f = config.vocab_size, config.embedding_size, config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "albert/embeddings/word_embeddings/embedding": (v, e),
        "albert/embeddings/position_embeddings/embedding": (config.max_position_embeddings, e),
        "albert/embeddings/token_type_embeddings/embedding": (config.type_vocab_size, e),
        **_layer_norm("albert/embeddings/LayerNorm", e),
        **_dense("albert/encoder/embedding_hidden_mapping_in", e, h),
    }
    for g in range(config.num_hidden_groups):
        for j in range(config.inner_group_num):
            layer = f"albert/encoder/albert_layer_groups/{g}/albert_layers/{j}"
            for name in ("query", "key", "value", "dense"):
                shapes |= _dense(f"{layer}/attention/{name}", h, h)
            shapes |= _layer_norm(f"{layer}/attention/LayerNorm", h)
            shapes |= _dense(f"{layer}/ffn", h, f) | _dense(f"{layer}/ffn_output", f, h)
            shapes |= _layer_norm(f"{layer}/full_layer_layer_norm", h)
    shapes |= _dense("albert/pooler", h, h)
    shapes |= _dense("predictions/dense", h, e) | _layer_norm("predictions/LayerNorm", e) | {"predictions/bias": (v,)}
    return shapes | _dense("sop_classifier/classifier", h, 2)


def _dense(path: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}/kernel": (inputs, outputs), f"{path}/bias": (outputs,)}


def _layer_norm(path: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}/scale": (size,), f"{path}/bias": (size,)}


def tensor_name(path: str) -> str:
    """transformers' name of a parameter: "albert/pooler/kernel" is "albert.pooler.weight"."""
    *module, leaf = path.split("/")
    return ".".join([*module, _LEAVES[leaf]])


def _turned(path: str, array: np.ndarray) -> np.ndarray:
    """Between torch's [out, in] and our [in, out]: its own inverse."""
    return np.ascontiguousarray(array.T) if path.endswith("/kernel") else array


def _leaves(tree: Parameters, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def to_tensors(params: Parameters, config: AlbertConfig) -> Tensors:
    """transformers' tensors, float32, from our parameters.

    Args:
      params: nested dict of the pretraining model's parameters.
      config: the architecture that they must fit.

    Raises:
      UserError: naming parameters that are missing, unexpected, of another shape or not finite.
    """
    shapes, given = parameter_shapes(config), dict(_leaves(params))
    if shapes.keys() != given.keys():
        raise UserError(
            f"these parameters are not those of the configuration: missing {sorted(shapes.keys() - given.keys())[:3]}, "
            f"unexpected {sorted(given.keys() - shapes.keys())[:3]}; convert them with their own configuration."
        )
    tensors = {}
    for path, value in given.items():
        array = np.asarray(value, dtype=np.float32)
        if array.shape != shapes[path]:
            raise UserError(f"parameter {path} has shape {array.shape}, but the configuration asks for {shapes[path]}.")
        if not np.isfinite(array).all():
            raise UserError(f"parameter {path} holds values that are not finite; take an earlier checkpoint.")
        tensors[tensor_name(path)] = np.ascontiguousarray(_turned(path, array))
    return tensors


def from_tensors(
    tensors: Tensors, config: AlbertConfig, source: str = "the checkpoint"
) -> tuple[Parameters, list[str]]:
    """Our parameters from transformers' tensors.

    Args:
      tensors: name -> array in any float dtype; a stored second copy of a tied tensor is compared and dropped.
      config: the architecture.
      source: what to call the checkpoint in messages.

    Returns:
      The nested dict of float32 arrays, and the names of the tensors that the checkpoint lacks, whose parameters are
      absent.

    Raises:
      UserError: for a tensor that has no place in the model, has another shape, or contradicts the tying.
    """
    shapes = parameter_shapes(config)
    rest = {name: array for name, array in tensors.items() if name not in _BUFFERS}
    _untie(rest, source)
    params: Parameters = {}
    missing = []
    for path, shape in shapes.items():
        name = tensor_name(path)
        if name not in rest:
            missing.append(name)
            continue
        array = _turned(path, np.asarray(rest.pop(name), dtype=np.float32))
        if array.shape != shape:
            found, expected = _turned(path, array).shape, shape[::-1] if path.endswith("/kernel") else shape
            raise UserError(f"{name} of {source} has shape {found}, but its config.json asks for {expected}.")
        _insert(params, path, array)
    if rest:
        raise UserError(
            f"{source} holds {len(rest)} tensors that AlbertForPreTraining does not have, e.g. {min(rest)}; give a "
            "checkpoint of the pretraining or the masked-LM model."
        )
    if not params:
        raise UserError(f"{source} holds no tensors of an ALBERT model.")
    return params, missing


def _untie(tensors: Tensors, source: str) -> None:
    """Removes second copies of tied tensors; one that stands alone takes its first name."""
    for name, first in _TIED.items():
        if name not in tensors:
            continue
        copy = tensors.pop(name)
        if not np.array_equal(tensors.setdefault(first, copy), copy):
            raise UserError(
                f"{name} of {source} differs from {first}, and ALBERT's output layer is its input table; "
                "give a checkpoint that was trained tied."
            )


def _insert(tree: Parameters, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[leaf] = value


# --- files ------------------------------------------------------------------------------------------------------------


def save_pretrained(directory: str | pathlib.Path, params: Parameters, config: AlbertConfig) -> list[pathlib.Path]:
    """Writes config.json and model.safetensors, which transformers 4 and 5 load as `AlbertForPreTraining`.

    Args:
      directory: made if need be; files of these names are replaced.
      params: nested dict of the pretraining model's parameters; stored as float32.
      config: their architecture.

    Returns:
      The files written.

    Raises:
      UserError: where parameters and config do not fit, or the directory cannot be written.
    """
    directory = pathlib.Path(directory)
    tensors = to_tensors(params, config)
    kind = {"architectures": ["AlbertForPreTraining"], "model_type": "albert", "dtype": "float32"}
    files = [directory / "config.json", directory / "model.safetensors"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files[0].write_text(json.dumps(kind | config.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(tensors, files[1], metadata={"format": "pt"})  # without it, transformers 4 refuses the file
    except (OSError, SafetensorError) as e:
        raise UserError(f"{directory} cannot be written ({e}); make room or choose another directory.") from e
    return files


def load_pretrained(directory: str | pathlib.Path) -> tuple[Parameters, AlbertConfig, list[str]]:
    """Reads a checkpoint of transformers' `AlbertForPreTraining`, or of `AlbertForMaskedLM`, which lacks some of it.

    Args:
      directory: holds config.json and model.safetensors.

    Returns:
      Nested dict of float32 arrays, the configuration, and the names of the tensors that the file lacks. The published
      checkpoints lack `sop_classifier.classifier.*`.

    Raises:
      UserError: where a file is missing or damaged, or the tensors do not fit the configuration; see `from_tensors`.
    """
    config = AlbertConfig.from_pretrained(directory)
    path = pathlib.Path(directory) / "model.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; save the model with transformers' save_pretrained, which writes it in one file."
        )
    params, missing = from_tensors(_read_tensors(path), config, str(path))
    return params, config, missing


def _read_tensors(path: pathlib.Path) -> Tensors:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged or no safetensors file ({e}); copy or download it again.") from e
