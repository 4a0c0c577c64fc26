# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention, bidirectional, with padding masks and masks for rows that hold several examples."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.model.dense import Dense
from albert_jax.model.dropout import dropout, fold
from albert_jax.model.layer_norm import LayerNorm

ATTENTIONS = ("xla", "cudnn")
AUTO = "auto"  # in a run's config: the best of them that can run
_LARGEST_FUSED_HEAD = 128  # what cuDNN takes on every GPU; from Hopper on it takes 256
_LEAST_CAPABILITY = 8.0  # Ampere


def visible_keys(attention_mask: jax.Array | None, example_ids: jax.Array | None) -> jax.Array | None:
    """Which keys a query may see.

    Args:
      attention_mask: [B, S], 1 at real slots and 0 at padding, as in transformers; hides keys only. Or None.
      example_ids: int [B, S], the number 1..P of the example that a slot belongs to and 0 at padding: slots see each
        other where the numbers are equal. Or None.

    Returns:
      bool [B, 1, S, S] or [B, 1, 1, S], or None where everything is visible.
    """
    visible = None
    if attention_mask is not None:
        visible = attention_mask[:, None, None, :] != 0
    if example_ids is not None:
        same = (example_ids[:, :, None] == example_ids[:, None, :])[:, None]
        visible = same if visible is None else visible & same
    return visible


class AlbertAttention(nnx.Module):
    """Attention, its output projection, dropout, residual and LayerNorm (post-LN, as in the original).

    Args:
      config, dtype, rngs: as everywhere.
      attention: 'xla', products and a softmax that XLA compiles, for every device and dtype; or 'cudnn', NVIDIA's fused
        kernel, which never stores the scores. Weights that are asked for are computed as by 'xla' in both.

    Raises:
      UserError: for another name, or where cuDNN has no kernel for the device, the dtype, the head size or dropout.
    """

    def __init__(self, config: AlbertConfig, *, dtype: jnp.dtype, attention: str, rngs: nnx.Rngs):
        def dense() -> Dense:
            return Dense(config.hidden_size, config.hidden_size, config, dtype=dtype, rngs=rngs)

        _check_implementation(attention, config, dtype)
        self.config, self.dtype, self.implementation = config, dtype, attention
        self.query, self.key, self.value, self.dense = dense(), dense(), dense(), dense()
        self.LayerNorm = LayerNorm(config.hidden_size, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, visible: jax.Array | None, keys: jax.Array | None, output_attentions: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attends over x.

        Args:
          x: float [B, S, H].
          visible: bool, broadcastable to [B, N, S, S], or None; see `visible_keys`.
          keys: dropout keys [B], or None in evaluation.
          output_attentions: whether the weights are needed.

        Returns:
          float [B, S, H], and the weights after softmax and dropout, float [B, N, S, S], which may be None where they
          are not needed.

        Raises:
          UserError: for an odd S under a mask, with 'cudnn'.
        """
        c = self.config
        heads, size = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        q, k, v = (dense(x).reshape(*x.shape[:2], heads, size) for dense in (self.query, self.key, self.value))
        weights = None
        if self.implementation == "cudnn" and not output_attentions:
            context = _fused(q, k, v, visible).reshape(x.shape)
        else:
            # Scores and softmax stay in float32 whatever the compute dtype: S terms are summed in them.
            scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * size**-0.5
            if visible is not None:
                scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            weights = dropout(weights, c.attention_probs_dropout_prob, fold(keys, 0))
            context = jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(x.shape)
        x = self.LayerNorm(x + dropout(self.dense(context), c.hidden_dropout_prob, fold(keys, 1)))
        return x, weights


def why_not_cudnn(
    config: AlbertConfig, dtype: jnp.dtype, device: jax.Device, slots: int | None = None
) -> tuple[str, str] | None:
    """The first reason for which cuDNN's kernel cannot run, and what would remove it; None where it can.

    Args:
      config: the model's.
      dtype: that it computes in.
      device: that it runs on.
      slots: S of masked rows, where it is known.
    """
    capability, found = str(getattr(device, "compute_capability", "")), f"{device.device_kind} ({device.platform})"
    size, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", capability):
        return f"cudnn needs an NVIDIA GPU, not {found}", "run on one"
    if float(capability) < _LEAST_CAPABILITY:
        return f"cudnn needs compute capability {_LEAST_CAPABILITY}, and {found} has {capability}", "take a newer GPU"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"cudnn computes in bfloat16, not in {jnp.dtype(dtype).name}", "set dtype to bfloat16"
    if rate := config.attention_probs_dropout_prob:
        return f"cudnn has no dropout, and attention_probs_dropout_prob is {rate}", "set it to 0"
    if size % 8 or size > _LARGEST_FUSED_HEAD:
        return (
            f"cudnn takes heads of a multiple of 8 up to {_LARGEST_FUSED_HEAD}, and hidden_size {config.hidden_size} "
            f"over num_attention_heads {heads} is {size}",
            "change one of them",
        )
    if slots is not None and slots % 2:
        return f"cudnn takes masked rows of an even length, not of {slots} slots", "change data.sequence_length"
    return None


def choose_attention(
    asked: str, config: AlbertConfig, dtype: jnp.dtype, device: jax.Device, slots: int | None = None
) -> tuple[str, str]:
    """One of `ATTENTIONS`, and why.

    Args:
      asked: one of them, or 'auto' for cuDNN's where it can run.
      config, dtype, device, slots: as for `why_not_cudnn`.

    Raises:
      UserError: where `asked` is none of these or cannot run.
    """
    if asked not in (*ATTENTIONS, AUTO):
        raise UserError(f"attention must be one of {', '.join((AUTO, *ATTENTIONS))}, not {asked!r}.")
    if asked == "xla":
        return "xla", "the config says so"
    obstacle = why_not_cudnn(config, dtype, device, slots)
    if obstacle is None:
        return "cudnn", "device and config allow it" if asked == AUTO else "the config says so"
    if asked == AUTO:
        return "xla", obstacle[0]
    raise UserError(f"attention 'cudnn' cannot run: {obstacle[0]}; {obstacle[1]}, or set attention to 'xla'.")


def _check_implementation(attention: str, config: AlbertConfig, dtype: jnp.dtype) -> None:
    """Refuses what cannot run, where the model is made: cuDNN's own refusals come late and in its own words."""
    if attention not in ATTENTIONS:
        raise UserError(f"attention must be one of {', '.join(ATTENTIONS)}, not {attention!r}.")
    if attention != "xla":
        choose_attention(attention, config, dtype, default_device())


def default_device() -> Any:
    """Where JAX computes unless told otherwise."""
    return jax.devices()[0]


def _fused(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """The context [B, S, N, D] of bfloat16 q, k and v [B, S, N, D] by cuDNN."""
    if visible is not None:
        if q.shape[1] % 2:
            raise UserError(
                f"attention 'cudnn' takes masked rows of an even length, not of {q.shape[1]} slots; pad them."
            )
        # cuDNN adds the mask as a bias, which must have a row for each query; heads share it.
        visible = jnp.broadcast_to(visible, (q.shape[0], 1, q.shape[1], q.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=visible, implementation="cudnn")
