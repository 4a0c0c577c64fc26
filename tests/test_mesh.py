# SPDX-License-Identifier: Apache-2.0
"""Training does not depend on how the devices are arranged, and memory does.

One device against eight in every shape of a mesh (data, fsdp, tensor), in float32, with dropout, micro-batches and rows
of very different numbers of targets; and a number of rows that no number of devices divides.
`pytest -m '' tests/test_mesh.py` tries all shapes, the default suite some.
"""

from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.data.stream import IGNORED, Batch
from albert_jax.errors import UserError
from albert_jax.training import step as steps
from albert_jax.training.legs import made_rows
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import Rows, Split, make_mesh, place_batch, split_rows
from albert_jax.training.step import (
    MEASURES,
    abstract_state,
    initial_parameters,
    initial_state,
    make_train_step,
    place_parts,
)
from tests.rows import random_batch

# data, fsdp, tensor; and whether moments are split over data.
SOME = [(8, 1, 1, True), (2, 2, 2, True)]
OTHERS = [
    (1, 1, 8, False),
    (2, 4, 1, True),
    (8, 1, 1, False),
    (4, 2, 1, False),
    (4, 1, 2, False),
    (2, 4, 1, False),
    (2, 2, 2, False),
    (2, 1, 4, True),
    (1, 8, 1, False),
    (1, 4, 2, True),
    (1, 2, 4, False),
]
SHAPES = [*SOME, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in OTHERS)]


def recipe(**changes: Any) -> ml_collections.ConfigDict:
    model = AlbertConfig(
        vocab_size=104,
        embedding_size=16,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=128,
        max_position_embeddings=32,
        initializer_range=0.1,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    config = pretraining(model)
    config.steps, config.optimizer.warmup_steps, config.optimizer.learning_rate = 40, 1, 0.005
    config.update_from_flattened_dict(changes)
    return config


def uneven_batch(seed: int, rows: int = 16) -> Any:
    batch = random_batch(rows, seed=seed)
    for r in range(rows):
        batch.mlm_labels[r, 1 + r % 5 :] = IGNORED
        batch.sop_labels[r, : r % 3] = IGNORED
    return batch


class Trained(NamedTuple):
    """Means and parameters ("/"-joined path -> array) after one step and after twenty."""

    after_1: tuple[dict[str, float], dict[str, np.ndarray]]
    after_20: tuple[dict[str, float], dict[str, np.ndarray]]


def train(
    config: ml_collections.ConfigDict, data: int = 1, fsdp: int = 1, tensor: int = 1, *, parts: int = 2
) -> Trained:
    mesh = make_mesh(data, fsdp, tensor)
    state = initial_state(config, initial_parameters(config), mesh)
    step, found = make_train_step(config, mesh, parts), {}
    for k in range(20):
        # Step 0 has a rate of zero, so the first batch is repeated: "one step" is the first that moves anything.
        state, outcome = step(state, place_batch(uneven_batch(max(0, k - 1)), mesh), place_parts(2, mesh))
        if k in (1, 19):
            params = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
            found[k] = dict(zip(MEASURES, map(float, jax.device_get(outcome.means)), strict=True)), params
    return Trained(found[1], found[19])


def assert_agree(found: Trained, wanted: Trained) -> None:
    for (means, params), (means_1, params_1), tolerance in (
        (found.after_1, wanted.after_1, 2e-5),
        (found.after_20, wanted.after_20, 1e-4),
    ):
        assert means["loss"] == pytest.approx(means_1["loss"], rel=tolerance)
        for name, value in params_1.items():
            if name.endswith("key/bias"):
                continue  # softmax does not see it: its gradient is rounding and nothing else
            worst = np.abs(params[name] - value).max() / np.abs(value).max()
            assert worst <= tolerance, (name, worst)


@pytest.fixture(scope="module")
def alone() -> Trained:
    return train(recipe(), parts=1)


@pytest.mark.parametrize(("data", "fsdp", "tensor", "shard_optimizer"), SHAPES)
def test_eight_devices_in_any_mesh_train_as_one_does(alone, data, fsdp, tensor, shard_optimizer):
    assert_agree(train(recipe(**{"mesh.shard_optimizer": shard_optimizer}), data, fsdp, tensor), alone)


def test_a_mean_of_means_would_be_noticed(alone, monkeypatch):
    counts = steps.count_targets
    monkeypatch.setattr(steps, "sum_over_rows", lambda tree, mesh: tree)  # each device divides by its own targets
    monkeypatch.setattr(steps, "count_targets", lambda batch: tuple(8 * count for count in counts(batch)))
    with pytest.raises(ValueError, match="out_specs"):  # shard_map itself notices that totals are not summed
        train(recipe(), 8)
    monkeypatch.undo()
    monkeypatch.setattr(steps, "count_targets", lambda batch: tuple(count / count * 40.0 for count in counts(batch)))
    with pytest.raises(AssertionError):
        assert_agree(train(recipe(), 8), alone)


# --- a number of rows that nothing divides ----------------------------------------------------------------------------

COUNTS = (5, 31, 53)  # a batch grows; 5 rows leave some of eight devices without any


def stream(start: int, count: int) -> Batch:
    return Batch(*(x[start : start + count] for x in uneven_batch(0, 100)))


def losses(split: Split) -> list[tuple[float, float]]:
    """Loss and share of real slots of steps that consume `COUNTS` rows, one after the other."""
    config, mesh = recipe(**{"batch.warmup_steps": len(COUNTS) - 1}), make_mesh(split.shards)
    rows, step = Rows(mesh, split), make_train_step(config, mesh, split.parts)
    state, start, found = initial_state(config, initial_parameters(config), mesh), 0, []
    for count in COUNTS:
        batch = made_rows(stream, rows, start, count)
        assert (batch.example_ids.any(1)).sum() == count
        state, outcome = step(state, rows.place(batch), place_parts(split.parts_of(count), mesh))
        means = dict(zip(MEASURES, map(float, jax.device_get(outcome.means)), strict=True))
        found.append((means["loss"], means["real_share"]))
        start += count
    return found


@pytest.fixture(scope="module")
def whole() -> list[tuple[float, float]]:
    """The same steps on one device, each batch as it is: no shard, no micro-batch, no empty row."""
    config, mesh = recipe(), make_mesh(1)
    state, step = initial_state(config, initial_parameters(config), mesh), make_train_step(config, mesh)
    start, found = 0, []
    for count in COUNTS:
        rows = stream(start, count)
        state, outcome = step(state, place_batch(rows, mesh), place_parts(1, mesh))
        found.append((float(jax.device_get(outcome.means)[0]), float(np.mean(rows.example_ids > 0))))
        start += count
    return found


SPLITS = [
    (1, 10),
    (3, 7),
    (8, 3),
    *(pytest.param(*split, marks=pytest.mark.slow) for split in [(2, 53), (5, 4), (8, 1)]),
]


@pytest.mark.parametrize(("devices", "rows_per_device"), SPLITS)
def test_a_prime_number_of_rows_gives_the_same_losses_on_any_devices(whole, devices, rows_per_device):
    split = split_rows(53, devices, rows_per_device)
    assert split.each <= rows_per_device
    for (loss, share), (wanted_loss, wanted_share) in zip(losses(split), whole, strict=True):
        assert loss == pytest.approx(wanted_loss, rel=2e-6) and share == pytest.approx(wanted_share, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 53, 64, 3392, 4096, 4099])
