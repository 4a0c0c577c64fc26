# SPDX-License-Identifier: Apache-2.0
"""Workdirs that earlier versions wrote: format 2 goes on, of format 1 the weights are read, all others are refused."""

import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training import compatibility
from albert_jax.training.compatibility import Gone, check_same_run
from albert_jax.training.initialization import starting_parameters
from albert_jax.training.interruption import Interruption
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.loop import Run
from albert_jax.training.recipe import pretraining
from albert_jax.training.restoring import load_parameters
from scripts.export import export
from scripts.report import main as report
from tests import workdir_format as written
from tests.in_process import run

pytest_plugins = ["tests.runs"]


def config_of(data: pathlib.Path, **changes: Any) -> ml_collections.ConfigDict:
    """The command's config for the run of tests/workdir_format.py, as this version resolves it."""
    config = pretraining(AlbertConfig())
    known = traverse_util.flatten_dict(config.to_dict(), sep=".")
    fields = {k: v for k, v in traverse_util.flatten_dict(written.CONFIG, sep=".").items() if k in known}
    config.update_from_flattened_dict(fields | {"data.path": str(data)} | changes)
    return config


def started(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """A run before its first step."""
    with Interruption() as interruption, WorkdirLock(workdir) as lock:
        ready = Run(config, workdir, lock, interruption)
    ready.checkpoints.close()
    assert ready.telemetry is not None
    ready.telemetry.close()
    return ready


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in traverse_util.flatten_dict(jax.device_get(tree), sep="/").items()}


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert not [k for k in found if (found[k].dtype, found[k].tobytes()) != (wanted[k].dtype, wanted[k].tobytes())]


