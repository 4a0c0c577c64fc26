# SPDX-License-Identifier: Apache-2.0
"""Branches: runs that go on from another run's state (parameters, moments, step, place in the data), and otherwise.

Whatever a step is told from outside may differ from the parent's: rate, decay, steps, batch, mixture, masking, seed.
What its state means may not: the model, the optimizer's kind, the text and the vocabulary. Dropout is told from
outside: no array depends on it, and the paper goes on without it (section 4.8).
"""

import functools
import logging
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import traverse_util

from albert_jax.errors import UserError
from albert_jax.remote import directory, is_remote, named_refusals
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.compatibility import check_format, settings_of, tell_of_gone_fields
from albert_jax.training.distributed import by_first
from albert_jax.training.left_out import LeftOut, read_left_out
from albert_jax.training.phases import Phase, read_phases
from albert_jax.training.restoring import DamagedError, find_step, is_good, load_meta, restore_step
from albert_jax.training.saved_steps import SavedSteps, absolute
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import TrainState, abstract_state

_log = logging.getLogger(__name__)

_DROPOUT = ("model.hidden_dropout_prob", "model.attention_probs_dropout_prob", "model.classifier_dropout_prob")
_STARTS = (
    "branch_from",
    "init_from",
    "init_positions",
    "init_vocabulary",
)  # say where a run comes from, not how it trains


class Source(NamedTuple):
    """What `branch_from` names: a run, and a step of it; the newest where None."""

    workdir: str
    step: int | None


def read_source(text: str) -> Source:
    """Reads WORKDIR or WORKDIR@STEP; a local workdir that has such a name itself is meant first."""
    workdir, at, step = text.rpartition("@")
    if not at or not step.isdecimal() or (not is_remote(text) and (directory(text) / "checkpoints").is_dir()):
        return Source(text, None)
    return Source(workdir, int(step))


def parent_of(identity: dict[str, Any]) -> dict[str, Any]:
    """What a new run goes on from, and what it does otherwise; process 0 calls this before the run's first checkpoint.

    Args:
      identity: the new run's, whose config has `branch_from`.

    Returns:
      For its `run.json`: `workdir` as given, `step`, and the `seal` of that checkpoint; `changed`, name -> [parent's
      value, its own]; `parent_position`, the rows that the parent had consumed of its leg's stream, and `position`,
      where the branch goes on in its own; `left_out`, the rows that it leaves out because the parent does.

    Raises:
      UserError: where there is no such checkpoint or it is damaged, or the branch cannot go on from it.
    """
    config = identity["config"]
    if config["init_from"]:
        raise UserError(
            f"branch_from {config['branch_from']} and init_from {config['init_from']} cannot both be where a run "
            "starts; leave one of them away."
        )
    source = read_source(config["branch_from"])
    with named_refusals(directory(source.workdir)):
        folder, steps = find_step(source.workdir, source.step)
        try:
            meta = load_meta(folder)
        except DamagedError as e:
            _refuse_damaged(identity, int(folder.name), str(e))
            raise
    check_format(meta, source.workdir)
    _check_alike(meta, identity, source.workdir)
    if config["steps"] <= meta["step"]:
        earlier = [step for step in steps if step < config["steps"]]
        raise UserError(
            f"steps {config['steps']} is not beyond step {meta['step']} of {source.workdir}, from which the run "
            f"branches; raise steps{f', or add @STEP to branch_from with one of {earlier}' if earlier else ''}."
        )
    old, new = settings_of(meta), settings_of(identity)
    changed = {
        name: [old.get(name), new.get(name)]
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in _STARTS
    }
    _log.info("branching from step %s of %s; %s fields differ:", meta["step"], source.workdir, len(changed))
    for name, (before, now) in changed.items():
        _log.info("  %s %r -> %r", name, before, now)
    tell_of_gone_fields(meta)
    return {
        "workdir": source.workdir,
        "step": meta["step"],
        "seal": meta["seal"],
        "changed": changed,
        "parent_position": meta["position"],
        "position": _position(meta, identity),
        "left_out": _left_out(meta, identity, source.workdir),
    }


def _check_alike(meta: dict[str, Any], identity: dict[str, Any], workdir: str) -> None:
    """Refuses a branch to which the parent's arrays would mean something else."""
    old, new = settings_of(meta), settings_of(identity)
    fixed = [name for name in sorted(old.keys() | new.keys()) if name.startswith("model.") and name not in _DROPOUT]
    differences = [
        f"{name} is {new.get(name)!r} and was {old.get(name)!r}"
        for name in (*fixed, "optimizer.name")
        if old.get(name) != new.get(name)
    ]
    differences += [
        f"{what} is {identity[what][:12]} and was {meta[what][:12]}"
        for what in ("data_fingerprint", "vocabulary_sha256")
        if identity[what] != meta[what]
    ]
    if differences:
        raise UserError(
            f"a branch of {workdir} has its model, optimizer, data set and vocabulary: {'; '.join(differences)}; give "
            f"it the parent's values, or, for another optimizer or other data on the same model, pass "
            f"--config.init_from={workdir} instead of branch_from."
        )


