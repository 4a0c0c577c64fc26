# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run of two processes: saved and restored in parts, with one decision for both whatever fails in one.

As a program, this file is one of the processes: `test_checkpoint_processes.py PART INDEX PORT WORKDIR`.
"""

import json
import logging
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from albert_jax.errors import UserError
from albert_jax.training import checkpoint, distributed, restoring, writer
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.compatibility import FORMAT
from albert_jax.training.guard import Guard
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.step import TrainState
from tests.runs import progress

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(ROOT),
}
RUN: dict[str, Any] = {
    "format": FORMAT,
    "config": {},
    "data_fingerprint": "d",
    "vocabulary_sha256": "v",
    "plan": "p",
    "rows_per_step": 8,
    "versions": {},
}


def mesh_of(*shape: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), ("data", "fsdp"))


def state_on(mesh: Mesh, step: int) -> TrainState:
    """A state that is split over both axes; each process makes its part."""

    def place(values: Any, *axes: Any) -> jax.Array:
        values = np.asarray(values)
        return jax.make_array_from_callback(
            values.shape, NamedSharding(mesh, PartitionSpec(*axes)), lambda index: values[index]
        )

    weights = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return TrainState(
        params={"w": place(weights, "fsdp"), "b": place(weights[0])},
        opt_state={"mu": place(-weights, ("data", "fsdp")), "nu": place(weights**2, "data", "fsdp")},
        step=place(np.int32(step)),
        guard=Guard(*(place(np.int32(step)) for _ in Guard._fields)),
    )


def like(mesh: Mesh) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_on(mesh, 0))


def equal(state: TrainState, step: int, mesh: Mesh) -> bool:
    """Whether this process's parts are exactly those of a step's state, and lie where they should."""

    def same(a: jax.Array, b: jax.Array) -> bool:
        parts = zip(a.addressable_shards, b.addressable_shards, strict=True)
        return a.sharding == b.sharding and all(
            np.asarray(x.data).tobytes() == np.asarray(y.data).tobytes() for x, y in parts
        )

    return all(jax.tree.leaves(jax.tree.map(same, state, state_on(mesh, step))))


# --- one of the processes ---------------------------------------------------------------------------------------------


class _Process:
    """What both processes do, one after the other; `told` is printed at the end.

    Args:
      index: 0 or 1.
      workdir: where a run of one process has saved step 1.
    """

    def __init__(self, index: int, workdir: pathlib.Path):
        self.index, self.workdir, self.mesh = index, workdir, mesh_of(2, 2)
        self.told: dict[str, Any] = {}
        self.warnings = list[str]()
        handler = logging.Handler()
        handler.emit = lambda record: self.warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("albert_jax").addHandler(handler)

    def restored(self) -> Any:
        """The step that a new start restores in this process, if it is exactly what was saved."""
        checkpoints = Checkpoints(self.workdir, 2, RUN, self.lock)
        restored = checkpoints.restore(like(self.mesh))
        checkpoints.close()
        if restored is None:
            return None
        step = int(restored.state.step)
        return step if equal(restored.state, step, self.mesh) and restored.meta["position"] == 8 * step else "wrong"

    def all(self) -> None:
        with WorkdirLock(self.workdir) as self.lock:
            self.told["of one process"] = self.restored()
            self.told["in use"] = (
                by_another(self.workdir) if distributed.first() else ""
            )  # the others wait at the next meeting
            checkpoints = Checkpoints(self.workdir, 2, RUN, self.lock)
            for step in (2, 3, 4):
                checkpoints.save(state_on(self.mesh, step), progress(step), block=step == 4)
            self.told["kept"] = self.listed()
            self.told["own"] = self.restored()
            self.fail_in_one(checkpoints)
            self.damage_in_one()

    def fail_in_one(self, checkpoints: Checkpoints) -> None:
        """Process 1 has no room, then process 0; then a last save finds room at its second attempt."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        for step, without in ((5, 1), (6, 0)):
            self.warnings.clear()
            if self.index == without:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            checkpoints.save(state_on(self.mesh, step), progress(step), block=False)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            distributed.meet("room")
            self.told[f"no room in {without}"] = (list(self.warnings), self.whole(), checkpoints._steps)
        if self.index == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        checkpoint.time.sleep = lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpoints.save(state_on(self.mesh, 7), progress(7), block=True)
        checkpoints.close()
        self.told["second attempt"] = self.restored()

    def damage_in_one(self) -> None:
        """Process 1 cannot read its part of the newest step, for good; then process 0 cannot, for now."""
        load = restoring._load_items
        broken, error = 1, Exception("its bytes are wrong")

        def failing(folder: Any, targets: Any) -> Any:
            if self.index == broken and folder.name == "7":
                raise error
            return load(folder, targets)

        restoring._load_items = failing
        self.warnings.clear()
        self.told["damaged in 1"] = (self.restored(), list(self.warnings), self.listed())
        checkpoints = Checkpoints(self.workdir, 2, RUN, self.lock)
        checkpoints.save(state_on(self.mesh, 7), progress(7), block=True)
        checkpoints.close()
        broken, error = 0, OSError(5, "Input/output error")
        try:
            self.told["unreadable in 0"] = self.restored()
        except UserError as e:
            self.told["unreadable in 0"] = str(e)
        restoring._load_items = load

    def listed(self) -> list[str]:
        return sorted(path.name for path in (self.workdir / "checkpoints").iterdir())

    def whole(self) -> list[str]:
        return [name for name in self.listed() if name.isdigit()]

    def lost(self) -> None:
        """Process 1 is killed when its part is written, and process 0 waits for it."""
        writer.PATIENCE = 1.0
        with WorkdirLock(self.workdir) as lock:
            checkpoints = Checkpoints(self.workdir, 2, RUN, lock)
            if self.index == 1:
                writer.agree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            try:
                checkpoints.save(state_on(self.mesh, 9), progress(9), block=True)
            except distributed.LostPeerError as e:
                self.told["lost"] = str(e)
            self.told["listed"] = self.listed()


