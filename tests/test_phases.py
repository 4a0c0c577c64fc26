# SPDX-License-Identifier: Apache-2.0
"""Runs whose shapes change: short rows first, and batches that grow."""

import json
import math
import pathlib
from typing import Any

import pytest

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.legs import Leg
from albert_jax.training.phases import Phase, read_phases
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import split_rows
from tests.in_process import run, tiny
from tests.runs import arrays, records

pytest_plugins = ["tests.runs"]
PHASES = {"data.phases": "24:5", "log.every": 1, "checkpoint.keep": 20}


def same_bits(a: pathlib.Path, b: pathlib.Path, step: int) -> bool:
    found, wanted = arrays(a, step), arrays(b, step)
    return {n: x.tobytes() for n, x in found.items()} == {n: x.tobytes() for n, x in wanted.items()}


@pytest.fixture(scope="module")
def two_lengths(data, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run of 5 steps of 24 slots and 7 of 48."""
    workdir = tmp_path_factory.mktemp("two_lengths") / "w"
    assert run(tiny(data, **PHASES), workdir)
    return workdir


def test_the_first_phase_is_a_run_of_short_rows_to_the_last_bit(data, tmp_path, two_lengths):
    short = {"data.sequence_length": 24, "data.examples_per_row": 2, "masking.slots": 5, "data.phases": ""}
    assert not run(tiny(data, **PHASES | short | {"checkpoint.every": 5}), tmp_path / "w", stop_after=6)
    assert same_bits(tmp_path / "w", two_lengths, 5)


def test_one_optimizer_state_and_one_schedule_go_through_all_phases(two_lengths):
    end = arrays(two_lengths)
    assert end["['rest']['step']"] == 12
    assert [int(x) for name, x in end.items() if "count" in name] == [12]  # Adam's
    rates = [line["learning_rate"] for line in records(two_lengths) if line["kind"] == "train"]
    assert rates == pytest.approx([0.0, 0.001, 0.002, *(0.002 * k / 10 for k in range(9, 0, -1))], rel=1e-5)


def test_each_phase_goes_through_its_own_stream_and_costs_its_own_flops(two_lengths):
    lines = [line for line in map(json.loads, (two_lengths / "metrics.jsonl").read_text().splitlines())]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["position"] for line in train] == [8, 16, 24, 32, 40, 8, 16, 24, 32, 40, 48, 56]


@pytest.mark.parametrize("stop_after", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 7))])
def test_a_run_stopped_in_any_phase_or_between_them_ends_with_the_same_bits(data, tmp_path, two_lengths, stop_after):
    config = tiny(data, **PHASES)
    assert not run(config, tmp_path / "w", stop_after)
    assert run(config, tmp_path / "w")
    assert same_bits(tmp_path / "w", two_lengths, 12)
    assert records(tmp_path / "w") == records(two_lengths)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("128", "a phase is SLOTS:UNTIL_STEP"),
        ("4:10", "rows of 4 slots"),
        ("1024:10", "max_position_embeddings 512"),
        ("64:20 128:20", "must lie between 20 and the run's 100"),
        ("64:100", "must lie between 0 and the run's 100"),
    ],
)
def test_phases_that_make_no_sense_are_refused(text, said):
    config = pretraining(AlbertConfig.published("base"))
    config.steps, config.data.phases = 100, text
    with pytest.raises(UserError, match=said):
        read_phases(config)


def test_shorter_rows_have_fewer_examples_and_masks_by_the_same_factor():
    config = pretraining(AlbertConfig.published("base"))
    config.data.phases = "128:112500"
    short, long = read_phases(config)
    assert (short.begin, short.end, long.begin, long.end) == (0, 112_500, 112_500, 125_000)
    c = short.config
    assert (c.data.sequence_length, c.data.examples_per_row, c.masking.slots) == (128, 2, 20)
    assert long.config is config


# --- batch warm-up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "rows_per_device"), [(1, 64), (4, 3), (100, 1)])
def test_a_batch_grows_evenly_from_an_eighth_whatever_the_devices(shards, rows_per_device):
    leg = object.__new__(Leg)
    config: Any = pretraining(AlbertConfig.published("base"))
    config.batch.warmup_steps = 8
    leg.phase, leg.config, leg.rows_per_step = Phase(0, 12, config), config, 53
    split = split_rows(53, shards, rows_per_device)
    leg._fitted = type("Rows", (), {"split": split})(), None
    draws = list(leg.draws(0, 0))
    assert [draw.rows for draw in draws] == [53 * (8 + 7 * k) // 64 for k in range(8)] + [53] * 4
    assert [draw.rows for draw in draws[:2]] == [6, 12]
    assert [draw.position for draw in draws] == [sum(d.rows for d in draws[:k]) for k in range(12)]
    assert [draw.parts for draw in draws] == [-(-math.ceil(d.rows / shards) // split.each) for d in draws]
    assert list(leg.draws(5, draws[5].position)) == draws[5:]


GROWING = {"batch.size": 53, "batch.warmup_steps": 5, "data.phases": "24:3", "log.every": 1, "steps": 6}


@pytest.mark.slow
def test_a_prime_batch_that_grows_across_a_change_of_phase_trains_alike_on_1_and_3_devices(data, tmp_path):
    found = []
    for devices, rows_per_device in ((1, 53), (3, 4)):
        workdir = tmp_path / str(devices)
        config = tiny(data, **GROWING | {"mesh.data": devices, "batch.rows_per_device": rows_per_device})
        assert run(config, workdir)
        found.append([line for line in records(workdir) if line["kind"] != "start"])
    for lines in found[1:]:
        for line, wanted in zip(lines, found[0], strict=True):
            assert line.keys() == wanted.keys() and line["kind"] == wanted["kind"]
            for name in line.keys() - {"kind"}:
                assert line[name] == pytest.approx(wanted[name], rel=2e-4), (name, line, wanted)
    train = [line for line in found[0] if line["kind"] == "train"]
    assert [line["position"] for line in train] == [6, 21, 46, 34, 77, 130]


def test_a_run_with_a_batch_warm_up_is_resumed_to_the_last_bit(data, tmp_path):
    config = tiny(data, **{"batch.rows_per_device": 2, "batch.warmup_steps": 9, "log.every": 1})
    assert run(config, tmp_path / "straight")
    assert not run(config, tmp_path / "w", stop_after=3)
    assert run(config, tmp_path / "w")
    assert same_bits(tmp_path / "w", tmp_path / "straight", 12)
    assert records(tmp_path / "w") == records(tmp_path / "straight")
    positions = [line["position"] for line in records(tmp_path / "w") if line["kind"] == "train"]
    assert positions == [1, 2, 4, 7, 11, 15, 20, 26, 33, 41, 49, 57]
