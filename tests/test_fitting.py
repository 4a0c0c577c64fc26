# SPDX-License-Identifier: Apache-2.0
"""Rows that a device takes at a time: every slice of docs/scaling.md is served, and a lack of memory is a sentence."""

import functools
import importlib
import math
import pathlib
import re
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.errors import OutOfMemoryError
from albert_jax.training import fitting, legs
from albert_jax.training.chips import CHIPS, slice_of
from albert_jax.training.fitting import (
    Compiled,
    TooLarge,
    compile_within,
    device_memory,
    expected_fit,
    expected_memory,
    fit,
    remedy,
)
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import Split, split_rows
from tests.in_process import run, tiny
from tests.runs import Runs

pytest_plugins = ["tests.runs"]
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "scaling.md"


# --- the printed settings start ---------------------------------------------------------------------------------------


def table() -> list[tuple[str, str, int, float]]:
    """Size, slice, rows that a chip takes at a time, and bytes that the compiler planned, of each line of the page."""
    lines = re.findall(
        r"^\| (\w+) \| (v\w+-\d+) \| [^|]* \| \d+ x (\d+) \| \w+ \| ([\d.]+) of", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return [(size, name, int(rows), 1e9 * float(gigabytes)) for size, name, rows, gigabytes in lines]


def test_the_page_lists_all_sizes_on_all_slices():
    assert len(table()) == len({line[:2] for line in table()}) == 4 * 6


@pytest.mark.parametrize("rows", [4096, 3392])
@pytest.mark.parametrize("share", [0.5, 1, 2])
@pytest.mark.parametrize(("size", "name", "planned_rows", "planned"), table())
def test_every_line_of_the_page_starts_also_with_half_and_with_twice_the_chips(
    size, name, planned_rows, planned, share, rows
):
    chips, config = slice_of(name), importlib.import_module(f"configs.{size}").get_config()
    shards = int(chips.chips * share)
    split, expected = expected_fit(config, shards, rows, chips.chip.memory)
    assert split.rows == rows and split.shards == shards and split.held >= rows
    assert split.per_shard - math.ceil(rows / shards) < split.parts  # fewer empty rows than micro-batches
    # The page's figures are the compiler's: a chip needs at least so much for the state, and the rest for its rows.
    state = 12 * AlbertConfig.published(size).pretraining_parameters()
    assert expected <= 0.9 * chips.chip.memory
    assert state + (planned - state) * min(1, split.each / planned_rows) <= 0.98 * chips.chip.memory
    assert (planned - 3 * state) / planned_rows * split.each <= 0.95 * chips.chip.memory
    assert split.parts == 1 or split.each >= 0.5 * planned_rows  # and it is not far too little


@pytest.mark.parametrize(("size", "name", "planned_rows", "planned"), table())
def test_the_formula_expects_what_the_compiler_planned(size, name, planned_rows, planned):
    config = importlib.import_module(f"configs.{size}").get_config()
    assert fitting.expected_memory(config, slice_of(name).chips, planned_rows) == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize("size", ["base", "large", "xlarge", "xxlarge"])
def test_the_recipes_start_on_eight_h100_and_on_one_card_of_24_gb(size):
    config = importlib.import_module(f"configs.{size}").get_config()
    for cards, memory in ((8, 0.75 * 80e9), (1, 0.75 * 24e9)):  # JAX takes three quarters of a card
        split, expected = expected_fit(config, cards, 3392, memory)
        assert split.each >= 1 and expected <= 0.9 * memory


def test_a_mesh_that_splits_the_model_leaves_room_for_more_rows():
    config = importlib.import_module("configs.xxlarge").get_config()
    alone = expected_memory(config, 16, 4)
    for changes in ({"mesh.fsdp": 16}, {"mesh.tensor": 4}, {"mesh.shard_optimizer": True}):
        config = importlib.import_module("configs.xxlarge").get_config()
        config.update_from_flattened_dict(changes)
        assert expected_memory(config, 16, 4) < 0.95 * alone


# --- the memory of a device -------------------------------------------------------------------------------------------


def device(kind: str, stats: dict[str, int] | None) -> Any:
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def test_memory_is_what_jax_states_else_the_chips_else_a_share_of_the_machines(monkeypatch):
    assert device_memory(device("NVIDIA H100 80GB HBM3", {"bytes_limit": 63_000_000_000})) == 63e9
    assert device_memory(device("TPU v5 lite", {})) == device_memory(device("TPU v5 lite", None)) == 16e9
    assert all(chip.memory > 1e9 for chip in CHIPS)
    installed = 1024 * int(re.findall(r"MemTotal: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[0])
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert device_memory(device("cpu", None)) == pytest.approx(installed / 4, rel=0.01)


# --- too little of it -------------------------------------------------------------------------------------------------

# What XLA has said to others.
EXHAUSTED = {
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.95G of 15.48G "
    "hbm. Exceeded hbm capacity by 6.47G.": 21.95 * 2**30,
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 4.39G. That was not possible. There "
    "are 2.30G free.; (0x0x0_HBM0)": math.inf,
    "RESOURCE_EXHAUSTED: Attempting to reserve 6.48G at the bottom of memory. That was not possible. There are 6.78G "
    "free, 0B reserved, and 3.33G reservable.": math.inf,
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.": math.inf,
    "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device ordinal 0": math.inf,
    "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.": math.inf,
}


def failing(text: str) -> Any:
    def compile_() -> None:
        raise jax.errors.JaxRuntimeError(text)

    return SimpleNamespace(compile=compile_)


@pytest.mark.parametrize(("text", "needs"), EXHAUSTED.items())
def test_what_xla_says_of_a_lack_of_memory_is_understood(text, needs):
    found = compile_within(failing(text))
    assert isinstance(found, TooLarge) and found.memory == pytest.approx(needs)


def test_other_errors_stay_what_they_are():
    for text in ("INTERNAL: something", "RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)"):
        with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(text)):
            compile_within(failing(text))


def recipe(**changes: Any) -> Any:
    config = pretraining(AlbertConfig.published("base"))
    config.update_from_flattened_dict(changes)
    return config


def pretended(bytes_a_row: float, seen: list[int], split: Split) -> Compiled | TooLarge:
    seen.append(split.each)
    return Compiled(None, 1e9 + bytes_a_row * split.each)


def test_a_given_number_is_taken_up_to_the_last_byte_and_refused_with_one_that_fits():
    seen: list[int] = []
    compiler = functools.partial(pretended, 1e9, seen)
    split, _ = fit(recipe(**{"batch.rows_per_device": 15}), 4, 4096, 16e9, compiler)
    assert split.each <= 15 and seen == [split.each]
    with pytest.raises(
        OutOfMemoryError, match=r"takes 32 rows a device at a time needs 33\.00 GB, and a device has 16\.00 GB;"
    ) as refused:
        fit(recipe(**{"batch.rows_per_device": 32}), 4, 4096, 16e9, compiler)
    suggested = int(re.findall(r"pass --config\.batch\.rows_per_device=(\d+)\.", str(refused.value))[0])
    assert fit(recipe(**{"batch.rows_per_device": suggested}), 4, 4096, 16e9, compiler)[0].each <= 13
    assert refused.value.status == 71


@pytest.mark.parametrize(
    ("remat", "each", "said"),
    [
        ("dots_saveable", 8, r"--config\.batch\.rows_per_device=6"),
        ("dots_saveable", 1, r"--config\.remat=dots_with_no_batch_dims_saveable"),
        ("nothing_saveable", 1, r"--config\.mesh\.fsdp or --config\.mesh\.tensor"),
    ],
)
def test_what_is_tried_next_is_fewer_rows_then_more_remat_then_a_split_model(remat, each, said):
    assert re.search(said, remedy(recipe(remat=remat), split_rows(64, 1, each)))
    with pytest.raises(OutOfMemoryError, match=r"--config\.remat=dots_with_no_batch_dims_saveable"):
        fit(recipe(), 4, 4096, 16e9, lambda split: TooLarge(math.inf))


def test_a_run_on_a_small_device_takes_fewer_rows_and_says_so(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(legs, "device_memory", lambda device: 12e6)
    # Without dropout, which takes most of each compilation.
    quick = {"model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0}
    with caplog.at_level("INFO", "albert_jax"):
        assert run(tiny(data, **quick, **{"batch.rows_per_device": 0, "batch.size": 64, "steps": 3}), tmp_path / "w")
    said = re.search(
        r"a step: 64 rows of 48 slots on 1 device, each (\d+) rows at a time \(chosen\), (\d+) times", caplog.text
    )
    assert said and int(said[1]) * int(said[2]) >= 64 and int(said[2]) > 1
    assert "attention: xla, because cudnn needs an NVIDIA GPU, not cpu (cpu)." in caplog.text
    monkeypatch.setattr(legs, "device_memory", lambda device: 1e5)
    with pytest.raises(OutOfMemoryError, match="takes 1 row a device at a time needs"):
        run(tiny(data, **quick, **{"batch.rows_per_device": 0, "batch.size": 1}), tmp_path / "v")


# Long rows of many heads: scores alone are 4 x 64 x 1024 x 1024 bytes a row and layer.
LONG = {
    "model.max_position_embeddings": 1024,
    "model.hidden_size": 64,
    "model.num_attention_heads": 64,
    "model.hidden_dropout_prob": 0.0,
    "model.attention_probs_dropout_prob": 0.0,
    "data.sequence_length": 1024,
    "data.examples_per_row": 8,
    "masking.slots": 160,
    "batch.size": 2,
    "optimizer.warmup_steps": 0,
    "eval.rows": 1,
    "steps": 2,
}


MORE = 2_200_000_000


@pytest.mark.slow  # how much memory a process takes beside its arrays depends on the machine
def test_memory_that_runs_out_in_a_step_ends_the_run_with_status_71_and_what_is_said_then_helps(runs: Runs, tmp_path):
    """XLA's own failure: the process may take less addresses more than it has than two rows at a time need."""
    arguments = functools.partial(runs.arguments, tmp_path / "w")
    refused = runs.train(arguments(LONG | {"batch.rows_per_device": 2}), more_memory=MORE)
    assert refused.status == 71, (refused.out, refused.err)
    assert refused.err.startswith("error: a device's memory is exhausted (RESOURCE_EXHAUSTED: ")
    assert refused.err.count("\n") == 1 and "pass --config.batch.rows_per_device=1." in refused.err
    followed = runs.train(arguments(LONG | {"batch.rows_per_device": 1}), more_memory=MORE)
    assert followed.status == 0, followed.err
