# SPDX-License-Identifier: Apache-2.0
"""The step's promises: independent of mesh and micro-batches, one reduction, measurements that outlive the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.data.rows import with_empty_rows
from albert_jax.data.stream import IGNORED, Batch
from albert_jax.errors import UserError
from albert_jax.training.interval import Interval
from albert_jax.training.program import read_program
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh, place_batch
from albert_jax.training.step import (
    MEASURES,
    abstract_model,
    initial_parameters,
    initial_state,
    make_eval_step,
    make_train_step,
    place_parts,
)
from tests.rows import random_batch


def recipe(**changes):
    model = AlbertConfig(
        vocab_size=97,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.1,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    config = pretraining(model)
    config.steps, config.optimizer.warmup_steps, config.optimizer.learning_rate = 20, 1, 0.01
    config.update_from_flattened_dict(changes)
    return config


def uneven_batch(rows, seed):
    """Rows with very different numbers of targets, so that a mean of means would differ from the mean."""
    batch = random_batch(rows, seed=seed)
    for r in range(rows):
        batch.mlm_labels[r, 1 + r % 5 :] = IGNORED
        batch.sop_labels[r, : r % 3] = IGNORED
    return batch


def train(config, devices, steps=3, parts=1):
    mesh = make_mesh(devices)
    state = initial_state(config, initial_parameters(config), mesh)
    step = make_train_step(config, mesh, parts)
    interval = Interval()
    for k in range(steps):
        state, outcome = step(state, place_batch(uneven_batch(16, k), mesh), place_parts(1, mesh))
        interval.add(jax.device_get(outcome), tokens=0, flops=0, waited=0)
    return interval.means(), jax.device_get(state)


@pytest.fixture(scope="module")
def alone():
    return train(recipe(), 1)


@pytest.mark.parametrize(
    ("devices", "parts"), [(2, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((8, 1), (1, 4)))]
)
def test_loss_and_parameters_do_not_depend_on_devices_or_micro_batches(alone, devices, parts):
    means, state = train(recipe(), devices, parts=parts)
    for name, value in alone[0].items():
        np.testing.assert_allclose(means[name], value, rtol=2e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-6), state.params, alone[1].params)


def test_the_same_steps_give_the_same_bits(alone):
    jax.tree.map(np.testing.assert_array_equal, train(recipe(), 1)[1], alone[1])


def test_every_parameter_moves(alone):
    moved = jax.tree.map(lambda a, b: np.any(a != b), alone[1].params, jax.device_get(initial_parameters(recipe())))
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("parts", [1, 4])
def test_gradients_are_reduced_once_a_step_whatever_the_micro_batches(parts):
    config, mesh = recipe(), make_mesh(4)
    state = initial_state(config, initial_parameters(config), mesh)
    batch = place_batch(uneven_batch(16, 0), mesh)
    compiled = make_train_step(config, mesh, parts).lower(state, batch, place_parts(1, mesh)).compile()
    program = read_program(compiled.as_text())
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert 4 * count <= program.reduced_bytes <= 1.01 * 4 * count
    assert not any(loops for _, loops in program.collectives)


def test_measurements_stay_readable_while_later_steps_use_the_state_up():
    config, mesh = recipe(), make_mesh(2)
    state = initial_state(config, initial_parameters(config), mesh)
    step, outcomes = make_train_step(config, mesh), []
    for k in (0, 0, 1):
        state, outcome = step(state, place_batch(uneven_batch(8, k), mesh), place_parts(1, mesh))
        outcomes.append(outcome)
    first, _, third = (dict(zip(MEASURES, outcome.means, strict=True)) for outcome in jax.device_get(outcomes))
    assert first["loss"] > 0 and third["loss"] > 0 and first["loss"] != third["loss"] and int(state.step) == 3
    assert first["real_share"] == pytest.approx(np.mean(uneven_batch(8, 0).example_ids > 0))


def test_the_logged_rate_is_the_one_that_the_last_step_used():
    means, _ = train(recipe(), 1, steps=2)
    assert float(means["learning_rate"]) == pytest.approx(0.01)  # step 1 is the first after the warm-up's single step


def test_evaluation_counts_every_target_and_drops_nothing_out():
    config, mesh = recipe(), make_mesh(4)
    params = initial_parameters(config)
    step = make_eval_step(config, mesh)
    batches = [uneven_batch(8, k) for k in range(3)]
    for batch in batches:
        placed = place_batch(batch, mesh)
        totals = step(params, placed)
        assert float(totals.mlm_count) == np.sum(batch.mlm_labels != IGNORED)
        assert float(totals.sop_count) == np.sum(batch.sop_labels != IGNORED)
        assert [float(x) for x in totals] == [float(x) for x in step(params, placed)]


def test_a_batch_without_any_target_gives_a_finite_step():
    config, mesh = recipe(), make_mesh(1)
    state = initial_state(config, initial_parameters(config), mesh)
    batch = random_batch(4)
    batch.mlm_labels[:], batch.sop_labels[:] = IGNORED, IGNORED
    state, _ = make_train_step(config, mesh)(state, place_batch(batch, mesh), place_parts(1, mesh))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.params))


def test_an_update_that_is_not_finite_changes_nothing_but_the_counts():
    config, mesh = recipe(), make_mesh(1)
    step, parts = make_train_step(config, mesh), place_parts(1, mesh)
    state, _ = step(
        initial_state(config, initial_parameters(config), mesh), place_batch(uneven_batch(8, 0), mesh), parts
    )
    before = jax.device_get(state)
    batch = uneven_batch(8, 1)
    batch.input_ids[3, 2] = 10_000  # no such piece: its embedding is NaN
    state, outcome = step(state, place_batch(batch, mesh), parts)
    after = jax.device_get(state)
    assert int(outcome.in_a_row) == int(outcome.skipped) == int(after.guard.skipped) == 1 and int(after.step) == 2
    for old, new in ((before.params, after.params), (before.opt_state, after.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_growing_batch_reads_the_first_micro_batches_alone():
    config, mesh = recipe(**{"batch.warmup_steps": 5}), make_mesh(2)
    batch, found = uneven_batch(8, 0), []
    # Each device has four micro-batches of two rows, of which the first two hold rows.
    padded = [
        np.concatenate([with_empty_rows(Batch(*(x[i : i + 4] for x in batch)), 8)[j] for i in (0, 4)]) for j in range(9)
    ]
    for most, rows in ((4, Batch(*padded)), (2, batch)):
        state = initial_state(config, initial_parameters(config), mesh)
        _, outcome = make_train_step(config, mesh, most)(state, place_batch(rows, mesh), place_parts(2, mesh))
        found.append(jax.device_get(outcome.means))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, err_msg=str(MEASURES))


def test_wrong_meshes_and_dtypes_are_refused_by_name():
    with pytest.raises(UserError, match=r"mesh\.data=9, mesh\.fsdp=1, mesh\.tensor=1 does not fit 8 devices"):
        make_mesh(9)
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16, not 'float16'"):
        abstract_model(recipe(dtype="float16"), make_mesh(1))
