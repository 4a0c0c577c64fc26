# SPDX-License-Identifier: Apache-2.0
"""Poisoned batches: one is left out, several in a row send the run back to its last checkpoint and past them."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from albert_jax.data.stream import Batch
from albert_jax.errors import UserError
from albert_jax.training.guard import check_guard, judge, new_guard
from albert_jax.training.legs import Draw, Leg
from tests.in_process import run, tiny
from tests.runs import VOCABULARY, arrays, records

pytest_plugins = ["tests.runs"]
ROWS = 8  # of a step


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes rows `begin` to `end` of the stream hold ids that the vocabulary does not have, as a damaged file might."""

    def poisoned(begin: int, end: int) -> None:
        make = Leg.batch

        def batch(self: Leg, draw: Draw) -> Batch:
            made = make(self, draw)
            ids = np.where((made.row_ids >= begin) & (made.row_ids < end), VOCABULARY + 7, 0)[:, None] + made.input_ids
            return made._replace(input_ids=ids.astype(np.int32))

        monkeypatch.setattr(Leg, "batch", batch)

    return poisoned


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

        def jumped(self: Leg, step: int, position: int) -> Iterator[Draw]:
            for draw in draws(self, step, position):
                if draw.position == begin:
                    yield from draws(self, draw.step, end)
                    return
                yield draw

        monkeypatch.setattr(Leg, "draws", jumped)

    return jump


@pytest.mark.parametrize("stop_after", [None, 8])
def test_too_many_in_a_row_lead_back_to_the_last_checkpoint_and_past_their_data(
    data, tmp_path, poison, jumping, monkeypatch, caplog, stop_after
):
    """The end is that of a run that never saw those rows, to the last bit, also where it is stopped and resumed."""
    begin, end = 5 * ROWS, 8 * ROWS  # of steps 6, 7 and 8; the last checkpoint is that of step 4
    with monkeypatch.context():
        poison(begin, end)
        config = tiny(data, **{"guard.patience": 3, "checkpoint.every": 4})
        if stop_after is not None:
            assert not run(config, tmp_path / "w", stop_after)
        assert run(config, tmp_path / "w")
    monkeypatch.undo()
    (told,) = lines(tmp_path / "w", "rollback")
    assert (told["step"], told["from"], told["skipped"], told["rows"]) == (4, 8, 3, [begin, end])
    assert len(told["examples"]) >= 3 * ROWS
    assert "steps 6 to 8 were left out" in caplog.text and "back to step 4, and past rows 40 to 64" in caplog.text
    # Step 5 was good but comes after the checkpoint: its rows are passed over with the others.
    jumping(4 * ROWS, end)
    assert run(tiny(data, **{"guard.patience": 3, "checkpoint.every": 4}), tmp_path / "v")
    found, wanted = arrays(tmp_path / "w"), arrays(tmp_path / "v")
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}
    assert [r for r in records(tmp_path / "w") if r["kind"] != "rollback"] == records(tmp_path / "v")


def test_data_that_stay_bad_end_the_run_in_a_sentence(data, tmp_path, poison):
    poison(5 * ROWS, 10**6)
    with pytest.raises(UserError, match="went back to step 4 3 times"):
        run(tiny(data, **{"guard.patience": 2}), tmp_path / "w")


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
