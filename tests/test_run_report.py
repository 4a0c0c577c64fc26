# SPDX-License-Identifier: Apache-2.0
"""Promises of scripts/report.py, the page about training runs, and of scripts/plot_curves.py, which draws for it."""

import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.training import telemetry as module
from albert_jax.training.recipe import pretraining
from albert_jax.training.telemetry import Telemetry
from scripts import plot_curves, report
from tests.object_store import ObjectStore
from tests.runs import STEPS

pytest.importorskip("matplotlib")
pytest_plugins = ["tests.runs", "tests.object_store"]

SPLIT = {
    "documents": 40, "tokens": 9000, "text_bytes": 36_000, "unknown_tokens": 9, "fingerprint": "c0ffee" * 10,
    "sources": {"books": {"documents": 40}},
}  # fmt: skip
MANIFEST = {
    "format": 3, "sources": [{"name": "books", "paths": ["a.txt"], "licence": "none"}],
    "splits": {"train": SPLIT, "validation": SPLIT | {"documents": 2}}, "vocabulary": {"size": 100},
}  # fmt: skip


class Clocks:
    """Ten minutes pass between any two looks at them."""

    def __init__(self) -> None:
        self.wall = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC

    def time(self) -> float:
        return self.wall

    def perf_counter(self) -> float:
        self.wall += 600.0
        return self.wall


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", Clocks())


def begin(workdir: pathlib.Path, data: Any = MANIFEST, **fields: Any) -> pathlib.Path:
    """A workdir as a run leaves it before its first line."""
    model = AlbertConfig(vocab_size=100, hidden_size=16, num_attention_heads=2, intermediate_size=32, embedding_size=8)
    config = pretraining(model)
    config.steps = 60
    config.update_from_flattened_dict(fields)
    identity = {
        "config": config.to_dict(), "model": config.model.to_dict(), "data": data, "data_fingerprint": "c0ffee",
        "rows_per_step": "1024", "versions": {"jax": "0.10.2", "device": "4 x TPU v4 (tpu)"},
    }  # fmt: skip
    workdir.mkdir(parents=True)
    (workdir / "run.json").write_text(json.dumps(identity))
    return workdir


def steps(telemetry: Telemetry, first: int, last: int, **more: float) -> None:
    """A line every ten steps and an evaluation every thirty."""
    host = {
        "seconds": 300.0,
        "tokens": 3e6,
        "flops": 1e16,
        "input_wait_seconds": 1.5,
        "epoch": 0.5,
        "position": 512,
        "real_share": 0.9,
    }
    for step in range(first, last + 1, 10):
        values = {
            "loss": 9 - step / 10, "mlm_loss": 8 - step / 10, "mlm_accuracy": 0.25, "sop_loss": 0.5,
            "sop_accuracy": 0.75, "learning_rate": 1e-3, "grad_norm": 1.5, "update_norm": 0.02, "param_norm": 90.0,
            "skipped": 2,
        } | more  # fmt: skip
        shown = {name: host[name] for name in ("epoch", "position", "real_share")}
        telemetry.log(step, values | shown, {name: host[name] for name in host.keys() - shown.keys()})
        if step % 30 == 0:
            results = {"mlm_loss": 7.125, "mlm_accuracy": 0.3, "sop_accuracy": 0.7, "sop_low": 0.6, "sop_high": 0.8}
            telemetry.evaluation(step, results | {"unigram_loss": 7.5, "sop_count": 2456}, 30.0)


def train(workdir: pathlib.Path) -> pathlib.Path:
    """A run that was killed after step 40, went on from 30, and was rolled back from 57 to 50."""
    with Telemetry(workdir, steps=60, peak_flops=1e15) as telemetry:
        steps(telemetry, 10, 40)
    with Telemetry(workdir, steps=60, restored_step=30, peak_flops=1e15) as telemetry:
        steps(telemetry, 40, 50)
        telemetry.rewind(50)
        roll_back(telemetry)
        steps(telemetry, 60, 60)
    return workdir


def roll_back(telemetry: Telemetry) -> None:
    telemetry.event(50, "rollback", {"from": 57, "skipped": 5, "examples": list(range(2000))})


