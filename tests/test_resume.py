# SPDX-License-Identifier: Apache-2.0
"""An interrupted run ends as an uninterrupted one does, to the last bit; another run's workdir is refused."""

import json
import pathlib
import re
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import yaml

from albert_jax.training.recipe import RESUMABLE_FIELDS
from scripts import export, report
from tests.runs import STEPS, Finished, Runs, arrays, make_data, make_vocabulary, records, release, wait_for, write_text

pytest_plugins = ["tests.runs"]


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]
    assert not different


def curves(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, without the clock's part in it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    timing = ("tokens_per_s", "input_wait", "eta_s", "tflops_per_s", "goodput", "mfu")
    tags = [tag for tag in events.Tags()["scalars"] if tag.split("/")[1] not in timing]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


# --- SIGTERM and SIGKILL ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def terminated(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Finished, Finished]:
    """SIGTERM while step 7 is about to run and again while the final save is under way; then the same command."""
    workdir = tmp_path_factory.mktemp("terminated") / "w"
    process = runs.start(runs.arguments(workdir), hold="step:6,save:7")
    for place in ("step:6", "save:7"):
        wait_for(process, f"held {place}")
        process.send_signal(signal.SIGTERM)
        release(process)
    interrupted = runs.finish(process)
    return workdir, interrupted, runs.finish(runs.start(runs.arguments(workdir)))


@pytest.fixture(scope="module")
def killed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str, Finished]:
    """SIGKILL after ten steps, when the save of step 4 is finished and that of step 8 may be; then the same command."""
    workdir = tmp_path_factory.mktemp("killed") / "w"
    process = runs.start(runs.arguments(workdir), hold="step:10")
    wait_for(process, "held step:10")
    process.kill()
    assert runs.finish(process).status == -signal.SIGKILL
    left_behind = (workdir / "metrics.jsonl").read_text()
    return workdir, left_behind, runs.finish(runs.start(runs.arguments(workdir)))


def test_sigterm_saves_after_the_step_under_way_and_exits_with_75(terminated):
    _, interrupted, _ = terminated
    assert interrupted.status == 75, interrupted.err
    assert "interrupted by SIGTERM: step 7 is saved" in interrupted.out
    assert interrupted.err == ""


def test_a_second_sigterm_during_the_final_save_does_no_harm(terminated):
    workdir, interrupted, resumed = terminated
    assert interrupted.status == 75 and "resumed from step 7" in resumed.out
    assert not list((workdir / "checkpoints").glob("damaged-*"))


def test_after_sigterm_every_parameter_optimizer_slot_and_logged_loss_is_that_of_a_straight_run(terminated, straight):
    workdir, _, resumed = terminated
    assert resumed.status == 0 and f"finished: step {STEPS} is saved" in resumed.out
    assert_same_bits(arrays(straight), arrays(workdir))
    assert records(straight) == records(workdir)
    assert [r["step"] for r in records(straight)] == [3, 5, 6, 9, 10, 12, 12]


def test_after_sigkill_every_parameter_optimizer_slot_and_logged_loss_is_that_of_a_straight_run(killed, straight):
    workdir, _, resumed = killed
    assert resumed.status == 0, resumed.err
    assert_same_bits(arrays(straight), arrays(workdir))
    assert records(straight) == records(workdir)


def test_after_sigkill_lines_past_the_restored_step_are_dropped(killed):
    _, left_behind, resumed = killed
    assert [json.loads(line)["step"] for line in left_behind.splitlines()][-2:] == [9, 10]
    assert "resumed from step 8" in resumed.out or "resumed from step 4" in resumed.out
    assert "records of steps after" in resumed.out


def test_tensorboard_curves_of_resumed_runs_are_those_of_a_straight_run(terminated, killed, straight):
    expected = curves(straight)
    assert [step for step, _ in expected["train/loss"]] == [3, 6, 9, 12]
    assert curves(terminated[0]) == expected
    assert curves(killed[0]) == expected


def test_a_straight_run_repeated_is_the_same_to_the_last_bit_and_the_state_is_not_trivially_equal(straight):
    early, late = arrays(straight, 8), arrays(straight)
    assert all(early[name].tobytes() != late[name].tobytes() for name in early if name.startswith("['params']"))
    assert any("mu" in name for name in late) and any("nu" in name for name in late)


def test_a_finished_run_started_again_changes_nothing(runs, straight, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "w")
    finished = runs.train(runs.arguments(workdir))
    assert finished.status == 0 and f"resumed from step {STEPS}" in finished.out
    assert_same_bits(arrays(straight), arrays(workdir))
    assert records(straight) == records(workdir)


# --- what may differ --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(runs: Runs, vocabulary: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Data sets of another text, and of the same text with another vocabulary of the same size."""
    directory = tmp_path_factory.mktemp("other")
    text = write_text(directory / "fewer.txt", slice(0, 50))
    all_text = write_text(directory / "all.txt", slice(0, 60))
    foreign = make_vocabulary(text, directory / "v")
    return {
        "text": make_data(text, vocabulary, directory / "text"),
        "vocabulary": make_data(all_text, foreign, directory / "vocabulary"),
    }


