# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written by Orbax in the background, sealed with a digest per array, refused to any other run.

A workdir holds `run.json`, which identifies the run (resolved config, data set, vocabulary, versions), and
`checkpoints/<step>/` with the items `params`, `rest` (optimizer state, step, unfinished log interval) and `meta` (what
`run.json` says, the position in the data, and the digests). Orbax makes a step appear whole or not at all, but does not
notice bytes that changed afterwards; the digests do.

The workdir may lie in an object store (gs://bucket/run): Orbax writes there itself, by tensorstore and gcsfs. There a
step is whole once it has its last object, `commit_success.txt`.
"""

import hashlib
import json
import logging
import os
import pathlib
import platform
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx, traverse_util
from jax.sharding import Mesh

import albert_jax
from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters, parameters
from albert_jax.remote import check_bucket, directory, first_line, is_remote, named_refusals, refusal
from albert_jax.training.recipe import RESUMABLE_FIELDS
from albert_jax.training.sharding import replicated
from albert_jax.training.step import TrainState

_log = logging.getLogger(__name__)

_TRASH = ".trash"


# --- what a run is ----------------------------------------------------------------------------------------------------


def versions(mesh: Mesh) -> dict[str, str]:
    """What bit-for-bit equality depends on besides the run itself: software, hardware and its number."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "albert_jax": albert_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "orbax": ocp.__version__,
        "numpy": np.__version__,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "mesh": f"{mesh.size} devices",
    }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(config, sep=".")


