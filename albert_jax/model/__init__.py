# SPDX-License-Identifier: Apache-2.0
"""The ALBERT family in Flax NNX."""

from albert_jax.model.albert import (
    IGNORED_LABEL,
    FlaxAlbertForPreTraining,
    FlaxAlbertModel,
    PretrainingLogits,
    gather_slots,
)
from albert_jax.model.outputs import AlbertForPreTrainingOutput, AlbertModelOutput
from albert_jax.model.parameters import Parameters, parameters, with_parameters

__all__ = [
    "IGNORED_LABEL",
    "AlbertForPreTrainingOutput",
    "AlbertModelOutput",
    "FlaxAlbertForPreTraining",
    "FlaxAlbertModel",
    "Parameters",
    "PretrainingLogits",
    "gather_slots",
    "parameters",
    "with_parameters",
]
