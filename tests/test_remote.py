# SPDX-License-Identifier: Apache-2.0
"""Data sets and workdirs in an object store: the same bits as on a disk, whatever the store does meanwhile."""

import functools
import importlib.util
import json
import logging
import pathlib
import re
import resource
import signal
import subprocess
import sys
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax import remote
from albert_jax.data import staging
from albert_jax.data.staging import staged
from albert_jax.data.store import FORMAT
from albert_jax.errors import UserError
from albert_jax.remote import publish
from albert_jax.training import checkpoint
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.identity import claim_workdir
from albert_jax.training.restoring import load_parameters
from albert_jax.training.saved_steps import SavedSteps
from albert_jax.training.telemetry import Telemetry, read_metrics
from tests.object_store import ObjectStore, forget
from tests.runs import STEPS, Finished, Runs, arrays, progress, records, release, wait_for
from tests.test_checkpoint import SOME_RUN
from tests.test_checkpoint import small as small_state

pytest_plugins = ["tests.runs", "tests.object_store"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]
ROOT = pathlib.Path(__file__).parent.parent
DATA, RUN = "gs://bucket/data", "gs://bucket/run"


def downloads(store: ObjectStore) -> list[str]:
    """The objects whose bytes were asked for, in order."""
    return [url.split("/o/")[1].split("?")[0] for url in store.requests if url.startswith("GET") and "alt=media" in url]


def uploads(store: ObjectStore) -> list[str]:
    """The requests that wrote, in order."""
    return [url for url in store.requests if url.startswith("POST /upload")]


# --- the three clients ------------------------------------------------------------------------------------------------