def check_same_run(saved: dict[str, Any], current: dict[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Refuses to go on with another data set, vocabulary or configuration; other versions are only warned of.

    Args:
      saved: identity of the run that the workdir belongs to.
      current: identity of the run that is starting.
      workdir: named in the message.

    Raises:
      UserError: naming every difference that matters.
    """
    old, new = _flat(saved["config"]), _flat(current["config"])
    differences = [
        f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in RESUMABLE_FIELDS
    ]
    differences += [
        f"{what} was {str(saved[what])[:12]} and is now {str(current[what])[:12]}"
        for what in ("data_fingerprint", "vocabulary_sha256", "plan", "rows_per_step")
        if saved[what] != current[what]
    ]
    if differences:
        raise UserError(
            f"{workdir} belongs to another run: {'; '.join(differences)}; use another --workdir, and "
            f"--config.init_from={workdir} to start from its weights."
        )
    for name, value in current["versions"].items():
        if saved["versions"].get(name) != value:
            _log.warning(
                "this run was started with %s %s and goes on with %s: results may differ in the last bits.",
                name,
                saved["versions"].get(name),
                value,
            )


def claim_workdir(workdir: str | os.PathLike[str], identity: dict[str, Any]) -> None:
    """Writes `run.json` into a new workdir, or checks that an old one belongs to this run.

    A workdir without any finished checkpoint is new: the corrected command may use what a failed first start left.

    Raises:
      UserError: where it belongs to another run or cannot be written.
    """
    root = directory(workdir)
    file = root / "run.json"
    with named_refusals(root):
        if file.is_file() and _has_checkpoints(root / "checkpoints"):
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as e:
                raise UserError(f"{file} is damaged ({first_line(e)}); restore it from a backup.") from e
            check_same_run(saved, identity, workdir)
            return
        try:
            root.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            temporary.replace(file)
        except OSError as e:
            if is_remote(workdir):
                raise
            raise UserError(f"the workdir {workdir} cannot be written ({e.strerror}); choose another --workdir.") from e


def _has_checkpoints(checkpoints: epath.Path) -> bool:
    """Whether a step has been finished there; the first objects of one are in a store before its last."""
    if not checkpoints.is_dir():
        return False
    return any(path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path) for path in checkpoints.iterdir())


# --- digests ----------------------------------------------------------------------------------------------------------


def _leaf_digest(x: jax.Array) -> jax.Array:
    """uint32 [2]: sums modulo 2**32 of the array's mixed bits and positions, so exact under any sharding."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x.ravel(), unsigned).astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32)

    def mixed(odd: int) -> jax.Array:  # the finaliser of MurmurHash3 on (value, position)
        h = bits * jnp.uint32(odd) ^ (place * jnp.uint32(0x9E3779B1) + jnp.uint32(odd))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([mixed(0x27D4EB2F), mixed(0x165667B1)])


_digest_leaves = jax.jit(lambda tree: jax.tree.map(_leaf_digest, tree))


def digests(tree: Any) -> dict[str, str]:
    """A digest of each array: path -> 16 hexadecimal digits."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(_digest_leaves(tree)))[0]
    return {jax.tree_util.keystr(path): "".join(f"{int(word):08x}" for word in leaf) for path, leaf in leaves}


def _seal(meta: dict[str, Any]) -> str:
    """sha256 of everything in `meta` but the seal itself: a changed digit in the position would show nowhere else."""
    rest = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# --- saving and restoring ---------------------------------------------------------------------------------------------


class Restored(NamedTuple):
    """A checkpoint: the state, the position in the data (rows of the stream), and everything in `meta`."""

    state: TrainState
    position: int
    meta: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint whose arrays are not the ones that were saved."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's; checkpoints go into its directory `checkpoints`.
      keep: newest checkpoints kept.
      identity: what `run.json` holds; saved with every checkpoint.
    """

    def __init__(self, workdir: str | os.PathLike[str], keep: int, identity: dict[str, Any]):
        if keep < 2:
            raise UserError(
                f"checkpoint.keep must be at least 2, not {keep}: a damaged checkpoint needs one before it."
            )
        self.directory = _absolute(workdir) / "checkpoints"
        self._identity = identity
        self._durable = 0  # newest step known to be complete
        self._in_flight: int | None = None
        # Old steps are first renamed away, so that a kill during their deletion cannot leave half a checkpoint in the
        # list. In an object store Orbax deletes them in place: half a step stays there until the next save, and would
        # be passed over as damaged.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, todelete_subdir=_TRASH, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        with named_refusals(self.directory):
            if is_remote(self.directory):
                check_bucket(self.directory)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._empty_trash()

    def _empty_trash(self) -> None:
        if not is_remote(self.directory):
            shutil.rmtree(self.directory / _TRASH, ignore_errors=True)

    def save(self, state: TrainState, position: int, *, block: bool) -> None:
        """Saves a state, in the background unless `block`; a step that is there already is not written again.

        Args:
          state: copied from the devices before this returns.
          position: rows of the stream consumed so far.
          block: whether to wait until the checkpoint is durable.

        Raises:
          UserError: where this save, or the one before it that was still under way, failed.
        """
        self.wait()
        step = int(state.step)
        if step not in self._manager.all_steps():
            rest = state._asdict()
            params = rest.pop("params")
            meta = self._identity | {
                "step": step,
                "position": position,
                "digests": {"params": digests(params), "rest": digests(rest)},
            }
            meta["seal"] = _seal(meta)
            items = ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(meta),
            )
            self._in_flight = step
            self._guard(lambda: self._manager.save(step, args=items, force=True))
        if block:
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is durable, then deletes what retention has set aside.

        Raises:
          UserError: where it failed.
        """
        self._guard(self._manager.wait_until_finished)
        if self._in_flight is not None:
            self._durable, self._in_flight = self._in_flight, None
        self._empty_trash()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:  # Orbax passes on what its threads raised: OSError, ValueError, its own
            last = f"step {self._durable}" if self._durable else "none"
            remedy = "see that the bucket can be written to" if is_remote(self.directory) else "make room"
            raise UserError(
                f"the checkpoint of step {self._in_flight} could not be written to {self.directory} "
                f"({first_line(e)}); the last good one is {last}: {remedy} and run the same command again."
            ) from e

    def restore(self, like: TrainState, mesh: Mesh) -> Restored | None:
        """The newest checkpoint that is whole, or None where there has never been one.

        A damaged one is reported and set aside for the one before it; where all are damaged, nothing is touched.

        Args:
          like: a state, or its shapes and dtypes, of the same structure.
          mesh: where the arrays go; it need not be the mesh that they were saved from.

        Raises:
          UserError: where there are checkpoints and all are damaged.
        """
        with named_refusals(self.directory):
            steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                restored = self._restore_step(step, like, mesh)
            except (UserError, MemoryError):
                raise
            except Exception as e:
                # The run is the same, so this is damage, unless the storage itself cannot be read now.
                if unreadable := _unreadable(e, self.directory):
                    raise UserError(
                        f"checkpoint {step} of {self.directory} cannot be read ({first_line(unreadable)}); see to the "
                        "storage and run the same command again."
                    ) from e
                _log.warning(
                    "checkpoint %s of %s is damaged (%s); trying the one before.", step, self.directory, first_line(e)
                )
                damaged.append(step)
                continue
            for newer in damaged:
                self._set_aside(newer)
            self._durable = step
            return restored
        if steps:
            raise UserError(
                f"all checkpoints in {self.directory} are damaged (steps {', '.join(map(str, steps))}); restore the "
                "directory from a backup, or choose another --workdir to start again."
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Renames a damaged step out of Orbax's sight, so that the run can save that step again."""
        target = self.directory / f"damaged-{step}"
        with named_refusals(self.directory):
            target.rmtree(missing_ok=True)
            (self.directory / str(step)).rename(target)
        self._manager.reload()

    def _restore_step(self, step: int, like: TrainState, mesh: Mesh) -> Restored:
        meta = _load_meta(self._manager, step)
        check_same_run(meta, self._identity, self.directory.parent)
        place = replicated(mesh)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
        rest = target._asdict()
        params = rest.pop("params")
        loaded = _load_items(self._manager, step, {"params": params, "rest": rest}, meta)
        return Restored(TrainState(params=loaded["params"], **loaded["rest"]), int(meta["position"]), meta)

    def close(self) -> None:
        """Waits for the last save and lets go of the directory."""
        self.wait()
        self._manager.close()


def _load_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Restores `meta` and compares it with its seal."""
    meta: dict[str, Any] = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta.get("seal") != _seal(meta):
        raise _DamagedError("its meta is not what was saved")
    return meta


def _load_items(
    manager: ocp.CheckpointManager, step: int, targets: dict[str, Any], meta: dict[str, Any]
) -> dict[str, Any]:
    """Restores items and compares their digests with those in `meta`."""
    args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in targets.items()})
    loaded = manager.restore(step, args=args)
    for name in targets:
        expected, found = meta["digests"][name], digests(loaded[name])
        wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
        if wrong:
            raise _DamagedError(
                f"{len(wrong)} arrays of {name!r} are not those that were saved, e.g. {sorted(wrong)[0]}"
            )
    return {name: loaded[name] for name in targets}


def _absolute(workdir: str | os.PathLike[str]) -> epath.Path:
    """The workdir as Orbax wants it."""
    found = directory(workdir)
    return found if is_remote(found) else epath.Path(pathlib.Path(found).absolute())


def _unreadable(e: Exception, checkpoints: epath.Path) -> BaseException | None:
    """The error by which the storage as such failed; None where something in it is missing or damaged."""
    if is_remote(checkpoints):
        return refusal(e)
    return e if isinstance(e, OSError) and not isinstance(e, FileNotFoundError) else None


def load_parameters(workdir: str | os.PathLike[str], step: int | None = None) -> tuple[Parameters, dict[str, Any]]:
    """The parameters of a run, for export or as a start for another run.

    Args:
      workdir: a training workdir.
      step: which checkpoint; the newest where None.

    Returns:
      Nested dict of float32 NumPy arrays, and the checkpoint's `meta`.

    Raises:
      UserError: where there is no such checkpoint or it is damaged.
    """
    checkpoints = _absolute(workdir) / "checkpoints"
    with named_refusals(checkpoints):
        if not checkpoints.is_dir():
            raise UserError(f"{workdir} holds no checkpoints; give the --workdir of a training run.")
        manager = ocp.CheckpointManager(checkpoints, options=ocp.CheckpointManagerOptions(read_only=True))
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" {step}"
            raise UserError(f"{checkpoints} has no checkpoint{wanted}; it has {steps or 'none yet, so train first'}.")
        step = steps[-1] if step is None else step
        try:
            return _load_parameters(manager, step)
        except UserError:
            raise
        except Exception as e:
            if is_remote(checkpoints) and refusal(e):
                raise
            raise UserError(
                f"checkpoint {step} of {checkpoints} is damaged ({first_line(e)}); choose another of {steps} with "
                "--step."
            ) from e
        finally:
            manager.close()


def _load_parameters(manager: ocp.CheckpointManager, step: int) -> tuple[Parameters, dict[str, Any]]:
    meta = _load_meta(manager, step)
    config = AlbertConfig.from_dict(meta["config"]["model"])
    shapes = nnx.eval_shape(lambda: parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    params = _load_items(manager, step, {"params": target}, meta)["params"]
    return jax.tree.map(np.asarray, params), meta
