# SPDX-License-Identifier: Apache-2.0
"""Poisoned batches: one is left out, several in a row send the run back to a checkpoint and on without their rows."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from albert_jax.errors import UserError
from albert_jax.training import loop
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.guard import check_guard, judge, new_guard
from albert_jax.training.left_out import LeftOut, merged, read_left_out
from albert_jax.training.legs import Draw, Leg
from tests.in_process import run, tiny
from tests.runs import arrays, poisoned, records

pytest_plugins = ["tests.runs"]
ROWS = 8  # of a step


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Damages rows `begin` to `end` of the stream, see `poisoned`."""
    return lambda *rows: monkeypatch.setattr(Leg, "batch", poisoned(*rows))


def lines(workdir: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "timing"} for line in read if line["kind"] == kind]


def test_one_poisoned_batch_is_left_out_and_counted_and_the_run_goes_on(data, tmp_path, poison):
    poison(3 * ROWS, 3 * ROWS + 1)  # one row of step 4
    assert run(tiny(data, **{"log.every": 1, "eval.every": 12}), tmp_path / "w")
    train = {line["step"]: line for line in lines(tmp_path / "w", "train")}
    assert [train[k]["skipped"] for k in (3, 4, 5, 12)] == [0, 1, 1, 1]
    assert np.isnan(train[4]["loss"]) and all(np.isfinite(train[k]["loss"]) for k in train if k != 4)
    # Step 4's checkpoint would come from the middle of updates that are left out: it waited for their end.
    assert sorted(path.name for path in (tmp_path / "w" / "checkpoints").iterdir()) == ["12", "8"]
    assert not lines(tmp_path / "w", "rollback")


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the stream jump from row `begin` to row `end`: what a run that never saw the rows between trains on."""

    def jump(begin: int, end: int) -> None:
        draws = Leg.draws

        def jumped(self: Leg, step: int, position: int, left_out: Sequence[tuple[int, int]] = ()) -> Iterator[Draw]:
            assert not left_out
            for draw in draws(self, step, position):
                if draw.position == begin:
                    yield from draws(self, draw.step, end)
                    return
                yield draw

        monkeypatch.setattr(Leg, "draws", jumped)

    return jump


def same_end(workdir: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs ended with the same bits, and recorded the same but for rollbacks."""
    found, wanted = arrays(workdir), arrays(other)
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}
    return [r for r in records(workdir) if r["kind"] != "rollback"] == records(other)


@pytest.mark.parametrize("stop_after", [None, 6, pytest.param(8, marks=pytest.mark.slow)])
def test_too_many_in_a_row_lead_back_to_the_last_checkpoint_and_on_without_their_rows_alone(
    data, tmp_path, poison, jumping, monkeypatch, caplog, stop_after
):
    """The end is that of a run that never saw those rows, to the last bit, also where it is stopped and resumed.

    After step 6 or 7 it is stopped amid the updates that are left out, and saves; it does not go back to there.
    """
    begin, end = 5 * ROWS, 8 * ROWS  # of steps 6, 7 and 8; the last checkpoint is that of step 4
    config = tiny(data, **{"guard.patience": 3, "checkpoint.every": 4})
    poison(begin, end)
    if stop_after is not None:
        assert not run(config, tmp_path / "w", stop_after)
    assert run(config, tmp_path / "w")
    monkeypatch.undo()
    (told,) = lines(tmp_path / "w", "rollback")
    assert (told["step"], told["from"], told["skipped"], told["rows"]) == (4, 8, 3, [[begin, end]])
    assert len(told["examples"]) >= 3 * ROWS
    assert "steps 6 to 8 were left out" in caplog.text
    assert "back to step 4, and on without their rows, 40 to 64 of the stream" in caplog.text
    # Step 5 comes after the checkpoint and was good: its rows are trained on again.
    jumping(begin, end)
    assert run(config, tmp_path / "v")
    assert same_end(tmp_path / "w", tmp_path / "v")


