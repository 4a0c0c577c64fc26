# SPDX-License-Identifier: Apache-2.0
"""Promises of albert_jax/training/profiling.py."""

import gzip
import json
import logging
import os
import pathlib
import shutil
import signal
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from albert_jax.training.loop import Run
from albert_jax.training.profiling import Profiler
from tests.in_process import run, tiny
from tests.object_store import ObjectStore

pytest_plugins = ["tests.object_store", "tests.runs"]


@jax.jit
def work(x: jax.Array) -> jax.Array:
    return jnp.sin(x @ x)


def train(profiler: Profiler, first: int, last: int, requests: tuple[int, ...] = ()) -> None:
    """What the loop does: `requests` are the steps during which a profile is asked for."""
    x = jnp.ones((32, 32))
    for step in range(first, last + 1):
        profiler.before_step(step, [x])
        x = work(x)
        if step in requests:
            profiler.request()


def events(trace: bytes) -> list[dict]:
    return json.loads(gzip.decompress(trace))["traceEvents"]


def profiles(directory: pathlib.Path) -> dict[str, list[int]]:
    """The steps that each profile marks."""
    found = {}
    for profile in sorted(directory.glob("step-*")):
        (trace,) = profile.glob("plugins/profile/*/*.trace.json.gz")
        assert list(trace.parent.glob("*.xplane.pb"))
        marks = [event for event in events(trace.read_bytes()) if event.get("name") == "train"]
        found[profile.name] = sorted(int(event["args"]["step_num"]) for event in marks)
    return found


def test_the_configured_steps_are_profiled_and_a_sentence_says_where(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    profiler = Profiler(tmp_path, at=3, steps=2)
    train(profiler, 1, 8)
    profiler.close()
    assert profiles(tmp_path) == {"step-3": [3, 4]}
    assert caplog.messages == [f"profiled steps 3 to 4 into {tmp_path}/step-3."]


@pytest.mark.parametrize(("at", "first"), [(0, 1), (3, 4)])
def test_a_run_that_asks_for_no_profile_or_resumes_past_it_has_none(tmp_path, at, first):
    profiler = Profiler(tmp_path, at=at, steps=2)
    train(profiler, first, 8)
    profiler.close()
    assert not list(tmp_path.iterdir())


def test_a_signal_asks_for_one_more_profile_from_the_next_step_on(tmp_path):
    profiler = Profiler(tmp_path, at=2, steps=2)
    before = signal.signal(signal.SIGUSR1, lambda *_: profiler.request())
    try:
        train(profiler, 1, 5)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        train(profiler, 6, 12)
    finally:
        signal.signal(signal.SIGUSR1, before)
    profiler.close()
    assert profiles(tmp_path) == {"step-2": [2, 3], "step-6": [6, 7]}


def test_what_is_asked_for_during_a_profile_is_answered_by_it(tmp_path):
    profiler = Profiler(tmp_path, at=0, steps=3)
    train(profiler, 1, 9, requests=(1, 2, 3))
    profiler.close()
    assert profiles(tmp_path) == {"step-2": [2, 3, 4]}


def test_the_end_of_a_run_ends_its_profile(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    profiler = Profiler(tmp_path, at=2, steps=50)
    train(profiler, 1, 3)
    profiler.close()
    profiler.close()
    assert profiles(tmp_path) == {"step-2": [2, 3]} and "profiled steps 2 to 3" in caplog.text


def test_a_profile_begins_and_ends_when_the_steps_in_flight_have_finished(tmp_path, monkeypatch):
    order: list[object] = []
    monkeypatch.setattr(jax, "block_until_ready", order.append)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: order.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: order.append("stop"))
    profiler = Profiler(tmp_path, at=2, steps=1)
    for step in range(1, 5):
        profiler.before_step(step, [step])
    assert order == [[2], "start", [3], "stop"]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_profile_that_cannot_be_started_costs_a_warning_and_no_training(tmp_path, caplog):
    (tmp_path / "profile").write_text("no directory")
    profiler = Profiler(tmp_path / "profile", at=2, steps=1)
    train(profiler, 1, 4)
    profiler.close()
    (message,) = caplog.messages
    assert message.startswith("the profile from step 2 on failed (") and "Not a directory" in message


def test_a_profile_that_was_asked_for_and_failed_is_not_tried_again_at_each_step(tmp_path, caplog):
    (tmp_path / "profile").write_text("no directory")
    profiler = Profiler(tmp_path / "profile", at=0, steps=1)
    train(profiler, 1, 5, requests=(1,))
    assert len(caplog.messages) == 1


def test_a_second_profiler_in_the_process_costs_a_warning_and_no_training(tmp_path, caplog):
    with jax.profiler.trace(str(tmp_path / "other")):
        profiler = Profiler(tmp_path, at=1, steps=1)
        train(profiler, 1, 3)
        profiler.close()
    (message,) = caplog.messages
    assert "Only one profile may be run at a time" in message and "goes on without it" in message


def test_a_profile_that_cannot_be_written_costs_a_warning_and_the_next_one_is_taken(tmp_path, caplog, monkeypatch):
    stop = jax.profiler.stop_trace

    def full() -> None:
        stop()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    profiler = Profiler(tmp_path, at=1, steps=1)
    train(profiler, 1, 3)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    shutil.rmtree(tmp_path / "step-1")
    train(profiler, 4, 6, requests=(4,))
    profiler.close()
    assert "No space left on device" in caplog.text
    assert profiles(tmp_path) == {"step-5": [5]}


# --- an object store --------------------------------------------------------------------------------------------------


def traces(store: ObjectStore) -> list[str]:
    return [name for name in store.names("bucket", "run/profile/") if name.endswith(".trace.json.gz")]


def test_a_profile_is_copied_into_the_store_of_the_workdir(object_store: ObjectStore, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caplog.set_level(logging.INFO, "albert_jax")
    profiler = Profiler("gs://bucket/run/profile", at=2, steps=2)
    train(profiler, 1, 5)
    profiler.close()
    (trace,) = traces(object_store)
    assert trace.startswith("run/profile/step-2/plugins/profile/")
    assert len([e for e in events(object_store.get("bucket", trace)) if e.get("name") == "train"]) == 2
    assert "profiled steps 2 to 3 into gs://bucket/run/profile/step-2." in caplog.messages
    assert not list(tmp_path.iterdir())


def test_a_store_that_refuses_the_profile_costs_a_warning(object_store: ObjectStore, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    object_store.fail(10_000, method="POST", containing="name=run/profile", status=403)
    profiler = Profiler("gs://bucket/run/profile", at=1, steps=1)
    train(profiler, 1, 3)
    profiler.close()
    assert "the profile from step 1 on failed (gs://bucket/run/profile/step-1 cannot be reached" in caplog.text
    assert not list(tmp_path.iterdir())


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_run_profiles_the_steps_that_its_config_names_and_those_after_a_signal(data, tmp_path, monkeypatch):
    take_step = Run._take_step

    def signalled(self: Run, *args: Any) -> Any:
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take_step(self, *args)

    monkeypatch.setattr(Run, "_take_step", signalled)
    assert run(tiny(data, **{"profile.at": 3, "profile.steps": 2}), tmp_path / "w")
    profiles = {path.name: list(path.rglob("*.xplane.pb")) for path in (tmp_path / "w" / "profile").iterdir()}
    assert sorted(profiles) == ["step-3", "step-8"] and all(profiles.values())
