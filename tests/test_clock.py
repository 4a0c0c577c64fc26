# SPDX-License-Identifier: Apache-2.0
"""What the clock has a part in: saves and lines between those that come by steps, and how far the host runs ahead."""

import json
import pathlib
from typing import Any

import pytest

from albert_jax.errors import UserError
from albert_jax.training import loop
from tests.in_process import run, tiny
from tests.runs import arrays, records

pytest_plugins = ["tests.runs"]


def saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_saves_by_the_clock_where_steps_are_long_and_ends_with_the_same_bits(data, straight, tmp_path):
    by_clock = {"checkpoint.every": 1000, "checkpoint.minutes": 1e-9, "checkpoint.keep": 50}
    assert run(tiny(data, **by_clock), tmp_path / "w")
    assert len(saved(tmp_path / "w")) > 3 and saved(tmp_path / "w")[-1] == 12
    assert records(tmp_path / "w") == records(straight)
    assert {n: a.tobytes() for n, a in arrays(tmp_path / "w").items()} == {
        n: a.tobytes() for n, a in arrays(straight).items()
    }
    by_steps = {"checkpoint.every": 1000, "checkpoint.minutes": 0.0}
    assert run(tiny(data, **by_steps), tmp_path / "v")
    assert saved(tmp_path / "v") == [12]


def test_multiples_of_the_keep_period_are_saved_and_kept_for_good(data, tmp_path):
    keeping = {"checkpoint.every": 2, "checkpoint.keep": 2, "checkpoint.keep_period": 5}
    assert not run(tiny(data, **keeping), tmp_path / "w", stop_after=10)
    assert run(tiny(data, **keeping), tmp_path / "w")
    assert saved(tmp_path / "w") == [5, 10, 11, 12]  # the two newest, and the multiples of five
    with pytest.raises(UserError, match=r"checkpoint\.keep_period must be at least 0, not -1"):
        run(tiny(data, **{"checkpoint.keep_period": -1}), tmp_path / "v")


def test_lines_between_the_records_come_by_the_clock_and_change_none_of_them(data, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LINE_SECONDS", 0.0)
    assert not run(tiny(data), tmp_path / "w", stop_after=7)
    assert run(tiny(data), tmp_path / "w")
    assert records(tmp_path / "w") == records(straight)
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    progress = [line["step"] for line in lines if line["kind"] == "progress"]
    assert progress == [step for step in range(1, 13) if step % 3]
    # A line between two records is of the step since the line before; the record is of all three.
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] in ("train", "progress")}
    assert all(3 * losses[step + 2] - losses[step] - losses[step + 1] > 0 for step in (1, 4, 7, 10))


@pytest.mark.parametrize(("seconds", "ahead"), [(0.0, 0), (1e9, loop.STEPS_AHEAD)])
def test_no_step_is_started_before_the_one_under_way_has_ended_where_steps_are_long(
    data, tmp_path, monkeypatch, seconds, ahead
):
    """So that a wish to stop waits for one step alone. Short ones keep the device from running dry."""
    monkeypatch.setattr(loop, "LONG_STEP", seconds)
    found: list[int] = []
    take_step = loop.Run._take_step

    def counting(self: loop.Run, *args: Any) -> Any:
        found.append(len(self._in_flight))
        return take_step(self, *args)

    monkeypatch.setattr(loop.Run, "_take_step", counting)
    quiet = {"eval.every": 1000, "checkpoint.every": 1000, "checkpoint.minutes": 0.0}
    assert run(tiny(data, **quiet), tmp_path / "w")
    assert max(found) == ahead and found[-1] == ahead


def test_the_share_of_evaluations_is_recorded_and_shown(data, tmp_path, capsys):
    assert run(tiny(data), tmp_path / "w")
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line["timing"] for line in lines if line["kind"] == "eval"]
    assert len(evaluations) == 3 and all(0 < line["share"] < 1 and line["seconds"] > 0 for line in evaluations)
    assert capsys.readouterr().out.count("of the time so far)") == 3
