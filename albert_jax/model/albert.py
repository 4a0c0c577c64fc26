# SPDX-License-Identifier: Apache-2.0
"""`FlaxAlbertModel` and `FlaxAlbertForPreTraining`, in Flax NNX, with transformers' attribute names."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model.attention import attention_bias
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import fold, row_keys
from albert_jax.model.encoder import AlbertEmbeddings, AlbertEncoder
from albert_jax.model.heads import AlbertMLMHead, AlbertSOPHead
from albert_jax.model.outputs import AlbertForPreTrainingOutput, AlbertModelOutput

IGNORED_LABEL = -100  # transformers' and torch's label of a position that carries no loss


class PretrainingLogits(NamedTuple):
    """Scores at the gathered slots only: `mlm` float32 [B, M, V], `sop` float32 [B, P, 2]."""

    mlm: jax.Array
    sop: jax.Array


def gather_slots(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Picks slots of float [B, S, H] at int [B, K] positions: [B, K, H]."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


class FlaxAlbertModel(nnx.Module):
    """Embeddings, encoder and pooler.

    Args:
      config: the architecture.
      dtype: compute dtype; parameters are always float32.
      rngs: initialises the parameters: matrices and tables from a normal of standard deviation `initializer_range`,
        truncated at two, biases zero, LayerNorm one and zero (as Google's code does).
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = AlbertEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = AlbertEncoder(config, dtype=dtype, rngs=rngs)
        self.pooler = Dense(config.hidden_size, config.hidden_size, config, dtype=dtype, rngs=rngs)

    def encode(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array | None,
        bias: jax.Array | None,
        keys: jax.Array | None,
        output_hidden_states: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
        """Everything up to the last hidden state [B, S, H]; see `AlbertEncoder` for what is returned."""
        slots = input_ids.shape[1]
        if position_ids is None:
            if slots > self.config.max_position_embeddings:
                raise UserError(
                    f"a row of {slots} slots exceeds max_position_embeddings {self.config.max_position_embeddings}; "
                    "truncate it or pass position_ids."
                )
            position_ids = jnp.broadcast_to(jnp.arange(slots), input_ids.shape)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        x = self.embeddings(input_ids, token_type_ids, position_ids, fold(keys, 0))
        return self.encoder(x, bias, fold(keys, 1), output_hidden_states)

    def pool(self, x: jax.Array) -> jax.Array:
        """tanh of a dense layer on [CLS] states, float [..., H]."""
        return jnp.tanh(self.pooler(x))

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        *,
        dropout_rng: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> AlbertModelOutput:
        """Encodes rows.

        Args:
          input_ids: int [B, S].
          attention_mask: [B, S], 1 at real slots, 0 at padding; all real where None.
          token_type_ids: int [B, S], 0 in sentence A and 1 in B; all 0 where None.
          position_ids: int [B, S]; 0, 1, 2 ... where None.
          dropout_rng: a key; None means evaluation, without dropout.
          output_hidden_states: whether `hidden_states` is filled in.

        Raises:
          UserError: where a row is longer than the position table.
        """
        keys = None if dropout_rng is None else row_keys(dropout_rng, input_ids.shape[0])
        bias = attention_bias(attention_mask, None)
        last, hidden = self.encode(input_ids, token_type_ids, position_ids, bias, keys, output_hidden_states)
        return AlbertModelOutput(last, self.pool(last[:, 0]), hidden)


class FlaxAlbertForPreTraining(nnx.Module):
    """ALBERT with the masked-LM and the sentence-order head; arguments as for `FlaxAlbertModel`."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.albert = FlaxAlbertModel(config, dtype=dtype, rngs=rngs)
        self.predictions = AlbertMLMHead(config, dtype=dtype, rngs=rngs)
        self.sop_classifier = AlbertSOPHead(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        labels: jax.Array | None = None,
        sentence_order_label: jax.Array | None = None,
        *,
        dropout_rng: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> AlbertForPreTrainingOutput:
        """Scores every slot, as transformers' class does; training uses `score_slots`, which never builds [B, S, V].

        Args:
          labels: int [B, S], the original id at masked slots and -100 elsewhere.
          sentence_order_label: int [B], 0 in the original order, 1 swapped, -100 unknown.
          others: as for `FlaxAlbertModel`.

        Returns:
          `AlbertForPreTrainingOutput`, with a loss where both kinds of labels were given (as transformers does).
        """
        keys = None if dropout_rng is None else row_keys(dropout_rng, input_ids.shape[0])
        bias = attention_bias(attention_mask, None)
        last, hidden = self.albert.encode(input_ids, token_type_ids, position_ids, bias, keys, output_hidden_states)
        mlm = self.predictions(last, self.albert.embeddings.word_embeddings.embedding[...])
        sop = self.sop_classifier(self.albert.pool(last[:, 0]), fold(keys, 2))
        loss = None
        if labels is not None and sentence_order_label is not None:
            loss = _mean_cross_entropy(mlm, labels) + _mean_cross_entropy(sop, sentence_order_label)
        return AlbertForPreTrainingOutput(loss, mlm, sop, hidden)

    def score_slots(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        example_ids: jax.Array,
        mlm_positions: jax.Array,
        cls_positions: jax.Array,
        row_keys: jax.Array | None = None,
    ) -> PretrainingLogits:
        """Scores the masked slots and the [CLS] slots of rows that hold several examples.

        The sentence-order head runs without dropout, as Google's does.

        Args:
          input_ids, token_type_ids, position_ids: int [B, S]; positions restart with each example.
          example_ids: int [B, S], 1..P, 0 at padding; only slots of the same example see each other.
          mlm_positions: int [B, M], slots to predict; unused entries may point anywhere.
          cls_positions: int [B, P], each example's [CLS]; unused entries may point anywhere.
          row_keys: dropout keys [B], or None in evaluation.
        """
        bias = attention_bias(None, example_ids)
        last, _ = self.albert.encode(input_ids, token_type_ids, position_ids, bias, row_keys)
        table = self.albert.embeddings.word_embeddings.embedding[...]
        mlm = self.predictions(gather_slots(last, mlm_positions), table)
        sop = self.sop_classifier(self.albert.pool(gather_slots(last, cls_positions)), None)
        return PretrainingLogits(mlm, sop)


def _mean_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the labels that are not -100; NaN where there is none, as in torch."""
    real = labels != IGNORED_LABEL
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(real, labels, 0))
    return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)
