# SPDX-License-Identifier: Apache-2.0
"""A short real training of base and xxlarge on one GPU, beside transformers' torch; what `gpu.sh run` starts.

    bash scripts/bench/gpu.sh run FOLDER               # FOLDER is made by `gpu.sh prepare`
    bash scripts/bench/gpu.sh run FOLDER --rehearse    # tiny models on the CPU: does every stage work?

Stages, each a process with a time limit of its own, none of which needs the one before it to succeed:

1. what the machine has, and what it lacks;
2. for each size: `train.py` with attention 'xla', then with 'cudnn', in bfloat16, packed rows of 512 slots, LAMB; each
   is interrupted by SIGTERM once it has been measured. The faster one is resumed by the same command and runs to its
   end;
3. for each size: transformers' AlbertForPreTraining on rows of the same shape, all slots real, bfloat16 autocast, SDPA,
   AdamW, in eager mode and under torch.compile. It scores all slots where ours gathers the masked ones.

Figures: tokens/s counts all positions, real tokens/s those that are no padding; both are medians over log intervals
without the first after a start, which has the compilation. MFU is matmul FLOPs, forward and backward, of
`AlbertConfig.train_flops_per_row` over the chip's bfloat16 peak, without credit for recomputation. Peak memory is what
the framework's allocator reports. `wait` is the share of the time in which training waited for its input. `idle` is the
share of time without a kernel or copy on the GPU, between the first and the last one of a profile of two steps.

Everything is printed when it is known; `gpu.json`, `gpu.txt` and `stages.log` go to $OUT, or else to FOLDER/results.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from goals import print_goal

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOTAL = 500.0  # seconds, whatever happens
GOODBYE = 20.0  # seconds before the limit of a training when it is told to stop, to save
WORTHWHILE = 30.0  # seconds that must be left for a stage to be started
WANTED = 3  # log intervals until a training is interrupted, the first one not counted among the figures
SLOTS, MASKS, EXAMPLES = 512, 80, 8  # of a row, as the published recipes have them
ATTENTIONS = ("xla", "cudnn")
EXIT_INTERRUPTED = 75  # train.py's


@dataclasses.dataclass(frozen=True)
class Size:
    """How a size is trained here.

    Attributes:
      rows: of a micro-batch, so that the slower attention fits 80 GB.
      accumulation: micro-batches in a step.
      steps: of the run.
      interval: steps between log lines.
      limits: seconds for a first run, a resumed one, torch in eager mode and compiled.
      fields: further fields of the config.
    """

    rows: int
    accumulation: int
    steps: int
    interval: int
    limits: tuple[float, float, float, float]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


SIZES = {
    "base": Size(64, 2, 48, 4, (75, 55, 40, 60)),
    "xxlarge": Size(16, 2, 36, 3, (100, 75, 50, 70)),
}
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
REHEARSAL = Size(2, 2, 45, 3, (180, 180, 120, 120), {f"model.{name}": value for name, value in TINY.items()})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="made by `gpu.sh prepare`")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny models")
    parser.add_argument("--size", action="append", choices=SIZES, help="only this one; repeatable")
    return parser.parse_args(arguments)


# --- stages -----------------------------------------------------------------------------------------------------------


class Bench:
    """Runs stages one after the other and keeps what they said.

    Args:
      options: of the command line.
      work: a directory for what is thrown away.
      out: the directory of the results.
    """

    def __init__(self, options: argparse.Namespace, work: pathlib.Path, out: pathlib.Path):
        self.options, self.work, self.out = options, work, out
        self.prepared = json.loads((options.folder / "prepared.json").read_text(encoding="utf-8"))
        self.sizes = {name: REHEARSAL if options.rehearse else SIZES[name] for name in options.size or SIZES}
        self.current: Stage | None = None
        self.results: dict[str, Any] = {"stages": [], "sizes": {name: {} for name in self.sizes}}
        self._ends = time.monotonic() + TOTAL
        self._text, self._log = (out / "gpu.txt").open("w"), (out / "stages.log").open("w")
        own = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        # One GPU, whatever the machine has.
        own["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self.plain = os.environ | own
        path = [ROOT, (options.folder / "site").resolve(), *filter(None, [os.environ.get("PYTHONPATH")])]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.environment = self.plain | cache | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        if options.rehearse:
            self.environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

    def say(self, text: str) -> None:
        """Prints a line and keeps it."""
        print(text, flush=True)
        print(text, file=self._text, flush=True)

    def keep(self) -> None:
        """Writes what is known so far."""
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def stage(self, name: str, command: Sequence[object], limit: float, environment: dict[str, str]) -> "Stage":
        """Starts a stage; `limit` seconds, but never beyond the end of the whole."""
        print(f"\n=== {name}: {' '.join(map(str, command))}", file=self._log, flush=True)
        self.current = Stage(self, name, [sys.executable, *map(str, command)], limit, environment, self._log)
        return self.current

    def left(self) -> float:
        """Seconds until the end of the whole."""
        return self._ends - time.monotonic()

    def note(self, name: str, status: str, seconds: float, reason: str = "") -> None:
        """Records and says how a stage ended."""
        self.results["stages"].append({"name": name, "status": status, "seconds": round(seconds, 1), "reason": reason})
        self.keep()
        self.say(f"{name}: {status} after {seconds:.0f} s" + (f" ({reason})" if reason else ""))


class Stage:
    """A process with a time limit, whose output goes to the log; see `Bench.stage`."""

    def __init__(
        self, bench: Bench, name: str, command: list[str], limit: float, environment: dict[str, str], log: TextIO
    ):
        self.bench, self.name, self.began = bench, name, time.monotonic()
        self.ends = self.began + max(0.0, min(limit, bench.left()))
        self.answer, self.error = (bench.work / f"answer.{end}" for end in ("out", "err"))
        self.process: subprocess.Popen[bytes] | None = None
        self._log = log
        if bench.left() < WORTHWHILE:
            return
        with self.answer.open("wb") as out, self.error.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True
            )

    def running(self) -> bool:
        """Whether it still runs; past its limit it is killed."""
        if self.process is None or self.process.poll() is not None:
            return False
        if time.monotonic() < self.ends:
            time.sleep(0.1)
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """Ends the process and what it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def finish(self, good: tuple[int, ...] = (0,)) -> str | None:
        """Waits, notes how it ended, and gives what it printed, or None where it failed.

        Args:
          good: exit statuses of success.
        """
        while self.running():
            pass
        seconds = time.monotonic() - self.began
        if self.process is None:
            self.bench.note(self.name, "skipped", 0, "no time was left")
            return None
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in (self.answer, self.error))
        self._log.write(out + err)
        self._log.flush()
        status = self.process.returncode
        if status in good:
            self.bench.note(self.name, "ok", seconds)
            return out
        late = status == -signal.SIGKILL and time.monotonic() >= self.ends
        last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), f"status {status}")
        self.bench.note(self.name, "too slow" if late else "failed", seconds, last[:300])
        return None


