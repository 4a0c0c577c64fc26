# SPDX-License-Identifier: Apache-2.0
"""Which runs this version goes on with: the format of their workdirs, and the fields of their configs."""

import logging
import os
from typing import Any, NamedTuple

from flax import traverse_util

import albert_jax
from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.recipe import RESUMABLE_FIELDS, pretraining

_log = logging.getLogger(__name__)

# What a workdir holds, and how: raised by one when an older version could not read it any more. Workdirs of format 1
# do not say so. Their checkpoints held the sums of the unfinished log interval among the arrays.
FORMAT = 2
OLDEST_PARAMETERS = 1  # the oldest format whose parameters are stored as today
ANY = object()  # as `Gone.needed`: whatever the run had there


class Gone(NamedTuple):
    """A field of earlier versions' configs.

    Attributes:
      why: what became of it, as the end of a sentence.
      needed: the value at which a run was trained as all runs are now; `ANY` where its value did not matter.
    """

    why: str
    needed: Any = ANY


GONE_FIELDS = {
    "batch.accumulation": Gone("batch.rows_per_device took its place, and gradients depend on neither"),
}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A config's fields by their full names."""
    return traverse_util.flatten_dict(config, sep=".")


def settings_of(identity: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run's config, as this version would have written them.

    A field that is new since then has its default; one that is gone is left out if its value does not matter.
    """
    saved, now = flat(identity["config"]), _defaults()
    return now | {name: value for name, value in saved.items() if name in now or not _is_over(name, value)}


def _defaults() -> dict[str, Any]:
    return flat(pretraining(AlbertConfig()).to_dict())


def _is_over(name: str, value: Any) -> bool:
    """Whether a field that this version does not have can be forgotten."""
    gone = GONE_FIELDS.get(name)
    return gone is not None and (gone.needed is ANY or gone.needed == value)


def tell_of_gone_fields(identity: dict[str, Any]) -> None:
    """Logs which fields of a run's config are passed over, and why."""
    now = _defaults()
    for name, value in flat(identity["config"]).items():
        if name not in now and _is_over(name, value):
            _log.info("%s %r of the run's start is passed over: %s.", name, value, GONE_FIELDS[name].why)


def check_format(identity: dict[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Refuses a run whose state another version wrote in another format.

    Args:
      identity: what `run.json` or a checkpoint's `meta` says.
      workdir: named in the message.

    Raises:
      UserError: naming the version that can go on with it.
    """
    if (found := identity.get("format", 1)) != FORMAT:
        version = identity["versions"]["albert_jax"]
        weights = f", or start from its weights by --config.init_from={workdir} in a new --workdir"
        raise UserError(
            f"{workdir} was written by albert_jax {version} in format {found}, and albert_jax {albert_jax.__version__} "
            f"goes on from format {FORMAT}; install version {version}{weights if _has_known_weights(found) else ''}."
        )


def check_parameters_format(identity: dict[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Refuses a run whose parameters cannot be read.

    Raises:
      UserError: naming the version that can read them.
    """
    if not _has_known_weights(found := identity.get("format", 1)):
        version = identity["versions"]["albert_jax"]
        raise UserError(
            f"{workdir} was written by albert_jax {version} in format {found}, and albert_jax {albert_jax.__version__} "
            f"knows formats up to {FORMAT}; install version {version}."
        )


def _has_known_weights(found: int) -> bool:
    return OLDEST_PARAMETERS <= found <= FORMAT


def check_same_run(saved: dict[str, Any], current: dict[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Refuses to go on with another data set, vocabulary or configuration.

    `branch_from` may be left away when a run is resumed: its own checkpoints have all that it took from there.

    Args:
      saved: identity of the run that the workdir belongs to.
      current: identity of the run that is starting.
      workdir: named in the message.

    Raises:
      UserError: naming every difference that matters, or the format.
    """
    check_format(saved, workdir)
    old, new = settings_of(saved), settings_of(current)
    free = RESUMABLE_FIELDS if new["branch_from"] else (*RESUMABLE_FIELDS, "branch_from")
    differences = [
        f"{name} was {old.get(name)!r} and {f'is now {new[name]!r}' if name in new else 'is no field any more'}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]
    differences += [
        f"{what} was {str(saved[what])[:12]} and is now {str(current[what])[:12]}"
        for what in ("data_fingerprint", "vocabulary_sha256", "plan", "rows_per_step")
        if saved[what] != current[what]
    ]
    if differences:
        raise UserError(
            f"{workdir} belongs to another run: {'; '.join(differences)}; use another --workdir, and "
            f"--config.branch_from={workdir} to go on from its state or --config.init_from={workdir} to start from its "
            "weights."
        )