@pytest.mark.parametrize("killed", [False, True])
def test_where_that_does_not_help_the_run_goes_one_checkpoint_further_back(
    data, tmp_path, poison, jumping, monkeypatch, killed
):
    """Also where it is killed in the midst of that, when the newer checkpoint is about to be removed."""
    begin, end = 7 * ROWS, 11 * ROWS  # of steps 8 to 11; two of them are left out at a time
    config = tiny(data, **{"guard.patience": 2, "checkpoint.every": 2, "checkpoint.keep": 3})
    poison(begin, end)
    if killed:
        with monkeypatch.context() as killing:
            abandon = Checkpoints.abandon

            def kill(self: Checkpoints, steps: Sequence[int]) -> None:
                if steps:
                    raise KeyboardInterrupt
                abandon(self, steps)

            killing.setattr(Checkpoints, "abandon", kill)
            with pytest.raises(KeyboardInterrupt):
                run(config, tmp_path / "w")
        assert json.loads((tmp_path / "w" / "left_out.json").read_text())["abandoned"] == [6]
    assert run(config, tmp_path / "w")
    monkeypatch.undo()
    assert [line["step"] for line in lines(tmp_path / "w", "rollback")] == ([6] if killed else [6, 4])
    jumping(begin, end)
    assert run(config, tmp_path / "v")
    assert same_end(tmp_path / "w", tmp_path / "v")


def test_what_is_left_out_across_a_change_of_length_are_rows_of_both_streams(data, tmp_path, poison):
    """Steps 5 and 6 end the first phase, 7 and 8 begin the second, whose stream begins at row 0."""
    config = tiny(data, **{"guard.patience": 4, "checkpoint.every": 4, "data.phases": "24:6", "guard.norm_factor": 0.0})
    poison(4 * ROWS, 6 * ROWS, 24)
    poison(0, 2 * ROWS, 48)
    assert run(config, tmp_path / "w")
    (told,) = lines(tmp_path / "w", "rollback")
    assert (told["step"], told["from"], told["rows"]) == (4, 8, [[4 * ROWS, 6 * ROWS], [0, 2 * ROWS]])
    left_out = LeftOut.of(read_left_out(tmp_path / "w"))
    assert left_out.of_phase(0) == [(32, 40), (40, 48)] and left_out.of_phase(6) == [(0, 8), (8, 16)]
    positions = {line["step"]: line["position"] for line in lines(tmp_path / "w", "train")}
    assert positions[6] == 8 * ROWS and positions[12] == 8 * ROWS


@pytest.mark.parametrize("ahead", [0, loop.STEPS_AHEAD])
def test_all_processes_turn_back_before_the_same_step_however_far_each_reads_behind(
    data, tmp_path, poison, monkeypatch, ahead
):
    """One that turned back earlier would leave the others alone with a step that they have started."""
    monkeypatch.setattr(loop, "LONG_STEP", 1e9 if ahead else -1.0)
    poison(5 * ROWS, 7 * ROWS)
    begun: list[int] = []
    take_step = loop.Run._take_step

    def counting(self: loop.Run, *arguments: Any) -> Any:
        begun.append(self.step + 1)
        return take_step(self, *arguments)

    monkeypatch.setattr(loop.Run, "_take_step", counting)
    assert run(tiny(data, **{"guard.patience": 2, "checkpoint.every": 5, "eval.every": 12}), tmp_path / "w")
    # Steps 6 and 7 are bad, and the run goes back to step 5.
    assert begun[: begun.index(6, 7)] == list(range(1, 7 + loop.STEPS_AHEAD + 1))


def test_a_corrected_command_does_not_leave_out_what_an_earlier_one_left_out_before_its_first_checkpoint(
    data, tmp_path, poison, monkeypatch
):
    poison(0, 10**6)
    config = {"guard.patience": 2, "checkpoint.every": 100}
    with pytest.raises(UserError, match="went back to step 0 3 times"):
        run(tiny(data, **config), tmp_path / "w")
    monkeypatch.undo()
    assert LeftOut.of(read_left_out(tmp_path / "w")).times == 3
    assert run(tiny(data, **config, seed=1), tmp_path / "w")
    assert LeftOut.of(read_left_out(tmp_path / "w")) == LeftOut()
    assert [line["position"] for line in lines(tmp_path / "w", "train")][-1] == 12 * ROWS


