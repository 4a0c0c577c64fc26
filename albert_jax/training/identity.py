# SPDX-License-Identifier: Apache-2.0
"""What makes a run this run: `run.json`, which refuses a workdir to any other run."""

import json
import logging
import os
import platform
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

import albert_jax
from albert_jax.errors import UserError
from albert_jax.remote import directory, first_line, is_remote, named_refusals
from albert_jax.training.distributed import by_first, meet
from albert_jax.training.recipe import RESUMABLE_FIELDS
from albert_jax.training.saved_steps import SavedSteps, absolute
from albert_jax.training.writer import META

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


def check_processes(identity: dict[str, Any]) -> None:
    """Refuses to start where a process was given another command, other data or other packages than process 0.

    Raises:
      UserError: in that process, naming what differs.
    """
    places = ("data.path", "data.validation_path", "data.vocab")
    config = {name: value for name, value in _flat(identity["config"]).items() if name not in places}
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


def claim_workdir(workdir: str | os.PathLike[str], identity: dict[str, Any]) -> None:
    """Writes `run.json` into a new workdir, or checks that an old one belongs to this run.

    A workdir without any finished checkpoint is new: the corrected command may use what a failed first start left. All
    processes of a run have to call this; the first one does it.

    Raises:
      UserError: where it belongs to another run or cannot be written.
    """
    by_first(lambda: _claim(workdir, identity))


def _claim(workdir: str | os.PathLike[str], identity: dict[str, Any]) -> None:
    root = directory(workdir)
    file = root / "run.json"
    with named_refusals(root):
        steps = SavedSteps(absolute(workdir) / "checkpoints")
        whole = steps.whole()
        if file.is_file() and whole:
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as e:
                raise UserError(
                    f"{file} is damaged ({first_line(e)}); remove it, and it is written again if the checkpoints are "
                    "this run's."
                ) from e
            check_same_run(saved, identity, workdir)
            return
        if whole:
            _check_checkpoint(steps.path(whole[-1]), identity, workdir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
            temporary.replace(file)
        except OSError as e:
            if is_remote(workdir):
                raise
            raise UserError(f"the workdir {workdir} cannot be written ({e.strerror}); choose another --workdir.") from e


def _check_checkpoint(folder: epath.Path, identity: dict[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Where `run.json` is gone, the newest checkpoint says whose workdir it is, unless it is damaged."""
    try:
        saved = json.loads((folder / META).read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError):
        return  # restoring will look further
    check_same_run(saved, identity, workdir)