def by_another(workdir: pathlib.Path) -> str:
    """What another run in the workdir is told."""
    program = (
        "import sys\nfrom albert_jax.training.lock import WorkdirLock\n"
        "try:\n    WorkdirLock(sys.argv[1]).acquire()\nexcept Exception as e:\n    print(e)"
    )
    command = [sys.executable, "-c", program, str(workdir)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def _main(part: str, index: int, port: str, workdir: pathlib.Path) -> None:
    distributed.start(f"localhost:{port}", 2, index)
    process = _Process(index, workdir)
    getattr(process, part)()
    print(json.dumps(process.told), flush=True)
    distributed.part(10.0 if part == "all" else 0.1)  # or the first to end would end the other
    os._exit(0)  # the other may be gone, and JAX would wait for it


# --- the tests --------------------------------------------------------------------------------------------------------


def two(part: str, workdir: pathlib.Path) -> list[tuple[int, dict[str, Any], str]]:
    """Status, what was told and standard error of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, part, str(index), str(port), str(workdir)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [process.communicate() for process in processes]
    return [
        (process.returncode, {} if process.returncode else json.loads(out.splitlines()[-1]), err)
        for process, (out, err) in zip(processes, ends, strict=True)
    ]


def save_here(workdir: pathlib.Path) -> None:
    checkpoints = Checkpoints(workdir, 2, RUN)
    checkpoints.save(state_on(mesh_of(4, 2), 1), progress(1), block=True)
    checkpoints.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, Any], dict[str, Any]]:
    """The workdir, and what each of two processes tells of `_Process.all`."""
    workdir = tmp_path_factory.mktemp("two") / "w"
    save_here(workdir)
    (status, first, err), (other_status, other, other_err) = two("all", workdir)
    assert status == other_status == 0, err + other_err
    return workdir, first, other


def test_a_run_saved_by_one_process_on_eight_devices_is_restored_exactly_by_two_on_four(told):
    assert [process["of one process"] for process in told[1:]] == [1, 1]


def test_what_two_processes_saved_is_restored_exactly_by_two_and_by_one(told):
    workdir, first, other = told
    assert first["own"] == other["own"] == 4 and first["kept"] == ["3", "4"]
    for shape in ((1, 1), (2, 1), (2, 4)):
        checkpoints = Checkpoints(workdir, 2, RUN)
        restored = checkpoints.restore(like(mesh_of(*shape)))
        checkpoints.close()
        assert restored is not None and equal(restored.state, 7, mesh_of(*shape))


def test_two_processes_of_a_run_share_its_lock_and_another_run_is_refused(told):
    workdir, first, other = told
    assert f"{workdir} is in use by process " in first["in use"] and not other["in use"]
    assert not (workdir / ".lock").exists()


@pytest.mark.parametrize(("without", "step"), [(1, 5), (0, 6)])
def test_where_one_process_has_no_room_neither_takes_the_step_for_saved_and_both_go_on(told, without, step):
    _, first, other = told
    warnings, listed, steps = first[f"no room in {without}"]
    assert listed == ["3", "4"] and steps == other[f"no room in {without}"][2] == [3, 4]
    assert not other[f"no room in {without}"][0]  # process 0 speaks for both
    assert len(warnings) == 1 and warnings[0].startswith(f"the checkpoint of step {step} could not be written to ")
    assert f"(process {without}: " in warnings[0] and "the last good one is step 4" in warnings[0]


def test_a_last_save_that_fails_in_one_process_is_tried_again_by_both(told):
    assert [process["second attempt"] for process in told[1:]] == [7, 7]


def test_what_one_process_finds_damaged_is_damaged_for_both(told):
    for process, warned in zip(told[1:], (1, 0), strict=True):
        step, warnings, listed = process["damaged in 1"]
        assert step == 4 and listed == ["4", "damaged-7"]
        assert len(warnings) == warned and all("checkpoint 7 of" in w and "bytes are wrong" in w for w in warnings)


def test_what_one_process_cannot_read_now_stops_both_with_one_sentence(told):
    sentences = {process["unreadable in 0"] for process in told[1:]}
    assert (
        len(sentences) == 1 and "cannot be read ([Errno 5] Input/output error); see to the storage" in sentences.pop()
    )


def test_a_process_that_is_killed_during_a_save_is_noticed_in_bounded_time_and_no_step_is_committed(tmp_path):
    save_here(tmp_path)
    (status, first, err), (killed, _, _) = two("lost", tmp_path)
    assert killed == -signal.SIGKILL and status == 0, err
    assert "another process of the run did not come to" in first["lost"]
    assert first["listed"] == ["1", "9.orbax-checkpoint-tmp"]
    checkpoints = Checkpoints(tmp_path, 2, RUN)
    restored = checkpoints.restore(like(mesh_of(1, 1)))
    checkpoints.close()
    assert restored is not None and equal(restored.state, 1, mesh_of(1, 1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4]))
