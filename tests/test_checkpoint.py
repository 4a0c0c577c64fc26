# SPDX-License-Identifier: Apache-2.0
"""Checkpoints survive damage, full disks and kills; whatever is restored is exactly what was saved."""

import contextlib
import json
import logging
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from albert_jax.errors import UserError
from albert_jax.training.checkpoint import Checkpoints, digests, load_parameters
from albert_jax.training.sharding import make_mesh, replicated
from albert_jax.training.step import TrainState, initial_parameters, initial_state, zero_sums
from tests.runs import STEPS, TINY, Runs, arrays, records, wait_for

pytest_plugins = ["tests.runs"]
# Orbax gives up its other reads of a bad file with these.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]
NEWEST, BEFORE = STEPS, TINY["checkpoint.every"] * 2


# --- digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_a_digest_changes_with_any_element_any_swap_and_any_bit(dtype):
    values = np.arange(2, 8).astype(dtype).reshape(2, 3)
    seen = {digests({"x": jnp.asarray(values)})["['x']"]}
    count = 1
    for place in range(values.size):
        for bit in range(8 * values.itemsize):
            raw = bytearray(values.tobytes())
            raw[place * values.itemsize + bit // 8] ^= 1 << bit % 8
            seen.add(digests({"x": jnp.asarray(np.frombuffer(bytes(raw), values.dtype).reshape(2, 3))})["['x']"])
            count += 1
        for other in range(place):
            swapped = values.copy()
            swapped.flat[place], swapped.flat[other] = values.flat[other], values.flat[place]
            seen.add(digests({"x": jnp.asarray(swapped)})["['x']"])
            count += 1
    assert len(seen) == count


def test_a_digest_is_the_same_under_any_sharding():
    values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    eight = make_mesh(8)
    placed = [
        jax.device_put(values, jax.devices()[0]),
        jax.device_put(values, replicated(eight)),
        jax.device_put(values, NamedSharding(eight, PartitionSpec("data"))),
        jax.device_put(values, NamedSharding(eight, PartitionSpec(None, "data"))),
    ]
    assert len({digests({"x": x})["['x']"] for x in placed}) == 1


def test_each_array_has_a_digest_of_its_own():
    tree = {"a": jnp.ones(3), "b": {"c": jnp.ones(3), "d": jnp.zeros((2, 0))}, "e": jnp.int32(4)}
    assert digests(tree).keys() == {"['a']", "['b']['c']", "['b']['d']", "['e']"}


# --- small states, in this process ------------------------------------------------------------------------------------


SOME_RUN = {
    "config": {},
    "data_fingerprint": "d",
    "vocabulary_sha256": "v",
    "plan": "p",
    "rows_per_step": 8,
    "versions": {},
}


def small(step: int, size: int = 64) -> TrainState:
    value = jnp.arange(size, dtype=jnp.float32) + step
    return TrainState({"w": value}, {"mu": {"w": -value}, "count": jnp.int32(step)}, jnp.int32(step), zero_sums())


def listed(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_retention_keeps_the_newest_and_leaves_no_trash(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3, SOME_RUN)
    for step in range(1, 9):
        checkpoints.save(small(step), step * 8, block=step % 2 == 0)
        trash = tmp_path / "checkpoints" / ".trash"
        assert not trash.exists() or len(list(trash.iterdir())) <= 1
    checkpoints.close()
    assert listed(tmp_path / "checkpoints") == ["6", "7", "8"]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), 8, block=True)
    before = (tmp_path / "checkpoints" / "1").stat().st_mtime_ns
    checkpoints.save(small(1), 8, block=True)
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").stat().st_mtime_ns == before


def test_what_a_killed_save_and_a_killed_deletion_left_is_cleaned_up_and_never_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), 8, block=True)
    checkpoints.close()
    directory = tmp_path / "checkpoints"
    (directory / ".trash").mkdir(exist_ok=True)
    shutil.copytree(directory / "1", directory / ".trash" / "0")
    shutil.copytree(directory / "1", directory / "2.orbax-checkpoint-tmp")
    again = Checkpoints(tmp_path, 2, SOME_RUN)
    mesh = make_mesh(1)
    restored = again.restore(small(0), mesh)
    again.close()
    assert restored is not None and int(restored.state.step) == 1 and restored.position == 8
    assert listed(directory) == ["1"]


def test_fewer_than_two_kept_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.keep must be at least 2, not 1"):
        Checkpoints(tmp_path, 1, SOME_RUN)


def test_checkpoints_of_another_run_are_refused_whatever_run_json_says(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    checkpoints.save(small(1), 8, block=True)
    checkpoints.close()
    again = Checkpoints(tmp_path, 2, SOME_RUN | {"data_fingerprint": "other"})
    with pytest.raises(UserError, match="data_fingerprint was d and is now other"):
        again.restore(small(0), make_mesh(1))
    again.close()
    assert listed(tmp_path / "checkpoints") == ["1"]


def test_an_empty_directory_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, SOME_RUN)
    assert checkpoints.restore(small(0), make_mesh(1)) is None
    checkpoints.close()


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
    shapes: TrainState = jax.eval_shape(lambda: initial_state(config, initial_parameters(config), mesh))
    return shapes


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
        restored = checkpoints.restore(like, make_mesh(1))
        checkpoints.close()
        assert restored is not None
        step = int(restored.state.step)
        assert as_bytes(restored.state) == expected[step], file
        assert restored.position == step * TINY["batch.size"], file
        if step == BEFORE:
            fallen_back.add(file.parts[0])
            assert f"checkpoint {NEWEST} of {workdir / 'checkpoints'} is damaged" in caplog.text
            assert listed(workdir / "checkpoints") == [str(BEFORE), f"damaged-{NEWEST}"]
        else:
            assert "is damaged (" not in caplog.text
    assert {"params", "rest", "meta"} <= fallen_back


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
    restored = checkpoints.restore(like, make_mesh(1))
    checkpoints.close()
    assert restored is not None and restored.position == BEFORE * TINY["batch.size"]


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
def small_disk(directory: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A file system of 3 MB, or None where this user may not mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
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
    with small_disk(tmp_path / "disk") as disk:
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
    with pytest.raises(UserError, match=f"checkpoint {NEWEST} of .* is damaged .*choose another"):
        load_parameters(tmp_path)
    assert load_parameters(tmp_path, BEFORE)[1]["step"] == BEFORE