def test_data_that_stay_bad_end_the_run_in_a_sentence(data, tmp_path, poison):
    poison(5 * ROWS, 10**6)
    with pytest.raises(UserError, match="went back to step 4 3 times"):
        run(tiny(data, **{"guard.patience": 2}), tmp_path / "w")


def test_a_damaged_file_of_what_is_left_out_is_refused_and_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "left_out.json").write_text('{"rows": [[0, 40')
    with pytest.raises(UserError, match=r"left_out\.json is damaged"):
        read_left_out(tmp_path)


def test_how_far_a_run_goes_back(tmp_path):
    """By hand: 100, 200 and 300 are saved; trouble at 350, at 352 and, from 200 on, at 351; or first at 420."""
    first, candidates = LeftOut().going_back([(0, 1, 2)], told=350, steps=[100, 200, 300])
    assert candidates == [300, 200, 100] and first.times == 1
    first = dataclasses.replace(first, restored=300)
    second, candidates = first.going_back([(0, 2, 3)], told=352, steps=[100, 200, 300])
    assert candidates == [200, 100] and second.times == 1
    second = dataclasses.replace(second, restored=200)
    third, candidates = second.going_back([(0, 4, 5)], told=351, steps=[100, 200, 300])
    assert candidates == [100]
    third = dataclasses.replace(third, restored=100)
    for times in (2, 3, 4):
        third, candidates = third.going_back([(0, 6, 7)], told=351, steps=[100, 200])
        assert candidates == [100] and third.times == times
    fourth, candidates = second.going_back([(100, 0, 9)], told=420, steps=[200, 300, 400])
    assert candidates == [400, 300, 200] and fourth.times == 1
    assert fourth.of_phase(0) == [(1, 2), (2, 3)] and fourth.of_phase(100) == [(0, 9)]
    fourth.write(tmp_path)
    assert LeftOut.of(read_left_out(tmp_path)) == fourth
    assert merged([(4, 6), (0, 2), (2, 3), (5, 7)]) == [(0, 3), (4, 7)]


# --- what an outlier is -----------------------------------------------------------------------------------------------


def test_a_norm_is_an_outlier_by_the_running_mean_of_the_logarithms_of_accepted_ones():
    settings = ml_collections.ConfigDict({"norm_factor": 10.0, "patience": 5})
    rng = np.random.default_rng(0)
    norms = np.exp(0.5 * rng.normal(size=400))
    norms[[20, 150, 151, 300]] = [1e4, 50.0, np.inf, 60.0]  # the first comes before the guard has learnt
    norms[250] = np.nan
    guard, judged = new_guard(), jax.jit(lambda g, n: judge(g, settings, jnp.float32(1.0), n))
    mean, seen, skipped = 0.0, 0, []
    for k, norm in enumerate(norms):
        good, guard = judged(guard, jnp.float32(norm))
        usual = np.exp(mean / (1 - 0.99 ** max(seen, 1)))
        expected = bool(np.isfinite(norm)) and (seen < 100 or norm <= 10 * usual)
        assert bool(good) == expected, k
        if expected:
            mean, seen = 0.99 * mean + 0.01 * np.log(norm), seen + 1
        else:
            skipped.append(k)
    assert skipped == [150, 151, 250, 300] and int(guard.skipped) == 4 and int(guard.in_a_row) == 0


def test_a_loss_that_is_not_finite_is_never_accepted_and_a_factor_of_0_allows_any_norm():
    settings = ml_collections.ConfigDict({"norm_factor": 0.0, "patience": 5})
    guard = new_guard()._replace(accepted=jnp.int32(1000))
    assert bool(judge(guard, settings, jnp.float32(1.0), jnp.float32(1e30))[0])
    for loss in (np.nan, np.inf):
        good, after = judge(guard, settings, jnp.float32(loss), jnp.float32(1.0))
        assert not bool(good) and int(after.in_a_row) == 1


def test_settings_that_make_no_sense_are_refused():
    for name, value in (("norm_factor", 0.5), ("patience", -1)):
        settings = ml_collections.ConfigDict({"norm_factor": 10.0, "patience": 5} | {name: value})
        with pytest.raises(UserError, match=f"guard.{name}"):
            check_guard(settings)
