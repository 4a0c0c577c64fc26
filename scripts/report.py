#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about a training run, or about several laid over each other.

    python scripts/report.py runs/base
    python scripts/report.py runs/base runs/other gs://bucket/third --out compared.html

It has the curves, throughput, evaluations, restarts and rollbacks, the config with what differs between the runs, what
the data sets hold, versions and parameters. A run that is under way can be looked at.
"""

import argparse
import collections
import dataclasses
import datetime
import functools
import html
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from albert_jax.errors import UserError
from albert_jax.remote import directory, first_line, named_refusals
from albert_jax.training.telemetry import duration, read_metrics
from pretrain_data.report import require_matplotlib
from pretrain_data.report.page import flat, other_facts, source_facts, split_facts
from pretrain_data.report.pictures import drawn
from scripts.plot_curves import draw_measure, mark

COLOURS = ("#2389b8", "#3f9b5f", "#a065c9", "#c2961f", "#d0558c", "#1aa39a", "#8c6d4f", "#6f7f8f")  # on white and black
_QUIET = "#8795a1"
POINTS = 2000  # of a curve; of a longer one, neighbours are averaged
_LONG = 40  # rows of a table
_LISTED = 3  # entries of a list in a cell
_REFERENCES = ("validation, unigrams", "95 % interval", "chance")
_NONE = "-"

_CSS = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2933; --quiet: #52606d; --line: #e4e7eb; --mark: #fff3c9 }
@media (prefers-color-scheme: dark) {
  :root { --back: #14191f; --text: #e4e7eb; --quiet: #9fb0bf; --line: #323f4b; --mark: #4a3c08 }
}
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem }
h3 { font-size: 1rem; margin: 0 0 0.25rem }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figure svg { display: block; width: 100%; height: auto }
figure svg text { fill: currentColor }
figcaption, .note { font-size: 0.875rem; color: var(--quiet) }
.runs { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; list-style: none; padding: 0; margin: 0.5rem 0 }
.runs i { display: inline-block; width: 1.5rem; height: 0.25rem; vertical-align: middle; margin-right: 0.4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.875rem; margin-bottom: 1rem }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600 }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 5rem }
tr.differs { background: var(--mark) }
summary { cursor: pointer; margin-bottom: 0.5rem }
"""


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds.

    Attributes:
      name: the end of its path that tells it from the others.
      path: of the workdir.
      identity: what run.json says.
      records: of metrics.jsonl, with what stands under `timing` beside the rest.
      colour: of its curves.
    """

    name: str
    path: str
    identity: dict[str, Any]
    records: list[dict[str, Any]]
    colour: str

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    def last(self, name: str) -> Any:
        """The newest value that was measured under a name, None where there is none."""
        measured = (record for record in reversed(self.records) if record["kind"] in ("train", "eval", "progress"))
        return next((record[name] for record in measured if name in record), None)


def load(workdirs: Sequence[str]) -> list[Run]:
    """Reads the workdirs of some runs.

    Raises:
      UserError: where one is none, is damaged, cannot be reached, or is given twice.
    """
    for workdir, times in collections.Counter(workdirs).items():
        if times > 1:
            raise UserError(f"{workdir} is given {times} times; name each workdir once.")
    runs = []
    for number, (workdir, name) in enumerate(zip(workdirs, _names(workdirs), strict=True)):
        root = directory(workdir)
        file = root / "run.json"
        with named_refusals(root):
            if not file.is_file():
                raise UserError(f"{workdir} is no workdir of a training run (it has no run.json); give train.py's.")
            try:
                identity = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as e:
                raise UserError(f"{file} is damaged ({first_line(e)}); restore it from a backup.") from e
            records = [record | record.get("timing", {}) for record in read_metrics(workdir)]
        runs.append(Run(name, workdir, identity, records, COLOURS[number % len(COLOURS)]))
    return runs


def _names(workdirs: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [[part for part in workdir.split("/") if part] or ["/"] for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_one[-depth:]) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    return list(workdirs)


# --- curves -----------------------------------------------------------------------------------------------------------


def _plain(axis: Any) -> None:
    axis.set_major_formatter("{x:g}")


def _count(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter("{x:,.0f}")


def _large(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _log(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    subs = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5) if high < 500 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


# Name of the value, title, scale of its axis, caption.
_CURVES: tuple[tuple[str, str, Callable[[Any], None], str], ...] = (
    ("loss", "Loss", _plain, "Masked words plus sentence order, in nats: what is minimised."),
    ("mlm_loss", "Masked words, loss", _plain, "In nats. Below the line of unigrams, context is being used."),
    ("mlm_accuracy", "Masked words, accuracy", _percent, "Of the masked words, those guessed right."),
    ("sop_loss", "Sentence order, loss", _plain, "In nats; 0.693 is that of knowing nothing."),
    (
        "sop_accuracy",
        "Sentence order, accuracy",
        _percent,
        "Half the pairs are swapped. It may stay at chance for long.",
    ),
    ("learning_rate", "Learning rate", _plain, "Of the last step of each line."),
    ("grad_norm", "Norm of the gradient", _log, "Before clipping. It should settle; spikes come before divergence."),
    ("update_norm", "Norm of the update", _log, "What a step adds to the parameters."),
    ("param_norm", "Norm of the parameters", _plain, "All of them together."),
    ("skipped", "Skipped updates", _count, "So far: those that the guard left out."),
    ("tokens_per_s", "Tokens/s", _large, "Real tokens, padding not counted, of all devices together."),
    ("mfu", "MFU", _percent, "Matmul FLOPs of forward and backward over the devices' bfloat16 peak; padding counts."),
    ("input_wait", "Waiting for input", _percent, "Share of the steps' time. Good: below 1%."),
    ("goodput", "Goodput", _percent, "Time of steps that still count over the time since the first start."),
    ("real_share", "Slots that hold text", _percent, "The rest is padding."),
)


def thinned(records: list[dict[str, Any]], most: int = POINTS) -> list[dict[str, Any]]:
    """The evaluations, and the records of training steps, of these at most `most`: means over neighbours.

    Values that are not finite become gaps. A mean stands at its last step.
    """
    train, evaluations = (
        [{k: _gap(v) for k, v in record.items()} for record in records if record["kind"] == kind]
        for kind in ("train", "eval")
    )
    size = math.ceil(len(train) / most)
    if size > 1:
        train = [_mean(train[i : i + size]) for i in range(0, len(train), size)]
    return train + evaluations


def _gap(value: Any) -> Any:
    return math.nan if isinstance(value, float) and not math.isfinite(value) else value


def _mean(records: list[dict[str, Any]]) -> dict[str, Any]:
    last = records[-1]
    names = [k for k, v in last.items() if isinstance(v, int | float) and k != "step"]
    columns = {name: [r[name] for r in records if name in r and not math.isnan(r[name])] for name in names}
    return last | {name: statistics.fmean(column) if column else math.nan for name, column in columns.items()}


_NSP = {
    "Sentence order": "Next sentences",
    "sentence order": "next sentences",
    "Half the pairs are swapped.": "In half the pairs B is from another document.",
}
_BOTH = {
    "Sentence order": "Sentence order or next sentences",
    "sentence order": "sentence order or next sentences",
    "Half the pairs are swapped.": "In half the pairs B comes before A or from another document.",
}


def worded(text: str, runs: Sequence[Run]) -> str:
    """A title or caption that is about sentence order, for what these runs learn of pairs."""
    orders = {run.identity["config"]["data"].get("sentence_order", "sop") for run in runs} - {"none"}
    if not orders:
        return text.replace("plus sentence order", "alone")
    for words, instead in (_NSP if orders == {"nsp"} else _BOTH if "nsp" in orders else {}).items():
        text = text.replace(words, instead)
    return text


def figures(runs: Sequence[Run]) -> list[str]:
    """A <figure> for each value that any of the runs has recorded."""
    lines = {run.name: thinned(run.records) for run in runs}
    made = []
    for name, title, scale, caption in _CURVES:
        title, caption = worded(title, runs), worded(caption, runs)
        if any(name in record or f"eval_{name}" in record for records in lines.values() for record in records):
            svg = drawn(title, functools.partial(_draw, runs=runs, lines=lines, name=name, scale=scale))
            # Its black becomes the page's colour of text.
            svg = svg.replace("#000000", "currentColor")
            made.append(f"<figure><h3>{title}</h3>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")
    return made


def _draw(
    axis: Any, runs: Sequence[Run], lines: dict[str, list[dict[str, Any]]], name: str, scale: Callable[[Any], None]
) -> None:
    for run in runs:
        draw_measure(axis, lines[run.name], name, train=(run.colour, 0.75), validation=run.colour)
    for run in runs:
        colour = run.colour if len(runs) > 1 else _QUIET
        mark(axis, run.records, "resume", "resumed", ":", colour)
        mark(axis, run.records, "rollback", "rolled back", "-.", colour)
    scale(axis.yaxis)
    axis.set_xlabel("step")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.locator_params(axis="x", nbins=6)
    if name in ("tokens_per_s", "mfu", "input_wait", "goodput", "skipped"):
        axis.set_ylim(bottom=0)
    handles, labels = axis.get_legend_handles_labels()
    kept = {label: handle for handle, label in zip(handles, labels, strict=True) if label in _REFERENCES}
    if kept:
        axis.legend(kept.values(), kept.keys(), frameon=False, fontsize=8)


# --- facts ------------------------------------------------------------------------------------------------------------

Row = Sequence[str]


def overview(runs: Sequence[Run]) -> list[Row]:
    """How far each run is and what it has reached; a column for each."""
    columns = [_reached(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    head = ("", *(run.name if len(runs) > 1 else "" for run in runs))
    return [head, *((name, *(c.get(name, _NONE) for c in columns)) for name in names)]


def _reached(run: Run) -> dict[str, str]:
    from albert_jax.config import AlbertConfig

    config, train = run.identity["config"], run.of_kind("train")
    step = max((record["step"] for record in run.records), default=0)
    model = AlbertConfig.from_dict(run.identity["model"])
    started = next((record.get("time") for record in run.of_kind("start")), None)
    newest: dict[str, Any] = next((record for record in reversed(run.records) if "time" in record), {})
    facts = {
        "workdir": run.path,
        "step": f"{step:,} of {config['steps']:,}" + (", finished" if step == config["steps"] else ""),
        "first start": _moment(started),
        "last record": _moment(newest.get("time")),
        "time since the first start": _seconds(newest.get("wall_s")),
        "goodput": _share(run.last("goodput")),
        "restarts": f"{len(run.of_kind('resume')):,}",
        "rollbacks": f"{len(run.of_kind('rollback')):,}",
        "skipped updates": f"{run.last('skipped') or 0:,}",
        "tokens/s, median": _median(train, "tokens_per_s", ",.0f"),
        "MFU, median": _median(train, "mfu", ".1%"),
        "waiting for input, median": _median(train, "input_wait", ".2%"),
        "training loss": _number(run.last("loss")),
        "validation, masked words": _number(run.last("eval_mlm_loss"), " nats")
        + (f", {_share(run.last('eval_mlm_accuracy'))} right" if run.last("eval_mlm_accuracy") is not None else ""),
        **({worded("validation, sentence order", [run]): told} if (told := _order(run)) != _NONE else {}),
        "parameters": f"{model.pretraining_parameters():,} ({model.encoder_parameters():,} in the encoder)",
        "rows a step": _rows(run),
        "matmul FLOPs so far": _flops(train),
        "devices": str(run.identity["versions"].get("device", _NONE)),
    }
    return facts


def _rows(run: Run) -> str:
    """Rows and their lengths, in each phase of the run."""
    data = run.identity["config"]["data"]
    lengths = [phase.split(":")[0] for phase in data.get("phases", "").split()] + [data["sequence_length"]]
    counts = str(run.identity["rows_per_step"]).split()
    return ", then ".join(f"{int(rows):,} of {slots} slots" for rows, slots in zip(counts, lengths, strict=False))


def _flops(records: Sequence[dict[str, Any]]) -> str:
    """Of the steps that are on record and still count."""
    parts = [r["tflops_per_s"] * r["seconds"] * 1e12 for r in records if "tflops_per_s" in r and "seconds" in r]
    return f"{sum(parts):.3g}" if parts else _NONE


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(value: float | None) -> str:
    return _NONE if value is None else duration(value)


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _number(value: float | None, unit: str = "") -> str:
    return _NONE if value is None else f"{value:.4f}{unit}"


def _median(records: Iterable[dict[str, Any]], name: str, form: str) -> str:
    values = [record[name] for record in records if name in record]
    return format(statistics.median(values), form) if values else _NONE


def _order(run: Run) -> str:
    accuracy, low, high = (run.last(f"eval_sop_{name}") for name in ("accuracy", "low", "high"))
    if accuracy is None:
        return _NONE
    return f"{accuracy:.1%} right" + ("" if low is None else f", 95 % interval {low:.1%} to {high:.1%}")


def evaluations(runs: Sequence[Run]) -> list[Row]:
    """A row for each evaluation."""
    found = [(run.name, record) for run in runs for record in run.of_kind("eval")]
    names = dict.fromkeys(name for _, record in found for name in record if name.startswith("eval_"))
    head = ("run", "step", *(name.removeprefix("eval_").replace("_", " ") for name in names))
    body = [(name, f"{record['step']:,}", *(_cell(record.get(key)) for key in names)) for name, record in found]
    return [head, *body]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        more = len(value) - _LISTED
        return ", ".join(map(_cell, value[:_LISTED])) + (f" and {more:,} more" if more > 0 else "")
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else _NONE if value is None else str(value)


_OWN = ("step", "kind", "timing", "time", "wall_s", "lost_steps", "lost_s", "from")
_HAPPENED = {"start": "started", "branch": "branched", "resume": "resumed", "rollback": "rolled back"}


def events(runs: Sequence[Run]) -> list[Row]:
    """A row for each start, restart, rollback and whatever else was recorded besides steps and evaluations."""
    rows: list[Row] = [
        ("run", "when", "since the first start", "what", "at step", "steps lost", "time lost", "details")
    ]
    for run in runs:
        for record in run.records:
            if record["kind"] not in ("train", "eval", "progress"):
                lost = record.get("lost_steps", record["from"] - record["step"] if "from" in record else None)
                details = ", ".join(f"{key} {_cell(value)}" for key, value in record.items() if key not in _OWN)
                when = _moment(record.get("time")), _seconds(record.get("wall_s"))
                at = (
                    _HAPPENED.get(record["kind"], record["kind"]),
                    f"{record['step']:,}",
                    _cell(lost),
                    _seconds(record.get("lost_s")),
                )
                rows.append((run.name, *when, *at, details))
    return rows


def compared(runs: Sequence[Run], values: Callable[[Run], Any]) -> tuple[list[Row], list[Row]]:
    """Names and values of each run, in two tables with a heading: what differs between the runs, and what is the same.

    Args:
      runs: at least one.
      values: gives a nested dict.
    """
    columns = [dict(_flat(values(run))) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, _NONE) for column in columns)) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    same = [(name, first) for name, first, *others in rows if all(other == first for other in others)]
    return [("", *(run.name for run in runs)), *differing], [("", ""), *same]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Fields with dots, as the command line spells them, and their values as JSON."""
    found = []
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else None
        found += inner if inner is not None else [(f"{prefix}{name}", json.dumps(value, ensure_ascii=False))]
    return found


