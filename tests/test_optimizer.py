# SPDX-License-Identifier: Apache-2.0
"""LAMB, AdamW and the schedule against the papers' formulas, written out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.optimizer import decayed, learning_rate_schedule, make_optimizer
from albert_jax.training.recipe import pretraining

PARAMS: dict[str, dict[str, np.ndarray]] = {
    "dense": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "bias": np.ones(4, np.float32)},
    "LayerNorm": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
    "full_layer_layer_norm": {"scale": np.full(4, 2, np.float32)},
    "word_embeddings": {"embedding": np.full((2, 3), 0.5, np.float32)},
}
ADAPTED = {("dense", "kernel"), ("word_embeddings", "embedding")}


def settings(**changes):
    config = pretraining(AlbertConfig.published("base")).optimizer.copy_and_resolve_references()
    config.warmup_steps = 2
    config.update(changes)
    return config


def by_hand(config, gradients, steps, learning_rates):
    """Algorithm 2 of You et al. 2019 with bias correction, one array at a time, in float64."""
    state = {(a, b): np.array(v, np.float64) for a, t in PARAMS.items() for b, v in t.items()}
    m, v = {k: 0.0 * w for k, w in state.items()}, {k: 0.0 * w for k, w in state.items()}
    for t in range(steps):
        flat = {(a, b): np.array(g, np.float64) for a, tree in gradients[t].items() for b, g in tree.items()}
        norm = np.sqrt(sum(np.sum(g * g) for g in flat.values()))
        for k, w in state.items():
            g = flat[k] * min(1.0, config.clip_norm / norm)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g * g
            u = (m[k] / (1 - config.b1 ** (t + 1))) / (np.sqrt(v[k] / (1 - config.b2 ** (t + 1))) + config.eps)
            ratio: Any = 1.0
            if k in ADAPTED:
                u = u + config.weight_decay * w
                if config.name == "lamb":
                    ratio = np.linalg.norm(w) / np.linalg.norm(u)
            state[k] = w - learning_rates[t] * ratio * u
    return state


@pytest.mark.parametrize("name", ["lamb", "adamw"])
@pytest.mark.parametrize("scale", [0.01, 10.0])  # below and above the clipping norm
def test_four_steps_equal_the_algorithm_written_out(name, scale):
    config = settings(name=name, weight_decay=0.1, learning_rate=0.05)
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda w: (scale * rng.normal(size=w.shape)).astype(np.float32), PARAMS) for _ in range(4)
    ]
    optimizer, params = make_optimizer(config), jax.tree.map(jnp.asarray, PARAMS)
    rate = learning_rate_schedule(config, 10)
    state = optimizer.init(params)
    for k, gradient in enumerate(gradients):
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda p, u, k=k: p - rate(k) * u, params, updates)
    rates = [0.0, 0.025, 0.05, 0.05 * 7 / 8]  # two steps of warm-up, then eight of decay
    for (a, b), wanted in by_hand(config, gradients, 4, rates).items():
        np.testing.assert_allclose(params[a][b], wanted, atol=2e-6, err_msg=f"{a}/{b}")


def test_biases_and_layer_norms_are_neither_decayed_nor_adapted():
    flat = {(a, b) for a, tree in decayed(PARAMS).items() for b, applies in tree.items() if applies}
    assert flat == ADAPTED


def test_the_rate_warms_up_linearly_and_falls_to_zero_without_a_jump():
    config = settings(learning_rate=0.00176, warmup_steps=3125)
    rate = learning_rate_schedule(config, 125_000)
    assert float(rate(0)) == 0 and float(rate(125_000)) == 0
    assert float(rate(1000)) == pytest.approx(0.00176 * 1000 / 3125)
    assert float(rate(3125)) == pytest.approx(0.00176)
    assert float(rate(64_062.5)) == pytest.approx(0.00088, rel=1e-4)
    assert float(rate(3126)) / float(rate(3125)) > 0.9999


def test_the_decay_power_bends_the_curve():
    rate = learning_rate_schedule(settings(warmup_steps=0, learning_rate=1.0, decay_power=2.0), 100)
    assert float(rate(50)) == pytest.approx(0.25)


def test_settings_that_make_no_sense_are_refused_by_name():
    with pytest.raises(UserError, match="'lamb' or 'adamw', not 'sgd'"):
        make_optimizer(settings(name="sgd"))
    with pytest.raises(UserError, match="warmup_steps 10 must be less than the run's 10 steps"):
        learning_rate_schedule(settings(warmup_steps=10), 10)
