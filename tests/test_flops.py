# SPDX-License-Identifier: Apache-2.0
"""The FLOP formula, which MFU rests on, counts what the training program does: by its jaxpr, and by XLA's own count."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import Batch
from albert_jax.model import FlaxAlbertForPreTrainingModule, parameters
from albert_jax.training.objective import evaluate_rows, mean_loss

ROWS = 4
# Slots, mask slots and example slots of a row.
SHORT, LONG = (128, 20, 1), (512, 80, 8)


def gradient(config: AlbertConfig, shape: tuple[int, int, int], **execution: Any) -> tuple[Any, ...]:
    """The gradient that training computes, as a function, and the shapes of its arguments."""
    model, params = nnx.eval_shape(
        lambda: (
            FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0), **execution),
            parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))),
        )
    )

    def loss(params: Any, batch: Batch) -> jax.Array:
        totals = evaluate_rows(model, params, batch)
        return mean_loss(totals, totals.mlm_count, totals.sop_count)

    slots, masks, examples = shape
    widths = [(slots,)] * 4 + [(masks,)] * 2 + [(examples,)] * 2 + [()]
    batch = Batch(*(jax.ShapeDtypeStruct((ROWS, *width), jnp.int32) for width in widths))
    return jax.grad(loss), params, batch


def matmul_flops(jaxpr: Any) -> int:
    """Two FLOPs a multiply-add, over all products of a jaxpr, in a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        assert equation.primitive.name != "while", "a loop whose length nobody knows"
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                total += times * matmul_flops(inner) if hasattr(inner, "eqns") else 0
    return total


def counted(config: AlbertConfig, shape: tuple[int, int, int], **execution: Any) -> int:
    function, *arguments = gradient(config, shape, **execution)
    return matmul_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("shape", [SHORT, LONG])
@pytest.mark.parametrize("size", ["base", "large", "xlarge", "xxlarge"])
def test_the_formula_is_the_number_of_matmul_flops_in_the_training_program(size, shape):
    config = AlbertConfig.published(size, 2)
    assert counted(config, shape) == ROWS * config.train_flops_per_row(*shape)


def test_sharing_changes_no_flop():
    formulas, counts = set(), set()
    for groups, inner in ((1, 1), (6, 1), (3, 2)):
        config = AlbertConfig.published("base", 2).updated(
            num_hidden_layers=6 // inner, num_hidden_groups=groups, inner_group_num=inner
        )
        formulas.add(ROWS * config.train_flops_per_row(*SHORT))
        counts.add(counted(config, SHORT))
    assert formulas == counts and len(counts) == 1


def test_recomputation_is_done_but_not_credited():
    config = AlbertConfig.published("base", 2)
    recomputed = counted(config, SHORT, remat="nothing_saveable") / (ROWS * config.train_flops_per_row(*SHORT))
    assert 1.2 < recomputed <= 4 / 3


@pytest.mark.parametrize(
    ("hidden", "layers", "shape"), [(256, 2, SHORT), (256, 2, LONG), (512, 2, SHORT), (512, 1, (384, 60, 4))]
)
def test_xla_counts_at_most_2_percent_more_which_is_what_is_no_matmul(hidden, layers, shape):
    # A group of its own for each layer: XLA unrolls a loop that runs once, and counts the body of any other once too.
    config = AlbertConfig(
        vocab_size=4000, hidden_size=hidden, num_hidden_layers=layers, num_hidden_groups=layers,
        num_attention_heads=hidden // 64, intermediate_size=4 * hidden,
    )  # fmt: skip
    function, *arguments = gradient(config, shape)
    analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert 1.0 <= analysis["flops"] / (ROWS * config.train_flops_per_row(*shape)) < 1.02
