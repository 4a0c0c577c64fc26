# SPDX-License-Identifier: Apache-2.0
"""Checkpoints survive damage, full disks and kills; whatever is restored is exactly what was saved."""

import contextlib
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh

from albert_jax.errors import UserError
from albert_jax.training import checkpoint, restoring, writer
from albert_jax.training.checkpoint import ATTEMPTS, Checkpoints
from albert_jax.training.compatibility import FORMAT
from albert_jax.training.guard import new_guard
from albert_jax.training.identity import claim_workdir
from albert_jax.training.restoring import load_parameters
from albert_jax.training.saved_steps import SavedSteps
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import TrainState, initial_parameters, initial_state
from tests.meshes import mesh_of, placed
from tests.runs import STEPS, TINY, Runs, arrays, progress, records, release, wait_for

pytest_plugins = ["tests.runs"]
# Orbax gives up its other reads of a bad file with these.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]
NEWEST, BEFORE = STEPS, TINY["checkpoint.every"] * 2


# --- small states, in this process ------------------------------------------------------------------------------------


SOME_RUN = {
    "format": FORMAT,
    "config": {},
    "data_fingerprint": "d",
    "vocabulary_sha256": "v",
    "plan": "p",
    "rows_per_step": 8,
    "versions": {},
}


def small(step: int, size: int = 64) -> TrainState:
    value = jnp.arange(size, dtype=jnp.float32) + step
    moments = {"mu": {"w": -value}, "count": jnp.int32(step)}
    return TrainState({"w": value}, moments, jnp.int32(step), new_guard())


def wait_for_step(workdir: pathlib.Path, step: int) -> None:
    """Waits until a run has finished a checkpoint."""
    while not (workdir / "checkpoints" / str(step)).is_dir():
        time.sleep(0.01)


def listed(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_retention_keeps_the_newest_and_leaves_no_trash(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3, SOME_RUN)
    for step in range(1, 9):
        checkpoints.save(small(step), progress(step), block=step % 2 == 0)
        trash = tmp_path / "checkpoints" / ".trash"
        assert not trash.exists() or len(list(trash.iterdir())) <= 1
    checkpoints.close()
    assert listed(tmp_path / "checkpoints") == ["6", "7", "8"]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), progress(1), block=True)
    before = (tmp_path / "checkpoints" / "1").stat().st_mtime_ns
    checkpoints.save(small(1), progress(1), block=True)
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").stat().st_mtime_ns == before


def test_what_a_killed_save_and_a_killed_deletion_left_is_cleaned_up_and_never_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), progress(1), block=True)
    checkpoints.close()
    directory = tmp_path / "checkpoints"
    (directory / ".trash").mkdir(exist_ok=True)
    shutil.copytree(directory / "1", directory / ".trash" / "0")
    shutil.copytree(directory / "1", directory / "2.orbax-checkpoint-tmp")
    (directory / "probe.orbax-checkpoint-tmp").touch()
    again = Checkpoints(tmp_path, 2, SOME_RUN)
    restored = again.restore(small(0))
    again.close()
    assert restored is not None and int(restored.state.step) == 1 and restored.meta["position"] == 8
    assert listed(directory) == ["1"]


def test_fewer_than_two_kept_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.keep must be at least 2, not 1"):
        Checkpoints(tmp_path, 1, SOME_RUN)


def test_checkpoints_of_another_run_are_refused_whatever_run_json_says(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), progress(1), block=True)
    checkpoints.close()
    again = Checkpoints(tmp_path, 2, SOME_RUN | {"data_fingerprint": "other"})
    with pytest.raises(UserError, match="data_fingerprint was d and is now other"):
        again.restore(small(0))
    again.close()
    assert listed(tmp_path / "checkpoints") == ["1"]


def test_an_empty_directory_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    assert checkpoints.restore(small(0)) is None
    checkpoints.close()


