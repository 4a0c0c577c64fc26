# SPDX-License-Identifier: Apache-2.0
"""The files in which ALBERT weights lie about, read into named arrays without running anything that they hold.

| file | written by |
|---|---|
| model.safetensors | transformers, this project; with torch's or with Flax's names |
| flax_model.msgpack | transformers 4's Flax classes |
| pytorch_model.bin | transformers' torch classes before 2023; a pickle, of which torch unpickles tensors only |

Each may be split: NAME.index.json then tells which shard holds what.
"""

import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from albert_jax.errors import UserError

Weights = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


def read_weights(directory: pathlib.Path, from_pt: bool = False) -> tuple[Weights, pathlib.Path]:
    """Reads the weights of a directory.

    Args:
      directory: where several of the files lie, the first of the table is read, and that is logged.
      from_pt: pass over flax_model.msgpack.

    Returns:
      Name, parts joined by ".", -> array in its stored dtype; and the file, or the index of the shards.

    Raises:
      UserError: where there is no such file, or it is damaged or holds more than weights.
    """
    names = [name for name in _READERS if not (from_pt and name.endswith(".msgpack"))]
    found = [directory / (name + suffix) for name in names for suffix in ("", ".index.json")]
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{directory} holds none of {', '.join(names)}; give a directory with an ALBERT's weights.")
    file = found[0]
    if len(found) > 1:
        _log.info("%s also holds %s; %s is read.", directory, ", ".join(f.name for f in found[1:]), file.name)
    if file.name.endswith(".index.json"):
        return _read_shards(file), file
    return _READERS[file.name](file), file


def _read_shards(index: pathlib.Path) -> Weights:
    """All shards of an index, each of which must hold exactly what the index says."""
    try:
        places = {str(name): str(shard) for name, shard in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is no index of shards ({e!r}); copy or download it again.") from e
    read = _READERS[index.name.removesuffix(".index.json")]
    weights: Weights = {}
    for shard in sorted(set(places.values())):
        if pathlib.PurePath(shard).name != shard:
            raise UserError(f"{index} names {shard!r}, which is not a file beside it; copy or download it again.")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index} names {shard}, which is not there; copy or download it again.")
        weights |= read(index.parent / shard)
    if weights.keys() != {name.replace("/", ".") for name in places}:
        raise UserError(f"the shards of {index} do not hold the tensors that it names; copy or download them again.")
    return weights


def _read_safetensors(path: pathlib.Path) -> Weights:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged or no safetensors file ({e}); copy or download it again.") from e


def _read_msgpack(path: pathlib.Path) -> Weights:
    from flax import serialization  # takes JAX with it, which the other files do not need

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        weights = dict(_leaves(tree))
    except (
        Exception
    ) as e:  # msgpack's errors, and those of an array whose bytes do not fit its shape, have no common base
        raise UserError(f"{path} is damaged or no msgpack file of Flax ({e!r}); copy or download it again.") from e
    return weights


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        path = prefix + name.replace("/", ".")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield path, value
        else:
            raise TypeError(f"{path} is a {type(value).__name__}, not an array")


def _read_pickle(path: pathlib.Path) -> Weights:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{path} is a pickle, which only torch opens safely; pip install -e '.[torch]' in the checkout, or save "
            "the model anew by transformers, which writes model.safetensors."
        ) from e
    try:
        # Unpickles nothing but tensors and containers: a pickle that would run code is refused before it does.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): _from_torch(tensor) for name, tensor in state.items()}
    except Exception as e:  # a damaged pickle can fail anywhere in torch
        reason = str(e).split("\n")[0].split(". ")[0]
        raise UserError(
            f"{path} is damaged or holds more than weights ({type(e).__name__}: {reason}); nothing in it was run; get "
            "the weights as model.safetensors."
        ) from e


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


_READERS: dict[str, Callable[[pathlib.Path], Weights]] = {
    "model.safetensors": _read_safetensors,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_pickle,
}
