# SPDX-License-Identifier: Apache-2.0
"""Phases of a run, which differ in sequence length: 128 slots for most of the steps, then 512, as BERT was trained.

One optimizer state, learning-rate schedule and step count go through all of them. Each phase has its own packing plan
and its own position in the stream of rows.
"""

import dataclasses

import ml_collections

from albert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps `begin` to `end` of a run.

    Attributes:
      begin, end: steps done before the phase and after it.
      config: the run's, with the phase's `data.sequence_length`, `data.examples_per_row` and `masking.slots`.
    """

    begin: int
    end: int
    config: ml_collections.ConfigDict


def read_phases(config: ml_collections.ConfigDict) -> list[Phase]:
    """The phases of a run: those of `data.phases`, and the last one, of `data.sequence_length`.

    Rows that are shorter by a factor hold fewer examples and masks by the same factor, rounded up.

    Args:
      config: the run's; `data.phases` is like '128:900' or '64:500 128:900', each SLOTS:UNTIL_STEP.

    Raises:
      UserError: where the text is malformed, or lengths or steps do not fit the run.
    """
    phases, begin, final = [], 0, config.data.sequence_length
    for text in config.data.phases.split():
        slots, _, end = text.partition(":")
        if not (slots.isdigit() and end.isdigit()):
            raise UserError(f"data.phases has {text!r}; a phase is SLOTS:UNTIL_STEP, like 128:112500.")
        if not 8 <= int(slots) <= config.model.max_position_embeddings:
            raise UserError(
                f"data.phases has rows of {slots} slots; they have from 8 to model.max_position_embeddings "
                f"{config.model.max_position_embeddings}."
            )
        if not begin < int(end) < config.steps:
            raise UserError(
                f"data.phases has {text!r}; its step must lie between {begin} and the run's {config.steps}."
            )
        phases.append(Phase(begin, int(end), _resized(config, int(slots), final)))
        begin = int(end)
    return [*phases, Phase(begin, config.steps, config)]


def _resized(config: ml_collections.ConfigDict, slots: int, final: int) -> ml_collections.ConfigDict:
    own = ml_collections.ConfigDict(config.to_dict())
    own.data.sequence_length = slots
    own.data.examples_per_row = -(-config.data.examples_per_row * slots // final)
    own.masking.slots = -(-config.masking.slots * slots // final)
    return own.lock()