def saved(directory: pathlib.Path, *steps: int, keep: int = 2) -> Checkpoints:
    """Checkpoints of small states, all durable."""
    checkpoints = Checkpoints(directory, keep, SOME_RUN)
    for step in steps:
        checkpoints.save(small(step), progress(step), block=True)
    return checkpoints


def restored_step(directory: pathlib.Path) -> int | None:
    """The step that a new run would go on from, once its arrays were compared with what was saved."""
    again = Checkpoints(directory, 2, SOME_RUN)
    restored = again.restore(small(0))
    again.close()
    if restored is None:
        return None
    step = int(restored.state.step)
    assert restored.meta["position"] == step * 8 and as_bytes(restored.state) == as_bytes(small(step))
    return step


def laid_out(mesh: Mesh, *axes: Any) -> TrainState:
    """A small state of step 5 whose matrices are split over these axes."""
    values = np.random.default_rng(3).normal(size=(32, 16)).astype(np.float32)
    scalar = placed(np.int32(5), mesh)
    guard = jax.tree.map(lambda x: placed(np.asarray(x), mesh), new_guard())
    moments = {"mu": placed(-values, mesh, *axes)}
    return TrainState({"w": placed(values, mesh, *axes)}, moments, scalar, guard)


def described(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.mark.parametrize("shape", [(4,), (1,), (2, 2), (8,)])
def test_a_run_saved_on_eight_devices_is_restored_exactly_on_other_meshes(tmp_path, shape):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(laid_out(mesh_of(2, 4), "b", "a"), progress(5), block=True)
    checkpoints.close()
    like = laid_out(mesh_of(*shape), None, "a")
    again = Checkpoints(tmp_path, 2, SOME_RUN)
    restored = again.restore(described(like))
    again.close()
    assert restored is not None and as_bytes(restored.state) == as_bytes(like)
    assert all(
        a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True)
    )


@contextlib.contextmanager
def digests_compiled() -> Iterator[list[str]]:
    """Grows by one whenever a program of digests is compiled meanwhile."""
    compiled: list[str] = []

    def hear(event: str, duration_secs: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and "digests" in details["fun_name"]:
            compiled.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


def test_arrays_are_written_as_they_are_without_the_time_to_compress_them(tmp_path):
    state = small(1)._replace(params={"w": jnp.zeros(1 << 18)})
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(state, progress(1), block=True)
    checkpoints.close()
    files = (tmp_path / "checkpoints" / "1" / "params").rglob("*")
    assert sum(file.stat().st_size for file in files) >= state.params["w"].nbytes


def test_preparing_runs_nothing(tmp_path):
    checkpoints, state = Checkpoints(tmp_path, 2, SOME_RUN), laid_out(mesh_of(2, 2), "b", "a")
    jax.tree.map(lambda x: x.delete(), state)  # whoever read an array now would fail
    checkpoints.prepare(state)
    checkpoints.prepare(described(state))
    checkpoints.close()


def test_after_preparing_no_save_compiles_digests_neither_of_a_step_nor_of_a_restored_state(tmp_path):
    like = laid_out(mesh_of(4, 1), None, "a")
    shardings = jax.tree.map(lambda x: x.sharding, like)
    step = jax.jit(lambda state: state._replace(step=state.step + 1), out_shardings=shardings)
    checkpoints, next_state = Checkpoints(tmp_path, 2, SOME_RUN), step(like)
    with digests_compiled() as compiled:
        checkpoints.prepare(described(like))
        assert len(compiled) == 2
        checkpoints.save(like, progress(5), block=True)
        checkpoints.save(next_state, progress(6), block=True)
        restored = checkpoints.restore(described(like))
        checkpoints.close()
        assert restored is not None and restored.meta["step"] == 6
        again = Checkpoints(tmp_path / "again", 2, SOME_RUN)
        again.save(restored.state, progress(6), block=True)
        again.close()
    assert len(compiled) == 2


# --- failing and slow storage, in this process ------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., Any]:
    """A function that fails."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@contextlib.contextmanager
def no_room(size: int = 16) -> Iterator[None]:
    """Lets this process write so many bytes into a file and no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [16, 6000])  # not even for a folder's first file, or for all but the arrays
