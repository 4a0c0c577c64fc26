# SPDX-License-Identifier: Apache-2.0
"""The networks of the ALBERT family, in Flax NNX, with transformers' attribute names.

They are the structure behind the classes of `albert_jax.model.pretrained`, which hold the parameters, and what training
differentiates. All but `FlaxAlbertModule` take its arguments, in its order, and labels of their own; a loss is computed
where the labels are given, as transformers' torch classes do. Their constructors take `dtype` and, as `execution`, the
`remat` and `attention` of `FlaxAlbertModule`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model.attention import visible_keys
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import fold
from albert_jax.model.encoder import AlbertEmbeddings, AlbertEncoder, Encoded
from albert_jax.model.heads import AlbertMLMHead, AlbertSOPHead, classifier_dropout
from albert_jax.model.losses import classification_loss, mean_cross_entropy, span_loss
from albert_jax.model.outputs import (
    AlbertForPreTrainingOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

_HEAD = 2  # salt of a head's dropout keys, apart from the encoder's


class PretrainingLogits(NamedTuple):
    """Scores at the gathered slots only: `mlm` float32 [B, M, V], `sop` float32 [B, P, 2]."""

    mlm: jax.Array
    sop: jax.Array


def gather_slots(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Picks slots of float [B, S, H] at int [B, K] positions: [B, K, H]."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


class FlaxAlbertModule(nnx.Module):
    """Embeddings, encoder and pooler.

    Args:
      config: the architecture.
      add_pooling_layer: whether there is a pooler.
      dtype: compute dtype; parameters are float32.
      remat: what the forward pass keeps for the backward pass, see `AlbertEncoder`.
      attention: what computes attention, see `AlbertAttention`.
      rngs: initialises the parameters: matrices and tables from a normal of standard deviation `initializer_range`,
        truncated at two, biases zero, LayerNorm one and zero (as Google's code does).
    """

    def __init__(
        self,
        config: AlbertConfig,
        *,
        add_pooling_layer: bool = True,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "dots_saveable",
        attention: str = "xla",
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.embeddings = AlbertEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = AlbertEncoder(config, dtype=dtype, remat=remat, attention=attention, rngs=rngs)
        if add_pooling_layer:
            self.pooler = Dense(config.hidden_size, config.hidden_size, config, dtype=dtype, rngs=rngs)
        self.add_pooling_layer = add_pooling_layer

    def encode(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array | None,
        visible: jax.Array | None,
        keys: jax.Array | None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Encoded:
        """Everything up to the last hidden state [B, S, H]; see `AlbertEncoder` for visible, keys and the flags."""
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
        return self.encoder(x, visible, fold(keys, 1), output_attentions, output_hidden_states)

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
        keys: jax.Array | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPooling:
        """Encodes rows.

        Args:
          input_ids: int [B, S].
          attention_mask: [B, S], 1 at real slots, 0 at padding; all real where None.
          token_type_ids: int [B, S], 0 in sentence A and 1 in B; all 0 where None.
          position_ids: int [B, S]; 0, 1, 2 ... where None.
          keys: dropout keys [B], see `row_keys`; None means evaluation, without dropout.
          output_attentions, output_hidden_states: whether these are returned.

        Raises:
          UserError: where a row is longer than the position table and position_ids is None.
        """
        visible = visible_keys(attention_mask, None)
        flags = output_attentions, output_hidden_states
        encoded = self.encode(input_ids, token_type_ids, position_ids, visible, keys, *flags)
        pooled = self.pool(encoded.last[:, 0]) if self.add_pooling_layer else None
        return BaseModelOutputWithPooling(encoded.last, pooled, encoded.hidden_states, encoded.attentions)


class FlaxAlbertForPreTrainingModule(nnx.Module):
    """With the masked-LM and the sentence-order head."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        self.config = config
        self.albert = FlaxAlbertModule(config, dtype=dtype, rngs=rngs, **execution)
        self.predictions = AlbertMLMHead(config, dtype=dtype, rngs=rngs)
        self.sop_classifier = AlbertSOPHead(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        *inputs: Any,
        labels: jax.Array | None = None,
        sentence_order_label: jax.Array | None = None,
        **options: Any,
    ) -> AlbertForPreTrainingOutput:
        """Scores every slot and every row.

        Args:
          inputs, options: as for `FlaxAlbertModule`.
          labels: int [B, S], -100 where nothing is predicted.
          sentence_order_label: int [B], 0 in order, 1 swapped.

        Returns:
          With a loss where both kinds of labels were given, the sum of both means.
        """
        out = self.albert(*inputs, **options)
        mlm = self.predictions(out.last_hidden_state, self.albert.embeddings.word_embeddings.embedding[...])
        sop = self.sop_classifier(out.pooler_output, fold(options.get("keys"), _HEAD))
        loss = None
        if labels is not None and sentence_order_label is not None:
            loss = mean_cross_entropy(mlm, labels) + mean_cross_entropy(sop, sentence_order_label)
        return AlbertForPreTrainingOutput(loss, mlm, sop, out.hidden_states, out.attentions)

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
        visible = visible_keys(None, example_ids)
        last = self.albert.encode(input_ids, token_type_ids, position_ids, visible, row_keys).last
        table = self.albert.embeddings.word_embeddings.embedding[...]
        mlm = self.predictions(gather_slots(last, mlm_positions), table)
        sop = self.sop_classifier(self.albert.pool(gather_slots(last, cls_positions)), None)
        return PretrainingLogits(mlm, sop)


class FlaxAlbertForMaskedLMModule(nnx.Module):
    """With the masked-LM head."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        self.albert = FlaxAlbertModule(config, add_pooling_layer=False, dtype=dtype, rngs=rngs, **execution)
        self.predictions = AlbertMLMHead(config, dtype=dtype, rngs=rngs)

    def __call__(self, *inputs: Any, labels: jax.Array | None = None, **options: Any) -> MaskedLMOutput:
        """Scores every slot; `labels` are int [B, S], -100 where nothing is predicted."""
        out = self.albert(*inputs, **options)
        logits = self.predictions(out.last_hidden_state, self.albert.embeddings.word_embeddings.embedding[...])
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        return MaskedLMOutput(loss, logits, out.hidden_states, out.attentions)


class FlaxAlbertForSequenceClassificationModule(nnx.Module):
    """With a classifier, or a regression, on the pooled output."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        self.config = config
        self.albert = FlaxAlbertModule(config, dtype=dtype, rngs=rngs, **execution)
        self.classifier = Dense(config.hidden_size, config.num_labels, config, dtype=dtype, rngs=rngs)

    def __call__(self, *inputs: Any, labels: jax.Array | None = None, **options: Any) -> SequenceClassifierOutput:
        """Scores every row; see `classification_loss` for the labels."""
        out = self.albert(*inputs, **options)
        pooled = classifier_dropout(out.pooler_output, self.config, fold(options.get("keys"), _HEAD))
        logits = self.classifier(pooled).astype(jnp.float32)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class FlaxAlbertForMultipleChoiceModule(nnx.Module):
    """With one score for each of C choices."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        self.config = config
        self.albert = FlaxAlbertModule(config, dtype=dtype, rngs=rngs, **execution)
        self.classifier = Dense(config.hidden_size, 1, config, dtype=dtype, rngs=rngs)

    def __call__(self, *inputs: Any, labels: jax.Array | None = None, **options: Any) -> MultipleChoiceModelOutput:
        """Scores choices; inputs are [B, C, S], keys [B * C], `labels` int [B], the right choice of each."""
        rows: Any = [None if x is None else x.reshape(-1, x.shape[-1]) for x in inputs]
        out = self.albert(*rows, **options)
        pooled = classifier_dropout(out.pooler_output, self.config, fold(options.get("keys"), _HEAD))
        logits = self.classifier(pooled).astype(jnp.float32).reshape(jnp.shape(inputs[0])[:2])
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss, logits, out.hidden_states, out.attentions)


class FlaxAlbertForTokenClassificationModule(nnx.Module):
    """With a classifier on every slot."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        self.config = config
        self.albert = FlaxAlbertModule(config, add_pooling_layer=False, dtype=dtype, rngs=rngs, **execution)
        self.classifier = Dense(config.hidden_size, config.num_labels, config, dtype=dtype, rngs=rngs)

    def __call__(self, *inputs: Any, labels: jax.Array | None = None, **options: Any) -> TokenClassifierOutput:
        """Scores every slot; `labels` are int [B, S], -100 where a slot has none."""
        out = self.albert(*inputs, **options)
        states = classifier_dropout(out.last_hidden_state, self.config, fold(options.get("keys"), _HEAD))
        logits = self.classifier(states).astype(jnp.float32)
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        return TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class FlaxAlbertForQuestionAnsweringModule(nnx.Module):
    """With two scores for every slot: that an answer starts there, and that it ends there."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **execution: Any):
        if config.num_labels != 2:
            raise UserError(
                f"question answering has two scores a slot, so num_labels must be 2, not {config.num_labels}."
            )
        self.albert = FlaxAlbertModule(config, add_pooling_layer=False, dtype=dtype, rngs=rngs, **execution)
        self.qa_outputs = Dense(config.hidden_size, 2, config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        *inputs: Any,
        start_positions: jax.Array | None = None,
        end_positions: jax.Array | None = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput:
        """Scores every slot; `start_positions` and `end_positions` are int [B], see `span_loss`."""
        out = self.albert(*inputs, **options)
        logits = self.qa_outputs(out.last_hidden_state).astype(jnp.float32)
        start, end = logits[..., 0], logits[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss, start, end, out.hidden_states, out.attentions)
