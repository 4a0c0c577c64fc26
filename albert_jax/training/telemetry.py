# SPDX-License-Identifier: Apache-2.0
"""What a run says about itself: a line on the screen, `metrics.jsonl` and TensorBoard events.

A run that goes on from a checkpoint first drops everything recorded past it, so that no step stands there twice. Where
the workdir is in an object store, the files grow here and are copied there by `flush`, that is before each checkpoint,
and by `close`.

Goodput is the share of the time since the run's first start that went into steps which still count: not into starting,
compiling, evaluating and saving, nor into steps that were lost and computed again, nor into standing still.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from albert_jax.remote import Spool, directory

if "torch" in sys.modules:
    from tensorboardX import SummaryWriter
else:  # it would import torch where that is installed, for the sake of a type: seconds of every start, for nothing
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tensorboardX import SummaryWriter

    del sys.modules["torch"]

_METRICS, _EVENTS = "metrics.jsonl", "tensorboard"
# Column heading, width, key of the record, format.
_COLUMNS = (
    ("epoch", 8, "epoch", ".3f"),
    ("loss", 8, "loss", ".4f"),
    ("mlm", 8, "mlm_loss", ".4f"),
    ("acc", 6, "mlm_accuracy", ".4f"),
    ("sop", 7, "sop_loss", ".4f"),
    ("acc", 6, "sop_accuracy", ".4f"),
    ("lr", 9, "learning_rate", ".3e"),
    ("grad", 8, "grad_norm", ".3g"),
    ("update", 8, "update_norm", ".3g"),
    ("rows", 11, "position", ",d"),
    ("tokens/s", 10, "tokens_per_s", ",.0f"),
    ("MFU", 6, "mfu", ".1%"),
    ("real", 6, "real_share", ".1%"),
    ("wait", 6, "input_wait", ".1%"),
    ("good", 6, "goodput", ".1%"),
)
_HEADING_EVERY = 25  # lines
_NO_CURVES = ("time", "wall_s", "seconds", "share")  # in `timing`, from which goodput is computed


class Telemetry:
    """Records a training run; make one in the process that may write, process 0.

    A line of `metrics.jsonl` is one JSON object: `step`, `kind` ('train' or 'eval'), the values, and under `timing`
    what the wall clock had a part in. Without `timing`, two runs of the same configuration give the same values: floats
    are written in full; non-finite ones as Python's json writes them, `NaN` and `Infinity`. The first start of a run
    adds a line of kind 'start', and where it has a parent one of kind 'branch' with what `run.json` says of it. Each
    later start adds a line of kind 'resume' at the restored step, whose `timing` has the steps and seconds that were
    recorded past it and are lost; `event` adds lines of other kinds. Lines of kind 'progress' come when the
    clock says so, between two of kind 'train', whose intervals they do not change.

    Args:
      workdir: receives `metrics.jsonl` and `tensorboard/`; a local directory or one in an object store.
      steps: length of the whole run, for the remaining time.
      restored_step: the checkpoint's step that the run goes on from, 0 for a new run; later records are dropped.
      parent: what `run.json` says of the checkpoint that the run branched from, if it did.
      sentence_order: of the config's data: the screen calls 'nsp' by its name, and shows nothing of 'none'.
      peak_flops: FLOP/s that all devices of the run together reach at best, where it is known; adds `mfu` to `timing`.

    Attributes:
      directory: where the files are written, a local directory.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        steps: int,
        restored_step: int = 0,
        parent: Mapping[str, Any] | None = None,
        peak_flops: float | None = None,
        sentence_order: str = "sop",
    ) -> None:
        self._steps = steps
        self._peak_flops = peak_flops
        self._order = sentence_order
        left_out = ["mfu"] * (peak_flops is None) + ["sop_loss", "sop_accuracy"] * (sentence_order == "none")
        self._columns = [column for column in _COLUMNS if column[2] not in left_out]
        self._lines = 0
        self._spool = Spool(workdir)
        self._spool.fetch(_METRICS)
        self.directory = self._spool.local
        self._path = self.directory / _METRICS
        before = read_metrics(self.directory)
        self._clock, self._evaluating = _RunClock(before), 0.0
        kept = drop_later_records(self._path, restored_step, f"{os.fspath(workdir)}/{_METRICS}")
        self._event_files = len(list((directory(workdir) / _EVENTS).glob("events.*")))
        self._open(kept, restored_step)
        begin, kinds = parent["step"] if parent else 0, {record["kind"] for record in kept}
        if parent and "branch" not in kinds:
            self._record({"kind": "branch", **parent}, self._clock.read())
        if restored_step == begin and "start" not in kinds:
            self._record({"step": begin, "kind": "start"}, self._clock.read())
        else:
            lost = {
                "lost_steps": max([0, *(record["step"] - restored_step for record in before)]),
                "lost_s": _step_seconds(before) - self._productive,
            }
            self._record({"step": restored_step, "kind": "resume"}, self._clock.read() | lost)

    def _open(self, kept: Sequence[dict[str, Any]], step: int) -> None:
        """Opens the files to go on from `step`, up to which `kept` is recorded."""
        self._last_step = {"train": step, "progress": step}
        self._productive, self._unfinished = _step_seconds(kept), 0.0
        # A line a write: nothing finished is lost by a kill.
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        # TensorBoard itself hides what lies at or after `purge_step` in older files. It reads the files by name, which
        # begins with the time in seconds; the number keeps two that begin within a second apart and in order.
        suffix = f".{self._event_files:06d}"
        self._events = SummaryWriter(str(self.directory / _EVENTS), purge_step=step + 1, filename_suffix=suffix)
        self._event_files += 1

    def log(self, step: int, values: Mapping[str, Any], clocked: Mapping[str, float], *, kind: str = "train") -> None:
        """Writes and shows the interval that ends at `step`.

        Args:
          step: optimizer steps done.
          values: what is recorded as it is and must not depend on the clock. The screen shows epoch, loss, mlm_loss,
            mlm_accuracy, sop_loss, sop_accuracy, learning_rate, grad_norm, update_norm, position, real_share, and
            skipped (updates so far) where it is not 0.
          clocked: `seconds` of the interval spent on steps; where these belong to its steps and to no others,
            `input_wait_seconds` of these waited for the loader, `tokens` that the steps took in, and their matmul
            `flops` where these are known.
          kind: 'train', or 'progress' for a line within such an interval.
        """
        timing = self._timing(step, kind, clocked)
        values = {name: _plain(value) for name, value in values.items()}
        self._write({"step": step, "kind": kind, **values}, timing)
        if self._lines % _HEADING_EVERY == 0:
            print(self._heading(), flush=True)
        self._lines += 1
        print(self._line(step, values | timing), flush=True)

    def evaluation(self, step: int, results: dict[str, float], seconds: float) -> None:
        """Writes and shows an evaluation's results, their names prefixed by `eval_`, and what it cost.

        Args:
          step: optimizer steps done.
          results: name -> value; those of a source, as in 'mlm_loss/wiki', have a line of their own on the screen.
          seconds: that the evaluation took. The screen shows them beside the share that all evaluations of this process
            have of its time so far.
        """
        if self._order == "none":
            results = {name: value for name, value in results.items() if not name.startswith("sop_")}
        values = {f"eval_{name}": _plain(value) for name, value in results.items()}
        clock = self._clock.read()
        self._evaluating += seconds
        share = self._evaluating / max(self._clock.passed(), seconds, 1e-9)
        self._write({"step": step, "kind": "eval", **values}, {"seconds": seconds, "share": share} | clock)
        shown: dict[str, list[str]] = {}
        for name, value in values.items():
            name, _, source = name.partition("/")
            shown.setdefault(source, []).append(f"{self._called(name)} {_short(value)}")
        cost = f"({duration(seconds)}, {share:.1%} of the time so far)"
        print(f"step {step}: {'  '.join(shown.pop(''))}  {cost}", flush=True)
        for source, figures in shown.items():
            print(f"  {source}: {'  '.join(figures)}", flush=True)

    def event(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Records something else that happened at `step`, as a line of its own kind; nothing is printed.

        Args:
          step: optimizer steps done.
          kind: none of those that this class writes by itself. 'rollback' stands for a return to `step`: such a line is
            younger than the checkpoint of its step.
          values: what JSON can hold and the clock has no part in.
        """
        self._record({"step": step, "kind": kind, **values}, self._clock.read())

    def rewind(self, step: int) -> None:
        """Goes back to `step` within a process: drops what is recorded past it, and TensorBoard hides it.

        Rollbacks stay on record.

        Raises:
          UserError: where the store cannot be reached.
        """
        self._file.close()
        self._events.close()
        kept, _, _ = _keep(self._path, lambda record: record["step"] <= step or record["kind"] == "rollback")
        self._open(kept, step)
        # Now, because the spool compares sizes, and what comes may fill the file to just the size that it had.
        self._events.flush()
        self._spool.upload()

    def flush(self) -> None:
        """Writes down to the disk or the store; call it before a checkpoint is saved.

        Raises:
          UserError: where the store cannot be reached.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()
        self._spool.upload()

    def close(self) -> None:
        """Flushes and closes; nothing can be logged afterwards."""
        self.flush()
        self._file.close()
        self._events.close()
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _timing(self, step: int, kind: str, clocked: Mapping[str, float]) -> dict[str, float]:
        seconds, steps, clock = max(clocked["seconds"], 1e-9), step - self._last_step[kind], self._clock.read()
        self._last_step[kind] = self._last_step["progress"] = step
        timing: dict[str, float] = {}
        if "tokens" in clocked:
            timing = {
                "tokens_per_s": clocked["tokens"] / seconds,
                "input_wait": clocked["input_wait_seconds"] / seconds,
                "eta_s": seconds / max(steps, 1) * (self._steps - step),
            }
        if "flops" in clocked:
            timing["tflops_per_s"] = clocked["flops"] / seconds / 1e12
            if self._peak_flops is not None:
                timing["mfu"] = clocked["flops"] / seconds / self._peak_flops
        self._unfinished = clocked["seconds"] + (self._unfinished if kind == "progress" else 0.0)
        if kind == "train":
            self._productive, self._unfinished = self._productive + clocked["seconds"], 0.0
        timing["goodput"] = min(1.0, (self._productive + self._unfinished) / max(clock["wall_s"], 1e-9))
        return timing | {"seconds": clocked["seconds"]} | clock

    def _write(self, record: dict[str, Any], timing: dict[str, float]) -> None:
        self._record(record, timing)
        step, kind = record["step"], record["kind"]
        for name, value in (record | timing).items():
            if name not in ("step", "kind", *_NO_CURVES):
                self._events.add_scalar(f"{kind}/{name.removeprefix('eval_')}", value, step)

    def _record(self, record: dict[str, Any], timing: dict[str, float]) -> None:
        self._file.write(json.dumps(record | ({"timing": timing} if timing else {})) + "\n")

    def _called(self, name: str) -> str:
        """A value's name as the screen has it."""
        return name.replace("sop", "nsp") if self._order == "nsp" else name

    def _heading(self) -> str:
        width = 2 * len(str(self._steps)) + 1
        names = "".join(f" {self._called(name):>{size}}" for name, size, _, _ in self._columns)
        return f"{'step':>{width}}{names} {'ETA':>10}"

    def _line(self, step: int, values: dict[str, float]) -> str:
        digits = len(str(self._steps))
        cells = (f" {format(values[k], form) if k in values else '-':>{size}}" for _, size, k, form in self._columns)
        line = f"{step:>{digits}}/{self._steps}" + "".join(cells) + f" {duration(values.get('eta_s', math.nan)):>10}"
        notes = [f"skipped {values['skipped']:,}"] if values.get("skipped") else []
        notes += [f"{k.removeprefix('epoch/')} {v:.3f}" for k, v in values.items() if k.startswith("epoch/")]
        return " ".join([line, *notes])


# --- the clock --------------------------------------------------------------------------------------------------------


class _RunClock:
    """Seconds since the run's first start, through all restarts.

    Within a process the monotonic clock counts, which nobody can set. How long nothing ran between two processes, only
    the wall clock can tell: where it was set back meanwhile, that time counts as none, and goodput is too high by it
    but never above 1; where it was set forward, goodput is too low.

    Args:
      records: what earlier processes of the run recorded, the steps that are lost included.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._began, self._time, self._wall = time.perf_counter(), time.time(), 0.0
        last = next((record["timing"] for record in reversed(records) if "wall_s" in record.get("timing", {})), None)
        if last is not None:
            self._wall = last["wall_s"] + max(0.0, self._time - last["time"])

    def passed(self) -> float:
        """Seconds since this process began."""
        return time.perf_counter() - self._began

    def read(self) -> dict[str, float]:
        """`time`, seconds since 1970 as the process began plus what has passed since, and `wall_s`, since the start."""
        passed = self.passed()
        return {"time": self._time + passed, "wall_s": self._wall + passed}


def _step_seconds(records: Sequence[dict[str, Any]]) -> float:
    """What went into the steps of some records."""
    return sum(record.get("timing", {}).get("seconds", 0.0) for record in records if record["kind"] == "train")


# --- records ----------------------------------------------------------------------------------------------------------


def drop_later_records(path: pathlib.Path, step: int, name: str = "") -> list[dict[str, Any]]:
    """Removes from a `metrics.jsonl` what a killed run wrote past `step`, and a torn line.

    Rollbacks stay: what they left out stays left out. The file is replaced atomically. Prints how many lines went, and
    of which kind, where any did.

    Args:
      path: the file.
      step: the last one kept.
      name: what to call the file in what is printed; its path where empty.

    Returns:
      The records that are left.
    """
    kept, later, torn = _keep(path, lambda record: record["step"] <= step or record["kind"] == "rollback")
    if later or torn:
        print(
            f"{name or path}: dropped {later} records of steps after {step} and {torn} torn lines; they are computed "
            "again.",
            flush=True,
        )
    return kept


def _keep(path: pathlib.Path, keeps: Callable[[dict[str, Any]], bool]) -> tuple[list[dict[str, Any]], int, int]:
    """Leaves those records in a file that `keeps` says; gives them, and how many others and torn lines went."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = [_parsed(line) for line in lines]
    kept = [(line, record) for line, record in zip(lines, records, strict=True) if record is not None and keeps(record)]
    if len(kept) < len(lines):
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.writelines(line for line, _ in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    torn = records.count(None)
    return [record for _, record in kept], len(lines) - len(kept) - torn, torn


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is torn."""
    try:
        record: dict[str, Any] = json.loads(line)
        return record if line.endswith(b"\n") and isinstance(record["step"], int) and record["kind"] else None
    except (ValueError, TypeError, KeyError):
        return None


def last_evaluation(workdir: str | os.PathLike[str]) -> int:
    """The newest step whose evaluation is recorded in a workdir's `metrics.jsonl`, 0 where there is none."""
    return max((record["step"] for record in read_metrics(workdir) if record["kind"] == "eval"), default=0)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a workdir's `metrics.jsonl` so far, without lines that are torn or still being written."""
    path = directory(workdir) / _METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record for line in lines if (record := _parsed(line)) is not None]


# --- formats ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> float | int:
    """A scalar array or number as a Python number; float32 widens exactly."""
    number: float | int = np.asarray(value).item()
    return number


def _short(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}:{minutes:02d}:{rest:02d}"