def test_failed_saves_in_the_background_are_counted_and_cost_neither_the_run_nor_a_good_checkpoint(
    tmp_path, caplog, room
):
    checkpoints, directory = saved(tmp_path, 1, 2), tmp_path / "checkpoints"
    with no_room(room):
        for step in (3, 4, 5):
            checkpoints.save(small(step, size=1 << 16), progress(step), block=False)
            checkpoints.wait()
            assert SavedSteps(directory).whole() == [1, 2]
    for number, step in enumerate((3, 4, 5), 1):
        assert f"the checkpoint of step {step} could not be written to {directory} (" in caplog.text
        assert f"failure {number} in a row; training goes on and saves again after checkpoint.every" in caplog.text
    assert caplog.text.count("the last good one is step 2.") == 3
    checkpoints.save(small(6), progress(6), block=True)
    checkpoints.close()
    assert listed(directory) == ["2", "6"] and restored_step(tmp_path) == 6


def test_the_count_of_failures_begins_anew_after_a_good_save(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1)
    for step in (2, 4):
        with no_room():
            checkpoints.save(small(step), progress(step), block=False)
            checkpoints.wait()
        checkpoints.save(small(step + 1), progress(step + 1), block=True)
    checkpoints.close()
    assert caplog.text.count("failure 1 in a row") == 2 and "failure 2" not in caplog.text
    assert listed(tmp_path / "checkpoints") == ["3", "5"]


