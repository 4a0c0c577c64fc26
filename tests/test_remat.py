# SPDX-License-Identifier: Apache-2.0
"""Rematerialisation by name and attention by name: what they change, what they leave alone, and what is refused.

There is no GPU here. cuDNN's path is tried in three parts: its arithmetic, with JAX's own implementation of the same
function in the kernel's place; its program, by lowering for CUDA what the CPU cannot run; its refusals.
"""

import collections
import dataclasses
import importlib
import itertools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, PartitionSpec

from albert_jax import FlaxAlbertModel
from albert_jax.config import AlbertConfig
from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.model import FlaxAlbertForPreTrainingModule, attention, parameters
from albert_jax.model.attention import choose_attention
from albert_jax.model.encoder import REMATERIALISATIONS
from albert_jax.training.objective import count_targets, evaluate_rows, mean_loss
from albert_jax.training.step import attention_of
from tests.rows import random_batch

TINY = AlbertConfig(
    vocab_size=97,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=64,
    initializer_range=0.2,
)
# Devices as JAX describes them.
CPU: Any = SimpleNamespace(platform="cpu", device_kind="cpu")
GPU: Any = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")
OLD: Any = SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5")
AMD: Any = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X", compute_capability="gfx942")
KERNEL = "__cudnn$fmhaScaleBiasSoftmax"


def differentiate(batch: Batch, config: AlbertConfig = TINY, **execution: Any) -> tuple[Any, Any]:
    """The function from parameters to the loss and its gradient, and parameters."""
    model = FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0), **execution)

    def loss(params: Any) -> jax.Array:
        return mean_loss(evaluate_rows(model, params, batch), *count_targets(batch))

    return jax.jit(jax.value_and_grad(loss)), parameters(model)


def primitives(jaxpr: Any) -> collections.Counter[str]:
    """How often each primitive stands in a program, loops counted once."""
    counted: collections.Counter[str] = collections.Counter()
    for equation in jaxpr.eqns:
        counted[equation.primitive.name] += 1
        for inner in jaxprs_in_params(equation.params):
            counted += primitives(inner)
    return counted


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    """Every array within `tolerance` of the largest entry of all."""
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * largest, rtol=0), got, wanted)


# --- rematerialisation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[Any, Any, Any]]:
    """For each policy the counts of its program, the compiled program and what that gives."""
    made = {}
    for remat in REMATERIALISATIONS:
        function, params = differentiate(random_batch(16, slots=64), remat=remat)
        program = function.lower(params).compile()
        made[remat] = primitives(jax.make_jaxpr(function)(params).jaxpr), program, program(params)
    return made


def test_every_policy_gives_the_same_loss_and_gradients(compiled: dict[str, Any]) -> None:
    loss, gradient = compiled["everything_saveable"][2]
    for _, _, (got, gradients) in compiled.values():
        assert float(got) == pytest.approx(float(loss), rel=1e-6)
        assert_close(gradients, gradient, 1e-6)


def test_policies_compute_again_what_their_names_leave_out(compiled: dict[str, Any]) -> None:
    dots = {remat: counts["dot_general"] for remat, (counts, _, _) in compiled.items()}
    least = dots["everything_saveable"]
    # A layer has eight products: four of attention's dense layers, two of attention, two of the feed-forward. The last
    # one of a forward pass is not needed to differentiate it.
    assert dots == {
        "nothing_saveable": least + 8,
        "dots_with_no_batch_dims_saveable": least + 2,
        "dots_saveable": least,
        "everything_saveable": least,
    }
    # What lies between the products: gelu's tanh, in a layer's forward pass and then in its backward pass.
    tanhs = {remat: counts["tanh"] for remat, (counts, _, _) in compiled.items()}
    assert tanhs["dots_saveable"] == tanhs["nothing_saveable"] == tanhs["everything_saveable"] + 1


def test_policies_that_compute_more_need_less_memory(compiled: dict[str, Any]) -> None:
    sizes = [compiled[remat][1].memory_analysis().temp_size_in_bytes for remat in REMATERIALISATIONS]
    assert all(1.3 * less < more for less, more in itertools.pairwise(sizes)), sizes


