# SPDX-License-Identifier: Apache-2.0
"""Says what a run would do before it is started: its settings, its data, and what a step needs on a machine.

Settings and data are looked at as the run does it. The machine may be the one that this runs on, or one that is not
here.
"""

import dataclasses
import difflib
import math

import jax
import ml_collections
import numpy as np

from albert_jax.config import AlbertConfig
from albert_jax.data.store import parse_manifest
from albert_jax.errors import OutOfMemoryError, UserError
from albert_jax.remote import MANIFEST, exists, filesystem, is_remote, named_refusals
from albert_jax.training.branching import read_source
from albert_jax.training.chips import machine_of
from albert_jax.training.data import Data, open_data, rows_of_step, rows_per_step
from albert_jax.training.fitting import counted, gigabytes, told
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.limits import check_fields
from albert_jax.training.phases import Phase
from albert_jax.training.planning import Machine, Plan, machine_named, plan_step, this_machine
from albert_jax.training.restoring import find_step
from albert_jax.training.sharding import make_mesh

_SAMPLE = 64  # rows that are made to count the text in them
PARTS = ("fields", "config")  # what can be checked without a machine


@dataclasses.dataclass(frozen=True)
class Looked:
    """A phase of the run, and what was seen of its data.

    Attributes:
      phase: steps and config.
      data: None where it was not looked at.
      rows: of a step; without data, of a batch in examples the most that there can be.
      real_share: about how many of the slots hold text; 1 without data.
    """

    phase: Phase
    data: Data | None
    rows: int
    real_share: float

    @property
    def total_rows(self) -> int:
        """Rows of all steps of the phase."""
        c, begin, end = self.phase.config, self.phase.begin, self.phase.end
        growing = range(begin, max(begin, min(end, c.batch.warmup_steps)))
        return sum(rows_of_step(c, self.rows, step) for step in growing) + self.rows * (end - begin - len(growing))


def check(config: ml_collections.ConfigDict, machine: str) -> int:
    """Prints what the run would do.

    Args:
      config: the run's.
      machine: 'fields' for the settings alone, 'config' for settings and data; else for these and a step on this
        machine ('here') or on one that `machine_of` knows.

    Returns:
      0 where it would run, 1 where it does not fit the machine.

    Raises:
      UserError: where a setting, the data or the machine's name is wrong.
    """
    _check_name(machine)
    phases = check_settings(config)
    looked = [_look(phase, machine) for phase in phases]
    _say_totals(looked)
    if config.init_from:
        _say_start(config, looked[-1].data)
    if config.branch_from:
        source = read_source(config.branch_from)
        say("start", f"a branch from {find_step(source.workdir, source.step)[0]}")
    if machine in PARTS:
        return 0
    return _say_plan(config, looked, this_machine() if machine == "here" else machine_named(machine))


def _check_name(machine: str) -> None:
    """Refuses a name that is none before anything is opened."""
    words = (*PARTS, "here")
    if machine not in words:
        if near := difflib.get_close_matches(machine, words, n=1):
            raise UserError(
                f"--check={machine} is neither a machine nor one of {', '.join(words)}; did you mean --check={near[0]}?"
            )
        machine_of(machine)


def say(what: str, text: str) -> None:
    """Prints a line."""
    print(f"{what:<9}{text}", flush=True)


# --- settings ---------------------------------------------------------------------------------------------------------


def check_settings(config: ml_collections.ConfigDict) -> list[Phase]:
    """Refuses settings that the run would refuse on any machine, and says what they are.

    Raises:
      UserError: naming the first one.
    """
    phases = check_fields(config, make_mesh(1, devices=jax.devices()[:1]))
    model = AlbertConfig.from_dict(config.model.to_dict())
    say(
        "model",
        f"{model.num_hidden_layers} layers of {model.hidden_size}, {model.pretraining_parameters() / 1e6:,.1f} M "
        f"parameters, {config.dtype}; {config.optimizer.name}, peak rate {config.optimizer.learning_rate:g} after "
        f"{config.optimizer.warmup_steps:,} of {config.steps:,} steps",
    )
    return phases


# --- data -------------------------------------------------------------------------------------------------------------


def _look(phase: Phase, machine: str) -> Looked:
    """Opens the data of a phase, as far as they can be seen from here, and says what they are."""
    c = phase.config
    name = "data" if phase.begin == 0 else "then"
    if machine == "fields" and c.data.path:  # what is empty here is empty there
        say(name, f"NOT looked at: {c.data.path}")
    elif is_remote(c.data.path) and machine != "here":
        say(name, _manifest(c))
    else:
        data = open_data(c)
        rows, share = rows_per_step(c, data.train), _real_share(data)
        validation = "no evaluation" if data.evaluated is None else f"{data.validation.rows:,} rows of validation"
        say(name, f"{c.data.path}; {data.vocabulary.size:,} pieces; {validation}")
        say("", data.train.describe())
        return Looked(phase, data, rows, share)
    return Looked(phase, None, c.batch.size, 1.0)


def _real_share(data: Data) -> float:
    """The share of slots that hold text, in the first rows of the stream."""
    return float(np.mean(data.train.batch(0, min(_SAMPLE, data.train.rows)).example_ids != 0))