def test_the_mock_store_is_one_for_gcsfs_tensorstore_and_array_record(object_store, tmp_path):
    import tensorstore
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "shard"), "group_size:1")
    for i in range(1000):
        writer.write(b"%d" % i)
    writer.close()
    gcs = remote.filesystem(DATA)
    gcs.put_file(str(tmp_path / "shard"), f"{DATA}/shard")
    assert ArrayRecordReader(f"{DATA}/shard").read([7, 900]) == [b"7", b"900"]
    large = np.random.default_rng(0).bytes(6 << 20)
    (tmp_path / "large").write_bytes(large)
    gcs.put_file(str(tmp_path / "large"), f"{DATA}/large")
    assert any("uploadType=resumable" in url for url in uploads(object_store))
    assert object_store.get("bucket", "data/large") == large == gcs.cat_file(f"{DATA}/large")
    assert gcs.cat_file(f"{DATA}/large", start=10, end=1000) == large[10:1000]
    kvstore = tensorstore.KvStore.open("gs://bucket/data/").result()
    assert kvstore.read("large").result().value == large
    object_store.page = 2
    for i in range(5):
        kvstore.write(f"folder/{i}", b"").result()
    assert [path.split("/")[-1] for path in gcs.find(f"{DATA}/folder")] == list("01234")
    assert len(kvstore.list().result()) == 7
    absent = kvstore.read("once").result().stamp.generation
    first, again = (kvstore.write("once", value, if_equal=absent).result() for value in (b"1", b"2"))
    assert first.generation and not again.generation
    with pytest.raises(FileExistsError):
        gcs.pipe_file(f"{DATA}/once", b"3", mode="create")
    assert object_store.get("bucket", "data/once") == b"1"
    gcs.mv(f"{DATA}/once", f"{DATA}/twice")
    gcs.rm(f"{DATA}/folder", recursive=True)
    assert object_store.names("bucket") == ["data/large", "data/shard", "data/twice"]


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def made_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory that looks like a data set, and a cache for copies of it."""
    monkeypatch.setenv(staging.CACHE, str(tmp_path / "cache"))
    folder = tmp_path / "made-up"
    (folder / "index").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "splits": {}}))
    draw = np.random.default_rng(1)
    for i in range(6):
        (folder / f"shard-{i}").write_bytes(draw.bytes(1000 + i))
    (folder / "index" / "train.npy").write_bytes(draw.bytes(500))
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_a_published_data_set_is_staged_whole_and_fetched_once(object_store, made_up, caplog):
    (made_up / "plans" / "p").mkdir(parents=True)
    (made_up / "plans" / "p" / "digest").write_text("1")
    with caplog.at_level(logging.INFO, "albert_jax"):
        publish(made_up, DATA)
        copy = staged(DATA)
    written = uploads(object_store)
    assert len(written) == 8 and "name=data/manifest.json" in written[-1] and "ifGenerationMatch=0" in written[-1]
    assert object_store.names("bucket")[:2] == ["data/index/train.npy", "data/manifest.json"]
    assert {**contents(copy), "plans/p/digest": b"1"} == contents(made_up)
    assert "8 of 8 files, 0.0 MB in" in caplog.text and f"staged {DATA} in {copy}: fetched 8 of 8 files" in caplog.text
    object_store.requests.clear()
    assert staged(DATA) == copy == staged(DATA + "/")
    assert set(downloads(object_store)) == {"data/manifest.json"}
    assert staged(str(made_up)) == made_up  # what is local stays where it is


def test_publishing_does_not_touch_what_is_in_the_way_unless_told(object_store, made_up, tmp_path):
    object_store.put("bucket", "data/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"gs://bucket/data is taken \(it holds notes.txt\)"):
        publish(made_up, DATA)
    assert object_store.names("bucket") == ["data/notes.txt"]
    publish(made_up, DATA, replace=True)
    with pytest.raises(UserError, match=r"is taken \(it holds manifest.json\)"):
        publish(made_up, DATA)
    old = staged(DATA)
    (made_up / "shard-3").write_bytes(b"new")
    (made_up / "manifest.json").write_text(json.dumps({"format": FORMAT, "splits": {"train": {}}}))
    object_store.requests.clear()
    publish(made_up, DATA, replace=True)
    assert "DELETE /storage/v1/b/bucket/o/data/manifest.json" in object_store.requests
    assert len(uploads(object_store)) == 2
    assert staged(DATA) != old and contents(staged(DATA)) == contents(made_up)
    with pytest.raises(UserError, match="no finished data set"):
        publish(tmp_path / "cache", "gs://bucket/other")


def test_an_upload_that_broke_off_is_no_data_set_and_goes_on(object_store, made_up):
    object_store.fail(1, method="POST", containing="/upload", status=403)
    with pytest.raises(UserError, match=r"gs://bucket/data cannot be reached \(OSError: Forbidden.*access rights"):
        publish(made_up, DATA)
    assert 0 < len(object_store.names("bucket")) < 8
    with pytest.raises(UserError, match=r"gs://bucket/data holds no data set \(no manifest.json\)"):
        staged(DATA)
    there = len(object_store.names("bucket"))
    object_store.requests.clear()
    publish(made_up, DATA)
    assert len(uploads(object_store)) == 8 - there
    assert contents(staged(DATA)) == contents(made_up)


def test_bytes_that_changed_on_the_way_to_the_store_are_noticed_before_the_manifest(object_store, made_up, monkeypatch):
    def faulty(action, names):
        remote_in_parallel(action, names)
        object_store.put("bucket", "data/shard-2", b"other")

    remote_in_parallel = remote.in_parallel
    monkeypatch.setattr(remote, "in_parallel", faulty)
    with pytest.raises(UserError, match="gs://bucket/data/shard-2 is not the file it was made from"):
        publish(made_up, DATA)
    assert "data/manifest.json" not in object_store.names("bucket")


def test_a_damaged_object_is_refused_and_what_is_whole_is_not_fetched_again(object_store, made_up):
    publish(made_up, DATA)
    object_store.damage("bucket", "data/shard-4", 10)
    with pytest.raises(UserError, match=r"gs://bucket/data/shard-4 is damaged \(size and CRC32C"):
        staged(DATA)
    object_store.damage("bucket", "data/shard-4", 10)  # again, so it is whole
    before = set(downloads(object_store))
    object_store.requests.clear()
    copy = staged(DATA)
    assert contents(copy) == contents(made_up)
    fetched = set(downloads(object_store)) - {"data/manifest.json"}
    assert "data/shard-4" in fetched and not fetched & (before - {"data/shard-4", "data/manifest.json"})
    (copy / "shard-1").write_bytes(b"cut short")
    object_store.requests.clear()
    assert contents(staged(DATA)) == contents(made_up)
    assert downloads(object_store) == ["data/manifest.json", "data/shard-1"]


def test_a_store_that_is_overloaded_for_a_while_is_asked_again(object_store, made_up):
    object_store.fail(1, method="POST", containing="/upload")
    publish(made_up, DATA)
    object_store.fail(1, containing="shard-0?alt=media")
    assert contents(staged(DATA)) == contents(made_up)


def test_what_is_missing_is_named(object_store, made_up, monkeypatch):
    with pytest.raises(UserError, match=r"gs://bucket/data holds no data set \(no manifest.json\); make one"):
        staged(DATA)
    object_store.fail(10, status=404)
    with pytest.raises(UserError, match=r"gs://bucket/data cannot be reached .*check the bucket's name"):
        staged(DATA)
    with pytest.raises(UserError, match=r"s3://bucket/run is in no store that can be written to; give .* a gs:// path"):
        remote.directory("s3://bucket/run")
    remote.filesystem("memory://data").pipe_file("memory://data/manifest.json", b"{}")
    with pytest.raises(UserError, match="memory://data is in a store that gives no CRC32C; copy it to a gs:// path"):
        staged("memory://data")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for opened in (staged, remote.filesystem, remote.directory):
        with pytest.raises(UserError, match=r"gs://bucket/data needs the package gcsfs; pip install -e"):
            opened(DATA)


def test_an_object_whose_name_leads_out_of_the_copy_is_refused(object_store, made_up):
    publish(made_up, DATA)
    object_store.put("bucket", "data/../evil", b"")
    with pytest.raises(UserError, match=r"gs://bucket/data holds an object named '\.\./evil'"):
        staged(DATA)


def test_two_processes_that_stage_at_once_fetch_every_object_once(object_store, made_up):
    publish(made_up, DATA)
    object_store.requests.clear()
    object_store.fail(1, containing="shard-5?alt=media")  # the first one takes a second
    program = f"from albert_jax.data.staging import staged; print(staged({DATA!r}))"
    command = [sys.executable, "-c", program]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(places) == 1
    assert contents(pathlib.Path(places.pop())) == contents(made_up)
    fetched = [name for name in downloads(object_store) if name != "data/manifest.json"]
    assert len(fetched) == len(set(fetched)) + 1  # and the one that failed


def test_a_disk_without_room_is_told_before_and_while_it_fills(object_store, made_up, monkeypatch):
    publish(made_up, DATA)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "from albert_jax.data.staging import staged\nfrom albert_jax.errors import UserError\n"
        f"try:\n    staged({DATA!r})\nexcept UserError as e:\n    print(e)"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "cannot be written (File too large); make room there, or set ALBERT_JAX_CACHE" in told, told
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10))
    object_store.requests.clear()
    with pytest.raises(UserError, match=r"data set gs://bucket/data takes 0.00 GB more and .* has room for 0.00 GB"):
        staged(DATA)
    assert downloads(object_store) == ["data/manifest.json"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


small = functools.partial(small_state, size=5000)


def saved(*steps: int) -> Checkpoints:
    checkpoints = Checkpoints(RUN, 2, SOME_RUN)
    for step in steps:
        checkpoints.save(small(step), progress(step), block=True)
    return checkpoints


def listed(store: ObjectStore) -> list[str]:
    return sorted({name.split("/")[2] for name in store.names("bucket", "run/checkpoints/")})


def largest(store: ObjectStore, prefix: str) -> str:
    return max(store.names("bucket", prefix), key=lambda name: len(store.get("bucket", name)))


def restored_step() -> int | None:
    again = Checkpoints(RUN, 2, SOME_RUN)
    try:
        restored = again.restore(small(0))
    finally:
        again.close()
    if restored is None:
        return None
    step = int(restored.state.step)
    assert restored.meta["position"] == step * 8
    assert np.array_equal(np.asarray(restored.state.params["w"]), np.asarray(small(step).params["w"]))
    return step


def test_retention_deletes_old_steps_in_the_store(object_store):
    saved(1, 2, 3, 4, 5).close()
    assert listed(object_store) == ["4", "5"]
    assert restored_step() == 5


def test_a_step_without_its_last_object_is_never_restored_and_makes_no_run(object_store):
    saved(1).close()
    claim_workdir(RUN, SOME_RUN)
    for name in object_store.names("bucket", "run/checkpoints/1/"):
        object_store.put("bucket", name.replace("/1/", "/2/"), object_store.get("bucket", name))
    object_store.delete("bucket", "run/checkpoints/2/commit_success.txt")
    assert restored_step() == 1
    assert listed(object_store) == ["1"]
    with pytest.raises(UserError, match="gs://bucket/run belongs to another run: plan was p and is now q"):
        claim_workdir(RUN, SOME_RUN | {"plan": "q"})
    object_store.delete("bucket", "run/checkpoints/1/commit_success.txt")
    forget()
    claim_workdir(RUN, SOME_RUN | {"plan": "q"})
    assert json.loads(object_store.get("bucket", "run/run.json"))["plan"] == "q"
    assert object_store.names("bucket", "run/run") == ["run/run.json"]


@pytest.mark.parametrize("damage", [ObjectStore.damage, ObjectStore.delete])
def test_a_damaged_or_half_deleted_step_is_set_aside_for_the_one_before(object_store, damage, caplog):
    saved(1, 2).close()
    damage(object_store, "bucket", largest(object_store, "run/checkpoints/2/params/"))
    assert restored_step() == 1
    assert "checkpoint 2 of gs://bucket/run/checkpoints is damaged" in caplog.text
    assert listed(object_store) == ["1", "damaged-2"]
    saved(2).close()
    assert restored_step() == 2


@pytest.mark.parametrize("item", ["params/ocdbt", "meta/metadata"])
def test_a_step_that_may_not_be_read_now_is_not_taken_for_damaged(object_store, item):
    saved(1, 2).close()
    before = object_store.names("bucket")
    object_store.fail(10_000, method="GET", containing=f"checkpoints/2/{item}", status=403)
    with pytest.raises(UserError, match=r"checkpoint 2 of gs://bucket/run/checkpoints cannot be read \("):
        restored_step()
    object_store.clear_faults()
    assert object_store.names("bucket") == before and restored_step() == 2


def test_a_refused_save_names_the_last_good_step(object_store, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    checkpoints = saved(1)
    object_store.fail(10_000, method="POST", containing="checkpoints/2/params", status=403)
    with pytest.raises(UserError) as told:
        checkpoints.save(small(2), progress(2), block=True)
    assert "step 2 could not be written to gs://bucket/run/checkpoints in 3 attempts (" in str(told.value)
    assert "the last good one is step 1: see that the bucket can be written to" in str(told.value)
    object_store.clear_faults()
    assert restored_step() == 1


def test_a_store_that_refuses_for_a_while_costs_a_checkpoint_and_leaves_nothing_behind(object_store, caplog):
    checkpoints = saved(1)
    object_store.fail(10_000, method="POST", containing="checkpoints/2/params", status=403)
    checkpoints.save(small(2), progress(2), block=False)
    checkpoints.save(small(3), progress(3), block=False)
    object_store.clear_faults()
    (told,) = (record.getMessage() for record in caplog.records if "could not be written" in record.getMessage())
    assert told.startswith(
        "the checkpoint of step 2 could not be written to gs://bucket/run/checkpoints (PERMISSION_DENI"
    )
    assert "failure 1 in a row; training goes on" in told and "http_response" not in told
    checkpoints.close()
    assert listed(object_store) == ["1", "3"] and restored_step() == 3


def test_a_deletion_in_the_store_that_breaks_off_leaves_half_a_step_that_nobody_takes_for_whole(object_store, caplog):
    checkpoints = saved(1, 2)
    object_store.fail(10_000, method="DELETE", containing="checkpoints/1/params", status=403)
    object_store.requests.clear()
    checkpoints.save(small(3), progress(3), block=True)
    checkpoints.close()
    assert "old checkpoint 1 of gs://bucket/run/checkpoints could not be deleted" in caplog.text
    left = object_store.names("bucket", "run/checkpoints/1/")
    assert left and "run/checkpoints/1/commit_success.txt" not in left
    deletions = [request for request in object_store.requests if request.startswith("DELETE") and "/1/" in request]
    assert deletions[0].endswith("o/run/checkpoints/1/commit_success.txt")
    object_store.clear_faults()
    assert load_steps() == [2, 3]
    assert restored_step() == 3 and listed(object_store) == ["2", "3"]


def load_steps() -> list[int]:
    return SavedSteps(remote.directory(f"{RUN}/checkpoints")).whole()


def test_a_store_that_cannot_be_reached_is_told_in_one_sentence(object_store):
    object_store.fail(10_000, status=403)
    for action in (lambda: claim_workdir(RUN, SOME_RUN), lambda: Checkpoints(RUN, 2, SOME_RUN)):
        with pytest.raises(UserError, match=r"gs://bucket/run\S* cannot be reached \(.*check the bucket's name"):
            action()


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_reach_the_store_at_each_flush_and_go_on_from_there(object_store, capsys):
    host = {"seconds": 1.0, "input_wait_seconds": 0.0, "tokens": 10.0}
    with Telemetry(RUN, steps=9) as telemetry:
        telemetry.log(2, {"loss": jnp.float32(1.5)}, host)
        telemetry.flush()
        flushed = object_store.get("bucket", "run/metrics.jsonl")
        telemetry.log(4, {"loss": jnp.float32(1.25)}, host)
        telemetry.evaluation(4, {"loss": 2.0}, 1.0)
        assert object_store.get("bucket", "run/metrics.jsonl") == flushed and flushed.count(b"\n") == 2
    assert not telemetry.directory.exists()
    assert [record["step"] for record in read_metrics(RUN)] == [0, 2, 4, 4]
    with Telemetry(RUN, steps=9, restored_step=2) as telemetry:
        telemetry.log(4, {"loss": jnp.float32(1.0)}, host)
    assert "gs://bucket/run/metrics.jsonl: dropped 2 records of steps after 2" in capsys.readouterr().out
    kinds = [(record["step"], record["kind"]) for record in read_metrics(RUN)]
    assert kinds == [(0, "start"), (2, "train"), (2, "resume"), (4, "train")]
    assert len(object_store.names("bucket", "run/tensorboard/events.")) == 2


# --- runs -------------------------------------------------------------------------------------------------------------


def here(store: ObjectStore, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the run's workdir on this disk."""
    for name in store.names("bucket", "run/"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.get("bucket", name))
    return folder / "run"