def test_every_row_is_in_one_place_and_few_places_are_empty(rows):
    for shards in (1, 2, 3, 5, 8, 12, 16, 64, 100, 256):
        for most in (1, 2, 3, 7, 16, 64, 5000):
            split = split_rows(rows, shards, most)
            for count in {1, (rows + 7) // 8, rows // 2 or 1, rows}:
                begins = [split.begin(shard, count) for shard in range(shards + 1)]
                sizes = np.diff(begins)
                assert begins[0] == 0 and begins[-1] == count and sizes.min() >= 0
                assert sizes[0] == sizes.max() <= split.per_shard and sizes.max() - sizes.min() <= 1
                parts = split.parts_of(count)
                assert (parts - 1) * split.each < sizes.max() <= parts * split.each  # no more than hold rows
            assert split.parts_of(rows) == split.parts and split.each <= most
            fullest = -(-rows // shards)
            assert split.per_shard - fullest < split.parts <= -(-fullest // most) * 1.25
            assert split.per_shard <= fullest * 1.1 + 2  # few of them are empty


# --- what is where ----------------------------------------------------------------------------------------------------


def bytes_on_a_device(config: ml_collections.ConfigDict, data: int, fsdp: int = 1, tensor: int = 1) -> tuple[int, int]:
    """Of parameters and of optimizer state."""
    state = abstract_state(config, make_mesh(data, fsdp, tensor))

    def held(tree: Any) -> int:
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * 4 for x in jax.tree.leaves(tree))

    return held(state.params), held(state.opt_state)


def test_fsdp_and_tensor_split_parameters_and_moments_and_shard_optimizer_moments_alone():
    whole_params, whole_moments = bytes_on_a_device(recipe(), 1)
    assert bytes_on_a_device(recipe(), 8) == (whole_params, whole_moments)
    params, moments = bytes_on_a_device(recipe(**{"mesh.shard_optimizer": True}), 8)
    assert params == whole_params and moments < 0.16 * whole_moments
    params, moments = bytes_on_a_device(recipe(), 1, 8)
    assert params < 0.16 * whole_params and moments < 0.16 * whole_moments
    params, moments = bytes_on_a_device(recipe(), 1, 1, 8)
    assert params < 0.35 * whole_params and moments < 0.35 * whole_moments


def test_the_published_sizes_can_be_split_as_the_default_rules_say():
    for size, tensor in (("base", 4), ("large", 16), ("xlarge", 16), ("xxlarge", 16)):
        config = pretraining(AlbertConfig.published(size))
        mesh: Any = jax.sharding.AbstractMesh((2, 4, tensor), ("data", "fsdp", "tensor"))
        where, _ = steps.placements(jax.eval_shape(lambda c=config: initial_parameters(c)), config, mesh)
        matrices = [at for path, at in traverse_util.flatten_dict(where, sep="/").items() if "kernel" in path]
        assert all(at.fsdp is not None for at in matrices)
        assert sum(at.tensor is not None for at in matrices) == 6  # query, key, value, dense, ffn, ffn_output


def test_meshes_that_make_no_sense_are_refused_in_a_sentence():
    for shape, said in (
        ((0,), "mesh.data=0"),
        ((-1, -1), "one of them may be -1"),
        ((-1, 3), "does not fit 8 devices"),
    ):
        with pytest.raises(UserError, match=said):
            make_mesh(*shape)
    with pytest.raises(UserError, match=r"mesh\.tensor=8 does not divide model\.num_attention_heads=4"):
        abstract_state(recipe(**{"model.num_attention_heads": 4}), make_mesh(1, 1, 8))
    with pytest.raises(UserError, match=r"mesh\.rules has 'heads:data'"):
        abstract_state(recipe(**{"mesh.rules": "heads:data"}), make_mesh(1))
