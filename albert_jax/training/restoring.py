# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read: exactly as they were saved, or not at all. Nothing here writes, and no lock is needed."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters, parameters
from albert_jax.remote import first_line, is_remote, named_refusals, refusal
from albert_jax.training.agreement import agree
from albert_jax.training.compatibility import check_parameters_format
from albert_jax.training.digests import digests
from albert_jax.training.distributed import by_first
from albert_jax.training.left_out import read_left_out
from albert_jax.training.saved_steps import SavedSteps, absolute
from albert_jax.training.step import TrainState
from albert_jax.training.writer import META

_restorations = itertools.count()  # all processes try to restore the same steps in the same order


class Restored(NamedTuple):
    """A checkpoint: the state, and everything in `meta`, such as step, position (rows of the stream) and interval."""

    state: TrainState
    meta: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the message says why."""


def seal(meta: dict[str, Any]) -> str:
    """sha256 of everything in `meta` but the seal itself: a changed digit in the position would show nowhere else."""
    rest = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def items_of(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds, in two parts: an export needs the parameters alone."""
    rest = state._asdict()
    return {"params": rest.pop("params"), "rest": rest}


def restore_step(folder: epath.Path, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored:
    """One step, exactly as it was saved. All processes of a run have to call this.

    Args:
      folder: the step's, in a directory of checkpoints.
      like: shapes, dtypes and shardings, as `jax.ShapeDtypeStruct` or arrays; they need not be those of the run that
        saved.
      check: called in process 0 with `meta`; what it raises is raised.

    Raises:
      DamagedError: in all processes, where a part of it is not what was saved.
      UserError: where the storage cannot be read now.
    """
    meta = _judged(by_first(lambda: _verdict(folder, lambda: _checked_meta(folder, check))))
    targets = items_of(like)
    loaded: dict[str, Any] = {}
    verdict = _verdict(folder, lambda: loaded.update(_load_items(folder, targets)))
    words = agree(f"albert_jax/restore/{next(_restorations)}", json.dumps(verdict))
    for other in sorted(map(json.loads, words), key=lambda other: "unreadable" not in other):
        _judged(other)
    _compare(loaded, meta)  # all processes come to the same result
    return Restored(TrainState(params=loaded["params"], **loaded["rest"]), meta)


def _checked_meta(folder: epath.Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    meta = read_meta(folder)
    check(meta)
    return meta


def _verdict(folder: epath.Path, load: Callable[[], Any]) -> dict[str, Any]:
    """What a load gives, or why it gives nothing: that is damage, as the run is the same, or the storage failed."""
    name = f"checkpoint {folder.name} of {folder.parent}"
    try:
        return {"loaded": load()}
    except UserError:
        raise
    except MemoryError:
        return {"unreadable": f"{name} does not fit into the memory of process {jax.process_index()}; use more."}
    except Exception as e:
        if not (unreadable := _unreadable(e, folder)):
            return {"damaged": first_line(e)}
        why = first_line(unreadable)
        return {"unreadable": f"{name} cannot be read ({why}); see to the storage and run the same command again."}


def _judged(verdict: dict[str, Any]) -> Any:
    if "unreadable" in verdict:
        raise UserError(verdict["unreadable"])
    if "damaged" in verdict:
        raise DamagedError(verdict["damaged"])
    return verdict["loaded"]


def load_meta(folder: epath.Path) -> dict[str, Any]:
    """A step's `meta`, read by this process alone.

    Raises:
      DamagedError: where it is not what was saved.
      UserError: where the storage cannot be read now.
    """
    meta: dict[str, Any] = _judged(_verdict(folder, lambda: read_meta(folder)))
    return meta


def is_good(folder: epath.Path, like: TrainState) -> bool:
    """Whether a step is exactly what was saved, read by this process alone.

    Args:
      folder: the step's.
      like: shapes, dtypes and shardings, on devices of this process.
    """
    try:
        meta = read_meta(folder)
        _compare(_load_items(folder, items_of(like)), meta)
    except Exception:  # whatever is wrong with it
        return False
    return True


def read_meta(folder: epath.Path) -> dict[str, Any]:
    """A step's `meta`, compared with its seal."""
    meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
    if meta.get("seal") != seal(meta):
        raise DamagedError("its meta is not what was saved")
    return meta


def _load_items(folder: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
    """Restores a step's items, each process its part. No process waits for another here."""

    def load(name: str, tree: Any) -> Any:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        return ocp.StandardCheckpointHandler().restore(folder / name, args=ocp.args.StandardRestore(target))

    return {name: load(name, tree) for name, tree in targets.items()}


def _compare(loaded: dict[str, Any], meta: dict[str, Any]) -> None:
    """Refuses arrays whose digests are not those that were saved."""
    for name, tree in loaded.items():
        expected, found = meta["digests"][name], digests(tree) if meta.get("format", 1) > 1 else _first_digests(tree)
        wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
        if wrong:
            raise DamagedError(
                f"{len(wrong)} arrays of {name!r} are not those that were saved, e.g. {sorted(wrong)[0]}"
            )


def _first_digests(tree: Any) -> dict[str, str]:
    """The digests of a tree's float32 arrays, as they were computed for format 1."""

    def mixed(bits: np.ndarray, place: np.ndarray, odd: int) -> int:
        h = bits * np.uint32(odd) ^ (place * np.uint32(0x9E3779B1) + np.uint32(odd))
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        return int(np.sum(h ^ (h >> 16), dtype=np.uint32))

    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        bits = np.asarray(leaf).ravel().view(np.uint32)
        place = np.arange(bits.size, dtype=np.uint32)
        words = (mixed(bits, place, odd) for odd in (0x27D4EB2F, 0x165667B1))
        found[jax.tree_util.keystr(path)] = "".join(f"{word:08x}" for word in words)
    return found


def _unreadable(e: Exception, folder: epath.Path) -> BaseException | None:
    """The error by which the storage as such failed; None where something in it is missing or damaged."""
    if (found := refusal(e)) or is_remote(folder):
        return found
    return e if isinstance(e, OSError) and not isinstance(e, (FileNotFoundError, NotADirectoryError)) else None


# --- reading parameters alone -----------------------------------------------------------------------------------------


def load_parameters(workdir: str | os.PathLike[str], step: int | None = None) -> tuple[Parameters, dict[str, Any]]:
    """The parameters of a run, for export or as a start for another run; its lock is not needed.

    Args:
      workdir: a training workdir.
      step: which checkpoint; the newest where None.

    Returns:
      Nested dict of float32 NumPy arrays, and the checkpoint's `meta`.

    Raises:
      UserError: where there is no such checkpoint or it is damaged.
    """
    checkpoints = absolute(workdir) / "checkpoints"
    with named_refusals(checkpoints):
        folder, steps = find_step(workdir, step)
        try:
            return _load_parameters(folder)
        except UserError:
            raise
        except Exception as e:
            if is_remote(checkpoints) and refusal(e):
                raise
            raise UserError(
                f"checkpoint {folder.name} of {checkpoints} is damaged ({first_line(e)}); export another of {steps} by "
                "scripts/export.py --step=STEP; init_from takes the export."
            ) from e


def find_step(workdir: str | os.PathLike[str], step: int | None) -> tuple[epath.Path, list[int]]:
    """The folder of a run's checkpoint, the newest where `step` is None, and the steps that are there.

    Those that a run was turning away from when it was killed are not.

    Raises:
      UserError: where there is no such checkpoint.
    """
    checkpoints = absolute(workdir) / "checkpoints"
    abandoned = read_left_out(workdir)["abandoned"]
    steps = [saved for saved in SavedSteps(checkpoints).whole() if saved not in abandoned]
    if not steps and not checkpoints.is_dir():
        raise UserError(f"{workdir} holds no checkpoints; give the --workdir of a training run.")
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" {step}"
        raise UserError(f"{checkpoints} has no checkpoint{wanted}; it has {steps or 'none yet, so train first'}.")
    return checkpoints / str(steps[-1] if step is None else step), steps


def _load_parameters(folder: epath.Path) -> tuple[Parameters, dict[str, Any]]:
    meta = read_meta(folder)
    check_parameters_format(meta, folder.parent.parent)
    config = AlbertConfig.from_dict(meta["config"]["model"])
    shapes = nnx.eval_shape(lambda: parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    loaded = _load_items(folder, {"params": target})
    _compare(loaded, meta)
    return jax.tree.map(np.asarray, loaded["params"]), meta
