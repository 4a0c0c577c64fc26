# SPDX-License-Identifier: Apache-2.0
"""What a run says about itself: a line on the screen, `metrics.jsonl` and TensorBoard events.

Device values are read one log interval late, so that no step waits for the host. A run that goes on from a checkpoint
first drops everything recorded past it, so that no step stands there twice. Where the workdir is in an object store,
the files grow here and are copied there by `flush`, that is before each checkpoint, and by `close`.
"""

import json
import math
import os
import pathlib
from typing import Any, Self

import jax
import numpy as np
from tensorboardX import SummaryWriter

from albert_jax.remote import Spool, directory

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
    ("grad", 9, "grad_norm", ".3g"),
    ("rows", 11, "position", ",d"),
    ("tokens/s", 10, "tokens_per_s", ",.0f"),
    ("real", 6, "real_share", ".1%"),
    ("wait", 6, "input_wait", ".1%"),
)
_HEADING_EVERY = 25  # lines


class Telemetry:
    """Records a training run; make one in the process that may write, process 0.

    A line of `metrics.jsonl` is one JSON object: `step`, `kind` ('train' or 'eval'), the values, and under `timing`
    what the wall clock had a part in. Without `timing`, two runs of the same configuration give the same values: floats
    are written in full; non-finite ones as Python's json writes them, `NaN` and `Infinity`. A run that goes on adds a
    line of kind 'resume' at the restored step.

    Args:
      workdir: receives `metrics.jsonl` and `tensorboard/`; a local directory or one in an object store.
      steps: length of the whole run, for the remaining time.
      restored_step: the checkpoint's step that the run goes on from, 0 for a new run; later records are dropped.
      flops_per_step: matmul FLOPs of one step; adds `tflops_per_s` to `timing`.

    Attributes:
      directory: where the files are written, a local directory.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        steps: int,
        restored_step: int = 0,
        flops_per_step: float | None = None,
    ) -> None:
        self._steps = steps
        self._flops_per_step = flops_per_step
        self._pending: tuple[int, dict[str, Any], dict[str, float]] | None = None
        self._last_step = restored_step
        self._lines = 0
        self._spool = Spool(workdir)
        self._spool.fetch(_METRICS)
        self.directory = self._spool.local
        path = self.directory / _METRICS
        drop_later_records(path, restored_step, f"{os.fspath(workdir)}/{_METRICS}")
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a line a write: nothing finished is lost by a kill
        if restored_step:
            self._file.write(json.dumps({"step": restored_step, "kind": "resume"}) + "\n")
        # TensorBoard itself hides what lies at or after `purge_step` in older files. It reads the files by name, which
        # begins with the time in seconds; the number keeps two starts within a second apart and in order.
        starts = len(list((directory(workdir) / _EVENTS).glob("events.*")))
        self._events = SummaryWriter(
            str(self.directory / _EVENTS), purge_step=restored_step + 1, filename_suffix=f".{starts:06d}"
        )

    def log(self, step: int, device_metrics: dict[str, Any], host: dict[str, float]) -> None:
        """Takes the metrics of the interval that ends at `step` and writes those of the interval before.

        Args:
          step: optimizer steps done.
          device_metrics: name -> scalar `jax.Array`; not read before the next `log`, `evaluation`, `flush` or `close`.
            The screen shows loss, mlm_loss, mlm_accuracy, sop_loss, sop_accuracy, learning_rate and grad_norm.
          host: what the host knows. `seconds` of the interval spent on steps, `input_wait_seconds` of these waited for
            the loader, and `tokens` that the steps took in become `timing`; all others (epoch, position) are recorded
            as they are and must not depend on the clock.
        """
        self._write_pending()
        for value in device_metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._pending = (step, device_metrics, host)

    def evaluation(self, step: int, results: dict[str, float]) -> None:
        """Writes an evaluation's results at once, their names prefixed by `eval_`."""
        self._write_pending()
        values = {f"eval_{name}": _plain(value) for name, value in results.items()}
        self._write({"step": step, "kind": "eval", **values}, {})
        print(f"step {step}: " + "  ".join(f"{name} {_short(value)}" for name, value in values.items()), flush=True)

    def flush(self) -> None:
        """Reads and writes what is pending, down to the disk or the store; call it before a checkpoint is saved.

        Raises:
          UserError: where the store cannot be reached.
        """
        self._write_pending()
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

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        step, device_metrics, host = self._pending
        self._pending = None
        values = {name: _plain(value) for name, value in jax.device_get(device_metrics).items()}
        timing = self._timing(step, host)
        values |= {k: v for k, v in host.items() if k not in ("seconds", "input_wait_seconds", "tokens")}
        self._last_step = step
        self._write({"step": step, "kind": "train", **values}, timing)
        if self._lines % _HEADING_EVERY == 0:
            print(self._heading(), flush=True)
        self._lines += 1
        print(self._line(step, values | timing), flush=True)

    def _timing(self, step: int, host: dict[str, float]) -> dict[str, float]:
        seconds = max(host["seconds"], 1e-9)
        steps = step - self._last_step
        timing = {
            "tokens_per_s": host["tokens"] / seconds,
            "input_wait": host["input_wait_seconds"] / seconds,
            "eta_s": seconds / max(steps, 1) * (self._steps - step),
        }
        if self._flops_per_step is not None:
            timing["tflops_per_s"] = self._flops_per_step * steps / seconds / 1e12
        return timing

    def _write(self, record: dict[str, Any], timing: dict[str, float]) -> None:
        self._file.write(json.dumps(record | ({"timing": timing} if timing else {})) + "\n")
        step, kind = record["step"], record["kind"]
        for name, value in (record | timing).items():
            if name not in ("step", "kind"):
                self._events.add_scalar(f"{kind}/{name.removeprefix('eval_')}", value, step)

    def _heading(self) -> str:
        width = 2 * len(str(self._steps)) + 1
        return f"{'step':>{width}}" + "".join(f" {name:>{size}}" for name, size, _, _ in _COLUMNS) + f" {'ETA':>10}"

    def _line(self, step: int, values: dict[str, float]) -> str:
        digits = len(str(self._steps))
        cells = (f" {format(values[k], form) if k in values else '-':>{size}}" for _, size, k, form in _COLUMNS)
        sources = (f" {k.removeprefix('epoch/')} {v:.3f}" for k, v in values.items() if k.startswith("epoch/"))
        line = f"{step:>{digits}}/{self._steps}" + "".join(cells) + f" {_duration(values['eta_s']):>10}"
        return " ".join([line, *sources])


