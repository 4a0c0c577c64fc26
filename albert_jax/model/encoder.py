# SPDX-License-Identifier: Apache-2.0
"""Factorised embeddings and the encoder, whose layers share weights and run under `jax.lax.scan`.

Sharing is object sharing: what groups have in common (`AlbertConfig.shared_across_groups`) is one module in all of
them, so its parameters exist once, under the first group's name.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model.attention import AlbertAttention
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import dropout, fold
from albert_jax.model.layer_norm import LayerNorm

# What is kept of a layer for its backward pass, by JAX's names, from least memory to least arithmetic: its input, what
# the products with weights give, what all products give, everything. The rest is computed again.
REMATERIALISATIONS = (
    "nothing_saveable",
    "dots_with_no_batch_dims_saveable",
    "dots_saveable",
    "everything_saveable",
)


def _dots_saveable(primitive: Any, *args: Any, **params: Any) -> Any:
    """JAX's policy, and cuDNN's fused attention: it is two products, but not to JAX, which would run it twice."""
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or jax.checkpoint_policies.dots_saveable(primitive, *args, **params)


def _policy(remat: str) -> Callable[..., Any]:
    """What `jax.checkpoint` takes for one of `REMATERIALISATIONS`."""
    return _dots_saveable if remat == "dots_saveable" else getattr(jax.checkpoint_policies, remat)


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function that a config's `hidden_act` names: 'gelu_new' is the tanh approximation, 'gelu' the exact one."""
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
    }
    return functions[name]


class Encoded(NamedTuple):
    """The last hidden state [B, S, H], and None or all hidden states and attention weights; see `model.outputs`."""

    last: jax.Array
    hidden_states: tuple[jax.Array, ...] | None
    attentions: tuple[jax.Array, ...] | None


class AlbertEmbeddings(nnx.Module):
    """Word, position and token-type embeddings of width E, summed and normalised."""

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def table(entries: int) -> nnx.Embed:
            init = nnx.initializers.truncated_normal(config.initializer_range)
            # Summed, and their gradients scattered and summed, in float32; LayerNorm's result has the compute dtype.
            return nnx.Embed(entries, config.embedding_size, embedding_init=init, rngs=rngs)

        self.config = config
        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.LayerNorm = LayerNorm(config.embedding_size, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array, keys: jax.Array | None
    ) -> jax.Array:
        """Embeds int [B, S] ids, types and positions into float [B, S, E].

        The padding token's row gets no gradient from here, as in transformers' torch class (`padding_idx`).
        """
        words = self.word_embeddings(input_ids)
        padding = (input_ids == self.config.pad_token_id)[..., None]
        x = jnp.where(padding, jax.lax.stop_gradient(words), words) + self.position_embeddings(position_ids)
        x = self.LayerNorm(x + self.token_type_embeddings(token_type_ids))
        return dropout(x, self.config.hidden_dropout_prob, fold(keys, 0))


