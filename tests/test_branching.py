# SPDX-License-Identifier: Apache-2.0
"""`branch_from` goes on from another run's whole state, with what is told from outside changed and nothing else."""

import json
import pathlib
import re
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import pytest

from albert_jax.errors import UserError
from albert_jax.training import branching
from albert_jax.training.branching import read_source
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.left_out import LeftOut, forget_left_out, read_left_out
from albert_jax.training.legs import make_legs
from albert_jax.training.loop import Run
from albert_jax.training.optimizer import decayed, learning_rate_schedule
from albert_jax.training.restoring import restore_step
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import abstract_state, batch_gradient
from tests.in_process import run, tiny
from tests.runs import STEPS, arrays, records

pytest_plugins = ["tests.runs"]
pytestmark = [  # Orbax gives up its other reads of a bad file with these.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]
NO_DROPOUT = {"model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0}  # compiles sooner
AT, ROWS = 8, 8  # the step that is branched from, and the rows of each step before it


@pytest.fixture(scope="module")
def parent(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny run, which has checkpoints 8 and 12, and is not to be changed."""
    workdir = tmp_path_factory.mktemp("parent") / "w"
    assert run(tiny(data), workdir)
    return workdir


def branch(data: pathlib.Path, workdir: pathlib.Path, source: object, **changes: Any) -> bool:
    """Trains a branch."""
    return run(tiny(data, **{"branch_from": str(source)} | changes), workdir)


def only_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs end before their first step."""
    monkeypatch.setattr(Run, "train", lambda self: self.checkpoints.close())


def after(workdir: pathlib.Path, step: int = AT) -> list[dict[str, Any]]:
    """What a run recorded of the steps after one."""
    return [record for record in records(workdir) if record["step"] > step]


def of_kind(workdir: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines if line["kind"] == kind]


def meta(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


def contents(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert {name: x.tobytes() for name, x in a.items()} == {name: x.tobytes() for name, x in b.items()}


def damage(workdir: pathlib.Path, step: int) -> None:
    """Turns over one bit in the middle of a checkpoint's largest file."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# --- nothing changed --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unchanged(data: pathlib.Path, parent: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a branch that does nothing otherwise, trained to its end without touching its parent."""
    workdir, before = tmp_path_factory.mktemp("unchanged") / "w", contents(parent)
    assert branch(data, workdir, f"{parent}@{AT}", **{"checkpoint.keep": 3})
    assert contents(parent) == before
    return workdir


def test_a_branch_that_changes_nothing_is_the_parents_straight_continuation_bit_for_bit(parent, unchanged):
    assert_same_bits(arrays(parent, AT), arrays(unchanged, AT))
    assert_same_bits(arrays(parent, STEPS), arrays(unchanged, STEPS))
    assert after(parent) == after(unchanged) and len(after(parent)) == 4
    assert meta(unchanged, STEPS)["position"] == meta(parent, STEPS)["position"] == STEPS * ROWS


def test_a_branch_names_its_parent_in_run_json_in_each_checkpoint_and_in_its_records(parent, unchanged):
    expected = {
        "workdir": str(parent),
        "step": AT,
        "seal": meta(parent, AT)["seal"],
        "changed": {"checkpoint.keep": [2, 3]},
        "parent_position": AT * ROWS,
        "position": AT * ROWS,
        "left_out": [],
    }
    assert json.loads((unchanged / "run.json").read_text())["parent"] == expected
    assert meta(unchanged, AT)["parent"] == meta(unchanged, STEPS)["parent"] == expected
    assert of_kind(unchanged, "branch") == [{"kind": "branch", **expected}]
    assert [r["step"] for r in of_kind(unchanged, "start")] == [AT] and not of_kind(unchanged, "resume")
    assert "parent" not in json.loads((parent / "run.json").read_text())


@pytest.mark.parametrize("given", ["the same", "nothing"])
def test_a_branch_goes_on_without_its_parent_whether_or_not_branch_from_is_given_again(
    data, parent, unchanged, tmp_path, given, caplog
):
    gone, mine = tmp_path / "gone", tmp_path / "w"
    shutil.copytree(parent, gone)
    config = tiny(data, **{"branch_from": f"{gone}@{AT}"})
    assert not run(config, mine, stop_after=AT + 1)
    shutil.rmtree(gone)
    caplog.clear()
    if given == "nothing":
        config.branch_from = ""
        assert not run(config, mine, stop_after=AT + 3)
        config.branch_from = f"{gone}@{AT}"  # accepted after a resume without it, too
    assert run(config, mine)
    assert_same_bits(arrays(unchanged, STEPS), arrays(mine, STEPS))
    assert after(unchanged) == after(mine)
    assert meta(mine, STEPS)["parent"]["workdir"] == str(gone) and len(of_kind(mine, "branch")) == 1
    assert "branching" not in caplog.text


def test_another_branch_from_is_refused_later_and_so_is_one_for_a_run_that_did_not_branch(data, parent, unchanged):
    before = contents(unchanged)
    with pytest.raises(UserError, match=f"{unchanged} belongs to another run: branch_from was '{parent}@8' and is now"):
        branch(data, unchanged, f"{parent}@{STEPS}")
    with pytest.raises(UserError, match=f"{parent} belongs to another run: branch_from was '' and is now"):
        branch(data, parent, unchanged)
    assert contents(unchanged) == before


def test_a_start_that_was_killed_before_its_first_save_branches_again(data, parent, tmp_path, monkeypatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            branch(data, tmp_path / "w", f"{parent}@{STEPS}", steps=STEPS + 1)
    only_started(monkeypatch)
    branch(data, tmp_path / "w", f"{parent}@{AT}")  # a corrected command may use the workdir
    assert_same_bits(arrays(parent, AT), arrays(tmp_path / "w", AT))
    assert meta(tmp_path / "w", AT)["parent"]["step"] == AT


def test_what_a_parent_leaves_out_is_left_out_also_where_the_parent_is_removed_meanwhile(
    data, parent, tmp_path, monkeypatch
):
    def restored(*arguments: Any) -> Any:
        forget_left_out(parent)
        return restore_step(*arguments)

    LeftOut(((0, 200, 208),)).write(parent)
    only_started(monkeypatch)
    monkeypatch.setattr(branching, "restore_step", restored)
    branch(data, tmp_path / "w", f"{parent}@{AT}", steps=20)
    assert read_left_out(tmp_path / "w")["rows"] == [[0, 200, 208]]


def test_a_checkpoint_that_the_parent_was_turning_away_from_when_it_was_killed_is_none(
    data, parent, tmp_path, monkeypatch
):
    only_started(monkeypatch)
    LeftOut(((0, 40, 44),), told=STEPS, restored=AT, times=1, abandoned=(STEPS,)).write(parent)
    try:
        branch(data, tmp_path / "w", parent, steps=20)
        assert "has no checkpoint 12; it has [8]" in refusal(data, tmp_path / "v", f"{parent}@{STEPS}", steps=20)
    finally:
        forget_left_out(parent)
    assert meta(tmp_path / "w", AT)["parent"]["step"] == AT


def test_a_branch_of_another_mesh_and_number_of_devices_has_the_same_state_bit_for_bit(
    data, parent, tmp_path, monkeypatch
):
    only_started(monkeypatch)
    branch(data, tmp_path / "w", f"{parent}@{AT}", **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.shard_optimizer": True})
    assert_same_bits(arrays(parent, AT), arrays(tmp_path / "w", AT))


# --- changed settings -------------------------------------------------------------------------------------------------


def loaded(workdir: pathlib.Path, step: int, config: ml_collections.ConfigDict) -> Any:
    """A checkpoint's state, as Orbax alone reads it."""
    like, found = abstract_state(config, make_mesh(1, devices=jax.devices()[:1])), arrays(workdir, step)
    rest = like._asdict()
    leaves, structure = jax.tree_util.tree_flatten_with_path({"params": rest.pop("params"), "rest": rest})
    by_name = {tuple(re.findall(r"\w+", name)): value for name, value in found.items()}
    by_order = [by_name[tuple(re.findall(r"\w+", jax.tree_util.keystr(path)))] for path, _ in leaves]
    tree = jax.tree_util.tree_unflatten(structure, by_order)
    return type(like)(params=tree["params"], **tree["rest"])


def test_a_branch_with_another_rate_length_and_batch_steps_as_optax_does_by_hand_from_the_parents_state(
    data, parent, tmp_path
):
    steps, peak, warmup, power = 11, 0.0005, 2, 2.0
    changes = {
        "steps": steps,
        "optimizer.learning_rate": peak,
        "optimizer.decay_power": power,
        "optimizer.weight_decay": 0.1,
        "batch.size": ROWS // 2,
        "eval.every": 100,
        "log.every": 1,
        "checkpoint.every": AT + 1,
        "checkpoint.keep": 3,
    } | NO_DROPOUT
    assert branch(data, tmp_path / "w", f"{parent}@{AT}", **changes)
    record = next(r for r in after(tmp_path / "w") if r["kind"] == "train")
    assert (record["step"], record["position"]) == (AT + 1, AT * ROWS + ROWS // 2)
    # Polynomial decay from `peak` at `warmup` to 0 at `steps`, by arithmetic.
    rate = peak * (1 - (AT - warmup) / (steps - warmup)) ** power
    np.testing.assert_allclose(record["learning_rate"], rate, rtol=1e-6)

    config, one = tiny(data, **changes), make_mesh(1, devices=jax.devices()[:1])
    state = loaded(parent, AT, config)
    (leg,) = make_legs(config, one)
    batch = leg.data.train.batch(AT * ROWS, ROWS // 2)
    gradient = jax.jit(batch_gradient(config, one, 2))(state.params, state.step, batch, 2)[0]
    o = config.optimizer
    assert o.name == "adamw"
    adamw = optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=0.1, mask=decayed(state.params))
    by_hand = optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)
    moments = {name: optax.tree.get(state.opt_state, name) for name in ("mu", "nu", "count")}
    restored = optax.tree.set(by_hand.init(state.params), **moments)
    updates, moved = by_hand.update(gradient, restored, state.params)
    found = loaded(tmp_path / "w", AT + 1, config)
    for name, values, wanted in (
        ("params", found.params, optax.apply_updates(state.params, updates)),
        ("mu", optax.tree.get(found.opt_state, "mu"), optax.tree.get(moved, "mu")),
        ("nu", optax.tree.get(found.opt_state, "nu"), optax.tree.get(moved, "nu")),
    ):
        for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7, err_msg=name)
    # The step is no small thing beside what it is compared to.
    assert max(np.abs(u).max() for u in jax.tree.leaves(updates)) > 1e-5


def test_a_cooldown_is_the_schedules_curve_from_the_step_at_which_it_branches():
    settings = ml_collections.ConfigDict({"learning_rate": 0.002, "warmup_steps": 100, "decay_power": 0.5})
    rate = learning_rate_schedule(settings, 1500)
    for step in (1000, 1001, 1250, 1499, 1500):
        np.testing.assert_allclose(rate(step), 0.002 * (1 - (step - 100) / 1400) ** 0.5, rtol=1e-5, atol=1e-9)


def test_every_field_that_differs_is_printed_and_recorded(data, parent, tmp_path, caplog, monkeypatch):
    only_started(monkeypatch)
    caplog.set_level("INFO", logger="albert_jax")
    changes = {
        "optimizer.learning_rate": 0.0005,
        "steps": 9,
        "seed": 3,
        "batch.size": 4,
        "model.hidden_dropout_prob": 0.0,
        "masking.max_ngram": 1,
        "guard.patience": 7,
    }
    branch(data, tmp_path / "w", f"{parent}@{AT}", **changes)
    old = {"optimizer.learning_rate": 0.002, "steps": 12, "seed": 0, "batch.size": 8, "guard.patience": 5}
    old |= {"model.hidden_dropout_prob": 0.1, "masking.max_ngram": 3}
    assert f"branching from step 8 of {parent}; 7 fields differ:" in caplog.text
    for name, value in changes.items():
        assert f"  {name} {old[name]!r} -> {value!r}\n" in caplog.text
    (record,) = of_kind(tmp_path / "w", "branch")
    assert record["changed"] == {name: [old[name], value] for name, value in changes.items()}
    # The rows are the same ones, so its place in the data stays.
    assert record["position"] == meta(tmp_path / "w", AT)["position"] == AT * ROWS
    assert f"goes on from row {AT * ROWS}" in caplog.text


# --- the place in the data --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phased(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of rows of 24 slots to step 6 and of 48 slots to step 9, with checkpoints 4, 6 and 9."""
    workdir = tmp_path_factory.mktemp("phased") / "w"
    phases = {"data.phases": "24:6", "steps": 9, "checkpoint.keep": 5, "checkpoint.every": 4, "eval.every": 100}
    assert run(tiny(data, **phases | NO_DROPOUT), workdir)
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [4, 6, 8, 9]
    return workdir


@pytest.mark.parametrize(
    ("step", "changes", "position", "told"),
    [
        (4, {"data.phases": "24:7", "steps": 9}, 4 * ROWS, "of 24 slots goes on from row 32"),
        (6, {"data.phases": "24:8", "steps": 9}, 6 * ROWS, "of 24 slots goes on from row 48"),
        (6, {"data.phases": "24:6", "steps": 7}, 0, "of 48 slots begins at row 0"),
        (8, {"data.phases": "24:6", "steps": 10}, 2 * ROWS, "of 48 slots goes on from row 16"),
        (9, {"data.phases": "24:9", "steps": 10}, 0, "of 48 slots begins at row 0"),
        (4, {"data.phases": "", "steps": 5}, 0, "row 32 of rows of 24 slots, has no counterpart"),
        (8, {"data.phases": "24:9", "steps": 10}, 0, "row 16 of rows of 48 slots, has no counterpart"),
        (8, {"data.phases": "24:6", "steps": 9, "data.examples_per_row": 2}, 0, "row 16 of rows of 48 slots, has no c"),
    ],
)
def test_the_place_in_the_data_is_kept_where_its_rows_are_and_else_begins_anew_and_is_told(
    data, phased, tmp_path, caplog, step, changes, position, told, monkeypatch
):
    caplog.set_level("INFO", logger="albert_jax")
    only_started(monkeypatch)
    branch(data, tmp_path / "w", f"{phased}@{step}", **changes | NO_DROPOUT)
    assert told in caplog.text
    assert meta(tmp_path / "w", step)["position"] == position
    assert meta(tmp_path / "w", step)["parent"]["parent_position"] == meta(phased, step)["position"]


def test_a_branch_goes_on_in_another_mixture_from_the_same_row(data, parent, tmp_path, monkeypatch):
    """Row n of the new mixture, as if it had always been this one; here all of a single source, twice as often."""
    (source,) = json.loads((data / "manifest.json").read_text())["sources"]
    name = source["name"]
    only_started(monkeypatch)
    branch(data, tmp_path / "w", f"{parent}@{AT}", **{"data.weights": f"{name}=2"})
    assert of_kind(tmp_path / "w", "branch")[0]["changed"] == {"data.weights": ["", f"{name}=2"]}
    assert meta(tmp_path / "w", AT)["position"] == AT * ROWS
    assert meta(tmp_path / "w", AT)["plan"] != meta(parent, AT)["plan"]


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(data: pathlib.Path, workdir: pathlib.Path, source: object, **changes: Any) -> str:
    with pytest.raises(UserError) as refused:
        branch(data, workdir, source, **changes)
    assert not (workdir / "checkpoints").exists() or not list((workdir / "checkpoints").iterdir())
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.num_hidden_layers": 3}, "model.num_hidden_layers is 3 and was 2"),
        ({"model.hidden_act": "gelu"}, "model.hidden_act is 'gelu' and was 'gelu_new'"),
        ({"optimizer.name": "lamb"}, "optimizer.name is 'lamb' and was 'adamw'"),
    ],
)
def test_another_model_or_optimizer_is_refused_by_name_and_points_to_init_from(data, parent, tmp_path, changes, told):
    sentence = refusal(data, tmp_path / "w", parent, steps=20, **changes)
    assert told in sentence and f"--config.init_from={parent}" in sentence


def test_another_text_or_vocabulary_is_refused(data, parent, tmp_path):
    for what in ("data_fingerprint", "vocabulary_sha256"):
        other = tmp_path / what
        shutil.copytree(parent, other)
        reseal(other, STEPS, {what: "0123456789abcdef"})
        assert f"{what} is {meta(parent, STEPS)[what][:12]} and was 0123456789ab;" in refusal(
            data, tmp_path / "w", other, steps=20
        )


def reseal(workdir: pathlib.Path, step: int, changes: dict[str, Any]) -> None:
    """Changes a checkpoint's meta as if it had been saved so."""
    from albert_jax.training.restoring import seal

    content = meta(workdir, step) | changes
    content["seal"] = seal(content)
    (workdir / "checkpoints" / str(step) / "meta" / "metadata").write_text(json.dumps(content))


def test_steps_that_are_not_beyond_the_parents_are_refused_with_a_remedy(data, parent, tmp_path):
    sentence = refusal(data, tmp_path / "w", parent, steps=12)
    assert sentence.startswith(f"steps 12 is not beyond step 12 of {parent}") and "one of [8]" in sentence
    assert "raise steps." in refusal(data, tmp_path / "w", parent, steps=8)


def test_a_step_that_the_parent_does_not_have_is_refused_with_those_it_has(data, parent, tmp_path):
    assert "has no checkpoint 5; it has [8, 12]" in refusal(data, tmp_path / "w", f"{parent}@5")
    assert "holds no checkpoints" in refusal(data, tmp_path / "w", tmp_path / "nowhere")


def test_branch_from_and_init_from_together_are_refused(data, parent, tmp_path):
    assert "cannot both be" in refusal(data, tmp_path / "w", parent, steps=20, init_from=str(parent))


@pytest.mark.parametrize("what", ["arrays", "meta"])
def test_a_damaged_checkpoint_is_refused_with_the_steps_that_are_good(data, parent, tmp_path, what):
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    if what == "arrays":
        damage(other, STEPS)
    else:
        file = other / "checkpoints" / str(STEPS) / "meta" / "metadata"
        file.write_text(file.read_text().replace('"position": 96', '"position": 97'))
    sentence = refusal(data, tmp_path / "w", other, steps=20)
    assert sentence.startswith(f"checkpoint {STEPS} of {other}/checkpoints is damaged (")
    assert sentence.endswith("one of those that are good: 8.")
    damage(other, AT)
    assert "none of the others is good" in refusal(data, tmp_path / "w", other, steps=20)


def test_what_follows_the_last_at_sign_is_a_step_only_if_it_is_a_number():
    assert read_source("runs/base") == ("runs/base", None)
    assert read_source("gs://bucket/base@400") == ("gs://bucket/base", 400)
    assert read_source("me@home/base") == ("me@home/base", None)
    assert read_source("me@home/base@7") == ("me@home/base", 7)