def meta_of(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


@pytest.fixture
def workdir(data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A run of format 2 that was interrupted after step 6 of 7."""
    written.write_workdir(tmp_path / "old", data)
    return tmp_path / "old"


# --- format 2 ---------------------------------------------------------------------------------------------------------


def test_a_run_of_format_2_is_resumed_with_every_bit_of_its_state_and_goes_on(data, workdir):
    ready = started(config_of(data), workdir)
    assert (ready.step, ready.position) == (written.STEP, written.POSITION)
    adam, guard = ready.state.opt_state[1], ready.state.guard
    for kind, tree in enumerate((ready.state.params, adam.mu, adam.nu)):
        assert_same_bits(flat(tree), written.values(kind))
    assert (int(ready.state.step), int(adam.count)) == (written.STEP, written.STEP)
    assert (float(guard.log_norm), int(guard.accepted)) == (float(np.float32(0.05)), written.STEP)

    assert run(config_of(data), workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[: len(written.RECORDS)] == written.RECORDS
    assert [r["kind"] for r in records[len(written.RECORDS) :]] == ["resume", "resume", "train", "eval"]
    last = records[-2]
    # The mean of steps 5 and 6, which the interval held, and 7; and the rows of 7 begin past those that are left out.
    assert 1000 < last["loss"] < 1000 + 10 and last["position"] == 54 + written.ROWS


def test_what_is_written_today_has_the_form_of_format_2(data, workdir):
    """Other names, parts or shapes are another format: raise FORMAT, and let tests/workdir_format.py be."""
    assert run(config_of(data), workdir)
    old, new = meta_of(workdir, written.STEP), meta_of(workdir, 7)
    assert old.keys() == new.keys() and new["format"] == 2
    assert {name: d.keys() for name, d in old["digests"].items()} == {n: d.keys() for n, d in new["digests"].items()}
    assert old["interval"].keys() == new["interval"].keys()
    assert old["interval"]["sums"].keys() == new["interval"]["sums"].keys()
    folders = [workdir / "checkpoints" / str(step) for step in (written.STEP, 7)]
    for part in ("params", "rest"):
        trees = [json.loads((folder / part / "_METADATA").read_text())["tree_metadata"] for folder in folders]
        forms = [
            {name: (x["key_metadata"], x["value_metadata"].get("write_shape")) for name, x in tree.items()}
            for tree in trees
        ]
        assert forms[0] == forms[1]
    (workdir / "run.json").unlink()
    started(config_of(data), workdir)
    said = json.loads((workdir / "run.json").read_text())
    assert said.keys() == written.identity(data).keys()
    assert {name: said[name] for name in said if name not in ("config", "versions")} == {
        name: value for name, value in written.identity(data).items() if name not in ("config", "versions")
    }


def test_a_run_of_format_2_is_exported_reported_and_started_from(data, workdir, tmp_path):
    assert export(workdir, tmp_path / "hf") == written.STEP
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    embedding = written.values(0)["albert/embeddings/word_embeddings/embedding"]
    assert tensors["albert.embeddings.word_embeddings.weight"].tobytes() == embedding.tobytes()
    assert report([str(workdir), "--out", str(tmp_path / "report.html")]) == 0
    assert "1796098" not in (page := (tmp_path / "report.html").read_text()) and "6.125" in page
    assert_same_bits(flat(starting_parameters(config_of(data, init_from=str(workdir)))), written.values(0))


def test_a_run_of_format_2_is_branched_from_with_its_rows_left_out(data, workdir, tmp_path):
    changes = {"branch_from": f"{workdir}@{written.STEP}", "steps": 9, "optimizer.learning_rate": 0.001}
    branch = started(config_of(data, **changes), tmp_path / "new")
    assert_same_bits(flat(branch.state.params), written.values(0))
    assert_same_bits(flat(branch.state.opt_state[1].nu), written.values(2))
    assert (branch.step, branch.position) == (written.STEP, written.POSITION)
    meta = meta_of(tmp_path / "new", written.STEP)
    assert meta["interval"] == written.INTERVAL
    assert meta["parent"]["changed"] == {"optimizer.learning_rate": [0.002, 0.001], "steps": [7, 9]}
    left_out = json.loads((tmp_path / "new" / "left_out.json").read_text())
    assert left_out == {"rows": written.LEFT_OUT, "told": 0, "restored": 0, "times": 0, "abandoned": []}


def test_rows_left_out_are_not_inherited_where_they_would_be_other_text(data, workdir, tmp_path):
    started(config_of(data, branch_from=str(workdir), steps=9, seed=1), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "left_out.json").read_text())["rows"] == []


# --- formats that are not gone on with --------------------------------------------------------------------------------


def test_a_run_of_format_1_is_refused_with_the_version_that_goes_on_with_it_and_its_weights_are_read(
    data, tmp_path, caplog
):
    old = tmp_path / "old"
    written.write_workdir(old, data, form=1)
    for fields, place in ({}, old), ({"branch_from": str(old), "steps": 9}, tmp_path / "new"):
        with pytest.raises(UserError) as refused:
            started(config_of(data, **fields), place)
        assert str(refused.value).startswith(f"{old} was written by albert_jax 0.1.0 in format 1, and albert_jax 0.2.")
        assert f"install version 0.1.0, or start from its weights by --config.init_from={old} in" in str(refused.value)
    assert_same_bits(flat(starting_parameters(config_of(data, init_from=str(old)))), written.values(0))
    assert export(old, tmp_path / "hf") == written.STEP

    meta = old / "checkpoints" / str(written.STEP) / "meta" / "metadata"
    content = json.loads(meta.read_text())
    name = next(iter(content["digests"]["params"]))
    content["digests"]["params"][name] = "0" * 16
    del content["seal"]
    content["seal"] = written.sealed(content)
    meta.write_text(json.dumps(content))
    with pytest.raises(UserError, match="1 arrays of 'params' are not those that were saved"):
        load_parameters(old)


def test_a_run_of_a_format_to_come_is_refused_with_its_version(data, tmp_path):
    later = tmp_path / "later"
    changes = {"format": 3, "versions": written.VERSIONS | {"albert_jax": "0.9.0"}}
    written.write_workdir(later, data, changes=changes)
    with pytest.raises(
        UserError, match=r"albert_jax 0.9.0 in format 3, .* goes on from format 2; install version 0.9.0\."
    ):
        started(config_of(data), later)
    with pytest.raises(UserError, match=r"albert_jax 0.9.0 in format 3, .* formats up to 2; install version 0.9.0\."):
        load_parameters(later)


# --- fields that came and went ----------------------------------------------------------------------------------------


def changed(identity: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An identity with fields of its config set, or removed where None."""
    config = traverse_util.flatten_dict(identity["config"], sep=".") | fields
    config = {name: value for name, value in config.items() if value is not None}
    return identity | {"config": traverse_util.unflatten_dict(config, sep=".")}


@pytest.fixture(scope="module")
def said(data: pathlib.Path) -> dict[str, Any]:
    return changed(written.identity(data), **traverse_util.flatten_dict(config_of(data).to_dict(), sep="."))


def test_a_field_that_an_old_run_lacks_had_its_default(said):
    old = changed(said, **{"seed": None, "masking.max_ngram": None, "guard.patience": None, "branch_from": None})
    check_same_run(old, said, "w")
    with pytest.raises(UserError, match=r"w belongs to another run: masking.max_ngram was 3 and is now 2; use"):
        check_same_run(old, changed(said, **{"masking.max_ngram": 2}), "w")


def test_a_field_that_is_gone_is_passed_over_where_its_value_does_not_matter_and_else_refused(
    said, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, logger="albert_jax")
    gone = {"data.order": Gone("there is one order"), "data.old": Gone("it is always 3 now", needed=3)}
    monkeypatch.setattr(compatibility, "GONE_FIELDS", gone)
    check_same_run(changed(said, **{"data.order": "random", "data.old": 3}), said, "w")
    with pytest.raises(UserError, match=r"data.old was 4 and is no field any more; use another"):
        check_same_run(changed(said, **{"data.old": 4}), said, "w")
    with pytest.raises(UserError, match=r"data.unknown was 1 and is no field any more"):
        check_same_run(changed(said, **{"data.unknown": 1}), said, "w")


def test_fields_that_are_passed_over_are_named_when_the_run_is_resumed(data, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="albert_jax")
    monkeypatch.setattr(compatibility, "GONE_FIELDS", compatibility.GONE_FIELDS | {"data.order": Gone("there is one")})
    without = {"guard": None, "profile": None, "watchdog": None, "branch_from": None}
    config = {name: value for name, value in written.CONFIG.items() if name not in without}
    config["data"] = written.CONFIG["data"] | {"path": str(data), "order": "random"}
    written.write_workdir(tmp_path / "old", data, changes={"config": config})
    assert started(config_of(data), tmp_path / "old").step == written.STEP
    assert caplog.text.count("data.order 'random' of the run's start is passed over: there is one.") == 1