def refused(runs: Runs, workdir: pathlib.Path, fields: dict[str, Any]) -> str:
    before = {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}
    finished = runs.train(runs.arguments(workdir, fields))
    assert finished.status == 2
    assert finished.err.startswith(f"error: {workdir} belongs to another run: ") and finished.err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}
    return finished.err


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("batch.size", "8", 16),
        ("batch.warmup_steps", "0", 4),
        ("seed", "0", 1),
        ("steps", "12", 13),
        ("model.num_hidden_layers", "2", 3),
        ("model.hidden_dropout_prob", "0.1", 0.2),
        ("optimizer.learning_rate", "0.002", 0.001),
        ("masking.rate", "0.15", 0.1),
        ("dtype", "'float32'", "bfloat16"),
    ],
)
def test_another_configuration_is_refused_by_name(runs, straight, field, old, new):
    sentence = refused(runs, straight, {field: new})
    assert f"{field} was {old} and is now {new!r}" in sentence


def test_another_data_set_is_refused_by_its_fingerprint(runs, straight, other):
    fingerprint = json.loads((runs.data / "manifest.json").read_text())["splits"]["train"]["fingerprint"]
    sentence = refused(runs, straight, {"data.path": other["text"]})
    assert f"data_fingerprint was {fingerprint[:12]} and is now" in sentence
    assert "vocabulary" not in sentence.split("use another")[0]


def test_another_vocabulary_is_refused(runs, straight, other):
    sentence = refused(runs, straight, {"data.path": other["vocabulary"]})
    assert "vocabulary_sha256 was" in sentence


def test_fields_that_may_change_do_not_change_the_result(runs, straight, data, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns(str(STEPS)))  # step 8 is the newest
    moved = shutil.copytree(data, tmp_path / "moved")
    changes = {
        "data.path": moved,
        "data.prefetch": 5,
        "checkpoint.every": 3,
        "checkpoint.minutes": 7.0,
        "checkpoint.keep": 3,
        "checkpoint.keep_period": 6,
        "init_from": "",
        "init_positions": "",
        "init_vocabulary": "",
        "mesh.data": 1,
        "mesh.fsdp": 1,
        "mesh.tensor": 1,
        "mesh.rules": "hidden:fsdp",
        "mesh.shard_optimizer": True,
        "watchdog.seconds": 100,
        "watchdog.exit": True,
        "profile.at": 10,
        "profile.steps": 1,
        "guard.norm_factor": 50.0,
        "guard.patience": 7,
        "log.every": 4,
        "eval.every": 7,
        "eval.rows": 6,
    }
    of_records = {"data.vocab", "data.validation_path"}  # with Google's records; a data set refuses them
    last_bits = {"batch.rows_per_device", "remat", "attention"}
    assert changes.keys() | of_records | last_bits == set(RESUMABLE_FIELDS)
    finished = runs.train(runs.arguments(workdir, changes))
    assert finished.status == 0, finished.err
    assert "resumed from step 8" in finished.out
    assert_same_bits(arrays(straight), arrays(workdir))
    assert records(straight)[:3] == records(workdir)[:3] and records(straight)[2]["step"] == 6


@pytest.mark.slow  # it compiles everything anew
def test_a_run_goes_on_on_another_number_of_devices_to_float_tolerance_and_says_so(runs, straight, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns(str(STEPS)))
    finished = runs.train(runs.arguments(workdir), devices=2)
    assert finished.status == 0, finished.err
    assert "goes on with 2 x cpu (cpu): results may differ" in finished.out
    one, two = arrays(straight), arrays(workdir)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_damaged_run_json_is_named(runs, straight, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "w")
    content = (workdir / "run.json").read_bytes()
    (workdir / "run.json").write_bytes(content[: len(content) // 2])
    finished = runs.train(runs.arguments(workdir))
    assert finished.status == 2 and finished.err.startswith(f"error: {workdir}/run.json ")
    assert finished.err.count("\n") == 1


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(straight: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run as transformers loads it."""
    out = tmp_path_factory.mktemp("exported") / "model"
    assert export.main([f"--workdir={straight}", f"--out={out}"]) == 0
    return out


def test_all_that_is_written_has_the_permissions_that_the_umask_leaves(
    straight: pathlib.Path,
    exported: pathlib.Path,
    vocabulary: pathlib.Path,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    page = tmp_path / "pages" / "page.html"
    assert report.main([str(straight), "--out", str(page)]) == 0
    roots = [straight, exported, vocabulary, data, page.parent]
    written = [path for root in roots for path in (root, *root.rglob("*"))]
    assert {"model.safetensors", "run.json", "digest", "page.html", "spiece.model"} <= {path.name for path in written}
    wrong = {
        str(p): oct(p.stat().st_mode) for p in written if p.stat().st_mode & 0o777 != (0o750 if p.is_dir() else 0o640)
    }
    assert not wrong  # tests/conftest.py sets 027


def test_the_card_asks_for_a_word_of_a_sentence_of_the_text(exported: pathlib.Path, text: pathlib.Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    example = json.loads(card.split("\ntext = ")[1].split("\n")[0])
    before, after = (" ".join(part.split()) for part in example.split("[MASK]"))
    plain = re.sub(r"\s+", " ", text.read_text(encoding="utf-8").lower())
    assert re.search(re.escape(before) + r" ?\w+ ?" + re.escape(after), plain), example
    assert yaml.safe_load(card.split("---")[1])["widget"] == [{"text": example}]
    assert str(exported.parent) not in card and "/tmp" not in card