def _manifest(config: ml_collections.ConfigDict) -> str:
    """What the manifest of a data set in an object store says; the rest is fetched and planned where the run is."""
    path = config.data.path.rstrip("/")
    try:
        with named_refusals(path):
            there = exists(f"{path}/{MANIFEST}")
            text = filesystem(path).cat_file(f"{path}/{MANIFEST}") if there else b""
    except UserError as e:  # the run's machine may have the rights or the package that this one lacks
        return f"NOT looked at: {e}"
    if not there:
        raise UserError(f"{path} holds no data set (no {MANIFEST}); make one with `python -m pretrain_data build`.")
    manifest = parse_manifest(text, f"{path}/{MANIFEST}")
    size, tokens = manifest["vocabulary"]["size"], manifest["splits"]["train"]["tokens"]
    if size != config.model.vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {size} pieces and the model has one of {config.model.vocab_size}; pass "
            f"--config.model.vocab_size={size}."
        )
    return f"{path}: {tokens:,} tokens to train on; rows are planned where the run is"


def _say_totals(looked: list[Looked]) -> None:
    """Rows, epochs and tokens of each phase, which goes through the text by itself."""
    for each in looked:
        c, rows = each.phase.config, each.total_rows
        batch, known = f"{each.rows:,} rows of {c.data.sequence_length} slots", each.data is not None
        if c.batch.unit == "examples":
            batch = f"{c.batch.size:,} examples, {'in' if known else 'at most'} {batch}"
        say("batch", f"{batch}, {each.real_share:.1%} of them text, more or less" if known else batch)
        if each.data is not None:
            steps, epochs = each.phase.end - each.phase.begin, each.data.train.epoch(rows)
            tokens = float(f"{rows * c.data.sequence_length * each.real_share:.3g}")
            say("run", f"{steps:,} steps: {rows:,} rows, {epochs:,.2f} epochs, about {tokens:,.0f} tokens of text")


def _say_start(config: ml_collections.ConfigDict, data: Data | None) -> None:
    if data is None:
        say("start", f"NOT looked at: {config.init_from}")
        return
    starting_parameters(config)
    say("start", f"from {config.init_from}")


# --- a machine --------------------------------------------------------------------------------------------------------


def _say_plan(config: ml_collections.ConfigDict, looked: list[Looked], machine: Machine) -> int:
    """Plans each phase's step, and says what it needs, takes and costs; gives the exit status."""
    say("machine", f"{machine.name}, {gigabytes(machine.memory)} each")
    plans = []
    for each in looked:
        try:
            plan = plan_step(each.phase.config, machine, each.rows)
        except OutOfMemoryError as e:
            say("memory", f"DOES NOT FIT: {e}")
            return 1
        chosen = "given" if each.phase.config.batch.rows_per_device else "chosen"
        split, slots = plan.split, each.phase.config.data.sequence_length
        say(
            "step",
            f"{counted(split.rows, 'row')} of {slots} slots in {counted(split.shards, 'shard')}: {told(split)} a "
            f"device ({chosen}), {1 - split.rows / split.held:.1%} of them empty",
        )
        say("memory", f"fits: {gigabytes(plan.memory)} of {gigabytes(machine.memory)} a device, {plan.memory_by}")
        plans.append(plan)
    _say_time(config, looked, plans, machine)
    return 0


def _say_time(config: ml_collections.ConfigDict, looked: list[Looked], plans: list[Plan], machine: Machine) -> None:
    """Time of a step and of the run, with evaluation's share of it, and chip-hours."""
    of_step = [plan.seconds for plan in plans if plan.seconds is not None]
    if len(of_step) < len(plans):
        say("time", f"no estimate: {plans[0].seconds_by}")
        return
    steps = sum(seconds * each.total_rows / each.rows for seconds, each in zip(of_step, looked, strict=True))
    evaluation = evaluation_seconds(config, looked[-1], plans[-1])
    hours = (steps + evaluation) / 3600
    kind = "an ESTIMATE, at least," if plans[-1].bound else "an ESTIMATE,"
    each_step = " and ".join(f"{seconds:.3g} s" for seconds in of_step)
    say("time", f"{kind} {plans[-1].seconds_by}: {each_step} a step, {hours:.3g} hours in all")
    if evaluation:
        say("", f"of which evaluation {evaluation / (steps + evaluation):.1%}, every {config.eval.every:,} steps")
    say("cost", f"{'at least' if plans[-1].bound else 'about'} {hours * machine.size:,.3g} chip-hours")


def evaluation_seconds(config: ml_collections.ConfigDict, last: Looked, plan: Plan) -> float:
    """Of all evaluations: a forward pass is a third of a step's work. 0 where there are none or no data was seen."""
    if last.data is None or last.data.evaluated is None or plan.seconds is None:
        return 0.0
    rows = min(config.eval.rows or last.data.validation.rows, last.data.validation.rows)
    batch, times = plan.split.shards * plan.split.each, math.ceil(config.steps / config.eval.every)
    return times * math.ceil(rows / batch) * batch / plan.split.held * plan.seconds / 3