def in_store(runs: Runs, fields: dict[str, Any]) -> list[str]:
    """The flags of the tiny run with its workdir in the store."""
    flags = runs.arguments(pathlib.Path("local"), fields)
    return [f"--workdir={RUN}" if flag == "--workdir=local" else flag for flag in flags]


def assert_same_run(store: ObjectStore, folder: pathlib.Path, straight: pathlib.Path) -> pathlib.Path:
    """Compares the run in the store with a local one bit for bit; gives a copy of its workdir on this disk."""
    workdir = here(store, folder)
    assert records(workdir) == records(straight)
    assert {n: a.tobytes() for n, a in arrays(workdir).items()} == {n: a.tobytes() for n, a in arrays(straight).items()}
    return workdir


def test_a_run_in_the_store_stopped_and_resumed_ends_with_the_bits_of_a_local_one(
    runs: Runs, data, straight, object_store, tmp_path, monkeypatch
):
    monkeypatch.setenv(staging.CACHE, str(tmp_path / "cache"))
    publish(data, DATA)
    arguments = in_store(runs, {"data.path": DATA})
    stopped = runs.start(arguments, hold="step:6")
    assert f"staged {DATA} in {tmp_path / 'cache'}" in wait_for(stopped, "held step:6")
    stopped.send_signal(signal.SIGTERM)
    release(stopped)
    ended = runs.finish(stopped)
    told = re.search(f"interrupted by SIGTERM: step ([78]) is saved in {RUN}", ended.out)
    assert ended.status == 75 and told, ended
    finished = runs.finish(runs.start(arguments))
    assert finished.status == 0 and f"resumed from step {told[1]} in {RUN}" in finished.out, finished.err
    assert "fetched 0 of" in finished.out and "dropped" not in finished.out
    workdir = assert_same_run(object_store, tmp_path, straight)
    assert listed(object_store) == ["12", "8"] and len(list((workdir / "tensorboard").iterdir())) == 2
    assert (workdir / "spiece.model").read_bytes() == (data / "spiece.model").read_bytes()
    for name in object_store.names("bucket", f"run/checkpoints/{STEPS}/"):  # a save that never ended
        if not name.endswith(f"/{STEPS}/commit_success.txt"):
            object_store.put("bucket", name.replace(f"/{STEPS}/", "/16/"), object_store.get("bucket", name))
    params, meta = load_parameters(RUN)
    assert meta["step"] == STEPS and meta["digests"] == load_parameters(straight)[1]["digests"] and params


