# SPDX-License-Identifier: Apache-2.0
"""Evaluation counts each example of a fixed set once, beside a baseline that is what it says."""

import fractions
import itertools
import json
import math
import pathlib
import shutil
import threading
from typing import Any, ClassVar

import jax
import ml_collections
import numpy as np
import pytest
from scipy import stats

from albert_jax.data.store import TextStore
from albert_jax.data.stream import IGNORED, Batch, Stream
from albert_jax.errors import UserError
from albert_jax.model import Parameters
from albert_jax.training import evaluation
from albert_jax.training.data import open_data
from albert_jax.training.evaluation import EvalStep, Evaluator, make_count_targets, unigram_loss, wilson_interval
from albert_jax.training.objective import Totals, evaluate_rows, zero_totals
from albert_jax.training.restoring import load_parameters
from albert_jax.training.sharding import by_rows, make_mesh
from albert_jax.training.step import abstract_model, make_eval_step
from tests.in_process import run, tiny
from tests.runs import TINY, records

pytest_plugins = ["tests.runs"]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_unigram_loss_is_the_cross_entropy_under_add_one_counts():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, size=30)
    labels = rng.integers(0, 30, size=17).tolist()
    losses = [-math.log((int(counts[label]) + 1) / (sum(counts.tolist()) + 30)) for label in labels]
    targets = np.array([labels.count(i) for i in range(30)])
    assert unigram_loss(targets, counts) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("axes", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_targets_are_counted_over_all_devices(axes):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((16, 9)) < 0.6, rng.integers(0, 30, size=(16, 9)), IGNORED).astype(np.int32)
    mesh = make_mesh(*axes)
    found = make_count_targets(mesh, 30)(jax.device_put(labels, by_rows(mesh)))
    assert found.tolist() == [labels.ravel().tolist().count(i) for i in range(30)]


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (21, 40), (1130, 2000), (3, 7)])
def test_the_interval_is_wilsons(right, count):
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_of_nothing_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


# --- the validation set -----------------------------------------------------------------------------------------------


class Setting:
    """The straight run's validation stream and parameters, and its evaluation a row at a time."""

    def __init__(self, workdir: pathlib.Path):
        self.config = ml_collections.ConfigDict(json.loads((workdir / "run.json").read_text())["config"])
        self.data = open_data(self.config)
        self.params = load_parameters(workdir)[0]
        self.stream = self.data.validation
        self.rows = self.stream.rows
        self._steps: dict[int, EvalStep] = {}
        model = abstract_model(self.config, make_mesh(1))
        one = jax.jit(lambda params, row: evaluate_rows(model, params, row))
        self.each: list[dict[str, float]] = []
        self.labels: list[np.ndarray] = []
        for number in range(self.rows):
            row = self.stream.batch(number, 1)
            self.labels.append(row.mlm_labels[row.mlm_labels != IGNORED])
            self.each.append({name: float(v) for name, v in one(self.params, row)._asdict().items()})

    def chosen(self, rows: int) -> list[int]:
        """Which rows, by exact fractions."""
        return [math.floor(number * fractions.Fraction(self.rows, rows)) for number in range(rows)]

    def slowly(self, rows: int | list[int]) -> dict[str, float]:
        """What evaluating so many evenly spaced rows, or these rows, must give."""
        chosen = self.chosen(rows) if isinstance(rows, int) else rows
        total = {name: sum(self.each[row][name] for row in chosen) for name in self.each[0]}
        labels = np.concatenate([self.labels[row] for row in chosen])
        counts = np.asarray(self.data.unigrams)
        unigrams = [-math.log((counts[i] + 1) / (counts.sum() + len(counts))) for i in labels]
        return {
            "mlm_loss": total["mlm_loss"] / len(labels),
            "unigram_loss": sum(unigrams) / len(unigrams),
            "mlm_accuracy": total["mlm_correct"] / len(labels),
            "mlm_count": len(labels),
            "sop_loss": total["sop_loss"] / total["sop_count"],
            "sop_accuracy": total["sop_correct"] / total["sop_count"],
            "sop_count": total["sop_count"],
        }

    def evaluator(
        self,
        *,
        rows: int,
        batch_rows: int,
        devices: int = 1,
        stream: Stream | None = None,
        step: EvalStep | None = None,
    ) -> Evaluator:
        mesh = make_mesh(devices)
        if devices not in self._steps:
            self._steps[devices] = make_eval_step(self.config, mesh)
        return Evaluator(
            stream or self.stream,
            rows=rows,
            batch_rows=batch_rows,
            mask_slots=TINY["masking.slots"],
            ahead=2,
            unigrams=self.data.unigrams,
            eval_step=step or self._steps[devices],
            mesh=mesh,
        )


