# SPDX-License-Identifier: Apache-2.0
"""Evaluation counts each example of a fixed set once, beside a baseline that is what it says."""

import json
import math
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
from scipy import stats

from albert_jax.data.stream import IGNORED, Batch
from albert_jax.training.data import open_data
from albert_jax.training.evaluation import EvalStep, Evaluator, unigram_loss, wilson_interval
from albert_jax.training.objective import evaluate_rows, zero_totals
from albert_jax.training.restoring import load_parameters
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import abstract_model, make_eval_step
from tests.runs import TINY, records

pytest_plugins = ["tests.runs"]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_unigram_loss_is_the_cross_entropy_under_add_one_counts():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, size=30)
    labels = np.where(rng.random((4, 9)) < 0.6, rng.integers(0, 30, size=(4, 9)), IGNORED)
    losses = []
    for row in labels.tolist():
        for label in row:
            if label != IGNORED:
                losses.append(-math.log((int(counts[label]) + 1) / (sum(counts.tolist()) + 30)))
    assert unigram_loss(labels, counts) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


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
        model = abstract_model(self.config)
        one = jax.jit(lambda params, row: evaluate_rows(model, params, row))
        self.each: list[dict[str, float]] = []
        self.labels: list[np.ndarray] = []
        for number in range(self.rows):
            row = self.stream.batch(number, 1)
            self.labels.append(row.mlm_labels[row.mlm_labels != IGNORED])
            self.each.append({name: float(v) for name, v in one(self.params, row)._asdict().items()})

    def slowly(self, rows: int) -> dict[str, float]:
        """What evaluating the first `rows` rows must give."""
        total = {name: sum(each[name] for each in self.each[:rows]) for name in self.each[0]}
        labels = np.concatenate(self.labels[:rows])
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

    def evaluator(self, *, rows: int, batch_rows: int, devices: int = 1) -> Evaluator:
        mesh = make_mesh(devices)
        if devices not in self._steps:
            self._steps[devices] = make_eval_step(self.config, mesh)
        return Evaluator(
            self.stream,
            rows=rows,
            batch_rows=batch_rows,
            unigrams=self.data.unigrams,
            eval_step=self._steps[devices],
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
def test_eval_rows_limits_the_set_to_its_first_rows(setting, rows):
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
    totals = evaluate_rows(abstract_model(setting.config), setting.params, padding)
    assert jax.device_get(totals) == jax.device_get(zero_totals())


def test_giving_up_returns_nothing_and_leaves_the_next_evaluation_whole(setting):
    evaluator = setting.evaluator(rows=32, batch_rows=16)
    asked = iter([False, True])
    assert evaluator(setting.params, lambda: next(asked)) is None
    assert_equal_figures(evaluator(setting.params), setting.slowly(32))


def test_the_run_records_the_figures_of_its_parameters(setting, straight):
    last = [record for record in records(straight) if record["kind"] == "eval"][-1]
    assert last["step"] == TINY["steps"]
    found = {name.removeprefix("eval_"): value for name, value in last.items()}
    assert_equal_figures(found, setting.slowly(TINY["eval.rows"]))