@pytest.mark.slow
def test_a_run_in_the_store_killed_during_a_save_goes_on_from_the_step_before(
    runs: Runs, straight, object_store, tmp_path
):
    arguments = in_store(runs, {})
    object_store.fail(1000, method="POST", containing="checkpoints/8/commit_success.txt")
    killed = runs.start(arguments, hold="step:10")
    wait_for(killed, "held step:10")
    killed.kill()
    assert runs.finish(killed).status == -signal.SIGKILL
    object_store.clear_faults()
    assert listed(object_store) == ["4", "8"]
    finished = runs.finish(runs.start(arguments))
    assert finished.status == 0 and f"resumed from step 4 in {RUN}" in finished.out, finished.err
    assert f"{RUN}/metrics.jsonl: dropped" in finished.out
    assert_same_run(object_store, tmp_path, straight)


@pytest.mark.slow
def test_what_ends_a_run_in_the_store_is_told_in_one_sentence(runs: Runs, object_store):
    def told(finished: Finished) -> str:
        lines = [line for line in finished.err.splitlines() if "google_auth_provider" not in line]
        assert finished.status == 2 and len(lines) == 1 and "Traceback" not in finished.out, finished
        return lines[0]

    arguments = in_store(runs, {})
    object_store.fail(10_000, method="GET", containing="b/bucket?", status=403)  # Orbax asks what kind of bucket it is
    refused = told(runs.finish(runs.start(arguments)))
    assert f"error: {RUN}/checkpoints cannot be reached (Forbidden: 403 GET" in refused and "access rights" in refused
    object_store.clear_faults()
    started = runs.start(arguments, hold="step:3")
    wait_for(started, "held step:3")
    resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (64, 64))
    release(started)
    full = runs.finish(started)  # its events' writer cannot end well either and says so
    assert full.status == 2
    assert f", where the records of {RUN} grow, cannot be written (File too large); make room there" in full.err
    object_store.fail(10_000, method="POST", containing="name=run/metrics.jsonl", status=403)
    unwritten = told(runs.finish(runs.start(arguments)))
    assert f"error: {RUN} cannot be reached (OSError: Forbidden" in unwritten
