# SPDX-License-Identifier: Apache-2.0
"""Promises of albert_jax/training/telemetry.py."""

import json
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.training.telemetry import Telemetry, drop_later_records

HOST = {"epoch": 0.25, "real_share": 0.875, "seconds": 2.0, "tokens": 4096.0, "input_wait_seconds": 0.5}


class NotReadyYet:
    """A device value whose step has not finished: reading it would stall the host."""

    def __init__(self, value: float) -> None:
        self.value, self.ready = value, False

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise AssertionError("read before its step had finished")
        return np.asarray(self.value, dtype)

    def __float__(self) -> float:
        return float(self.__array__())


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: pathlib.Path, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard itself reads it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_metric_is_read_one_interval_late(tmp_path):
    telemetry = Telemetry(tmp_path, steps=30)
    first, second, third = NotReadyYet(1.0), NotReadyYet(2.0), NotReadyYet(3.0)
    telemetry.log(10, {"loss": first}, HOST)
    first.ready = True
    telemetry.log(20, {"loss": second}, HOST)
    assert [r["step"] for r in lines(tmp_path)] == [10]
    second.ready = True
    telemetry.log(30, {"loss": third}, HOST)
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [(10, 1.0), (20, 2.0)]
    with pytest.raises(AssertionError, match="before its step"):
        telemetry.flush()


def test_flush_writes_everything_that_is_pending(tmp_path):
    telemetry = Telemetry(tmp_path, steps=30)
    telemetry.log(10, {"loss": jnp.float32(1.5)}, HOST)
    assert lines(tmp_path) == []
    telemetry.flush()
    assert [r["loss"] for r in lines(tmp_path)] == [1.5]
    telemetry.flush()
    assert len(lines(tmp_path)) == 1


def test_an_evaluation_is_written_at_once_and_after_the_steps_before_it(tmp_path):
    telemetry = Telemetry(tmp_path, steps=30)
    telemetry.log(10, {"loss": jnp.float32(1.5)}, HOST)
    telemetry.evaluation(10, {"mlm_loss": 6.25, "sop_accuracy": 0.5, "mlm_targets": 2048})
    train, evaluation = lines(tmp_path)
    assert train["kind"] == "train"
    assert evaluation == {
        "step": 10, "kind": "eval", "eval_mlm_loss": 6.25, "eval_sop_accuracy": 0.5, "eval_mlm_targets": 2048
    }  # fmt: skip


def test_floats_come_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    with Telemetry(tmp_path, steps=100) as telemetry:
        for step, value in enumerate(values, 1):
            telemetry.log(step, {"loss": jnp.asarray(value)}, HOST)
    np.testing.assert_array_equal(np.array([r["loss"] for r in lines(tmp_path)], np.float32), values)


def test_the_clock_touches_only_the_timing_field(tmp_path):
    for name, seconds in (("fast", 1.0), ("slow", 7.0)):
        with Telemetry(tmp_path / name, steps=100, flops_per_step=1e12) as telemetry:
            for step in (10, 20):
                telemetry.log(step, {"loss": jnp.float32(1 / 3)}, HOST | {"seconds": seconds})
    fast, slow = lines(tmp_path / "fast"), lines(tmp_path / "slow")
    assert fast[1]["timing"] == {"tokens_per_s": 4096.0, "input_wait": 0.5, "eta_s": 8.0, "tflops_per_s": 10.0}
    assert slow[1]["timing"]["eta_s"] == pytest.approx(56.0)
    for record in fast + slow:
        del record["timing"]
    assert fast == slow


def test_the_screen_shows_one_aligned_line_a_log_step(tmp_path, capsys):
    metrics = {
        "loss": 7.125, "mlm_loss": 6.5, "mlm_accuracy": 0.125, "sop_loss": 0.625, "sop_accuracy": 0.75,
        "learning_rate": 1.76e-3, "grad_norm": 0.5,
    }  # fmt: skip
    with Telemetry(tmp_path, steps=125_000) as telemetry:
        for step in (100, 90_000):
            telemetry.log(step, {name: jnp.float32(value) for name, value in metrics.items()}, HOST)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert len(heading) == len(first) == len(second)
    for text in ("100/125000", "0.250", "7.1250", "6.5000", "0.1250", "0.6250", "0.7500", "1.760e-03", "0.5"):
        assert text in first
    for text in ("2,048", "87.5%", "25.0%", "0:41:38"):
        assert text in first
    assert heading.split()[:3] == ["step", "epoch", "loss"]


def test_a_resumed_run_drops_what_lies_past_the_restored_step(tmp_path, capsys):
    with Telemetry(tmp_path, steps=50) as telemetry:
        for step in (10, 20, 30):
            telemetry.log(step, {"loss": jnp.float32(step)}, HOST)
        telemetry.evaluation(30, {"mlm_loss": 30.0})
    capsys.readouterr()
    with Telemetry(tmp_path, steps=50, restored_step=20) as telemetry:
        assert "dropped 2 records of steps after 20 and 0 torn lines" in capsys.readouterr().out
        for step in (30, 40):
            telemetry.log(step, {"loss": jnp.float32(step + 0.5)}, HOST)
        telemetry.evaluation(40, {"mlm_loss": 40.5})
    expected = [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]
    assert [r["step"] for r in lines(tmp_path)] == [10, 20, 20, 30, 40, 40]
    assert [(r["step"], r["loss"]) for r in lines(tmp_path) if r["kind"] == "train"] == expected
    assert curve(tmp_path, "train/loss") == expected
    assert curve(tmp_path, "eval/mlm_loss") == [(40, 40.5)]


def test_a_run_started_again_from_nothing_keeps_no_old_curve(tmp_path):
    for offset in (0.0, 0.5):
        with Telemetry(tmp_path, steps=50) as telemetry:
            telemetry.log(10, {"loss": jnp.float32(10 + offset)}, HOST)
    assert [r["loss"] for r in lines(tmp_path)] == [10.5]
    assert curve(tmp_path, "train/loss") == [(10, 10.5)]


def test_a_torn_last_line_is_dropped_and_counted(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 10, "kind": "train", "loss": 1.0}\n'
    for torn in (b'{"step": 20, "ki', b'{"step": 20, "kind": "train", "loss": 2.0}', b"\x00\x00\xff\n"):
        path.write_bytes(good + torn)
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
    with Telemetry(tmp_path, steps=100, restored_step=4) as telemetry:
        for step in range(5, 9):
            telemetry.log(step, {"loss": jnp.float32(step)}, HOST)
    expected = [(step, float(step)) for step in range(1, 9)]
    records = lines(tmp_path)
    assert [(r["step"], r["loss"]) for r in records if r["kind"] == "train"] == expected
    assert [r for r in records if r["kind"] != "train"] == [{"step": 4, "kind": "resume"}]
    assert curve(tmp_path, "train/loss") == expected
