# SPDX-License-Identifier: Apache-2.0
"""Promises of albert_jax/training/telemetry.py."""

import json
import math
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import types
from typing import Any

import numpy as np
import pytest

from albert_jax.training import interval as intervals
from albert_jax.training import telemetry as module
from albert_jax.training.interval import Interval
from albert_jax.training.loop import Run
from albert_jax.training.step import MEASURES, Outcome
from albert_jax.training.telemetry import Telemetry, drop_later_records, read_metrics
from scripts import export
from tests.in_process import run, tiny

pytest_plugins = ["tests.runs"]
HOST = {"seconds": 2.0, "tokens": 4096.0, "input_wait_seconds": 0.5}


class Clocks:
    """The time module's two clocks, set by hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_700_000_000.0, 50.0

    def time(self) -> float:
        return self.wall

    def perf_counter(self) -> float:
        return self.monotonic

    def pass_by(self, seconds: float) -> None:
        """Time passes on both."""
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """What telemetry.py takes for the time module."""
    made = Clocks()
    monkeypatch.setattr(module, "time", made)
    return made


def all_lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines(workdir: pathlib.Path) -> list[dict]:
    """What is recorded of steps, evaluations and other events: all but the marks of starts."""
    return [line for line in all_lines(workdir) if line["kind"] not in ("start", "resume")]


def starts(workdir: pathlib.Path) -> list[tuple[int, str]]:
    return [(line["step"], line["kind"]) for line in all_lines(workdir) if line["kind"] in ("start", "resume")]


def curve(workdir: pathlib.Path, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard itself reads it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_line_of_an_evaluation_says_what_evaluations_cost_and_keeps_that_apart_from_the_values(
    tmp_path, capsys, clocks
):
    telemetry = Telemetry(tmp_path, steps=30)
    for step, seconds in ((10, 5.0), (20, 15.0)):
        clocks.pass_by(50.0)
        telemetry.log(step, {"loss": np.float32(1.5)}, HOST)
        telemetry.evaluation(step, {"mlm_loss": 6.25, "sop_accuracy": 0.5, "mlm_targets": 2048}, seconds)
    *_, evaluation = lines(tmp_path)
    assert evaluation.pop("timing") == {"seconds": 15.0, "share": 0.2, "time": 1_700_000_100.0, "wall_s": 100.0}
    assert evaluation == {
        "step": 20, "kind": "eval", "eval_mlm_loss": 6.25, "eval_sop_accuracy": 0.5, "eval_mlm_targets": 2048
    }  # fmt: skip
    assert "(0:00:15, 20.0% of the time so far)" in capsys.readouterr().out.splitlines()[-1]


def test_lines_that_the_clock_asks_for_change_nothing_in_the_others(tmp_path, clocks):
    """Neither their values nor what goodput and the remaining time are computed from."""
    for name, between in (("quiet", []), ("chatty", [3, 7])):
        with Telemetry(tmp_path / name, steps=20) as telemetry:
            for step in range(1, 11):
                clocks.pass_by(10.0)
                if step in between:
                    telemetry.log(step, {"loss": 9.0}, HOST | {"seconds": 15.0}, kind="progress")
                if step == 10:
                    telemetry.log(step, {"loss": 8.0}, HOST | {"seconds": 50.0})
        clocks.monotonic += 1000.0
    quiet, chatty = (all_lines(tmp_path / name) for name in ("quiet", "chatty"))
    assert [(line["step"], line["kind"]) for line in chatty[1:]] == [(3, "progress"), (7, "progress"), (10, "train")]
    assert [line["timing"]["goodput"] for line in chatty[1:]] == [0.5, 30 / 70, 0.5]
    assert [line["timing"]["eta_s"] for line in chatty[1:]] == [15 / 3 * 17, 15 / 4 * 13, 50.0]
    for line in (quiet[-1], chatty[-1]):
        del line["timing"]["time"]
    assert quiet[-1] == chatty[-1]


def test_floats_come_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    with Telemetry(tmp_path, steps=100) as telemetry:
        for step, value in enumerate(values, 1):
            telemetry.log(step, {"loss": value}, HOST)
    np.testing.assert_array_equal(np.array([r["loss"] for r in lines(tmp_path)], np.float32), values)


def test_the_clock_touches_only_the_timing_field(tmp_path, clocks):
    for name, seconds in (("fast", 1.0), ("slow", 7.0)):
        with Telemetry(tmp_path / name, steps=100, peak_flops=4e13) as telemetry:
            for step in (10, 20):
                clocks.pass_by(2 * seconds)
                host = HOST | {"seconds": seconds, "flops": 1e13}
                telemetry.log(step, {"loss": np.float32(1 / 3)}, host)
            telemetry.event(20, "phase", {"slots": 512})
    fast, slow = all_lines(tmp_path / "fast"), all_lines(tmp_path / "slow")
    assert fast[2]["timing"] == {
        "tokens_per_s": 4096.0, "input_wait": 0.5, "eta_s": 8.0, "tflops_per_s": 10.0, "mfu": 0.25, "goodput": 0.5,
        "seconds": 1.0, "time": 1_700_000_004.0, "wall_s": 4.0,
    }  # fmt: skip
    assert slow[2]["timing"]["eta_s"] == pytest.approx(56.0)
    for record in fast + slow:
        del record["timing"]
    assert fast == slow and [record["kind"] for record in fast] == ["start", "train", "train", "phase"]


def test_without_a_known_peak_there_is_no_mfu(tmp_path, capsys):
    for name, peak in (("cpu", None), ("chip", 1e12)):
        with Telemetry(tmp_path / name, steps=10, peak_flops=peak) as telemetry:
            telemetry.log(10, {}, HOST | {"flops": 1e11})
    heading_of_cpu, _, heading_of_chip, line_of_chip = capsys.readouterr().out.splitlines()
    assert "mfu" not in lines(tmp_path / "cpu")[0]["timing"] and "MFU" not in heading_of_cpu
    assert lines(tmp_path / "chip")[0]["timing"]["mfu"] == pytest.approx(0.05)
    assert "MFU" in heading_of_chip and " 5.0% " in line_of_chip


def test_the_screen_speaks_of_the_objective_that_there_is(tmp_path, capsys):
    results = {"mlm_loss": 6.0, "sop_loss": 0.5, "sop_count": 3}
    shown, kept = {}, {}
    for order in ("sop_parity", "nsp", "none"):
        with Telemetry(tmp_path / order, steps=10, sentence_order=order) as telemetry:
            telemetry.log(10, {"mlm_loss": 6.5}, HOST)
            telemetry.evaluation(10, results if order != "none" else results | {"sop_count": 0}, 1.0)
        shown[order], kept[order] = capsys.readouterr().out, lines(tmp_path / order)[-1].keys()
    assert " sop " in shown["sop_parity"] and "eval_sop_loss 0.5000" in shown["sop_parity"]
    assert " nsp " in shown["nsp"] and "eval_nsp_loss 0.5000" in shown["nsp"] and "sop" not in shown["nsp"]
    assert "sop" not in shown["none"] and "nsp" not in shown["none"]
    assert "eval_sop_loss" in kept["nsp"] and not [name for name in kept["none"] if "sop" in name]


def test_steps_whose_time_nobody_saw_have_no_speed_but_count(tmp_path, capsys, clocks):
    with Telemetry(tmp_path, steps=10, peak_flops=1e12) as telemetry:
        clocks.pass_by(4.0)
        telemetry.log(5, {"loss": 1.0}, {"seconds": 2.0})
    timing = lines(tmp_path)[0]["timing"]
    assert timing.keys() == {"seconds", "goodput", "time", "wall_s"} and timing["goodput"] == 0.5
    heading, line = capsys.readouterr().out.splitlines()
    assert len(heading) == len(line) and line.endswith(" -")


DID: dict[str, Any] = {"tokens": 10.0, "flops": 1.0, "waited": 0.0}


def outcome(**measured: float) -> Outcome:
    means = [measured.get(name, 1.0) for name in MEASURES]
    fields: list[Any] = [np.int32(0), np.int32(0), np.float32(1e-3), np.array(means, np.float32)]
    return Outcome(*fields)


def test_a_mean_is_over_the_steps_that_had_something_to_measure():
    interval = Interval()
    nothing = {"sop_loss": math.nan, "sop_accuracy": math.nan}
    for measured in (nothing, {"sop_loss": 0.5}, nothing, {"sop_loss": 0.25}):
        interval.add(outcome(**measured), **DID)
    again = Interval(json.loads(json.dumps(interval.sums())))
    for each in (interval, again):
        assert (each.means()["loss"], each.means()["sop_loss"], each.means()["sop_accuracy"]) == (1.0, 0.375, 1.0)
    usual = Interval()
    usual.add(outcome(), **DID)
    assert "counts" not in usual.sums() and Interval(usual.sums()).means() == usual.means()
    empty = Interval()
    empty.add(outcome(**nothing), **DID)
    assert not [name for name in empty.means() if name.startswith("sop")]


def test_an_interval_of_steps_that_were_over_when_the_host_looked_says_no_speed():
    interval = Interval()
    interval.add(outcome(), **DID, timed=False)
    assert interval.clocked().keys() == {"seconds"}
    interval.add(outcome(), **DID)
    assert interval.clocked()["tokens"] == 20.0


def test_compiling_is_in_no_lines_time(data, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(late=0.0)
    clock.perf_counter = lambda: time.perf_counter() + clock.late
    monkeypatch.setattr(intervals, "time", clock)
    prepare = Run._prepare

    def slow(self: Run, leg: Any) -> None:
        clock.late += 1e6
        prepare(self, leg)

    monkeypatch.setattr(Run, "_prepare", slow)
    assert run(tiny(data, **{"steps": 6, "data.phases": "24:3", "log.every": 1, "eval.every": 0}), tmp_path / "w")
    seconds = [line["timing"]["seconds"] for line in lines(tmp_path / "w") if line["kind"] == "train"]
    assert len(seconds) == 6 and max(seconds) < 1e5


def test_a_run_without_sentence_order_records_nothing_of_it(data, tmp_path, capsys):
    fields = {"steps": 3, "data.sentence_order": "none", "log.every": 1, "eval.every": 3}
    assert run(tiny(data, **fields), tmp_path / "w")
    train, *_, evaluation = lines(tmp_path / "w")
    assert train["loss"] == train["mlm_loss"] and evaluation["kind"] == "eval"
    assert not [name for line in lines(tmp_path / "w") for name in line if "sop" in name]
    assert "sop" not in capsys.readouterr().out.replace("sop_classifier", "")


def test_the_last_words_name_the_command_that_exports_the_run(data, tmp_path, caplog):
    caplog.set_level("INFO", logger="albert_jax")
    workdir = tmp_path / "a run"
    assert run(tiny(data, **{"steps": 1, "optimizer.warmup_steps": 0, "eval.every": 0}), workdir)
    command = caplog.messages[-1].splitlines()[-1]
    program, *arguments = shlex.split(command)[1:]
    assert program == "scripts/export.py" and export.main(arguments) == 0
    assert (tmp_path / "a run-export" / "model.safetensors").is_file()


def test_the_screen_shows_one_aligned_line_a_log_step(tmp_path, capsys, clocks):
    metrics = {
        "loss": 7.125, "mlm_loss": 6.5, "mlm_accuracy": 0.125, "sop_loss": 0.625, "sop_accuracy": 0.75,
        "learning_rate": 1.76e-3, "grad_norm": 0.5, "update_norm": 0.0313, "param_norm": 98.7,
        "epoch": 0.25, "real_share": 0.875,
    }  # fmt: skip
    with Telemetry(tmp_path, steps=125_000) as telemetry:
        for step in (100, 90_000):
            clocks.pass_by(2.5)
            telemetry.log(step, {name: float(np.float32(value)) for name, value in metrics.items()}, HOST)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert len(heading) == len(first) == len(second)
    for text in ("100/125000", "0.250", "7.1250", "6.5000", "0.1250", "0.6250", "0.7500", "1.760e-03", "0.5"):
        assert text in first
    for text in ("2,048", "87.5%", "25.0%", "0:41:38", "0.0313", "80.0%"):
        assert text in first
    assert heading.split()[:3] == ["step", "epoch", "loss"] and "98.7" not in first
    assert lines(tmp_path)[0]["param_norm"] == float(np.float32(98.7))


def test_a_line_of_the_longest_published_run_fits_160_characters_but_for_the_names_of_sources(tmp_path, capsys):
    metrics: dict[str, float] = {name: 0.125 for name in ("loss", "grad_norm", "update_norm", "learning_rate")}
    metrics |= {"position": 33_920_000_000, "epoch": 999.0}
    metrics |= {f"epoch/{name}": 12.0 for name in ("web", "wiki", "books", "speeches")}
    with Telemetry(tmp_path, steps=10_000_000, peak_flops=1e18) as telemetry:
        telemetry.log(9_999_900, metrics, HOST | {"flops": 1e18})
    with Telemetry(tmp_path / "short", steps=100) as telemetry:
        telemetry.log(90, metrics | {"skipped": np.int32(3), "position": 9_999}, HOST)
    long, short = capsys.readouterr().out.splitlines()[1::2]
    sources = " web 12.000 wiki 12.000 books 12.000 speeches 12.000"
    assert long.endswith(sources) and len(long.removesuffix(sources)) <= 160
    assert short.endswith(" skipped 3" + sources)


def test_skipped_updates_are_shown_once_there_are_any(tmp_path, capsys):
    with Telemetry(tmp_path, steps=20) as telemetry:
        for step, skipped in ((10, 0), (20, 2)):
            telemetry.log(step, {"skipped": np.int32(skipped)}, HOST)
    _, none, two = capsys.readouterr().out.splitlines()
    assert "skipped" not in none and two.endswith(" skipped 2")
    assert [r["skipped"] for r in lines(tmp_path)] == [0, 2]


def test_a_resumed_run_drops_what_lies_past_the_restored_step(tmp_path, capsys):
    with Telemetry(tmp_path, steps=50) as telemetry:
        for step in (10, 20, 30):
            telemetry.log(step, {"loss": np.float32(step)}, HOST)
        telemetry.evaluation(30, {"mlm_loss": 30.0}, 1.0)
    capsys.readouterr()
    with Telemetry(tmp_path, steps=50, restored_step=20) as telemetry:
        assert "dropped 2 records of steps after 20 and 0 torn lines" in capsys.readouterr().out
        for step in (30, 40):
            telemetry.log(step, {"loss": np.float32(step + 0.5)}, HOST)
        telemetry.evaluation(40, {"mlm_loss": 40.5}, 1.0)
    expected = [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]
    assert [r["step"] for r in all_lines(tmp_path)] == [0, 10, 20, 20, 30, 40, 40]
    assert starts(tmp_path) == [(0, "start"), (20, "resume")]
    assert [(r["step"], r["loss"]) for r in lines(tmp_path) if r["kind"] == "train"] == expected
    assert curve(tmp_path, "train/loss") == expected
    assert curve(tmp_path, "eval/mlm_loss") == [(40, 40.5)]


def test_a_run_started_again_from_nothing_keeps_no_old_curve(tmp_path):
    for offset in (0.0, 0.5):
        with Telemetry(tmp_path, steps=50) as telemetry:
            telemetry.log(10, {"loss": np.float32(10 + offset)}, HOST)
    assert [r["loss"] for r in lines(tmp_path)] == [10.5]
    assert starts(tmp_path) == [(0, "start"), (0, "resume")]
    assert curve(tmp_path, "train/loss") == [(10, 10.5)]


def test_a_torn_last_line_is_dropped_and_counted(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 10, "kind": "train", "loss": 1.0}\n'
    for torn in (b'{"step": 20, "ki', b'{"step": 20, "kind": "train", "loss": 2.0}', b"\x00\x00\xff\n", b"[]\n"):
        path.write_bytes(good + torn)
        assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0]
        drop_later_records(path, 100)
        assert path.read_bytes() == good
        assert "dropped 0 records of steps after 100 and 1 torn lines" in capsys.readouterr().out
    drop_later_records(path, 100)
    assert capsys.readouterr().out == ""


KILLED = """
import os, signal, sys
import numpy as np
from albert_jax.training.telemetry import Telemetry
telemetry = Telemetry(sys.argv[1], steps=100)
host = {"seconds": 1.0, "tokens": 1.0, "input_wait_seconds": 0.0}
for step in range(1, 8):
    telemetry.log(step, {"loss": np.float32(step)}, host)
    if step == 4:
        telemetry.flush()  # as before a checkpoint
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kill_9_nothing_before_the_checkpoint_is_missing_and_nothing_doubles(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [r["step"] for r in lines(tmp_path)][:4] == [1, 2, 3, 4]
    recorded = lines(tmp_path)[-1]["step"]
    with Telemetry(tmp_path, steps=100, restored_step=4) as telemetry:
        for step in range(5, 9):
            telemetry.log(step, {"loss": np.float32(step)}, HOST)
    expected = [(step, float(step)) for step in range(1, 9)]
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == expected
    assert starts(tmp_path) == [(0, "start"), (4, "resume")]
    lost = next(r for r in all_lines(tmp_path) if r["kind"] == "resume")["timing"]
    assert lost["lost_steps"] == lost["lost_s"] == recorded - 4
    assert curve(tmp_path, "train/loss") == expected


# --- going back while running -----------------------------------------------------------------------------------------


def test_after_a_rewind_every_record_and_every_point_is_that_of_the_steps_that_count(tmp_path, capsys):
    with Telemetry(tmp_path, steps=50) as telemetry:
        for step in (10, 20, 30):
            telemetry.log(step, {"loss": np.float32(step)}, HOST)
        telemetry.evaluation(30, {"mlm_loss": 30.0}, 1.0)
        telemetry.log(40, {"loss": np.float32(np.nan)}, HOST)
        assert "nan" in capsys.readouterr().out  # the interval that led to it, for whoever watches
        telemetry.rewind(20)
        telemetry.event(20, "rollback", {"from": 43, "reason": "loss"})
        for step in (30, 40):
            telemetry.log(step, {"loss": np.float32(step + 0.5)}, HOST)
        telemetry.evaluation(40, {"mlm_loss": 40.5}, 1.0)
    expected = [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]
    assert [(r["step"], r["loss"]) for r in lines(tmp_path) if r["kind"] == "train"] == expected
    assert [(r["step"], r["kind"]) for r in lines(tmp_path)][2] == (20, "rollback")
    assert curve(tmp_path, "train/loss") == expected
    assert curve(tmp_path, "eval/mlm_loss") == [(40, 40.5)]


def test_the_remaining_time_after_a_rewind_is_by_the_pace_of_the_steps_since_then(tmp_path):
    with Telemetry(tmp_path, steps=50) as telemetry:
        telemetry.log(40, {}, HOST)
        telemetry.rewind(20)
        telemetry.log(30, {}, HOST)
    assert lines(tmp_path)[-1]["timing"]["eta_s"] == HOST["seconds"] / 10 * 20


def rolled_back_to_20(workdir: pathlib.Path) -> None:
    """A run that took a checkpoint at 20, was rolled back to it twice, and at 30 once."""
    with Telemetry(workdir, steps=50) as telemetry:
        for step in (10, 20, 30):
            telemetry.log(step, {"loss": np.float32(step)}, HOST)
        telemetry.event(20, "phase", {"slots": 512})
        for number in (1, 2):
            telemetry.rewind(20)
            telemetry.event(20, "rollback", {"number": number})
        telemetry.log(30, {"loss": np.float32(30)}, HOST)
        telemetry.flush()
        telemetry.event(30, "rollback", {"number": 3})


def test_rewinding_to_a_step_again_keeps_the_earlier_rollback_to_it(tmp_path):
    rolled_back_to_20(tmp_path)
    assert [r["number"] for r in lines(tmp_path) if r["kind"] == "rollback"] == [1, 2, 3]


@pytest.mark.parametrize("restored", [20, 25, 30])
def test_a_resumed_run_keeps_its_rollbacks_as_what_they_left_out_stays_left_out(tmp_path, restored):
    rolled_back_to_20(tmp_path)
    with Telemetry(tmp_path, steps=50, restored_step=restored):
        pass
    assert [r["number"] for r in lines(tmp_path) if r["kind"] == "rollback"] == [1, 2, 3]
    assert [r["step"] for r in lines(tmp_path) if r["kind"] == "phase"] == [20]


def test_an_event_is_recorded_after_the_steps_before_it_and_prints_nothing_of_its_own(tmp_path, capsys):
    with Telemetry(tmp_path, steps=50) as telemetry:
        telemetry.log(10, {"loss": np.float32(1)}, HOST)
        telemetry.flush()
        telemetry.log(20, {"loss": np.float32(1)}, HOST)
        telemetry.flush()
        capsys.readouterr()
        telemetry.event(20, "phase", {"slots": 512, "why": "planned"})
        assert capsys.readouterr().out == ""
    record = lines(tmp_path)[-1]
    assert record.pop("timing").keys() == {"time", "wall_s"}
    assert record == {"step": 20, "kind": "phase", "slots": 512, "why": "planned"}


# --- goodput ----------------------------------------------------------------------------------------------------------


def steps_of(telemetry: Telemetry, clocks: Clocks, first: int, last: int) -> None:
    """One step a line; each takes 1 s, and 1 s more goes into something else."""
    for step in range(first, last + 1):
        clocks.pass_by(2.0)
        telemetry.log(step, {}, HOST | {"seconds": 1.0})


def goodput(workdir: pathlib.Path) -> list[float]:
    return [line["timing"]["goodput"] for line in lines(workdir) if line["kind"] == "train"]


def test_goodput_is_the_time_of_steps_that_count_over_the_time_since_the_first_start(tmp_path, clocks):
    with Telemetry(tmp_path, steps=99) as telemetry:
        steps_of(telemetry, clocks, 1, 8)  # 16 s, of which 8 are steps
    clocks.pass_by(20.0)  # nothing runs
    clocks.monotonic = 3.0  # another process
    with Telemetry(tmp_path, steps=99, restored_step=4) as telemetry:
        steps_of(telemetry, clocks, 5, 12)
    assert goodput(tmp_path)[3] == 0.5
    assert goodput(tmp_path)[-1] == pytest.approx((4 + 8) / (16 + 20 + 16))
    resume = next(line for line in all_lines(tmp_path) if line["kind"] == "resume")
    assert resume["timing"] == {"time": clocks.wall - 16, "wall_s": 36.0, "lost_steps": 4, "lost_s": 4.0}


def test_time_before_the_first_checkpoint_counts_although_all_steps_are_lost(tmp_path, clocks):
    for _ in range(2):
        with Telemetry(tmp_path, steps=99) as telemetry:
            steps_of(telemetry, clocks, 1, 4)
    assert goodput(tmp_path)[-1] == 4 / 16


def test_steps_that_a_rollback_drops_are_not_productive(tmp_path, clocks):
    with Telemetry(tmp_path, steps=99) as telemetry:
        steps_of(telemetry, clocks, 1, 8)
        telemetry.rewind(4)
        steps_of(telemetry, clocks, 5, 8)
    assert goodput(tmp_path)[-1] == 8 / 24


@pytest.mark.parametrize(("jump", "wall"), [(-3600.0, 16 + 0 + 16), (+3600.0, 16 + 3600 + 16)])
def test_a_clock_that_is_set_between_two_processes_gives_no_goodput_above_1_or_below_0(tmp_path, clocks, jump, wall):
    for restored in (0, 8, 16):
        with Telemetry(tmp_path, steps=99, restored_step=restored) as telemetry:
            steps_of(telemetry, clocks, restored + 1, restored + 8)
        clocks.wall += jump if restored == 0 else 0.0
    assert goodput(tmp_path)[15] == 16 / wall
    assert goodput(tmp_path)[-1] == 24 / (wall + 16)


def test_a_clock_that_is_set_while_a_process_runs_changes_nothing(tmp_path, clocks):
    with Telemetry(tmp_path, steps=99) as telemetry:
        steps_of(telemetry, clocks, 1, 4)
        clocks.wall -= 1e6
        steps_of(telemetry, clocks, 5, 8)
    assert goodput(tmp_path) == [0.5] * 8


def test_a_run_whose_records_know_no_clock_goes_on(tmp_path, clocks):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "kind": "train", "loss": 1.0, "timing": {"eta_s": 1.0}}\n')
    with Telemetry(tmp_path, steps=99, restored_step=3) as telemetry:
        steps_of(telemetry, clocks, 4, 4)
    assert starts(tmp_path) == [(3, "resume")]
    assert lines(tmp_path)[-1]["timing"]["goodput"] == 0.5


def test_a_run_starts_without_importing_the_frameworks_that_it_does_not_use():
    check = "import sys, albert_jax.training.loop; print({'torch', 'tensorflow', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