@pytest.fixture(scope="module")
def setting(straight: pathlib.Path) -> Setting:
    return Setting(straight)


def assert_equal_figures(found: dict[str, float] | None, expected: dict[str, float]) -> None:
    assert found is not None
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(("batch_rows", "devices"), [(16, 1), (64, 8)])
def test_each_example_counts_once_where_the_batch_does_not_divide_the_set(setting, batch_rows, devices):
    assert setting.rows % batch_rows
    found = setting.evaluator(rows=0, batch_rows=batch_rows, devices=devices)(setting.params)
    assert_equal_figures(found, setting.slowly(setting.rows))


@pytest.mark.parametrize("rows", [1, 16, 19])
def test_eval_rows_limits_the_set_to_evenly_spaced_rows(setting, rows):
    evaluator = setting.evaluator(rows=rows, batch_rows=16)
    assert_equal_figures(evaluator(setting.params), setting.slowly(rows))


def test_more_rows_than_there_are_is_all_of_them(setting):
    found = setting.evaluator(rows=10**6, batch_rows=16)(setting.params)
    assert_equal_figures(found, setting.slowly(setting.rows))


def test_the_same_parameters_get_the_same_figures_every_time(setting):
    evaluator = setting.evaluator(rows=0, batch_rows=16)
    first = evaluator(setting.params)
    assert first == evaluator(setting.params) == setting.evaluator(rows=0, batch_rows=16)(setting.params)


def test_the_masked_set_depends_on_no_field_of_the_run_but_the_shape_of_the_rows(setting):
    changed = setting.config.copy_and_resolve_references()
    changed.seed, changed.batch.size, changed.optimizer.learning_rate = 7, 16, 0.5
    for ours, theirs in zip(setting.stream.batch(0, 8), open_data(changed).validation.batch(0, 8), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_padding_rows_hold_no_target(setting):
    """What `fixed_rows` adds past the end contributes nothing to any total."""
    batch = setting.stream.fixed_rows(setting.rows - 1, 4)
    padding = Batch(*(array[1:] for array in batch))
    totals = evaluate_rows(abstract_model(setting.config, make_mesh(1)), setting.params, padding)
    assert jax.device_get(totals) == jax.device_get(zero_totals())


def test_giving_up_returns_nothing_and_leaves_the_next_evaluation_whole(setting):
    evaluator = setting.evaluator(rows=32, batch_rows=16)
    asked = iter([True, False])
    assert evaluator(setting.params, lambda: next(asked)) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert_equal_figures(evaluator(setting.params), setting.slowly(32))


class Counted:
    """A stream that remembers which rows it was asked for."""

    def __init__(self, stream: Stream):
        self._stream, self.asked = stream, list[int]()
        self.second = threading.Event()  # set when a second batch is asked for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fixed_rows(self, start: int, count: int) -> Batch:
        self.asked += range(start, start + count)
        if start >= self._stream.rows // 3:
            self.second.set()
        return self._stream.fixed_rows(start, count)


@pytest.mark.parametrize(("rows", "devices"), [(0, 1), (23, 8)])
def test_each_source_has_figures_of_its_own_rows_beside_those_of_all(setting, rows, devices):
    class Sources(Counted):
        source_rows: ClassVar = {"de": 3, "en": setting.rows - 20, "fr": 17}

    found = setting.evaluator(rows=rows, batch_rows=16, devices=devices, stream=Sources(setting.stream))(setting.params)
    assert_equal_figures(found, setting.slowly(rows or setting.rows))
    chosen = setting.chosen(rows or setting.rows)
    for source, (begin, end) in {"de": (0, 3), "en": (3, setting.rows - 17), "fr": (setting.rows - 17, None)}.items():
        of_it = [row for row in chosen if row in range(setting.rows)[begin:end]]
        wanted = setting.slowly(of_it) if of_it else {}
        wanted.pop("unigram_loss", None)
        assert_equal_figures(found, {f"{name}/{source}": value for name, value in wanted.items()})
        assert any(name.endswith(f"/{source}") for name in found) == bool(of_it)


def test_a_run_on_two_sources_records_and_shows_both_and_names_a_third_that_has_no_validation(
    data, tmp_path, caplog, capsys
):
    copy = pathlib.Path(shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("plans")))
    manifest = json.loads((copy / "manifest.json").read_text())
    for split, shares in (("train", [0.3, 0.6]), ("validation", [0.5])):
        total, begins = manifest["splits"][split]["records"], TextStore(copy, split).document_records
        bounds = [0, *(int(min(n for n in begins if n >= share * total)) for share in shares), total]
        counts = {name: {"records": b - a} for name, (a, b) in zip("deb", itertools.pairwise(bounds), strict=False)}
        manifest["splits"][split]["sources"] = counts
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert run(tiny(copy, **{"eval.every": 4, "steps": 4, "eval.rows": 0}), tmp_path / "w")
    assert "nothing of b is held out for validation" in caplog.text
    (figures,) = (record for record in records(tmp_path / "w") if record["kind"] == "eval")
    words = [figures[f"eval_mlm_count{of}"] for of in ("", "/d", "/e")]
    assert words[0] == words[1] + words[2] and min(words) > 0
    losses = [figures[f"eval_mlm_loss{of}"] for of in ("", "/d", "/e")]
    assert losses[0] * words[0] == pytest.approx(losses[1] * words[1] + losses[2] * words[2], rel=1e-6)
    assert "\n  d: eval_mlm_loss" in capsys.readouterr().out