def test_the_last_save_is_tried_again_and_then_ends_the_run_with_the_last_good_step(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    checkpoints = saved(tmp_path, 1)
    form = rf"^the checkpoint of step 2 could not be written to .* in {ATTEMPTS} attempts \(.*\); the last good one is "
    with no_room(), pytest.raises(UserError, match=form):
        checkpoints.save(small(2), progress(2), block=True)
    assert [f"attempt {i} of {ATTEMPTS}" in caplog.text for i in range(1, ATTEMPTS + 2)] == [True] * ATTEMPTS + [False]
    checkpoints.close()
    assert listed(tmp_path / "checkpoints") == ["1"]


def test_a_last_save_that_succeeds_at_the_second_attempt_is_durable(tmp_path, monkeypatch):
    checkpoints, pauses = saved(tmp_path, 1), list[float]()
    with contextlib.ExitStack() as limited:
        limited.enter_context(no_room())

        def make_room(seconds: float) -> None:
            pauses.append(seconds)
            limited.close()

        monkeypatch.setattr(checkpoint.time, "sleep", make_room)
        checkpoints.save(small(2), progress(2), block=True)
    checkpoints.close()
    assert pauses == [checkpoint.PAUSE] and restored_step(tmp_path) == 2


def test_a_failed_save_that_nothing_comes_after_is_told_at_the_end(tmp_path):
    checkpoints = saved(tmp_path, 1)
    with no_room():
        checkpoints.save(small(2), progress(2), block=False)
        with pytest.raises(
            UserError, match=r"the checkpoint of step 2 could not be written .* the last good one is step 1"
        ):
            checkpoints.close()


def test_an_old_checkpoint_that_cannot_be_deleted_fails_no_save_and_is_deleted_later(tmp_path, caplog, monkeypatch):
    checkpoints = saved(tmp_path, 1, 2)
    with monkeypatch.context() as broken:
        broken.setattr(SavedSteps, "delete", raising(OSError("busy")))
        checkpoints.save(small(3), progress(3), block=True)
    assert f"old checkpoint 1 of {tmp_path / 'checkpoints'} could not be deleted (busy)" in caplog.text
    assert listed(tmp_path / "checkpoints") == ["1", "2", "3"]
    checkpoints.save(small(4), progress(4), block=True)
    checkpoints.close()
    assert listed(tmp_path / "checkpoints") == ["3", "4"]


class HeldLock:
    """In place of a workdir's lock: a save is committed when `free` is set."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def check(self) -> None: ...

    def check_here(self) -> None:
        self.free.wait()


def test_a_save_that_is_still_under_way_at_the_next_interval_is_waited_for_and_told_with_the_seconds(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(checkpoint, "NOTICED", 0.0)
    lock = HeldLock()
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN, lock)  # type: ignore[arg-type]
    checkpoints.save(small(1), progress(1), block=False)

    class FreeWhenTold(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not lock.free.is_set():
                assert listed(tmp_path / "checkpoints") == ["1.orbax-checkpoint-tmp"]
            lock.free.set()

    handler = FreeWhenTold()
    logging.getLogger("albert_jax.training.checkpoint").addHandler(handler)
    try:
        checkpoints.save(small(2), progress(2), block=False)
    finally:
        logging.getLogger("albert_jax.training.checkpoint").removeHandler(handler)
    checkpoints.close()
    assert "the save of step 1 was still under way when step 2 was to be saved: training waits for it." in caplog.text
    assert "s for the save of step 1: choose a larger checkpoint.every or faster storage." in caplog.text
    assert listed(tmp_path / "checkpoints") == ["1", "2"]


def test_a_save_that_never_ends_is_told_after_a_bounded_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PATIENCE", 0.2)
    lock = HeldLock()
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN, lock)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"1.orbax-checkpoint-tmp does not end .*: see to the storage and run the same"):
        checkpoints.save(small(1), progress(1), block=True)
    lock.free.set()
    checkpoints.close()


def test_a_lost_lock_keeps_a_step_that_is_being_written_from_being_committed(tmp_path, caplog):
    class LostLock(HeldLock):
        def check_here(self) -> None:
            raise UserError("the workdir was taken over.")

    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN, LostLock())  # type: ignore[arg-type]
    checkpoints.save(small(1), progress(1), block=False)
    with pytest.raises(UserError, match="taken over"):
        checkpoints.close()
    assert restored_step(tmp_path) is None


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_is_set_during_a_save_costs_at_most_an_attempt_and_changes_no_order(tmp_path, monkeypatch, jump):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    clock, offset, calls = time.time, [0.0], [0, 0]

    def setting() -> float:
        calls[0] += 1
        if calls[0] == calls[1]:
            offset[0] += jump
        return clock() + offset[0]

    monkeypatch.setattr(time, "time", setting)
    monkeypatch.setattr(time, "time_ns", lambda: int(setting() * 1e9))
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    for step in range(1, 13):
        calls[:] = 0, 1 + (step - 1) * 4  # the question for the time after which it is set, another one in each save
        checkpoints.save(small(step), progress(step), block=True)
    checkpoints.close()
    monkeypatch.undo()
    assert offset[0] and listed(tmp_path / "checkpoints") == ["11", "12"]
    assert restored_step(tmp_path) == 12


def test_the_newest_checkpoint_is_that_of_the_highest_step_whatever_the_files_dates_say(tmp_path):
    saved(tmp_path, 2, 3).close()
    for step, date in (("2", 4e9), ("3", 0)):  # the years 2096 and 1970
        folder = tmp_path / "checkpoints" / step
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (date, date))
    assert restored_step(tmp_path) == 3
    saved(tmp_path, 4).close()
    assert listed(tmp_path / "checkpoints") == ["3", "4"]


# --- whose workdir it is ----------------------------------------------------------------------------------------------


def test_where_run_json_is_gone_the_checkpoints_say_whose_workdir_it_is(tmp_path):
    claim_workdir(tmp_path, SOME_RUN)
    saved(tmp_path, 1).close()
    before = (tmp_path / "run.json").read_bytes()
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match="belongs to another run: plan was p and is now q"):
        claim_workdir(tmp_path, SOME_RUN | {"plan": "q"})
    assert not (tmp_path / "run.json").exists()
    claim_workdir(tmp_path, SOME_RUN)
    assert (tmp_path / "run.json").read_bytes() == before


# --- damage -----------------------------------------------------------------------------------------------------------


def identity_of(workdir: pathlib.Path) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads((workdir / "run.json").read_text())
    return identity


def flip(path: pathlib.Path) -> None:
    """Inverts up to 64 bytes in the middle of a file."""
    raw = bytearray(path.read_bytes())
    middle = max(0, len(raw) // 2 - 32)
    raw[middle : middle + 64] = bytes(byte ^ 0xFF for byte in raw[middle : middle + 64])
    path.write_bytes(bytes(raw))


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def like(straight: pathlib.Path) -> TrainState:
    config, mesh = ml_collections.ConfigDict(identity_of(straight)["config"]), make_mesh(1)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes: TrainState = jax.eval_shape(lambda: initial_state(config, initial_parameters(config), mesh))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def as_bytes(tree: Any) -> list[bytes]:
    return sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_no_damaged_file_of_the_newest_checkpoint_ever_gives_a_wrong_state(straight, like, tmp_path, caplog, damage):
    """Every file in turn: what is restored is exactly the newest state, or exactly the one before, which is said."""
    source = straight / "checkpoints"
    files = [path.relative_to(source / str(NEWEST)) for path in sorted((source / str(NEWEST)).rglob("*"))]
    files = [path for path in files if (source / str(NEWEST) / path).is_file()]
    expected = {step: as_bytes(arrays(straight, step)) for step in (BEFORE, NEWEST)}
    fallen_back = set()
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(source, workdir / "checkpoints")
        damage(workdir / "checkpoints" / str(NEWEST) / file)
        caplog.clear()
        caplog.set_level(logging.WARNING, logger="albert_jax")
        checkpoints = Checkpoints(workdir, 2, identity_of(straight))
        restored = checkpoints.restore(like)
        checkpoints.close()
        assert restored is not None
        step = int(restored.state.step)
        assert as_bytes(restored.state) == expected[step], file
        assert restored.meta["position"] == step * TINY["batch.size"], file
        if step == BEFORE:
            fallen_back.add(file.parts[0])
            assert f"checkpoint {NEWEST} of {workdir / 'checkpoints'} is damaged" in caplog.text
            assert listed(workdir / "checkpoints") == [str(BEFORE), f"damaged-{NEWEST}"]
        else:
            assert "is damaged (" not in caplog.text
    assert {"params", "rest", "meta"} <= fallen_back


@pytest.mark.parametrize("gone", ["params", "rest", "meta", "."])
def test_a_half_deleted_step_is_set_aside_for_the_one_before(tmp_path, caplog, gone):
    saved(tmp_path, 1, 2).close()
    step = tmp_path / "checkpoints" / "2"
    shutil.rmtree(step / gone)
    step.mkdir(exist_ok=True)
    assert restored_step(tmp_path) == 1
    assert f"checkpoint 2 of {tmp_path / 'checkpoints'} is damaged (" in caplog.text
    assert listed(tmp_path / "checkpoints") == ["1", "damaged-2"]


def test_damaged_steps_stay_until_the_run_goes_on_from_a_later_step(tmp_path):
    saved(tmp_path, 1, 2, 3, keep=3).close()
    directory = tmp_path / "checkpoints"
    for step in (2, 3):
        shutil.rmtree(directory / str(step) / "params")
    assert restored_step(tmp_path) == 1 and listed(directory) == ["1", "damaged-2", "damaged-3"]
    saved(tmp_path, 2).close()
    assert restored_step(tmp_path) == 2 and listed(directory) == ["1", "2", "damaged-2", "damaged-3"]
    saved(tmp_path, 3).close()
    assert restored_step(tmp_path) == 3 and listed(directory) == ["2", "3", "damaged-3"]


def test_a_step_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2).close()

    for error, told in (
        (OSError(5, "Input/output error"), r"cannot be read \(\[Errno 5\] Input/output error\); see to the storage"),
        (ValueError("RESOURCE_EXHAUSTED: Too many open files"), r"cannot be read \(RESOURCE_EXHAUSTED: Too many open"),
        (MemoryError(), "does not fit into the memory of process 0; use more"),
    ):
        with monkeypatch.context() as broken:
            broken.setattr(restoring.ocp.StandardCheckpointHandler, "restore", raising(error))
            with pytest.raises(UserError, match=f"^checkpoint 2 of .* {told}"):
                restored_step(tmp_path)
    assert restored_step(tmp_path) == 2


def test_one_changed_digit_in_the_position_is_found(straight, like, tmp_path):
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    file = tmp_path / "checkpoints" / str(NEWEST) / "meta" / "metadata"
    meta = file.read_text()
    position = f'"position": {NEWEST * TINY["batch.size"]}'
    assert meta.count(position) == 1
    file.write_text(meta.replace(position, f'"position": {NEWEST * TINY["batch.size"] + 1}'))
    with pytest.raises(UserError, match="meta is not what was saved"):
        load_parameters(tmp_path, NEWEST)
    checkpoints = Checkpoints(tmp_path, 2, identity_of(straight))
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert restored is not None and restored.meta["position"] == BEFORE * TINY["batch.size"]


def largest(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_result(
    runs, straight, tmp_path, damage: Callable[[pathlib.Path], None]
):
    workdir = shutil.copytree(straight, tmp_path / "w")
    damage(largest(workdir / "checkpoints" / str(NEWEST) / "rest"))
    finished = runs.train(runs.arguments(workdir))
    assert finished.status == 0 and finished.err == "", finished.err
    assert f"checkpoint {NEWEST} of {workdir / 'checkpoints'} is damaged" in finished.out
    assert f"resumed from step {BEFORE}" in finished.out
    assert {n: a.tobytes() for n, a in arrays(workdir).items()} == {n: a.tobytes() for n, a in arrays(straight).items()}
    assert records(workdir) == records(straight)


def test_where_all_checkpoints_are_damaged_the_run_stops_and_overwrites_nothing_however_often(runs, straight, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "w")
    for step in (BEFORE, NEWEST):
        flip(largest(workdir / "checkpoints" / str(step) / "params"))
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for _ in range(2):
        finished = runs.train(runs.arguments(workdir))
        assert finished.status == 2
        assert finished.err.startswith(f"error: all checkpoints in {workdir / 'checkpoints'} are damaged")
        assert finished.err.count("\n") == 1
        assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(directory: pathlib.Path, options: str) -> Iterator[pathlib.Path | None]:
    """A file system in memory, or None where this user may not mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        possible = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(disk: pathlib.Path, leave: int) -> pathlib.Path:
    """Takes all the space on a disk but `leave` bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - leave)))
    return ballast


def assert_full_disk_is_told(finished, workdir: pathlib.Path) -> None:
    assert finished.status == 2
    assert finished.err.startswith("error: ") and finished.err.count("\n") == 1, finished.err
    assert str(workdir) in finished.err and "make room" in finished.err
    assert "Traceback" not in finished.out


@pytest.mark.parametrize("leave", [0, 40_000, 100_000])
def test_a_full_disk_stops_training_with_the_last_good_checkpoint_intact(runs: Runs, straight, tmp_path, leave):
    with mounted(tmp_path / "disk", "size=3m") as disk:
        print("a full tmpfs" if disk else "RLIMIT_FSIZE: mounting a small disk is not permitted")
        workdir = (disk or tmp_path) / "w"
        shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns(str(NEWEST)))
        good = {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()}
        limit = None if disk else max(leave // 10, 2000)
        ballast = fill(disk, leave) if disk else None
        finished = runs.train(runs.arguments(workdir), largest_file=limit)
        assert_full_disk_is_told(finished, workdir)
        assert good == {path: path.read_bytes() for path in good}
        if ballast:
            ballast.unlink()
        finished = runs.train(runs.arguments(workdir))
        assert finished.status == 0 and f"resumed from step {BEFORE}" in finished.out, finished.err
        assert as_bytes(arrays(workdir)) == as_bytes(arrays(straight))
        assert records(workdir) == records(straight)
        assert listed(workdir / "checkpoints") == sorted([str(BEFORE), str(NEWEST)])


def test_a_disk_that_is_full_for_a_while_costs_a_run_one_checkpoint_and_no_step(runs: Runs, straight, tmp_path):
    workdir = tmp_path / "w"
    process = runs.start(runs.arguments(workdir), hold="step:6,step:10")
    wait_for(process, "held step:6")
    wait_for_step(workdir, 4)
    # Room for records, which take 6 kB, and not for arrays, whose parts take 150.
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    release(process)
    told = wait_for(process, "held step:10")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    release(process)
    finished = runs.finish(process)
    assert finished.status == 0 and "Traceback" not in finished.err, finished.err
    assert f"the checkpoint of step 8 could not be written to {workdir / 'checkpoints'} (" in told + finished.out
    assert "failure 1 in a row; training goes on" in told + finished.out
    assert "the last good one is step 4." in told + finished.out
    assert listed(workdir / "checkpoints") == sorted(["4", str(STEPS)])
    assert as_bytes(arrays(workdir)) == as_bytes(arrays(straight))
    assert records(workdir) == records(straight)


def test_a_workdir_that_has_become_read_only_is_told_and_keeps_everything(runs: Runs, straight, tmp_path):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        if disk is None:
            pytest.skip("mounting is not permitted")
        workdir = shutil.copytree(straight, disk / "w", ignore=shutil.ignore_patterns(str(NEWEST)))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        finished = runs.train(runs.arguments(workdir))
        assert finished.status == 2
        assert finished.err == (
            f"error: the workdir {workdir} cannot be written (Read-only file system); choose another --workdir.\n"
        )
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        finished = runs.train(runs.arguments(workdir))
        assert finished.status == 0 and f"resumed from step {BEFORE}" in finished.out, finished.err
        assert as_bytes(arrays(workdir)) == as_bytes(arrays(straight))


# --- a kill during a save ---------------------------------------------------------------------------------------------


def test_sigkill_during_a_save_leaves_the_one_before_and_nothing_else_after_the_next_run(runs, straight, tmp_path):
    workdir = tmp_path / "w"
    process = runs.start(runs.arguments(workdir), hold="commit:8")
    wait_for(process, "held commit:8")
    process.kill()
    assert runs.finish(process).status == -signal.SIGKILL
    assert listed(workdir / "checkpoints") == ["4", "8.orbax-checkpoint-tmp"]
    finished = runs.train(runs.arguments(workdir))
    assert finished.status == 0 and "resumed from step 4" in finished.out
    assert as_bytes(arrays(workdir)) == as_bytes(arrays(straight))
    assert listed(workdir / "checkpoints") == sorted([str(BEFORE), str(NEWEST)])


# --- reading parameters alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, BEFORE])
def test_load_parameters_gives_exactly_the_saved_arrays_and_what_the_run_was(straight, step):
    params, meta = load_parameters(straight, step)
    expected = {n: a for n, a in arrays(straight, step or NEWEST).items() if n.startswith("['params']")}
    found = jax.tree_util.tree_flatten_with_path({"params": params})[0]
    assert {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in found} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for _, leaf in found)
    assert meta["step"] == (step or NEWEST) and meta["model"]["vocab_size"] == TINY["model.vocab_size"]
    assert meta["data"]["splits"]["train"]["fingerprint"] == meta["data_fingerprint"]
    assert {"jax", "python", "device"} <= meta["versions"].keys()


def test_load_parameters_refuses_what_is_not_there_and_what_is_damaged(straight, tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint 5; it has \[8, 12\]"):
        load_parameters(straight, 5)
    with pytest.raises(UserError, match="holds no checkpoints"):
        load_parameters(tmp_path)
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    flip(largest(tmp_path / "checkpoints" / str(NEWEST) / "params"))
    with pytest.raises(UserError, match=f"checkpoint {NEWEST} of .* is damaged .*export another of"):
        load_parameters(tmp_path)
    assert load_parameters(tmp_path, BEFORE)[1]["step"] == BEFORE
