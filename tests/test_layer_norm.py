# SPDX-License-Identifier: Apache-2.0
"""LayerNorm computes in float32 whatever the compute dtype is, and rounds its result alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.model import FlaxAlbertForPreTrainingModule, parameters, with_parameters
from albert_jax.model.layer_norm import LayerNorm

CONFIG = AlbertConfig(
    vocab_size=50,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
FINE = 1.0035  # nearer to 1 than to bfloat16's next number, 1.0078125
WIDTH = 256


def normalised(x: np.ndarray) -> np.ndarray:
    """Float64 [..., WIDTH] of mean 0 and variance 1."""
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.layer_norm_eps)


def states(dtype: jnp.dtype) -> np.ndarray:
    """Hidden states [64, WIDTH] with a mean of their own in each slot."""
    random = np.random.default_rng(0)
    return (random.normal(size=(64, WIDTH)) * 3 + random.normal(size=(64, 1)) * 5).astype(dtype)


def layer_norm(dtype: jnp.dtype, scale: np.ndarray, bias: np.ndarray) -> LayerNorm:
    module = LayerNorm(WIDTH, CONFIG, dtype=dtype, rngs=nnx.Rngs(0))
    module.scale, module.bias = nnx.Param(jnp.float32(scale)), nnx.Param(jnp.float32(bias))
    return module


@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_result_is_that_of_the_formula_rounded_once(given, dtype):
    random = np.random.default_rng(1)
    scale, bias = (random.normal(size=WIDTH).astype(np.float32) for _ in range(2))
    x = states(given)
    found = layer_norm(dtype, scale, bias)(jnp.asarray(x))
    expected = normalised(x) * scale + bias
    assert found.dtype == dtype
    if dtype == jnp.float32:
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    else:  # a few entries lie so near the middle of two numbers that float32 rounds them to the other one
        assert np.mean(np.asarray(found) != expected.astype(jnp.bfloat16)) < 0.002


@pytest.mark.parametrize(("scale", "bias"), [(FINE, 0.0), (1.0, FINE)])
def test_a_scale_or_bias_between_two_bfloat16_numbers_changes_a_bfloat16_result(scale, bias):
    x = states(jnp.bfloat16)
    before = (normalised(x) * np.round(scale) + np.round(bias)).astype(jnp.bfloat16)
    expected = (normalised(x) * np.float32(scale) + np.float32(bias)).astype(jnp.bfloat16)
    found = np.asarray(layer_norm(jnp.bfloat16, np.full(WIDTH, scale), np.full(WIDTH, bias))(jnp.asarray(x)))
    assert np.mean(before != expected) > 0.3
    assert np.mean(found != expected) < 0.002


def test_gradients_of_scale_and_bias_are_those_of_the_formula_to_float32():
    x, weights = states(jnp.bfloat16), states(jnp.bfloat16)[::-1].copy()

    def loss(module: LayerNorm) -> jax.Array:
        return jnp.sum(module(jnp.asarray(x)).astype(jnp.float32) * weights.astype(np.float32))

    found = nnx.grad(loss)(layer_norm(jnp.bfloat16, np.ones(WIDTH), np.zeros(WIDTH)))
    exact = weights.astype(np.float64)
    for name, expected in (("scale", (exact * normalised(x)).sum(0)), ("bias", exact.sum(0))):
        assert found[name][...].dtype == jnp.float32
        np.testing.assert_allclose(found[name][...], expected, rtol=1e-5, atol=1e-3)


def test_every_scale_and_bias_of_a_bfloat16_model_is_used_in_float32():
    model = FlaxAlbertForPreTrainingModule(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ids = jnp.arange(32).reshape(2, 16)

    @jax.jit
    def logits(params):
        return with_parameters(model, params)(ids).prediction_logits

    params = parameters(model)
    norms = [
        path
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
        if "norm" in jax.tree_util.keystr(path).lower()
    ]
    assert len(norms) == 8
    for changed in norms:

        def filled(value: float, changed=changed):
            return jax.tree_util.tree_map_with_path(
                lambda path, x: jnp.full_like(x, value) if path == changed else x, params
            )

        assert not np.array_equal(logits(filled(FINE)), logits(filled(1.0))), changed
