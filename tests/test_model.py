# SPDX-License-Identifier: Apache-2.0
"""The model's promises: packing and gathering change nothing, dropout belongs to rows, the program does not grow."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax.extend.core import jaxprs_in_params

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import IGNORED
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, parameters, with_parameters
from albert_jax.model.dropout import dropout
from albert_jax.training.objective import count_targets, evaluate_rows, mean_loss
from tests.rows import lay_out, random_batch, random_examples

TINY = AlbertConfig(
    vocab_size=97,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.2,
)


evaluate = jax.jit(evaluate_rows, static_argnums=0)


def tiny(**changes: Any) -> tuple[FlaxAlbertForPreTrainingModule, dict]:
    model = FlaxAlbertForPreTrainingModule(dataclasses.replace(TINY, **changes), rngs=nnx.Rngs(0))
    return model, parameters(model)


def test_packed_rows_give_the_same_sums_and_gradients_as_one_example_a_row():
    model, params = tiny()
    examples = random_examples(12, 16, TINY.vocab_size)
    packed = lay_out([examples[:4], examples[4:7], examples[7:]], slots=96, mask_slots=20, examples=5)
    alone = lay_out([[example] for example in examples], slots=96, mask_slots=20, examples=5)

    def loss(params, batch):
        totals = evaluate_rows(model, params, batch)
        return mean_loss(totals, *count_targets(batch)), totals

    (_, a), da = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, packed)
    (_, b), db = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, alone)
    assert (int(a.rows), int(b.rows)) == (3, 12)
    np.testing.assert_allclose(a._replace(rows=b.rows), b, rtol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), da, db)


def test_packed_examples_would_differ_if_they_saw_each_other():
    model, params = tiny()
    batch = random_batch(4)
    seen = evaluate(model, params, batch._replace(example_ids=np.minimum(batch.example_ids, 1)))
    assert abs(float(seen.mlm_loss - evaluate(model, params, batch).mlm_loss)) > 1e-2


def test_gathered_slots_score_as_the_full_head_does():
    model, _ = tiny()
    batch = lay_out([[e] for e in random_examples(6, 32, TINY.vocab_size)], slots=32, mask_slots=10, examples=1)
    full = jax.jit(model.__call__)(batch.input_ids, batch.example_ids, batch.token_type_ids)
    part = jax.jit(model.score_slots)(
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        batch.example_ids,
        batch.mlm_positions,
        batch.cls_positions,
    )
    real = batch.mlm_labels != IGNORED
    wanted = np.take_along_axis(np.asarray(full.prediction_logits), batch.mlm_positions[:, :, None], axis=1)
    np.testing.assert_allclose(np.asarray(part.mlm)[real], wanted[real], atol=2e-5)
    np.testing.assert_allclose(part.sop[:, 0], full.sop_logits, atol=2e-6)


def test_training_never_builds_scores_for_all_slots():
    model, params = tiny(vocab_size=2003)  # so large that scores outweigh everything else
    batch = random_batch(4)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    traced = jax.make_jaxpr(jax.grad(lambda p: evaluate_rows(model, p, batch).mlm_loss))(params)
    assert max(sizes(traced.jaxpr)) < batch.input_ids.size * 2003


def test_dropout_of_a_row_does_not_depend_on_the_rows_beside_it():
    model, params = tiny(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    batch, keys = random_batch(6), jax.random.split(jax.random.key(1), 6)
    whole = evaluate(model, params, batch, keys)
    halves = [
        evaluate(model, params, jax.tree.map(lambda x, h=h: x[h], batch), keys[h]) for h in (slice(2), slice(2, 6))
    ]
    np.testing.assert_allclose(whole, jax.tree.map(jnp.add, *halves), rtol=1e-5)
    assert float(whole.mlm_loss) != float(evaluate(model, params, batch).mlm_loss)
    assert float(whole.mlm_loss) != float(evaluate(model, params, batch, keys[::-1]).mlm_loss)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = dropout(jnp.ones((8, 4096)), 0.4, jax.random.split(jax.random.key(0), 8))
    assert abs(float(jnp.mean(x == 0)) - 0.4) < 0.02
    assert abs(float(jnp.mean(x)) - 1) < 0.03


@pytest.mark.parametrize("groups", [1, 2])
def test_the_program_does_not_grow_with_depth(groups):
    def lines(layers):
        model, params = tiny(num_hidden_layers=layers, num_hidden_groups=groups)
        batch = random_batch(2)
        return jax.jit(jax.grad(lambda p: evaluate_rows(model, p, batch).mlm_loss)).lower(params).as_text().count("\n")

    assert abs(lines(24) - lines(4)) <= 4


def test_bfloat16_computes_in_bfloat16_over_float32_parameters_losses_and_gradients():
    model = FlaxAlbertForPreTrainingModule(TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    params = parameters(model)
    batch = random_batch(4)
    totals, gradient = jax.jit(jax.value_and_grad(lambda p: evaluate_rows(model, p, batch).mlm_loss))(params)
    exact, wanted = jax.jit(jax.value_and_grad(lambda p: evaluate_rows(tiny()[0], p, batch).mlm_loss))(params)
    assert {x.dtype for x in jax.tree.leaves((params, gradient, totals))} == {jnp.dtype("float32")}
    assert model(batch.input_ids).prediction_logits.dtype == jnp.float32
    assert abs(float(totals / exact) - 1) < 0.02 and float(totals) != float(exact)
    assert model.albert(batch.input_ids).last_hidden_state.dtype == jnp.bfloat16
    # Some gradients vanish in exact arithmetic (the key's bias), so small ones are held to the largest one's scale.
    largest = max(float(jnp.linalg.norm(b)) for b in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= 0.1 * float(jnp.linalg.norm(b)) + 0.01 * largest


def test_a_row_longer_than_the_position_table_is_refused_by_name():
    model, _ = tiny()
    with pytest.raises(UserError, match="65 slots exceeds max_position_embeddings 64"):
        model(jnp.ones((1, 65), jnp.int32))


def test_parameters_that_do_not_fit_are_named():
    model, params = tiny()
    flat = traverse_util.flatten_dict(params, sep="/")
    lacking = {k: v for k, v in flat.items() if k != "predictions/bias"}
    with pytest.raises(UserError, match=r"1 missing.*predictions/bias"):
        with_parameters(model, traverse_util.unflatten_dict(lacking, sep="/"))
    wrong = flat | {"predictions/bias": np.zeros(5, np.float32)}
    with pytest.raises(UserError, match=r"predictions/bias has shape \(5,\)"):
        with_parameters(model, traverse_util.unflatten_dict(wrong, sep="/"))


def test_initial_weights_follow_the_original():
    _, params = tiny()
    for name, value in traverse_util.flatten_dict(params, sep="/").items():
        if name.endswith("bias"):
            assert not np.any(value), name
        elif name.endswith("scale"):
            assert np.all(value == 1), name
        else:  # a normal of standard deviation 0.2, truncated at twice that
            assert np.abs(value).max() <= 0.4 + 1e-6 and abs(float(np.std(value)) - 0.2 * 0.88) < 0.05, name


def test_bfloat16_gradients_keep_growing_with_the_slots_of_a_batch():
    """Sums over slots must run in float32: a bfloat16 sum of equal terms stops at 256 of them."""
    config = dataclasses.replace(TINY, vocab_size=7, num_hidden_layers=1)
    params = parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0)))
    ids = jnp.asarray(np.random.default_rng(0).integers(2, 7, (512, 32)), jnp.int32)

    def gradient(dtype: Any) -> dict[str, jax.Array]:
        model = FlaxAlbertForPreTrainingModule(config, dtype=dtype, rngs=nnx.Rngs(0))

        def loss(params: Any) -> jax.Array:
            logits = with_parameters(model, params).score_slots(
                ids, jnp.zeros_like(ids), jnp.arange(32)[None] % 32 + 0 * ids, jnp.ones_like(ids), ids, ids[:, :1]
            )
            return jnp.sum(jax.nn.log_softmax(logits.mlm)[..., 3]) + jnp.sum(jax.nn.log_softmax(logits.sop)[..., 1])

        return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")

    exact, ours = gradient(jnp.float32), gradient(jnp.bfloat16)
    largest = max(float(jnp.linalg.norm(g)) for g in exact.values())
    for name, wanted in exact.items():
        size = float(jnp.linalg.norm(wanted))
        assert float(jnp.linalg.norm(ours[name] - wanted)) <= 0.15 * size + 2e-4 * largest, name
