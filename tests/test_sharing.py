# SPDX-License-Identifier: Apache-2.0
"""The sharing strategies of the paper's table 4: what is shared, that it trains, and what Hugging Face can hold."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from albert_jax import FlaxAlbertForPreTraining, FlaxAlbertModel
from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import unshared
from albert_jax.errors import UserError
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh, place_batch
from albert_jax.training.step import MEASURES, initial_parameters, initial_state, make_train_step, place_parts
from tests.architectures import config, inputs_and_labels, model, torch_class
from tests.rows import random_batch

LAYERS = 4
PLAIN = config("relu", num_hidden_layers=LAYERS, max_position_embeddings=64)
STRATEGIES: dict[str, AlbertConfig] = {
    **{name: PLAIN.with_sharing(name) for name in ("all", "attention", "ffn", "none")},
    "two groups": dataclasses.replace(PLAIN, num_hidden_groups=2),
    "attention of two groups of two": dataclasses.replace(
        PLAIN, num_hidden_groups=2, inner_group_num=2, shared_across_groups="attention"
    ),
}


def small(shape: AlbertConfig) -> Any:
    """A recipe for a model of that shape."""
    c = pretraining(shape)
    c.batch.unit, c.batch.size, c.masking.slots, c.data.sequence_length = "rows", 8, 8, 48
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.warmup_steps, c.steps = "adamw", 3e-3, 0, 50
    return c


@pytest.mark.parametrize(
    ("strategy", "width", "millions"),
    # Table 4. The paper rounds to millions; its 108 is BERT's, which has no mapping from E to H (0.6 million here).
    [
        ("all", 768, 31),
        ("attention", 768, 83),
        ("ffn", 768, 57),
        ("none", 768, 108),
        ("all", 128, 12),
        ("attention", 128, 64),
        ("ffn", 128, 38),
        ("none", 128, 89),
    ],
)
def test_the_papers_parameter_counts_come_out(strategy: str, width: int, millions: int) -> None:
    base = dataclasses.replace(AlbertConfig.published("base"), embedding_size=width).with_sharing(strategy)
    network = FlaxAlbertModel(base, _do_init=False)
    counted = sum(leaf.size for leaf in jax.tree.leaves(network.params_shape_tree))
    assert counted == base.encoder_parameters()
    assert abs(counted / 1e6 - millions) <= (1 if millions < 100 else 2)


@pytest.mark.parametrize(
    "strategy",
    # The widest apart; `pytest -m ''` trains all of them.
    [pytest.param(s, marks=() if s in ("none", list(STRATEGIES)[-1]) else pytest.mark.slow) for s in STRATEGIES],
)
def test_every_strategy_trains_by_the_same_step(strategy: str) -> None:
    recipe, mesh = small(STRATEGIES[strategy]), make_mesh(2)
    batch = random_batch(8)
    batch = batch._replace(input_ids=batch.input_ids % 96, mlm_labels=np.where(batch.mlm_labels >= 0, 7, -100))
    placed = place_batch(batch, mesh)
    state, step = initial_state(recipe, initial_parameters(recipe), mesh), make_train_step(recipe, mesh)
    start = jax.tree.map(np.asarray, state.params)
    losses = []
    for _ in range(7):
        state, outcome = step(state, placed, place_parts(1, mesh))
        losses.append(float(outcome.means[MEASURES.index("loss")]))
    assert losses[-1] < losses[0] - 0.5
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), start, state.params)
    assert all(
        value > 0 for path, value in traverse_util.flatten_dict(moved, sep="/").items() if "key/bias" not in path
    )


@pytest.mark.parametrize("strategy", ["attention", "ffn", "attention of two groups of two"])
def test_shared_parts_are_one_set_of_weights_whose_gradients_are_summed(strategy: str) -> None:
    shape = STRATEGIES[strategy]
    shared, params = model("FlaxAlbertForPreTraining", shape)
    flat, plain = unshared(traverse_util.flatten_dict(params, sep="/"), shape)
    apart = FlaxAlbertForPreTraining(plain, _do_init=False)
    inputs, labels = inputs_and_labels("FlaxAlbertForPreTraining", shape)

    def gradient(network: Any, params: Any) -> tuple[Any, dict[str, jax.Array]]:
        loss = jax.jit(jax.value_and_grad(lambda p: network(**inputs, **labels, params=p).loss))
        value, tree = loss(params)
        return value, traverse_util.flatten_dict(tree, sep="/")

    loss, ours = gradient(shared, params)
    wanted_loss, theirs = gradient(apart, traverse_util.unflatten_dict(flat, sep="/"))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for path, value in ours.items():
        copies = [path.replace("groups/0", f"groups/{g}") for g in range(shape.num_hidden_groups)]
        whole = [theirs[path]] if "groups/0" not in path else [theirs[p] for p in copies if p == path or p not in ours]
        scale = float(jnp.abs(sum(whole)).max()) if "key/bias" not in path else 1e-2
        np.testing.assert_allclose(value, sum(whole), atol=2e-5 * scale, err_msg=path)


@pytest.mark.parametrize("strategy", ["all", "none", "two groups"])
def test_what_hugging_face_can_hold_it_gets(strategy: str, tmp_path: pathlib.Path) -> None:
    theirs = torch_class("AlbertForPreTraining")
    ours, params = model("FlaxAlbertForPreTraining", STRATEGIES[strategy])
    ours.save_pretrained(tmp_path, params)
    check_against_torch(theirs, tmp_path, ours, params)


@pytest.mark.parametrize("strategy", ["attention", "ffn", "attention of two groups of two"])
def test_what_it_cannot_hold_says_so_and_goes_there_unshared(strategy: str, tmp_path: pathlib.Path) -> None:
    ours, params = model("FlaxAlbertForPreTraining", STRATEGIES[strategy])
    with pytest.raises(UserError, match=r"cannot share the (attention|ffn) weights across groups; .*--unshare"):
        ours.save_pretrained(tmp_path, params)
    assert not list(tmp_path.iterdir())
    theirs = torch_class("AlbertForPreTraining")
    flat, plain = unshared(traverse_util.flatten_dict(params, sep="/"), ours.config)
    FlaxAlbertForPreTraining(plain, _do_init=False).save_pretrained(
        tmp_path, traverse_util.unflatten_dict(flat, sep="/")
    )
    check_against_torch(theirs, tmp_path, ours, params)


def check_against_torch(theirs: Any, directory: pathlib.Path, ours: Any, params: Any) -> None:
    """transformers computes from the files what the shared model computes."""
    import torch

    inputs, _ = inputs_and_labels("FlaxAlbertForPreTraining", ours.config)
    with torch.no_grad():
        wanted = theirs.from_pretrained(directory).eval()(**{k: torch.tensor(v) for k, v in inputs.items()})
    got = ours(**inputs, params=params)
    np.testing.assert_allclose(got.prediction_logits, wanted.prediction_logits, atol=1e-5)
    np.testing.assert_allclose(got.sop_logits, wanted.sop_logits, atol=1e-5)


def test_another_strategy_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="sharing 'some' is not one of all, none, attention, ffn"):
        PLAIN.with_sharing("some")
    with pytest.raises(UserError, match="shared_across_groups must be one of nothing, attention, ffn, not 'all'"):
        dataclasses.replace(PLAIN, shared_across_groups="all")
