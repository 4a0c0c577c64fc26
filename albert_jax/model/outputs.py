# SPDX-License-Identifier: Apache-2.0
"""What the models return: dataclasses with transformers' field names, which are also pytrees.

Every one begins with `loss`, None without labels, and ends with

- `hidden_states`: None, or the embeddings mapped to H and then the output of each block, 1 + L * inner_group_num arrays
  of [B, S, H] (counted as transformers 5 does);
- `attentions`: None, or the attention weights of each block after the softmax, L * inner_group_num arrays of
  [B, N, S, S].

For multiple choice, B * C rows stand where B is written here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax

Arrays = tuple[jax.Array, ...]


class ModelOutput:
    """Access as in transformers: by attribute, by name, or by place among the fields that are not None."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in the order of the fields."""
        return tuple(self.values())

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return [field.name for field in fields if getattr(self, field.name) is not None]

    def values(self) -> list[Any]:
        """Their values."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Pairs of both."""
        return list(zip(self.keys(), self.values(), strict=True))

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@flax.struct.dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Output of the encoder.

    Attributes:
      last_hidden_state: float [B, S, H].
      pooler_output: float [B, H], tanh of a dense layer on the first slot, or None without a pooling layer.
      hidden_states, attentions: see the module.
    """

    last_hidden_state: jax.Array
    pooler_output: Any = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@flax.struct.dataclass
class AlbertForPreTrainingOutput(ModelOutput):
    """Output of the encoder with both pretraining heads.

    Attributes:
      loss: float32 scalar, the sum of the masked-LM and the sentence-order loss, or None unless both have labels.
      prediction_logits: float32 [B, S, V].
      sop_logits: float32 [B, 2]; class 0 is "in the original order", class 1 is "swapped".
      hidden_states, attentions: see the module.
    """

    loss: jax.Array | None
    prediction_logits: jax.Array
    sop_logits: jax.Array
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@flax.struct.dataclass
class LogitsOutput(ModelOutput):
    """A loss, scores, and what the encoder gives besides; the next four say what is scored."""

    loss: jax.Array | None
    logits: jax.Array
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@flax.struct.dataclass
class MaskedLMOutput(LogitsOutput):
    """Output of the masked-LM model: `logits` float32 [B, S, V]."""


@flax.struct.dataclass
class SequenceClassifierOutput(LogitsOutput):
    """Output of the sequence classifier: `logits` float32 [B, num_labels]."""


@flax.struct.dataclass
class MultipleChoiceModelOutput(LogitsOutput):
    """Output of the multiple-choice model: `logits` float32 [B, C], one score for each of C choices."""


@flax.struct.dataclass
class TokenClassifierOutput(LogitsOutput):
    """Output of the token classifier: `logits` float32 [B, S, num_labels]."""


@flax.struct.dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Output of the span model: `start_logits` and `end_logits`, float32 [B, S] each."""

    loss: jax.Array | None
    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