def grouped(runs: Sequence[Run], key: str) -> list[tuple[str, Any]]:
    """What run.json says under a key, once for all runs where it is the same, with the names of these runs."""
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(json.dumps(run.identity[key], sort_keys=True), []).append(run.name)
    return [(", ".join(of), json.loads(text)) for text, of in names.items()]


def parameter_table(model: dict[str, Any]) -> list[Row]:
    """Every array of a model with its shape and size, from shapes alone."""
    from flax import nnx, traverse_util

    from albert_jax.config import AlbertConfig
    from albert_jax.model import FlaxAlbertForPreTrainingModule, parameters

    config = AlbertConfig.from_dict(model)
    shapes = nnx.eval_shape(lambda: parameters(FlaxAlbertForPreTrainingModule(config, rngs=nnx.Rngs(0))))
    arrays = traverse_util.flatten_dict(shapes, sep="/")
    body = [(str(name), " x ".join(map(str, a.shape)), f"{math.prod(a.shape):,}") for name, a in arrays.items()]
    return [("array", "shape", "parameters"), *body, ("all", "", f"{config.pretraining_parameters():,}")]


# --- the page ---------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    title = ("Run " if len(runs) == 1 else "Runs ") + ", ".join(run.name for run in runs)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body><h1>{html.escape(title)}</h1>"
        f"{table(overview(runs))}<h2>Curves</h2>{_curves(runs)}"
        f"<h2>Starts, restarts, rollbacks</h2>{_or_none(events(runs))}"
        "<p class=note>Steps and time lost are those that were recorded past the checkpoint that a start went on from; "
        "what was computed after the last line before a kill is known to nobody. Times are by the machine's clock.</p>"
        f"<h2>Evaluations</h2>{_folded(evaluations(runs))}"
        f"<h2>Config</h2>{_comparison(runs, lambda run: run.identity['config'])}"
        f"<h2>Versions</h2>{_comparison(runs, lambda run: run.identity['versions'])}"
        f"<h2>Data</h2>{_data(runs)}<h2>Parameters</h2>{_parameters(runs)}</body></html>\n"
    )