class AlbertLayer(nnx.Module):
    """One transformer block: attention and feed-forward, post-LN.

    Args:
      config, dtype, rngs: as everywhere.
      attention: as in `AlbertAttention`.
      first: the block in the same place of the first group, or None for that block itself. The part that
        `config.shared_across_groups` names is taken from it.
    """

    attention: AlbertAttention
    ffn: Dense
    ffn_output: Dense
    full_layer_layer_norm: LayerNorm

    def __init__(
        self,
        config: AlbertConfig,
        *,
        dtype: jnp.dtype,
        attention: str,
        rngs: nnx.Rngs,
        first: Optional["AlbertLayer"] = None,
    ):
        self.config = config
        if first is not None and config.shared_across_groups == "attention":
            self.attention = first.attention
        else:
            self.attention = AlbertAttention(config, dtype=dtype, attention=attention, rngs=rngs)
        if first is not None and config.shared_across_groups == "ffn":
            self.ffn, self.ffn_output = first.ffn, first.ffn_output
            self.full_layer_layer_norm = first.full_layer_layer_norm
            return
        self.ffn = Dense(config.hidden_size, config.intermediate_size, config, dtype=dtype, rngs=rngs)
        self.ffn_output = Dense(config.intermediate_size, config.hidden_size, config, dtype=dtype, rngs=rngs)
        self.full_layer_layer_norm = LayerNorm(config.hidden_size, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, visible: jax.Array | None, keys: jax.Array | None, output_attentions: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Applies the block to float [B, S, H]; see `AlbertAttention` for the arguments and what is returned."""
        x, weights = self.attention(x, visible, fold(keys, 0), output_attentions)
        y = self.ffn_output(activation(self.config.hidden_act)(self.ffn(x)))
        # Google and transformers' Flax class drop out here; transformers' torch class does not.
        return self.full_layer_layer_norm(x + dropout(y, self.config.hidden_dropout_prob, fold(keys, 1))), weights


class AlbertLayerGroup(nnx.Module):
    """`inner_group_num` blocks with weights of their own, applied in turn; layers of one group share all of them."""

    def __init__(
        self,
        config: AlbertConfig,
        *,
        dtype: jnp.dtype,
        attention: str,
        rngs: nnx.Rngs,
        first: Optional["AlbertLayerGroup"] = None,
    ):
        firsts: list[AlbertLayer | None] = [None] * config.inner_group_num
        if first is not None:
            firsts = list(first.albert_layers)
        self.albert_layers: nnx.List = nnx.List(
            [AlbertLayer(config, dtype=dtype, attention=attention, rngs=rngs, first=f) for f in firsts]
        )

    def __call__(
        self, x: jax.Array, visible: jax.Array | None, keys: jax.Array | None, output_attentions: bool
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array | None]]:
        """Returns the output, and each block's output [B, S, H] and attention weights, see `AlbertAttention`."""
        outputs, attentions = [], []
        for i, layer in enumerate(self.albert_layers):
            x, weights = layer(x, visible, fold(keys, i), output_attentions)
            outputs.append(x)
            attentions.append(weights)
        return x, outputs, attentions


class AlbertEncoder(nnx.Module):
    """Maps E to H and runs the layers, one `lax.scan` for each group, so that the program does not grow with depth.

    Args:
      config, dtype, rngs: as everywhere.
      remat: what is kept for the backward pass, one of `REMATERIALISATIONS`; results do not depend on it.
      attention: as in `AlbertAttention`.

    Raises:
      UserError: where one of the two is no such name or cannot be used here.
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, remat: str, attention: str, rngs: nnx.Rngs):
        if remat not in REMATERIALISATIONS:
            raise UserError(f"remat must be one of {', '.join(REMATERIALISATIONS)}, not {remat!r}.")
        self.config, self.remat = config, remat
        self.embedding_hidden_mapping_in = Dense(
            config.embedding_size, config.hidden_size, config, dtype=dtype, rngs=rngs
        )

        def group(first: AlbertLayerGroup | None) -> AlbertLayerGroup:
            return AlbertLayerGroup(config, dtype=dtype, attention=attention, rngs=rngs, first=first)

        first = group(None)
        others = range(1, config.num_hidden_groups)
        self.albert_layer_groups = nnx.List([first, *(group(first) for _ in others)])

    def __call__(
        self,
        x: jax.Array,
        visible: jax.Array | None,
        keys: jax.Array | None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Encoded:
        """Encodes.

        Args:
          x: embeddings, float [B, S, E].
          visible: as in `AlbertAttention`.
          keys: dropout keys [B], or None in evaluation.
          output_attentions: whether every block's attention weights are returned too.
          output_hidden_states: whether every block's output is returned too.
        """
        x = self.embedding_hidden_mapping_in(x)
        hidden, attentions = [x[None]], []
        layers = range(self.config.num_hidden_layers)
        for group, members in itertools.groupby(layers, self.config.group_of_layer):
            # The group's weights are constants of the loop and are cast to the compute dtype inside its body, so their
            # gradient is summed over the layers in float32.
            def body(
                x: jax.Array, layer: jax.Array, group: AlbertLayerGroup = self.albert_layer_groups[group]
            ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
                x, outputs, weights = group(x, visible, fold(keys, layer), output_attentions)
                wanted: Any = ((output_hidden_states, outputs), (output_attentions, weights))
                states, maps = (jnp.stack(arrays) if want else None for want, arrays in wanted)
                return x, (states, maps)

            step = jax.checkpoint(body, policy=_policy(self.remat), prevent_cse=False)
            x, (states, maps) = jax.lax.scan(step, x, jnp.array(list(members)))
            if states is not None:
                hidden.append(states.reshape(-1, *states.shape[2:]))
            if maps is not None:
                attentions.append(maps.reshape(-1, *maps.shape[2:]))
        return Encoded(
            x,
            tuple(jnp.concatenate(hidden)) if output_hidden_states else None,
            tuple(jnp.concatenate(attentions)) if output_attentions else None,
        )
