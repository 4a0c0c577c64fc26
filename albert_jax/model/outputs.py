# SPDX-License-Identifier: Apache-2.0
"""What the models return: dataclasses with transformers' field names, which are also pytrees."""

import flax.struct
import jax


@flax.struct.dataclass
class AlbertModelOutput:
    """Output of the encoder.

    Attributes:
      last_hidden_state: float [B, S, H].
      pooler_output: float [B, H], tanh of a dense layer on the first slot.
      hidden_states: None, or the embeddings mapped to H and then the output of each of the L layers, each [B, S, H].
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class AlbertForPreTrainingOutput:
    """Output of the encoder with both pretraining heads.

    Attributes:
      loss: float32 scalar, the sum of the masked-LM and the sentence-order loss, or None without labels.
      prediction_logits: float32 [B, S, V].
      sop_logits: float32 [B, 2]; class 0 is "in the original order", class 1 is "swapped".
      hidden_states: as in `AlbertModelOutput`.
    """

    loss: jax.Array | None
    prediction_logits: jax.Array
    sop_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
