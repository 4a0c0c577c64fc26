# SPDX-License-Identifier: Apache-2.0
"""The main job on a device that is no CPU, in processes of its own: reading an array is a transfer there.

The device is the stand-in of tests/stand_ins/accelerator. Programs are compiled for it without much optimization, so
that what it computes differs from the CPU's in the last bits.
"""

import pathlib
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.architectures import torch_class
from tests.runs import Runs, arrays, records, release, wait_for

pytest_plugins = ["tests.runs"]
FIELDS: dict[str, Any] = {"batch.warmup_steps": 6, "log.every": 1, "eval.every": 4}
PHASES = {"data.phases": "24:5", "profile.at": 6, "profile.steps": 2}
MESHES: dict[str, dict[str, Any]] = {
    "one device": {"mesh.data": 1},
    "four devices": {"mesh.data": 4},
    "optimizer state split over four": {"mesh.data": 4, "mesh.shard_optimizer": True},
    "fsdp and tensor": {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2},
}
Job = Callable[..., pathlib.Path]


@pytest.fixture(scope="module")
def job(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Trains to the end and gives the workdir."""

    def run(runs: Runs, fields: dict[str, Any], **circumstances: Any) -> pathlib.Path:
        workdir = tmp_path_factory.mktemp("job") / "w"
        arguments = runs.arguments(workdir, FIELDS | {"data.path": data} | fields)
        finished = runs.train(arguments, **circumstances)
        assert finished.status == 0, finished.err
        return workdir

    return run


@pytest.fixture(scope="module")
def there(job: Job, accelerator: Runs) -> pathlib.Path:
    """The workdir of a run in two phases on the stand-in."""
    return job(accelerator, PHASES)


@pytest.fixture(scope="module")
def whole(job: Job, runs: Runs) -> pathlib.Path:
    """The workdir of a run in one phase on a CPU."""
    return job(runs, {})


def assert_same_records(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Floats may differ in their last bits."""
    assert [record["kind"] for record in found] == [record["kind"] for record in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a | {"kind": 0} == pytest.approx(b | {"kind": 0}, rel=2e-4, abs=1e-6)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_through_phases_and_growing_batches_records_what_it_does_on_a_cpu(
    job: Job, runs: Runs, there: pathlib.Path
) -> None:
    found = records(there)
    assert_same_records(found, records(job(runs, PHASES)))
    assert [r["step"] for r in found if r["kind"] == "eval"] == [4, 8, 12]
    assert [r["position"] for r in found if r["kind"] == "train"][:6] == [1, 3, 6, 10, 15, 6]
    assert sorted(path.name for path in (there / "checkpoints").iterdir()) == ["12", "8"]


def test_its_profile_is_written(there: pathlib.Path) -> None:
    (profile,) = (there / "profile").iterdir()
    assert list(profile.rglob("*.xplane.pb"))


def test_a_run_stopped_by_sigterm_goes_on_to_the_same_bits(
    accelerator: Runs, data: pathlib.Path, there: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = accelerator.arguments(tmp_path / "w", FIELDS | PHASES | {"data.path": data})
    process = accelerator.start(arguments, hold="step:7")
    wait_for(process, "held step:7")
    process.send_signal(signal.SIGTERM)
    release(process)
    stopped = accelerator.finish(process)
    assert stopped.status == 75 and "interrupted by SIGTERM" in stopped.out, stopped.err
    resumed = accelerator.train(arguments)
    assert resumed.status == 0 and "resumed from step" in resumed.out, resumed.err
    found, wanted = arrays(tmp_path / "w"), arrays(there)
    assert {name: x.tobytes() for name, x in found.items()} == {name: x.tobytes() for name, x in wanted.items()}
    assert records(tmp_path / "w") == records(there)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("one device", "optimizer state split over four") else ())
        for name in MESHES
    ],
)
def test_every_mesh_gives_the_losses_of_a_cpu(mesh: str, job: Job, accelerator: Runs, whole: pathlib.Path) -> None:
    workdir = job(accelerator, MESHES[mesh], devices=1 if mesh == "one device" else 4)
    assert_same_records(records(workdir), records(whole))


def test_a_run_over_four_devices_goes_back_and_leaves_out_rows_that_are_damaged(job: Job, accelerator: Runs) -> None:
    fields = {"mesh.data": 4, "guard.patience": 2, "batch.warmup_steps": 0}
    workdir = job(accelerator, fields, devices=4, poison=(40, 56))  # of steps 6 and 7
    found = records(workdir)
    (told,) = [record for record in found if record["kind"] == "rollback"]
    assert (told["step"], told["from"], told["rows"]) == (4, 7, [[40, 56]])
    losses = {record["step"]: record["loss"] for record in found if record["kind"] == "train"}
    assert sorted(losses) == list(range(1, 13)) and np.isfinite(list(losses.values())).all()


# --- from and to other formats ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def formats(
    accelerator: Runs, there: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """The run's result as it is, as export.py and as convert.py write it there."""
    directory = tmp_path_factory.mktemp("formats")
    made = {"run": there, "Hugging Face": directory / "hf", "Google": directory / "google"}
    commands = {
        "scripts/export.py": [f"--workdir={there}", f"--out={made['Hugging Face']}"],
        "scripts/convert.py": [str(made["Hugging Face"]), str(made["Google"]), "--to=google"],
    }
    for script, arguments in commands.items():
        finished = accelerator.call(script, arguments)
        assert finished.status == 0, finished.out + finished.err
    return made


def test_runs_that_start_from_any_format_of_the_same_parameters_are_the_same(
    job: Job, accelerator: Runs, formats: dict[str, pathlib.Path], whole: pathlib.Path
) -> None:
    started = [records(job(accelerator, {"init_from": path})) for path in formats.values()]
    assert started[0] == started[1] == started[2]
    first, fresh = started[0][0], records(whole)[0]
    assert first["step"] == fresh["step"] == 1 and first["mlm_loss"] < fresh["mlm_loss"] - 0.01


def test_what_is_exported_gives_transformers_our_logits(
    accelerator: Runs, formats: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    theirs = torch_class("AlbertForPreTraining").from_pretrained(formats["Hugging Face"]).eval()
    import torch

    finished = accelerator.call(
        "tests/on_accelerator.py", ["logits", str(formats["Hugging Face"]), str(tmp_path / "o.npz")]
    )
    assert finished.status == 0, finished.err
    ours = dict(np.load(tmp_path / "o.npz"))
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    with torch.no_grad():
        wanted = theirs(**{name: torch.from_numpy(ours[name].astype(np.int64)) for name in names})
    real = ours["attention_mask"] == 1
    found = ours["prediction_logits"][real]
    np.testing.assert_allclose(found, wanted.prediction_logits.numpy()[real], atol=1e-5)
    np.testing.assert_allclose(ours["sop_logits"], wanted.sop_logits.numpy(), atol=1e-5)


def test_the_scripts_that_read_a_finished_run_work_there(
    accelerator: Runs, there: pathlib.Path, formats: dict[str, pathlib.Path]
) -> None:
    filled = accelerator.call("scripts/fill_mask.py", [str(formats["Hugging Face"]), "The [MASK] of a list."])
    assert filled.status == 0 and "[MASK] 1 of 'The [MASK] of a list.'" in filled.out, filled.out + filled.err
    reported = accelerator.call("scripts/quickstart_report.py", [f"--workdir={there}"])
    assert reported.status == 0 and "MLM below unigrams" in reported.out, reported.err