# --- the place in the data --------------------------------------------------------------------------------------------


def _position(meta: dict[str, Any], identity: dict[str, Any]) -> int:
    """Where the branch goes on in the stream of its leg, in rows; says so.

    A position counts rows of one leg's stream. It stays what it is where that of the branch packs the text into the
    same rows; weights and seed may differ: the stream is gone on with from there as if it had always been the new one.
    A leg that begins at this very step begins its own stream. Else nothing corresponds to the position.
    """
    step, position = meta["step"], meta["position"]
    parent, packed = _phases(meta), meta["packing"].split()
    was = next(i for i, phase in enumerate(parent) if phase.begin < step <= phase.end)
    own, packing = _phases(identity), identity["packing"].split()
    goes_on = next(i for i, phase in enumerate(own) if phase.begin <= step < phase.end)
    slots = own[goes_on].config.data.sequence_length
    if own[goes_on].begin == step:
        _log.info("the stream of rows of %s slots begins at row 0.", slots)
        return 0
    if packing[goes_on] == packed[was]:
        _log.info("the stream of rows of %s slots goes on from row %s.", slots, position)
        return int(position)
    _log.warning(
        "the parent's place in the data, row %s of rows of %s slots, has no counterpart, as rows are packed otherwise "
        "now: the stream of rows of %s slots begins at row 0, and text that the parent has seen comes again.",
        position,
        parent[was].config.data.sequence_length,
        slots,
    )
    return 0


def _left_out(meta: dict[str, Any], identity: dict[str, Any], workdir: str) -> list[list[int]]:
    """What the parent leaves out, in those of its phases whose streams the branch has too; see `LeftOut.rows`."""
    same_seed = settings_of(meta)["seed"] == identity["config"]["seed"]
    phases = [
        (old.begin, new.begin)
        for old, was in zip(_phases(meta), meta["plan"].split(), strict=True)
        for new, now in zip(_phases(identity), identity["plan"].split(), strict=True)
        if same_seed and was == now
    ]
    parents = read_left_out(workdir)["rows"]
    rows = sorted([new, first, last] for old, new in phases for begin, first, last in parents if begin == old)
    if rows:
        _log.info("%s ranges of rows that the parent has left out are left out here too.", len(rows))
    return rows


def _phases(identity: dict[str, Any]) -> list[Phase]:
    return read_phases(_config(settings_of(identity)))


def _config(settings: dict[str, Any]) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(traverse_util.unflatten_dict(settings, sep="."))


# --- the state --------------------------------------------------------------------------------------------------------


def branch(identity: dict[str, Any], like: TrainState, checkpoints: Checkpoints) -> None:
    """Makes the parent's checkpoint the first one of a run that has a parent and no checkpoint yet.

    From then on the run needs its parent no more, which may delete that step or be deleted.

    Args:
      identity: the run's, with its `parent`, see `parent_of`.
      like: shapes, dtypes and shardings of the state.
      checkpoints: the run's own.

    Raises:
      UserError: where the parent's checkpoint is damaged or gone, or the run's own cannot be written.
      LostPeerError: where another process does not answer.
    """
    parent = identity.get("parent")
    if parent is None or checkpoints.steps:
        return
    folder = absolute(parent["workdir"]) / "checkpoints" / str(parent["step"])
    try:
        state, meta = restore_step(folder, like, functools.partial(_check_seal, parent))
    except DamagedError as e:
        by_first(functools.partial(_refuse_damaged, identity, parent["step"], str(e)))
        raise
    by_first(lambda: LeftOut(tuple(map(tuple, parent["left_out"]))).write(checkpoints.directory.parent))
    progress = {"step": parent["step"], "position": parent["position"], "interval": meta["interval"]}
    checkpoints.save(state, progress, block=True)


def _check_seal(parent: dict[str, Any], meta: dict[str, Any]) -> None:
    if meta["seal"] != parent["seal"]:
        raise UserError(
            f"checkpoint {parent['step']} of {parent['workdir']} was written anew while this run started; run the "
            "same command again."
        )


def _refuse_damaged(identity: dict[str, Any], step: int, why: str) -> None:
    """Says what is wrong with a parent's checkpoint, and which of the others are good; in process 0.

    Raises:
      UserError: always.
    """
    workdir = read_source(identity["config"]["branch_from"]).workdir
    checkpoints = absolute(workdir) / "checkpoints"
    with named_refusals(checkpoints):
        steps = SavedSteps(checkpoints).whole()
        config = _config(settings_of(identity))
        like = abstract_state(config, make_mesh(1, devices=jax.local_devices()[:1]))
        good = [other for other in steps if other != step and is_good(checkpoints / str(other), like)]
    what = f"is damaged ({why})" if step in steps else "was deleted by its run meanwhile"
    remedy = (
        f"add @STEP to branch_from with one of those that are good: {', '.join(map(str, good))}"
        if good
        else "none of the others is good; restore the directory from a backup"
    )
    raise UserError(f"checkpoint {step} of {checkpoints} {what}; {remedy}.")