def drop_later_records(path: pathlib.Path, step: int, name: str = "") -> None:
    """Removes from a `metrics.jsonl` what a killed run wrote past `step`, and a torn line.

    The file is replaced atomically. Prints how many lines went, and of which kind, where any did.

    Args:
      path: the file.
      step: the last one kept.
      name: what to call the file in what is printed; its path where empty.
    """
    if not path.exists():
        return
    kept, later, torn = [], 0, 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            recorded = json.loads(line)["step"] if line.endswith(b"\n") else None
        except (ValueError, TypeError, KeyError):
            recorded = None
        if recorded is None:
            torn += 1
        elif recorded > step:
            later += 1
        else:
            kept.append(line)
    if not later and not torn:
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    print(
        f"{name or path}: dropped {later} records of steps after {step} and {torn} torn lines; they are computed "
        "again.",
        flush=True,
    )


def last_evaluation(workdir: str | os.PathLike[str]) -> int:
    """The newest step whose evaluation is recorded in a workdir's `metrics.jsonl`, 0 where there is none."""
    return max((record["step"] for record in read_metrics(workdir) if record["kind"] == "eval"), default=0)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a workdir's `metrics.jsonl` so far, without a last line that is still being written."""
    path = directory(workdir) / _METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _plain(value: Any) -> float | int:
    """A scalar array or number as a Python number; float32 widens exactly."""
    number: float | int = np.asarray(value).item()
    return number


def _short(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}:{minutes:02d}:{rest:02d}"
