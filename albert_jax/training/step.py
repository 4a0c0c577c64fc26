# SPDX-License-Identifier: Apache-2.0
"""The training step: a pure function of (state, batch, control), compiled with explicit shardings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, Parameters, parameters
from albert_jax.model.attention import choose_attention
from albert_jax.training.guard import Guard, judge, new_guard
from albert_jax.training.objective import Totals, count_targets, evaluate_rows, mean_loss, zero_totals
from albert_jax.training.optimizer import learning_rate_schedule, make_optimizer
from albert_jax.training.sharding import (
    ROWS,
    as_own,
    by_rows,
    gather,
    over_rows,
    placements,
    replicated,
    scatter_sums,
    sum_over_rows,
)

_DROPOUT = 1  # salt of the dropout keys, apart from those of the initial weights
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


# What is measured in each step, in the order of `Outcome.means`.
MEASURES = (
    *("loss", "mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy"),
    *("grad_norm", "update_norm", "param_norm", "real_share"),
)


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint must hold to go on bit for bit.

    Attributes:
      params: nested dict of float32 arrays.
      opt_state: optax's.
      step: int32, steps done, skipped ones included.
      guard: what tells an outlier.
    """

    params: Parameters
    opt_state: Any
    step: jax.Array
    guard: Guard


class Outcome(NamedTuple):
    """What the host reads after a step, the same in all processes; it stays valid while later steps use the state up.

    Attributes:
      in_a_row: int32, updates that the guard has left out without a break.
      skipped: int32, updates that it has left out in the whole run.
      learning_rate: float32, of this step.
      means: float32 [len(MEASURES)], what was measured in this step, whether or not the guard let it pass; NaN for the
        mean over nothing, where no row had a label.
    """

    in_a_row: jax.Array
    skipped: jax.Array
    learning_rate: jax.Array
    means: jax.Array


# --- what a step works on ---------------------------------------------------------------------------------------------


