# SPDX-License-Identifier: Apache-2.0
"""The ALBERT family in Flax NNX."""

from albert_jax.model.losses import IGNORED_LABEL
from albert_jax.model.modules import FlaxAlbertForPreTrainingModule, PretrainingLogits, gather_slots
from albert_jax.model.outputs import (
    AlbertForPreTrainingOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from albert_jax.model.parameters import Parameters, parameter_shapes, parameters, with_parameters
from albert_jax.model.pretrained import (
    FlaxAlbertForMaskedLM,
    FlaxAlbertForMultipleChoice,
    FlaxAlbertForPreTraining,
    FlaxAlbertForQuestionAnswering,
    FlaxAlbertForSequenceClassification,
    FlaxAlbertForTokenClassification,
    FlaxAlbertModel,
    FlaxAlbertPreTrainedModel,
)

__all__ = [
    "IGNORED_LABEL",
    "AlbertForPreTrainingOutput",
    "BaseModelOutputWithPooling",
    "FlaxAlbertForMaskedLM",
    "FlaxAlbertForMultipleChoice",
    "FlaxAlbertForPreTraining",
    "FlaxAlbertForPreTrainingModule",
    "FlaxAlbertForQuestionAnswering",
    "FlaxAlbertForSequenceClassification",
    "FlaxAlbertForTokenClassification",
    "FlaxAlbertModel",
    "FlaxAlbertPreTrainedModel",
    "MaskedLMOutput",
    "MultipleChoiceModelOutput",
    "Parameters",
    "PretrainingLogits",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "gather_slots",
    "parameter_shapes",
    "parameters",
    "with_parameters",
]