def answer(out: str | None) -> dict[str, Any] | None:
    """The JSON object of the last line of what a stage printed."""
    try:
        return None if out is None else dict(json.loads(out.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return None


# --- 1. the machine ---------------------------------------------------------------------------------------------------


def look(vocabulary: int, rehearse: bool) -> None:
    """In a process of its own: prints, as JSON, what JAX and this project find here."""
    import importlib.metadata

    import jax

    from albert_jax.config import AlbertConfig
    from albert_jax.training import loop  # noqa: F401  # everything that training needs
    from albert_jax.training.chips import chip_of

    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "array_record")
    models = {name: dataclasses.replace(AlbertConfig.published(name), vocab_size=vocabulary) for name in SIZES}
    if rehearse:
        models = {name: dataclasses.replace(model, **TINY) for name, model in models.items()}
    flops = {name: model.train_flops_per_row(SLOTS, MASKS, EXAMPLES) for name, model in models.items()}
    found = {
        "python": sys.version.split()[0],
        "platform": device.platform,
        "device": device.device_kind,
        "peak_flops": chip.peak if chip else None,
        "flops_per_row": flops,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    print(json.dumps(found))


def check(bench: Bench) -> dict[str, Any]:
    """Stage 1; ends the program with one sentence where training cannot start."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if bench.prepared["packages"] and version != bench.prepared["python_version"]:
        sys.exit(
            f"error: the folder was prepared for Python {bench.prepared['python_version']} and {sys.executable} is "
            f"{version}; name another by PYTHON=..., or prepare with --python-version {version}."
        )
    largest = max(shape.rows * shape.accumulation for shape in bench.sizes.values())
    if bench.prepared["rows"] < largest:
        rows = bench.prepared["rows"]
        sys.exit(f"error: the folder has {rows} rows to train on and a batch {largest}; prepare it with more text.")
    command = [__file__, "look", bench.prepared["vocabulary"], int(bench.options.rehearse)]
    found = answer(bench.stage("machine", command, 90, bench.environment).finish())
    if found is None:
        reason = bench.results["stages"][-1]["reason"]
        made_for = f"the folder was prepared for JAX {bench.prepared['jax']}, and {bench.out}/stages.log has all"
        sys.exit(f"error: JAX or a package is missing or does not fit here ({reason}); {made_for}.")
    if found["platform"] != "gpu" and not bench.options.rehearse:
        sys.exit(f"error: JAX sees no GPU, only {found['device']}; install its CUDA build, or try --rehearse.")
    probe = "import json, torch, transformers as t; print(json.dumps({'torch': torch.__version__, 'transformers': "
    probe += "t.__version__, 'cuda': torch.cuda.is_available()}))"
    torch = answer(bench.stage("torch", ["-c", probe], 60, bench.plain).finish())
    if torch is not None and not (torch["cuda"] or bench.options.rehearse):
        bench.say("torch sees no GPU, so it is not measured.")
        torch = None
    bench.results |= {"machine": found, "torch": torch}
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    bench.say(f"{found['device']}, Python {found['python']}, {versions}")
    bench.say(f"torch: {'none, so nothing is compared with' if torch is None else json.dumps(torch)}")
    return found


# --- 2. training ------------------------------------------------------------------------------------------------------


def train(report: str, arguments: list[str]) -> None:
    """In a process of its own: runs train.py, then writes the device's peak memory in bytes to `report`."""
    sys.argv = ["train.py", *arguments]
    try:
        runpy.run_path("train.py", run_name="__main__")
    finally:
        import jax

        stats = jax.devices()[0].memory_stats() or {}  # a CPU has none
        pathlib.Path(report).write_text(json.dumps(stats.get("peak_bytes_in_use")), encoding="utf-8")


def flags(bench: Bench, size: str, attention: str, workdir: pathlib.Path) -> list[str]:
    """train.py's flags for a size."""
    shape = bench.sizes[size]
    fields = {
        "data.path": (bench.options.folder / "data").resolve(),
        "model.vocab_size": bench.prepared["vocabulary"],
        "dtype": "bfloat16",
        "attention": attention,
        "batch.unit": "rows",
        "batch.size": shape.rows * shape.accumulation,
        "batch.rows_per_device": shape.rows,
        "steps": shape.steps,
        "optimizer.warmup_steps": shape.steps // 4,
        "log.every": shape.interval,
        "eval.rows": shape.rows,
        "profile.at": shape.steps - 2,
        "profile.steps": 2,
    }
    named = [f"--config.{name}={value}" for name, value in (fields | shape.fields).items()]
    return [f"--config=configs/{size}.py", f"--workdir={workdir}", *named]


def records(workdir: pathlib.Path) -> tuple[int, list[dict[str, Any]]]:
    """What metrics.jsonl has of the last start: the step that it went on from, and its training lines."""
    path = workdir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # The last line may be half written.
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    resumes = [i for i, line in enumerate(lines) if line["kind"] == "resume"]
    since = lines[resumes[-1] :] if resumes else lines
    return since[0]["step"] if resumes else 0, [line for line in since if line["kind"] == "train"]


def figures(lines: Sequence[dict[str, Any]], machine: dict[str, Any], size: str) -> dict[str, Any]:
    """Medians over log intervals whose time is known, without the first one, in which all runs for the first time.

    Args:
      lines: of one start, see `records`.
      machine: see `look`.
      size: name of the size.

    Returns:
      tokens_per_s, real_tokens_per_s, mfu (None where the chip is not known), input_wait, how many intervals these are
      medians of, and the last loss; {} where there are less than two lines.
    """
    lines = [line for line in lines if "tokens_per_s" in line["timing"]]
    if len(lines) < 2:
        return {}
    real = statistics.median(line["timing"]["tokens_per_s"] for line in lines[1:])
    every = statistics.median(line["timing"]["tokens_per_s"] / line["real_share"] for line in lines[1:])
    return {
        "tokens_per_s": round(every, 1),
        "real_tokens_per_s": round(real, 1),
        "mfu": utilization(every, machine, size),
        "input_wait": statistics.median(line["timing"]["input_wait"] for line in lines[1:]),
        "intervals": len(lines) - 1,
        "loss": lines[-1]["loss"],
    }


def utilization(tokens_per_s: float, machine: dict[str, Any], size: str) -> float | None:
    """MFU at so many positions a second."""
    peak = machine["peak_flops"]
    return None if peak is None else tokens_per_s / SLOTS * machine["flops_per_row"][size] / peak


def run_training(bench: Bench, size: str, attention: str, *, resume: bool) -> dict[str, Any]:
    """One start of train.py: interrupted once it is measured, or resumed and run to its end; {} where it failed."""
    workdir, report = bench.work / f"{size}-{attention}", bench.work / "peak.json"
    report.unlink(missing_ok=True)
    name = f"{size}, attention {attention}, {'resumed' if resume else 'interrupted'}"
    command = [__file__, "train", report, *flags(bench, size, attention, workdir)]
    stage = bench.stage(name, command, bench.sizes[size].limits[resume], bench.environment)
    told = False
    while stage.running():
        enough = not resume and len(records(workdir)[1]) >= WANTED
        if stage.process is not None and not told and (enough or time.monotonic() > stage.ends - GOODBYE):
            stage.process.send_signal(signal.SIGTERM)
            told = True
    if stage.finish((0, EXIT_INTERRUPTED)) is None or stage.process is None:
        return {}
    start, lines = records(workdir)
    found = figures(lines, bench.results["machine"], size)
    peak = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    finished = stage.process.returncode == 0
    if not found:
        bench.say(f"{name}: it logged too few intervals to be measured.")
        return {}
    return found | {"peak_bytes": peak, "from_step": start, "finished": finished}


def measure_ours(bench: Bench, size: str) -> None:
    """Stage 2 for one size."""
    result = bench.results["sizes"][size]
    for attention in ATTENTIONS:
        result[attention] = run_training(bench, size, attention, resume=False)
    speeds = {attention: result[attention].get("tokens_per_s", 0.0) for attention in ATTENTIONS}
    chosen = max(speeds, key=speeds.__getitem__)
    if speeds[chosen]:
        resumed = run_training(bench, size, chosen, resume=True)
        profile = next((bench.work / f"{size}-{chosen}").rglob("*.xplane.pb"), None)
        if profile is not None:
            stage = bench.stage(f"{size}, idle share", [__file__, "idle", profile], 40, bench.environment)
            resumed |= answer(stage.finish()) or {}
        result |= {"chosen": chosen, "resumed": resumed}
        bench.say(
            f"{size}: attention {chosen} was taken; resumed at step {resumed.get('from_step')}, finished: "
            f"{resumed.get('finished', False)}"
        )
    shutil.rmtree(bench.work / f"{size}-xla", ignore_errors=True)
    shutil.rmtree(bench.work / f"{size}-cudnn", ignore_errors=True)


# --- idle -------------------------------------------------------------------------------------------------------------


def idle_share(planes: Iterable[Any]) -> float | None:
    """The share of time in which a GPU runs nothing, from its first event to the end of its last one.

    Args:
      planes: of `jax.profiler.ProfileData`.

    Returns:
      None where no plane is a GPU's.
    """
    spans = []
    for plane in planes:
        if plane.name.startswith("/device:GPU"):
            lines = list(plane.lines)
            streams = [line for line in lines if line.name.startswith("Stream")] or lines
            spans += [(e.start_ns, e.start_ns + e.duration_ns) for line in streams for e in line.events]
    if not spans:
        return None
    busy, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / max(reached - min(spans)[0], 1e-9)


def print_idle(profile: str) -> None:
    """In a process of its own: prints the idle share of a profile, as JSON."""
    import jax

    print(json.dumps({"idle": idle_share(jax.profiler.ProfileData.from_file(profile).planes)}))


# --- 3. torch ---------------------------------------------------------------------------------------------------------


def measure_torch(bench: Bench, size: str, compiled: bool) -> None:
    """Stage 3 for one size and mode."""
    shape, rehearse = bench.sizes[size], bench.options.rehearse
    command = [ROOT / "scripts/bench/torch_step.py", "--size", size, "--vocabulary", bench.prepared["vocabulary"]]
    command += ["--batch", shape.rows, "--accumulation", shape.accumulation, "--sequence", SLOTS, "--masks", MASKS]
    command += ["--dtype", "bfloat16"]
    if compiled:  # a rehearsal does without the minutes and the compiler of the real one
        command += ["--compile", "eager" if rehearse else "inductor"]
    if rehearse:
        command += ["--tiny", "--steps", 2]
    name = f"{size}, torch {'compiled' if compiled else 'eager'}"
    found = answer(bench.stage(name, command, shape.limits[3 if compiled else 2], bench.plain).finish()) or {}
    if found:
        speed = found["tokens_per_s_median"]
        found |= {"tokens_per_s": speed, "mfu": utilization(speed, bench.results["machine"], size)}
    bench.results["sizes"][size]["torch compiled" if compiled else "torch eager"] = found


# --- the report -------------------------------------------------------------------------------------------------------


def cell(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def table(bench: Bench) -> None:
    """Prints what was measured, one line a contender, and the goals."""
    bench.say(f"\n{'':<30}{'tokens/s':>12}{'real':>12}{'MFU':>8}{'peak GB':>9}{'wait':>8}{'idle':>8}")
    for size, result in bench.results["sizes"].items():
        for name in ("xla", "cudnn", "resumed", "torch eager", "torch compiled"):
            found = result.get(name) or {}
            peak = found.get("peak_bytes")
            figures = (
                (found.get("tokens_per_s"), "12,.0f"),
                (found.get("real_tokens_per_s"), "12,.0f"),
                (found.get("mfu"), "8.1%"),
                (None if peak is None else peak / 1e9, "9.1f"),
                (found.get("input_wait"), "8.2%"),
                (found.get("idle"), "8.2%"),
            )
            label = f"{size}, {'attention ' if name in ATTENTIONS else ''}{name}"
            cells = (cell(value, form).rjust(int(form.split(",")[0].split(".")[0])) for value, form in figures)
            bench.say(f"{label:<30}" + "".join(cells))
    for size, result in bench.results["sizes"].items():
        theirs = max((result.get(f"torch {m}") or {}).get("tokens_per_s", 0.0) for m in ("eager", "compiled"))
        ours = max((result.get(name) or {}).get("tokens_per_s", 0.0) for name in (*ATTENTIONS, "resumed"))
        if ours and theirs and not bench.options.rehearse:
            print_goal(f"{size}_over_torch", ours / theirs, 1.0)


def main(arguments: Sequence[str]) -> None:
    """Runs the stages and prints the table, whatever failed."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by SIGTERM."))  # so that the table is printed
    if not (options.folder / "prepared.json").is_file():
        sys.exit(f"error: {options.folder} holds no prepared.json; make it with `bash scripts/bench/gpu.sh prepare`.")
    out = pathlib.Path(os.environ.get("OUT") or options.folder / "results")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        bench = Bench(options, pathlib.Path(work), out)
        check(bench)
        try:
            for size in bench.sizes:
                measure_ours(bench, size)
            for compiled in (False, True):
                for size in bench.sizes if bench.results["torch"] else ():
                    measure_torch(bench, size, compiled)
        finally:
            if bench.current is not None:
                bench.current.kill()
            bench.keep()
            table(bench)
    ends = [result.get("resumed", {}) for result in bench.results["sizes"].values()]
    if not all(end.get("finished") and end["from_step"] for end in ends):
        sys.exit("error: not every size was trained, interrupted and resumed to its end; the lines above say why.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        look(int(sys.argv[2]), bool(int(sys.argv[3])))
    elif sys.argv[1:2] == ["train"]:
        train(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["idle"]:
        print_idle(sys.argv[2])
    else:
        main(sys.argv[1:])