def attention_of(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[str, str]:
    """Which attention a config means on these devices, and why; see `choose_attention`.

    Raises:
      UserError: where it cannot run, or `config.model` or `config.dtype` is not valid.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {config.dtype!r}.")
    architecture, device = AlbertConfig.from_dict(config.model.to_dict()), mesh.devices.flat[0]
    return choose_attention(config.attention, architecture, DTYPES[config.dtype], device, config.data.sequence_length)


def abstract_model(config: ml_collections.ConfigDict, mesh: Mesh) -> FlaxAlbertForPreTrainingModule:
    """The structure of the config's model, without values.

    Raises:
      UserError: where `config.model`, `config.dtype`, `config.remat` or `config.attention` is not valid.
    """
    attention, _ = attention_of(config, mesh)
    architecture, dtype = AlbertConfig.from_dict(config.model.to_dict()), DTYPES[config.dtype]
    return nnx.eval_shape(
        lambda: FlaxAlbertForPreTrainingModule(
            architecture, dtype=dtype, remat=config.remat, attention=attention, rngs=nnx.Rngs(0)
        )
    )


def initial_parameters(config: ml_collections.ConfigDict) -> Parameters:
    """Fresh parameters, a function of `config.model` and `config.seed`."""
    architecture = AlbertConfig.from_dict(config.model.to_dict())
    return jax.jit(lambda: parameters(FlaxAlbertForPreTrainingModule(architecture, rngs=nnx.Rngs(config.seed))))()


def _new_state(config: ml_collections.ConfigDict, params: Parameters) -> TrainState:
    optimizer = make_optimizer(config.optimizer)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), new_guard())


def _placements(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[Any, Any]:
    """Where parameters and gradients go, and where moments."""
    return placements(jax.eval_shape(lambda: initial_parameters(config)), config, mesh)


def _shardings(where: Any, shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda at, x: NamedSharding(mesh, at.spec(x.ndim)), where, shapes)


def abstract_state(config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a run's state.

    Raises:
      UserError: where the model cannot be split as the config's mesh says.
    """
    shapes = jax.eval_shape(lambda: _new_state(config, initial_parameters(config)))
    whole: Any = replicated(mesh)
    of_params, of_moments = (_shardings(where, shapes.params, mesh) for where in _placements(config, mesh))
    shardings: Any = TrainState(
        params=of_params,
        opt_state=optax.tree.map_params(
            make_optimizer(config.optimizer),
            lambda _, sharding: sharding,
            shapes.opt_state,
            of_moments,
            transform_non_params=lambda _: whole,
        ),
        step=whole,
        guard=jax.tree.map(lambda _: whole, shapes.guard),
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or of their descriptions."""
    return jax.tree.map(lambda x: x.sharding, tree)


def abstract_batch(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Batch:
    """Shapes, dtypes and shardings of a batch of `rows` rows."""
    slots, examples = (rows, config.data.sequence_length), (rows, config.data.examples_per_row)
    masks = (rows, config.masking.slots)
    shapes = Batch(slots, slots, slots, slots, masks, masks, examples, examples, (rows,))
    return Batch(*(jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_rows(mesh)) for shape in shapes))


def initial_state(config: ml_collections.ConfigDict, params: Parameters, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out on the mesh."""
    made = jax.jit(lambda p: _new_state(config, p), out_shardings=shardings_of(abstract_state(config, mesh)))
    return made(params)


def place_parts(parts: int, mesh: Mesh) -> jax.Array:
    """How many of a batch's micro-batches hold rows, int32, on every device; a step reads it during a batch warm-up."""
    sharding = replicated(mesh)
    devices = list(sharding.addressable_devices)
    arrays = jax.device_put([np.array(parts, np.int32)] * len(devices), devices)
    return jax.make_array_from_single_device_arrays((), sharding, arrays)


def abstract_parts(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of `place_parts`."""
    return jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))


# --- the gradient -----------------------------------------------------------------------------------------------------


def _row_keys(config: ml_collections.ConfigDict, step: jax.Array, batch: Batch) -> jax.Array | None:
    """Dropout keys that belong to (seed, step, row of the stream), or None where the model has no dropout."""
    if config.model.hidden_dropout_prob == 0 and config.model.attention_probs_dropout_prob == 0:
        return None
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _DROPOUT), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch.row_ids)


def batch_gradient(
    config: ml_collections.ConfigDict, mesh: Mesh, most: int
) -> Callable[[Parameters, jax.Array, Batch, jax.Array | int], tuple[Parameters, Totals]]:
    """The gradient of the mean loss over a batch that is split over the mesh and into micro-batches.

    Each device sums over its micro-batches, then one reduction sums over the devices: targets are counted beforehand
    over the whole batch, so the sum is the gradient of the global mean, whatever the split. Written with `shard_map`
    because the partitioner, left to itself, reduces the tied table twice and reduces every micro-batch. Only the axis
    `tensor` is left to it.

    Args:
      config: the run's.
      mesh: (data, fsdp, tensor).
      most: micro-batches into which a device's rows are cut.

    Returns:
      A function of (params, step, batch, parts) that gives the gradient, laid out as the moments are, and the totals.
      Of the micro-batches it reads the first `parts`.
    """
    model = abstract_model(config, mesh)
    of_params, of_moments = _placements(config, mesh)
    shapes = jax.eval_shape(lambda: initial_parameters(config))

    def local(params: Parameters, step: jax.Array, batch: Batch, parts: jax.Array | int) -> tuple[Parameters, Totals]:
        mlm_count, sop_count = sum_over_rows(count_targets(batch), mesh)
        params = gather(params, of_params, mesh)

        def loss(params: Parameters, rows: Batch) -> tuple[jax.Array, Totals]:
            totals = evaluate_rows(model, params, rows, _row_keys(config, step, rows))
            return mean_loss(totals, mlm_count, sop_count), totals

        micro = jax.tree.map(lambda x: x.reshape(most, -1, *x.shape[1:]), batch)

        def accumulate(k: jax.Array, sums: Any) -> Any:
            rows = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), micro)
            (_, totals), gradient = jax.value_and_grad(loss, has_aux=True)(params, rows)
            return jax.tree.map(jnp.add, sums, (gradient, totals))

        if most == 1:
            (_, totals), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        else:
            zeros = jax.tree.map(jnp.zeros_like, params), as_own(zero_totals(), mesh)
            gradient, totals = jax.lax.fori_loop(0, parts, accumulate, zeros)
        return scatter_sums(gradient, of_moments, mesh), sum_over_rows(totals, mesh)

    def specs(where: Any) -> Any:
        return jax.tree.map(lambda at, x: at.spec(x.ndim, ROWS), where, shapes)

    whole = PartitionSpec()
    return over_rows(
        local,
        mesh,
        in_specs=(specs(of_params), whole, PartitionSpec(ROWS), whole),
        out_specs=(specs(of_moments), whole),
    )


# --- compiled functions -----------------------------------------------------------------------------------------------


def make_train_step(config: ml_collections.ConfigDict, mesh: Mesh, most: int = 1) -> Any:
    """One optimizer step; the state that is passed in is used up.

    Args:
      config: the run's.
      mesh: (data, fsdp, tensor).
      most: micro-batches into which a device's rows are cut.

    Returns:
      A jitted function of (state, batch, parts), laid out as `abstract_state`, `abstract_batch` and `abstract_parts`
      say, that gives the new state and an `Outcome`.
    """
    optimizer, rate = make_optimizer(config.optimizer), learning_rate_schedule(config.optimizer, config.steps)
    gradient_of, state_like = batch_gradient(config, mesh, most), abstract_state(config, mesh)
    of_moments = _shardings(_placements(config, mesh)[1], state_like.params, mesh)

    def step(state: TrainState, batch: Batch, parts: jax.Array) -> tuple[TrainState, Outcome]:
        # Only a growing batch leaves micro-batches out; else a loop of known length is what compilers do best.
        filled = parts if config.batch.warmup_steps else most
        gradient, totals = gradient_of(state.params, state.step, batch, filled)
        loss, norm = mean_loss(totals, totals.mlm_count, totals.sop_count), optax.tree.norm(gradient)
        good, guard = judge(state.guard, config.guard, loss, norm)
        directions, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        # Computed where the moments are, and only then brought to where the parameters are.
        updates = jax.tree.map(lambda u: -rate(state.step) * u, directions)
        updates = jax.lax.with_sharding_constraint(updates, of_moments)
        measured = {
            "loss": loss,
            "mlm_loss": totals.mlm_loss / totals.mlm_count,
            "mlm_accuracy": totals.mlm_correct / totals.mlm_count,
            "sop_loss": totals.sop_loss / totals.sop_count,
            "sop_accuracy": totals.sop_correct / totals.sop_count,
            "grad_norm": norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(state.params),
            "real_share": totals.real_slots / (jnp.maximum(totals.rows, 1) * batch.input_ids.shape[1]),
        }
        proposed = (optax.apply_updates(state.params, updates), opt_state)
        kept = (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, kept)
        means = jnp.stack([measured[name] for name in MEASURES])
        outcome = Outcome(guard.in_a_row, guard.skipped, jnp.float32(rate(state.step)), means)
        return TrainState(params, opt_state, state.step + 1, guard), outcome

    return jax.jit(
        step,
        in_shardings=(shardings_of(state_like), by_rows(mesh), replicated(mesh)),
        out_shardings=(shardings_of(state_like), replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """The evaluation of one batch; dropout is off.

    Returns:
      A jitted function of (params, batch) that gives the totals.
    """
    model, (of_params, _) = abstract_model(config, mesh), _placements(config, mesh)
    params_like = abstract_state(config, mesh).params

    def local(params: Parameters, batch: Batch) -> Totals:
        return sum_over_rows(evaluate_rows(model, gather(params, of_params, mesh), batch), mesh)

    specs = jax.tree.map(lambda at, x: at.spec(x.ndim, ROWS), of_params, params_like)
    totals_of = over_rows(local, mesh, in_specs=(specs, PartitionSpec(ROWS)), out_specs=PartitionSpec())
    return jax.jit(
        totals_of,
        in_shardings=(shardings_of(params_like), by_rows(mesh)),
        out_shardings=replicated(mesh),
    )
