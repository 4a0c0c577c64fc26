# SPDX-License-Identifier: Apache-2.0
"""What makes a run this run: `run.json`, which refuses a workdir to any other run."""

import json
import logging
import os
import pathlib
import platform
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

import albert_jax
from albert_jax.errors import UserError
from albert_jax.remote import directory, first_line, is_remote, named_refusals
from albert_jax.training.branching import parent_of
from albert_jax.training.compatibility import check_same_run, flat, tell_of_gone_fields
from albert_jax.training.distributed import by_first, meet
from albert_jax.training.left_out import forget_left_out
from albert_jax.training.restoring import DamagedError, read_meta
from albert_jax.training.saved_steps import SavedSteps, absolute

_log = logging.getLogger(__name__)


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


def warn_of_versions(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Says where software or hardware are not those that the run was started with."""
    for name, value in current["versions"].items():
        if saved["versions"].get(name) != value:
            _log.warning(
                "this run was started with %s %s and goes on with %s: results may differ in the last bits.",
                name,
                saved["versions"].get(name),
                value,
            )


def check_processes(identity: dict[str, Any]) -> None:
    """Refuses to start where a process was given another command, other data or other packages than process 0.

    Raises:
      UserError: in that process, naming what differs.
    """
    places = ("data.path", "data.validation_path", "data.vocab")
    config = {name: value for name, value in flat(identity["config"]).items() if name not in places}
    named = ("data_fingerprint", "vocabulary_sha256", "plan", "rows_per_step")
    packages = {name: value for name, value in identity["versions"].items() if name != "machine"}
    mine = config | {name: identity[name] for name in named} | packages
    for name, value in by_first(lambda: mine).items():
        if mine.get(name) != value:
            raise UserError(
                f"{name} is {str(mine.get(name))[:24]!r} in process {jax.process_index()} and {str(value)[:24]!r} in "
                "process 0; give all processes the same command, data and packages."
            )
    meet("alike")


def claim_workdir(workdir: str | os.PathLike[str], identity: dict[str, Any]) -> dict[str, Any]:
    """Writes `run.json` into a new workdir, or checks that an old one belongs to this run.

    A workdir without any finished checkpoint is new: the corrected command may use what a failed first start left. All
    processes of a run have to call this; the first one does it.

    Returns:
      The identity, completed by the `parent` of a run that branches or once did, whatever `branch_from` is now.

    Raises:
      UserError: where it belongs to another run or cannot be written, or the run cannot branch as it wants to.
    """
    descent = by_first(lambda: _claim(workdir, identity))
    return _with_descent(identity, descent)


def _with_descent(identity: dict[str, Any], descent: dict[str, Any] | None) -> dict[str, Any]:
    if descent is None:
        return identity
    config = identity["config"] | {"branch_from": descent["branch_from"]}
    return identity | {"config": config, "parent": descent["parent"]}


def saved_run(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The identity of the run that has saved checkpoints in a workdir; None where there is none.

    Raises:
      UserError: where `run.json` is damaged or the storage cannot be read.
    """
    root = directory(workdir)
    with named_refusals(root):
        steps = SavedSteps(absolute(workdir) / "checkpoints")
        return _owner(root / "run.json", [steps.path(step) for step in reversed(steps.whole())])


def _claim(workdir: str | os.PathLike[str], identity: dict[str, Any]) -> dict[str, Any] | None:
    """Gives `branch_from` and `parent` of a run that has one."""
    root = directory(workdir)
    file = root / "run.json"
    with named_refusals(root):
        steps, descent = SavedSteps(absolute(workdir) / "checkpoints"), None
        whole = steps.whole()
        saved = _owner(file, [steps.path(step) for step in reversed(whole)])
        if saved is not None:
            check_same_run(saved, identity, workdir)
            warn_of_versions(saved, identity)
            tell_of_gone_fields(saved)
            if "parent" in saved:
                descent = {"branch_from": saved["config"]["branch_from"], "parent": saved["parent"]}
        elif not whole and identity["config"].get("branch_from"):
            descent = {"branch_from": identity["config"]["branch_from"], "parent": parent_of(identity)}
        if whole and file.is_file():
            return descent
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not whole:
                _forget_others(file, identity)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(_with_descent(identity, descent), indent=2) + "\n", encoding="utf-8")
            temporary.replace(file)
        except OSError as e:
            if is_remote(workdir):
                raise
            raise UserError(f"the workdir {workdir} cannot be written ({e.strerror}); choose another --workdir.") from e
    return descent


def _forget_others(file: pathlib.Path, identity: dict[str, Any]) -> None:
    """Removes which rows an earlier start left out, before it came to a checkpoint, where this is another run.

    So it is where the command has changed, or where the earlier one took the rows from a parent.
    """
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        check_same_run(earlier, identity, file.parent)
        another = "parent" in earlier
    except (ValueError, KeyError, FileNotFoundError):  # a UserError is a ValueError
        another = True
    if another:
        forget_left_out(file.parent)


def _owner(file: pathlib.Path, newest_first: list[epath.Path]) -> dict[str, Any] | None:
    """The identity of the run that has saved checkpoints in a workdir: by `run.json`, or if that is gone by theirs.

    None where there are none, or all of them are damaged, which restoring will find.

    Raises:
      UserError: where `run.json` is damaged.
    """
    if not newest_first:
        return None
    if file.is_file():
        try:
            saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(
                f"{file} is damaged ({first_line(e)}); remove it, and it is written again if the checkpoints are this "
                "run's."
            ) from e
        return saved
    for folder in newest_first:
        try:
            return read_meta(folder)
        except (DamagedError, ValueError, FileNotFoundError):
            continue
    return None