def test_the_default_keeps_all_products() -> None:
    batch = random_batch(2)
    programs = [
        str(jax.make_jaxpr(function)(params))
        for function, params in (differentiate(batch), differentiate(batch, remat="dots_saveable", attention="xla"))
    ]
    without_addresses = [re.sub(r"0x[0-9a-f]+", "", program) for program in programs]
    assert without_addresses[0] == without_addresses[1]


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.fixture()
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX says that it runs on a GPU with cuDNN, so that programs for one can be made."""
    monkeypatch.setattr(attention, "default_device", lambda: GPU)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


@pytest.fixture()
def stand_in(gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """JAX's own implementation of the function in the place of cuDNN's; gives what it was called with."""
    function: Any = jax.nn.dot_product_attention
    calls: list[dict[str, Any]] = []

    def called(*arrays: jax.Array, implementation: str, mask: Any = None) -> jax.Array:
        calls.append({"implementation": implementation, "mask": None if mask is None else mask.shape})
        return function(*arrays, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", called)
    return calls


def test_fused_attention_gives_the_losses_and_gradients_of_packed_rows(stand_in: list[dict[str, Any]]) -> None:
    batch = random_batch(8, slots=48)
    assert (batch.example_ids == 0).any() and (batch.example_ids == 2).any()
    wanted, params = differentiate(batch, dtype=jnp.bfloat16)
    got, _ = differentiate(batch, dtype=jnp.bfloat16, attention="cudnn")
    exact, _ = differentiate(batch)
    (loss, gradient), (other, expected), (truth, _) = got(params), wanted(params), exact(params)
    assert {call["implementation"] for call in stand_in} == {"cudnn"}
    assert {call["mask"] for call in stand_in} == {(8, 1, 48, 48)}  # cuDNN knows no mask without a row for each query
    assert float(loss) == pytest.approx(float(other), rel=1e-3)
    assert float(loss) == pytest.approx(float(truth), rel=2e-2)
    assert_close(gradient, expected, 2e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_gives_the_outputs_of_padded_rows_and_of_full_ones(
    masked: bool, stand_in: list[dict[str, Any]]
) -> None:
    ids = np.random.default_rng(0).integers(5, 97, (3, 16))
    mask = np.ones_like(ids)
    if masked:
        mask[1, :4] = mask[2, 9:] = 0
    plain = FlaxAlbertModel(TINY, dtype=jnp.bfloat16)
    fused = FlaxAlbertModel(TINY, dtype=jnp.bfloat16, attention="cudnn")
    arguments: Any = {"attention_mask": mask if masked else None, "params": plain.params}
    wanted = np.asarray(plain(ids, **arguments).last_hidden_state, np.float32)
    got = np.asarray(fused(ids, **arguments).last_hidden_state, np.float32)
    assert {call["mask"] for call in stand_in} == {(3, 1, 16, 16) if masked else None}
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[mask == 1], wanted[mask == 1], atol=0.1)
    assert np.abs(wanted).max() > 1

    # The kernel has no weights to give, so they come from the other implementation.
    stand_in.clear()
    weights = fused(ids, **arguments, output_attentions=True).attentions
    assert not stand_in and len(weights) == TINY.num_hidden_layers


@pytest.mark.parametrize("remat", REMATERIALISATIONS)
def test_the_program_for_cuda_runs_the_fused_kernel_again_only_where_its_result_is_not_kept(
    remat: str, gpu: None
) -> None:
    function, params = differentiate(random_batch(2), dtype=jnp.bfloat16, attention="cudnn", remat=remat)
    program = function.trace(params).lower(lowering_platforms=("cuda",)).as_text()
    kernels = collections.Counter(re.findall(r"custom_call @(\S+?)\(", program))
    kept = remat in ("dots_saveable", "everything_saveable")
    assert kernels == {KERNEL: 1 if kept else 2, f"{KERNEL}Backward": 1}
    assert "2x4x32x32" not in program  # no scores [B, N, S, S]


def test_the_program_for_cuda_can_be_split_over_devices(gpu: None) -> None:
    """As the training step does it, where a kernel that loses track of what varies over devices is refused."""
    batch, mesh = random_batch(4), Mesh(np.array(jax.devices()[:2]), ("data",))
    model = FlaxAlbertForPreTrainingModule(TINY, dtype=jnp.bfloat16, attention="cudnn", rngs=nnx.Rngs(0))

    def local(params: Any, rows: Batch) -> Any:
        params = jax.lax.pcast(params, "data", to="varying")
        gradient = jax.grad(lambda p: evaluate_rows(model, p, rows).mlm_loss)(params)
        return jax.lax.psum(gradient, "data")

    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(everywhere, rows), out_specs=everywhere))
    program = split.trace(parameters(model), batch).lower(lowering_platforms=("cuda",)).as_text()
    assert f"{KERNEL}Backward" in program


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("execution", "changes", "message"),
    [
        ({"remat": "dots"}, {}, r"remat must be one of nothing_saveable, .*, not 'dots'"),
        ({"attention": "flash"}, {}, r"attention must be one of xla, cudnn, not 'flash'"),
        (
            {"attention": "cudnn", "dtype": jnp.bfloat16},
            {},
            r"cudnn needs an NVIDIA GPU, not cpu \(cpu\); run on one, or set attention to 'xla'",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_where_the_model_is_made(
    execution: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0), **execution))
    with pytest.raises(UserError, match=message):
        FlaxAlbertModel(config, **execution)


OBSTACLES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"device": CPU}, {}, r"cudnn needs an NVIDIA GPU, not cpu \(cpu\)"),
    ({"device": AMD}, {}, r"cudnn needs an NVIDIA GPU, not AMD Instinct MI300X \(gpu\)"),
    ({"device": OLD}, {}, r"cudnn needs compute capability 8.0, and Tesla T4 \(gpu\) has 7.5"),
    ({"dtype": jnp.float32}, {}, r"cudnn computes in bfloat16, not in float32"),
    ({}, {"attention_probs_dropout_prob": 0.1}, r"cudnn has no dropout, and attention_probs_dropout_prob is 0.1"),
    ({}, {"num_attention_heads": 8}, r".* over num_attention_heads 8 is 4"),
    ({}, {"hidden_size": 256, "num_attention_heads": 1}, r".* up to 128, and hidden_size 256 over .* 1 is 256"),
    ({"slots": 33}, {}, r"cudnn takes masked rows of an even length, not of 33 slots"),
]


@pytest.mark.parametrize(("where", "changes", "reason"), OBSTACLES)
def test_cudnn_is_refused_by_name_and_passed_over_for_one_and_the_same_reason(
    where: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    config, there = dataclasses.replace(TINY, **changes), {"dtype": jnp.bfloat16, "device": GPU, "slots": 32} | where
    with pytest.raises(UserError, match=f"attention 'cudnn' cannot run: {reason}; .*, or set attention to 'xla'"):
        choose_attention("cudnn", config, **there)
    chosen, why = choose_attention("auto", config, **there)
    assert chosen == "xla" and re.search(reason, why)
    assert choose_attention("xla", config, **there)[0] == "xla"


def test_auto_takes_cudnn_where_it_can_run() -> None:
    assert choose_attention("auto", TINY, jnp.bfloat16, GPU, 32) == ("cudnn", "device and config allow it")
    assert choose_attention("cudnn", TINY, jnp.bfloat16, GPU, 32)[0] == "cudnn"


@pytest.mark.parametrize("size", ["base", "large", "xlarge", "xxlarge"])
def test_the_published_recipes_take_cudnn_on_a_gpu_and_those_with_dropout_xla(size: str) -> None:
    mesh: Any = SimpleNamespace(devices=np.array([GPU]))
    recipe = importlib.import_module(f"configs.{size}").get_config
    assert attention_of(recipe(), mesh)[0] == "cudnn"
    chosen, why = attention_of(recipe("v1"), mesh)
    drops = size != "xxlarge"
    assert (chosen, "attention_probs_dropout_prob is 0.1" in why) == ("xla" if drops else "cudnn", drops)


def test_rows_of_an_odd_length_are_refused_under_a_mask(gpu: None) -> None:
    function, params = differentiate(random_batch(2, slots=33), dtype=jnp.bfloat16, attention="cudnn")
    with pytest.raises(UserError, match="masked rows of an even length, not of 33 slots"):
        function.trace(params)


def test_a_model_is_loaded_with_both_settings_and_saved_without(tmp_path: Any) -> None:
    FlaxAlbertModel(TINY).save_pretrained(tmp_path)
    loaded = FlaxAlbertModel.from_pretrained(tmp_path, remat="nothing_saveable", attention="xla")
    assert loaded.config.to_dict() == TINY.to_dict()
    with pytest.raises(UserError, match="remat must be one of"):
        FlaxAlbertModel.from_pretrained(tmp_path, remat="none")