def test_an_evaluation_goes_through_its_rows_once_the_baseline_included(setting):
    stream = Counted(setting.stream)
    found = setting.evaluator(rows=48, batch_rows=16, stream=stream)(setting.params)
    assert_equal_figures(found, setting.slowly(48))
    assert sorted(stream.asked) == setting.chosen(48) and len(set(stream.asked)) == 48
    assert stream.asked[-1] > 0.9 * setting.rows


def test_the_next_batch_is_made_while_the_devices_work_on_one(setting):
    stream = Counted(setting.stream)

    def step(params: Parameters, batch: Batch) -> Totals:
        assert stream.second.wait(30)
        return zero_totals()

    assert setting.evaluator(rows=32, batch_rows=16, stream=stream, step=step)(setting.params) is not None


def test_two_batches_are_in_flight_at_most_and_each_is_asked_for_first(setting, monkeypatch):
    events: list[str] = []

    def read(arrays: Any) -> Any:
        events.append("read")
        return device_get(arrays)

    def step(params: Parameters, batch: Batch) -> Totals:
        events.append("step")
        return zero_totals()

    def proceed() -> bool:
        events.append("ask")
        return True

    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", read)
    assert setting.evaluator(rows=80, batch_rows=16, step=step)(setting.params, proceed) is not None
    assert "".join(event[0] for event in events) == "asas" + 3 * "ras" + "rr"


def test_only_process_0_computes_what_it_alone_prints(setting, monkeypatch):
    monkeypatch.setattr(evaluation, "first", lambda: False)
    assert setting.evaluator(rows=16, batch_rows=16)(setting.params) == {}


def test_the_run_records_the_figures_of_its_parameters(setting, straight):
    last = [record for record in records(straight) if record["kind"] == "eval"][-1]
    assert last["step"] == TINY["steps"]
    found = {name.removeprefix("eval_"): value for name, value in last.items()}
    assert_equal_figures(found, setting.slowly(TINY["eval.rows"]))


def test_a_run_without_evaluation_says_so_once_and_needs_no_validation(data, tmp_path, caplog):
    copy = pathlib.Path(shutil.copytree(data, tmp_path / "data"))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["splits"]["validation"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"has no split 'validation'; .* by --config\.eval\.every=0"):
        run(tiny(copy), tmp_path / "w")
    caplog.set_level("INFO", logger="albert_jax")
    assert run(tiny(copy, **{"eval.every": 0, "steps": 3}), tmp_path / "w")
    assert caplog.text.count("nothing is evaluated") == 1
    assert {record["kind"] for record in records(tmp_path / "w")} == {"train"}