def page_of(tmp_path: pathlib.Path, *workdirs: object) -> str:
    out = tmp_path / "pages" / "page.html"
    assert report.main([*map(str, workdirs), "--out", str(out)]) == 0
    return out.read_text()


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of all tables below a heading."""
    section = page.split(f"<h2>{heading}</h2>")[1].split("<h2>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", section)]


def facts(page: str) -> dict[str, list[str]]:
    """The first table: name -> value of each run."""
    found = re.findall(r"<th scope=row>(.*?)</th>(.*?)</tr>", page.split("<h2>Curves</h2>")[0])
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", values) for name, values in found}


# --- one run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", Clocks())
        workdir = train(begin(directory / "base"))
    return page_of(directory, workdir)


def test_the_page_needs_nothing_outside_itself(page):
    assert not re.search(r"https?:|src=|href=\"(?!#)|<script|<link|@import|url\((?!#)", page)
    assert page.count("<svg") == page.count("</svg>") > 0


def test_every_curve_of_the_run_is_drawn_in_the_pages_own_colour_of_text(page):
    titles = re.findall(r"<figure><h3>(.*?)</h3>", page)
    assert titles == [title for _, title, _, _ in report._CURVES]
    assert "#000000" not in page and "currentColor" in page and "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("order", "there", "absent"),
    [
        (
            "nsp",
            ["Next sentences, loss", "In half the pairs B is from another document.", "validation, next"],
            "swapped",
        ),
        ("none", ["Masked words alone, in nats"], "validation, sentence order"),
    ],
)
def test_captions_follow_what_is_learned_of_pairs(order: str, there: list[str], absent: str, tmp_path: pathlib.Path):
    workdir = begin(tmp_path / "w", **{"data.sentence_order": order})
    found = {"mlm_loss": 7.0} | ({} if order == "none" else {"sop_loss": 0.5, "sop_accuracy": 0.7})
    with Telemetry(workdir, steps=60) as telemetry:
        telemetry.log(10, {"loss": 8.0, **found}, {"seconds": 1.0})
        telemetry.evaluation(10, found, 1.0)
    page = page_of(tmp_path, workdir).split("<h2>Config</h2>")[0].lower()
    assert [words for words in there if words.lower() not in page] == []
    assert absent not in page and "sentence order" not in page


def test_the_overview_says_how_far_the_run_is_and_what_it_reached(page):
    found = facts(page)
    assert found["step"] == ["60 of 60, finished"]
    assert found["restarts"] == ["1"] and found["rollbacks"] == ["1"]
    assert found["skipped updates"] == ["2"]
    assert found["first start"] == ["2026-01-01 00:20:00 UTC"]
    assert found["tokens/s, median"] == ["10,000"] and found["MFU, median"] == ["3.3%"]
    assert found["validation, sentence order"] == ["70.0% right, 95 % interval 60.0% to 80.0%"]
    assert found["rows a step"] == ["1,024 of 512 slots"]
    assert found["matmul FLOPs so far"] == ["6e+16"]
    assert found["devices"] == ["4 x TPU v4 (tpu)"]


def test_restarts_and_rollbacks_are_listed_with_the_steps_and_the_time_they_cost(page):
    head, start, resume, rollback = rows(page, "Starts, restarts, rollbacks")
    assert head[3:7] == ["what", "at step", "steps lost", "time lost"]
    assert start[3:7] == ["started", "0", "-", "-"]
    assert resume[3:7] == ["resumed", "30", "10", "0:05:00"]
    assert rollback[3:8] == ["rolled back", "50", "7", "-", "skipped 5, examples 0, 1, 2 and 1,997 more"]


def test_the_updates_that_a_rollback_names_are_not_taken_for_the_guards_count(tmp_path):
    workdir = begin(tmp_path / "w")
    with Telemetry(workdir, steps=60) as telemetry:
        steps(telemetry, 10, 50)
        roll_back(telemetry)
    assert facts(page_of(tmp_path, workdir))["skipped updates"] == ["2"]


def test_restarts_and_rollbacks_are_marked_on_the_curves(tmp_path, monkeypatch):
    marked = []
    monkeypatch.setattr(report, "mark", lambda axis, records, kind, *_: marked.append((len(records), kind)))
    monkeypatch.setattr(report, "_CURVES", report._CURVES[:1])
    page_of(tmp_path, train(begin(tmp_path / "w")))
    assert [kind for _, kind in marked] == ["resume", "rollback"]


def test_evaluations_config_versions_data_and_parameters_are_tables(page):
    assert [row[1] for row in rows(page, "Evaluations")] == ["step", "30", "60"]
    config = dict(rows(page, "Config"))
    assert config["steps"] == "60" and config["optimizer.name"] == "&quot;lamb&quot;"
    assert ["jax", "&quot;0.10.2&quot;"] in rows(page, "Versions")
    data = rows(page, "Data")
    assert ["tokens", "9,000", "9,000"] in data and ["licence", "none"] in data
    parameters = rows(page, "Parameters")
    arrays = [int(row[2].replace(",", "")) for row in parameters[1:-1]]
    assert parameters[-1][::2] == ["all", f"{sum(arrays):,}"] and sum(arrays) > 1000


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    bare = page_of(tmp_path, begin(tmp_path / "bare"))
    assert "No step has been recorded yet." in bare and facts(bare)["step"] == ["0 of 60"]
    started = begin(tmp_path / "started")
    Telemetry(started, steps=60)
    assert facts(page_of(tmp_path, started))["first start"] == ["2026-01-01 00:20:00 UTC"]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    workdir = train(begin(tmp_path / "w"))
    before = facts(page_of(tmp_path, workdir))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 70, "kind": "train", "loss": 1')
    assert facts(page_of(tmp_path, workdir)) == before


def test_records_of_an_earlier_version_without_times_have_a_page(tmp_path):
    workdir = begin(tmp_path / "w")
    timing = {"tokens_per_s": 10.0, "input_wait": 0.5, "eta_s": 1.0, "tflops_per_s": 2.0}
    lines: list[dict[str, Any]] = [{"step": 10, "kind": "train", "loss": 2.0, "timing": timing}]
    lines += [{"step": 10, "kind": "resume"}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path, workdir)
    assert facts(page)["goodput"] == ["-"] and facts(page)["matmul FLOPs so far"] == ["-"]
    assert rows(page, "Starts, restarts, rollbacks")[1][1:7] == ["-", "-", "resumed", "10", "-", "-"]


def test_values_that_are_not_finite_leave_gaps_and_are_counted(tmp_path):
    workdir = begin(tmp_path / "w")
    with Telemetry(workdir, steps=60) as telemetry:
        steps(telemetry, 10, 20)
        steps(telemetry, 30, 40, loss=math.nan, grad_norm=math.inf)
    assert "not finite, and leave gaps: w 4." in page_of(tmp_path, workdir)


def test_a_long_curve_is_drawn_by_means_of_neighbours_and_says_so(tmp_path, monkeypatch):
    records = [{"step": i, "kind": "train", "loss": float(i), "resting": "text"} for i in range(1, 10_001)]
    records[6]["loss"] = math.inf
    means = report.thinned([*records, {"step": 5, "kind": "eval", "eval_loss": 1.0}], most=1000)
    assert len(means) == 1001 and [r["step"] for r in means[:2]] == [10, 20]
    assert means[1]["loss"] == np.mean(range(11, 21)) and means[0]["loss"] == (55 - 7) / 9
    assert means[-1]["eval_loss"] == 1.0
    monkeypatch.setattr(report, "POINTS", 3)
    assert "Of more than 3 lines, neighbours are averaged." in page_of(tmp_path, train(begin(tmp_path / "w")))


def test_names_and_values_of_a_run_are_text_and_no_markup(tmp_path):
    workdir = begin(tmp_path / "<i>&", init_from="<script>alert(1)</script>")
    page = page_of(tmp_path, workdir)
    assert "<h1>Run &lt;i&gt;&amp;</h1>" in page and "<script" not in page


def test_phases_of_a_run_are_named(tmp_path):
    workdir = begin(tmp_path / "w")
    identity = json.loads((workdir / "run.json").read_text())
    identity["config"]["data"]["phases"], identity["rows_per_step"] = "128:50", "4096 1024"
    (workdir / "run.json").write_text(json.dumps(identity))
    assert facts(page_of(tmp_path, workdir))["rows a step"] == ["4,096 of 128 slots, then 1,024 of 512 slots"]


def test_googles_records_instead_of_a_data_set_are_listed(tmp_path):
    manifest = {"vocabulary": {"size": 100}, "records": {"train": "7 files", "validation": "1 file"}}
    page = page_of(tmp_path, begin(tmp_path / "w", data=manifest))
    assert ["records, train", "7 files"] in rows(page, "Data")


@pytest.mark.slow  # where no other test of the session has trained
def test_a_run_of_train_py_has_a_page(straight, tmp_path):
    page = page_of(tmp_path, straight)
    assert facts(page)["step"] == [f"{STEPS} of {STEPS}, finished"]
    assert "Masked words, accuracy" in page and rows(page, "Data")


# --- several runs -----------------------------------------------------------------------------------------------------


def test_several_runs_are_laid_over_each_other_and_what_differs_is_marked(tmp_path):
    other = MANIFEST | {"format": 4}
    runs = [
        train(begin(tmp_path / "a" / "train")),
        train(begin(tmp_path / "b" / "train", **{"optimizer.learning_rate": 0.5})),
        begin(tmp_path / "c" / "train", data=other, seed=7),
    ]
    page = page_of(tmp_path, *runs)
    legend = re.findall(r'<li><i style="background: (#\w+)"></i>(.*?)</li>', page)
    assert [name for _, name in legend] == ["a/train", "b/train", "c/train"]
    first_curve = page.split("<figure>")[1]
    assert [colour in first_curve for colour, _ in legend] == [True, True, False]  # the third has none yet
    assert [values for values in facts(page).values() if len(values) != 3] == []
    differing = re.findall(r"<tr class=differs><th scope=row>(.*?)</th>", page)
    assert differing == ["optimizer.learning_rate", "seed"]
    assert ["optimizer.learning_rate", "0.00176", "0.5", "0.00176"] in rows(page, "Config")
    assert ["steps", "60"] in rows(page, "Config")
    assert re.findall(r"<h3>([^<]*train[^<]*)</h3>", page.split("<h2>Data</h2>")[1]) == [
        "a/train, b/train", "c/train", "a/train, b/train, c/train"  # two data sets, one model
    ]  # fmt: skip


def test_each_curve_names_what_it_is_compared_with_once(tmp_path):
    page = page_of(tmp_path, train(begin(tmp_path / "a")), train(begin(tmp_path / "b")))
    order = page.split("<h3>Sentence order, accuracy</h3>")[1].split("</svg>")[0]
    assert order.count(">chance<") == order.count(">95 % interval<") == 1 and ">training<" not in order


@pytest.mark.parametrize(
    ("workdirs", "names"),
    [
        (["runs/base/"], ["base"]),
        (["x/a", "gs://y/b"], ["a", "b"]),
        (["x/a/train", "x/b/train"], ["a/train", "b/train"]),
        (["train", "b/train"], ["train", "b/train"]),
    ],
)
def test_a_run_is_called_by_the_shortest_end_of_its_path_that_tells_it_from_the_others(workdirs, names):
    assert report._names(workdirs) == names


# --- an object store --------------------------------------------------------------------------------------------------


def test_a_run_in_an_object_store_has_the_same_page(object_store: ObjectStore, tmp_path):
    workdir = train(begin(tmp_path / "run"))
    for name in ("run.json", "metrics.jsonl"):
        object_store.put("bucket", f"run/{name}", (workdir / name).read_bytes())
    local, remote = page_of(tmp_path, workdir), page_of(tmp_path, "gs://bucket/run")
    assert remote == local.replace(str(workdir), "gs://bucket/run")


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert report.main([*map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    return told.err


def test_what_is_no_workdir_is_named_in_a_sentence(tmp_path, capsys):
    sentence = refused(capsys, tmp_path / "none", "--out", tmp_path / "page.html")
    assert f"{tmp_path}/none is no workdir of a training run (it has no run.json)" in sentence
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_run_json_is_named(tmp_path, capsys):
    workdir = begin(tmp_path / "w")
    (workdir / "run.json").write_text('{"config"')
    assert f"{workdir}/run.json is damaged" in refused(capsys, workdir, "--out", tmp_path / "page.html")


def test_a_workdir_given_twice_is_refused(tmp_path, capsys):
    workdir = begin(tmp_path / "w")
    assert "is given 2 times" in refused(capsys, workdir, workdir, "--out", tmp_path / "page.html")


def test_a_store_that_refuses_is_named(object_store: ObjectStore, tmp_path, capsys):
    object_store.fail(10_000, status=403)
    sentence = refused(capsys, "gs://bucket/run", "--out", tmp_path / "page.html")
    assert "gs://bucket/run cannot be reached" in sentence


@pytest.mark.parametrize("out", ["page.txt", "taken.html", "file/page.html"])
def test_a_page_that_cannot_be_written_is_named(tmp_path, capsys, out):
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "file").write_text("")
    assert out in refused(capsys, begin(tmp_path / "w"), "--out", tmp_path / out)


# --- the quick start's picture ----------------------------------------------------------------------------------------


def test_the_picture_shows_training_validation_what_to_compare_with_and_where_the_run_resumed(tmp_path, capsys):
    out = tmp_path / "curves.svg"
    assert plot_curves.main([str(train(begin(tmp_path / "w"))), "--out", str(out)]) == 0
    drawn = out.read_text()
    for text in ("MLM loss (nats)", "validation, unigrams", "95 % interval", "chance", "resumed"):
        assert f"<!-- {text} -->" in drawn
    assert drawn.count("<!-- training -->") == drawn.count("<!-- resumed -->") == 3


def test_a_picture_of_nothing_or_of_an_unknown_format_is_refused(tmp_path, capsys):
    workdir = begin(tmp_path / "w")
    assert plot_curves.main([str(workdir), "--out", str(tmp_path / "curves.png")]) == 2
    assert "has no metrics of a training step" in capsys.readouterr().err
    assert plot_curves.main([str(workdir), "--out", str(tmp_path / "curves.bmp")]) == 2
    assert "'curves.bmp'" in capsys.readouterr().err