def table(rows: list[Row], differs: bool = False) -> str:
    """The first row is the heading, unless it is empty."""
    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    lines = [f"<tr>{''.join(f'<th scope=col>{cell}</th>' for cell in head)}</tr>"] if any(head) else []
    for first, *rest in body:
        cells = "".join(f"<td dir=auto>{cell}</td>" for cell in rest)
        lines.append(f"<tr{' class=differs' if differs else ''}><th scope=row>{first}</th>{cells}</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _or_none(rows: list[Row]) -> str:
    return table(rows) if len(rows) > 1 else "<p>None yet.</p>"


def _folded(rows: list[Row]) -> str:
    """A table that is closed at first where it is long."""
    if len(rows) <= _LONG:
        return _or_none(rows)
    return f"<details><summary>{len(rows) - 1:,} rows</summary>{table(rows)}</details>"


def _curves(runs: Sequence[Run]) -> str:
    made = figures(runs)
    if not made:
        return "<p>No step has been recorded yet.</p>"
    items = "".join(f'<li><i style="background: {run.colour}"></i>{html.escape(run.name)}</li>' for run in runs)
    legend = f"<ul class=runs>{items}</ul>" if len(runs) > 1 else ""
    dense = max(len(run.of_kind("train")) for run in runs) > POINTS
    note = (
        "Lines: training, each point a mean since the one before. Dots: validation. Dotted verticals: resumed; with "
        "dashes: rolled back." + (f" Of more than {POINTS:,} lines, neighbours are averaged." if dense else "")
    )
    broken = [f"{run.name} {n:,}" for run in runs if (n := _not_finite(run))]
    if broken:
        note += f" Recorded values that are not finite, and leave gaps: {', '.join(broken)}."
    return f"{legend}<p class=note>{html.escape(note)}</p><div class=grid>{''.join(made)}</div>"


def _not_finite(run: Run) -> int:
    values = (v for record in run.records for v in record.values() if isinstance(v, float))
    return sum(not math.isfinite(value) for value in values)


def _comparison(runs: Sequence[Run], values: Callable[[Run], Any]) -> str:
    differing, same = compared(runs, values)
    if len(runs) == 1:
        return table(same)
    first = table(differing, differs=True) if len(differing) > 1 else "<p>No difference.</p>"
    return f"{first}<details><summary>The same in all: {len(same) - 1}</summary>{table(same)}</details>"


def _data(runs: Sequence[Run]) -> str:
    parts = []
    for names, manifest in grouped(runs, "data"):
        if len(runs) > 1:
            parts.append(f"<h3>{html.escape(names)}</h3>")
        if "splits" in manifest:  # a data set of ours; Google's records have fewer facts
            tables = [split_facts(manifest), source_facts(manifest), other_facts(manifest)]
        else:
            tables = [[("", ""), *flat(manifest)]]
        parts += [table(rows) for rows in tables]
    return "".join(parts)


def _parameters(runs: Sequence[Run]) -> str:
    parts = []
    for names, model in grouped(runs, "model"):
        heading = f"<h3>{html.escape(names)}</h3>" if len(runs) > 1 else ""
        parts.append(f"{heading}{table(parameter_table(model))}")
    return "".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="workdir", help="of a training run, local or gs://")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report.html"), help="page to write")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix != ".html" or options.out.is_dir():
            raise UserError(f"--out {str(options.out)!r} must name a file that ends in .html.")
        require_matplotlib()
        page = render(load(options.workdirs))
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(page, encoding="utf-8")
        except OSError as e:
            raise UserError(f"{options.out} cannot be written ({e.strerror}); choose another --out.") from e
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
