# SPDX-License-Identifier: Apache-2.0
"""The benchmark for machines with a GPU, where there is none: its rehearsal on the CPU, its limits and its figures."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest_plugins = ["tests.runs"]
ROOT = pathlib.Path(__file__).parents[1]
BENCH = ROOT / "scripts" / "bench"
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    specification = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    return module


@pytest.fixture()
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/bench/gpu.py."""
    return load("gpu", monkeypatch)


@pytest.fixture()
def gpu_folder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/bench/gpu_folder.py."""
    return load("gpu_folder", monkeypatch)


def shell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs gpu.sh with this environment's Python."""
    command = ["bash", str(BENCH / "gpu.sh"), *map(str, arguments)]
    whole = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(command, env=whole, capture_output=True, text=True, check=False)


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(text: pathlib.Path, vocabulary: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A prepared folder, for this environment."""
    made = tmp_path_factory.mktemp("gpu") / "folder"
    options = ("--text", text, "--vocab", vocabulary / "spiece.model", "--without-packages")
    done = shell("prepare", made, *options)
    assert done.returncode == 0, done.stderr
    assert "are enough for a rehearsal only; the real run takes 128." in done.stdout
    return made


@pytest.mark.slow  # a minute of both cores
def test_the_rehearsal_trains_interrupts_resumes_and_compares(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    plans = {path.name for path in (folder / "data" / "plans").iterdir()}
    done = shell("run", folder, "--rehearse", "--size", "base", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (folder / "data" / "plans").iterdir()} == plans  # `prepare` made all that are needed
    results = json.loads((tmp_path / "gpu.json").read_text())
    base = results["sizes"]["base"]
    assert base["chosen"] == "xla" and not base["xla"]["finished"] and base["xla"]["from_step"] == 0
    assert base["resumed"]["finished"] and base["resumed"]["from_step"] > 0
    assert base["cudnn"] == {}
    refusal = next(stage["reason"] for stage in results["stages"] if stage["name"].startswith("base, attention cudnn"))
    assert refusal.startswith("error: attention 'cudnn' cannot run: cudnn needs an NVIDIA GPU")
    assert base["resumed"]["tokens_per_s"] >= base["resumed"]["real_tokens_per_s"] > 0
    if HAS_TORCH:
        assert base["torch eager"]["tokens_per_s"] > 0 and base["torch compiled"]["compile"] == "eager"
    lines = (tmp_path / "gpu.txt").read_text().splitlines()
    assert sum(line.startswith("base, ") and line.endswith("-") for line in lines) == 5  # the table
    assert "interrupted by SIGTERM" in (tmp_path / "stages.log").read_text()


def test_what_cannot_work_is_said_in_one_sentence(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert shell("go").stderr == "error: say 'prepare FOLDER ...' or 'run FOLDER ...', not 'go'.\n"
    missing = shell("run", tmp_path / "none")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1) and "holds no prepared.json" in missing.stderr
    full = shell("prepare", folder, "--text", "x", "--vocab", "y")
    assert full.stderr == f"error: {folder} is not empty; name a new folder.\n"
    small = shell("run", folder, OUT=str(tmp_path))
    assert "rows to train on and a batch 128; prepare it with more text." in small.stderr
    prepared = json.loads((folder / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps(prepared | {"rows": 1000}))
    on_cpu = shell("run", tmp_path, OUT=str(tmp_path), JAX_PLATFORMS="cpu")
    assert on_cpu.stderr == "error: JAX sees no GPU, only cpu; install its CUDA build, or try --rehearse.\n"


def test_a_folder_for_another_python_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    prepared = json.loads((folder / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps(prepared | {"python_version": "3.1", "packages": ["x==1"]}))
    refused = shell("run", tmp_path, "--rehearse")
    assert "prepared for Python 3.1 and" in refused.stderr and "prepare with --python-version" in refused.stderr


# --- limits -----------------------------------------------------------------------------------------------------------


def is_dead(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet buried."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    return True


@pytest.fixture()
def bench(gpu: ModuleType, tmp_path: pathlib.Path) -> Iterator[Any]:
    """A `Bench` in empty directories."""
    (tmp_path / "prepared.json").write_text('{"vocabulary": 100, "packages": []}')
    made = gpu.Bench(gpu.parse([str(tmp_path), "--rehearse"]), tmp_path, tmp_path)
    yield made
    if made.current is not None:
        made.current.kill()


def test_a_stage_that_hangs_is_killed_with_its_children_and_the_next_one_runs(
    bench: Any, tmp_path: pathlib.Path
) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    began = time.monotonic()
    stage = bench.stage("hangs", ["-c", child], 1.5, dict(os.environ))
    assert stage.finish() is None and time.monotonic() - began < 10
    pid = int(stage.answer.read_text())
    while not is_dead(pid):
        assert time.monotonic() - began < 10
        time.sleep(0.1)
    assert bench.stage("prints", ["-c", "print('{\"a\": 1}')"], 30, dict(os.environ)).finish() == '{"a": 1}\n'
    failing = ["-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"]
    assert bench.stage("fails", failing, 30, dict(os.environ)).finish() is None
    noted = [(stage["name"], stage["status"]) for stage in json.loads((tmp_path / "gpu.json").read_text())["stages"]]
    assert noted == [("hangs", "too slow"), ("prints", "ok"), ("fails", "failed")]
    assert bench.results["stages"][-1]["reason"] == "why"


def test_no_stage_goes_beyond_the_end_of_the_whole(
    gpu: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "left", lambda: gpu.WORTHWHILE - 1)
    assert bench.stage("late", ["-c", "print(1)"], 60, dict(os.environ)).finish() is None
    assert bench.results["stages"][-1] == {
        "name": "late",
        "status": "skipped",
        "seconds": 0,
        "reason": "no time was left",
    }
    monkeypatch.setattr(bench, "left", lambda: gpu.WORTHWHILE + 1)
    stage = bench.stage("last", ["-c", "print(1)"], 600, dict(os.environ))
    assert stage.ends - stage.began <= gpu.WORTHWHILE + 1
    assert gpu.TOTAL + gpu.WORTHWHILE <= 530 < 9 * 60  # the limit of gpu.sh, and the one that was asked for


# --- figures ----------------------------------------------------------------------------------------------------------


def line(step: int, real_tokens: float, kind: str = "train") -> str:
    """A line of metrics.jsonl."""
    timing = {"tokens_per_s": real_tokens, "input_wait": 0.01 * step}
    return json.dumps({"step": step, "kind": kind, "loss": 9.0 - step, "real_share": 0.8, "timing": timing}) + "\n"


def test_figures_are_medians_of_the_last_start_without_its_first_interval(
    gpu: ModuleType, tmp_path: pathlib.Path
) -> None:
    written = [line(1, 9.0), line(2, 9.0), line(2, 0.0, "resume"), line(3, 1.0)]
    written += [line(4, 400.0), line(5, 480.0), line(6, 8000.0), line(6, 0.0, "eval"), line(7, 1.0)[:-1]]
    (tmp_path / "metrics.jsonl").write_text("".join(written))
    start, lines = gpu.records(tmp_path)
    assert (start, [record["step"] for record in lines]) == (2, [3, 4, 5, 6])
    machine = {"peak_flops": 1e6, "flops_per_row": {"base": 512 * 100}}
    found = gpu.figures(lines, machine, "base")
    assert found["real_tokens_per_s"] == 480 and found["tokens_per_s"] == 600 and found["intervals"] == 3
    assert found["mfu"] == pytest.approx(600 * 100 / 1e6) and found["loss"] == 3 and found["input_wait"] == 0.05
    assert gpu.figures(lines[:1], machine, "base") == {}
    assert gpu.figures(lines, machine | {"peak_flops": None}, "base")["mfu"] is None
    assert gpu.records(tmp_path / "none") == (0, [])


def test_idle_is_the_time_in_which_no_stream_of_the_gpu_does_anything(gpu: ModuleType) -> None:
    def events(*spans: tuple[int, int]) -> list[Any]:
        return [SimpleNamespace(start_ns=start, duration_ns=end - start) for start, end in spans]

    # Busy 100 to 400 and 500 to 600, a copy within the first kernel; XLA's own lines repeat what is on the streams.
    kernels = SimpleNamespace(name="Stream #13(Kernel)", events=events((500, 600), (100, 300), (200, 400)))
    copies = SimpleNamespace(name="Stream #14(MemcpyH2D)", events=events((150, 160)))
    derived = SimpleNamespace(name="XLA Modules", events=events((0, 1000)))
    device = SimpleNamespace(name="/device:GPU:0", lines=[derived, kernels, copies])
    host = SimpleNamespace(name="/host:CPU", lines=[derived])
    assert gpu.idle_share([host, device]) == pytest.approx(100 / 500)
    assert gpu.idle_share([host]) is None


def test_idle_reads_what_the_profiler_writes(gpu: ModuleType, tmp_path: pathlib.Path, capsys: Any) -> None:
    import jax

    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(jax.numpy.ones(3) + 1)
    (profile,) = tmp_path.rglob("*.xplane.pb")
    gpu.print_idle(str(profile))
    assert json.loads(capsys.readouterr().out) == {"idle": None}


# --- packages ---------------------------------------------------------------------------------------------------------


def test_packages_are_copied_and_native_ones_fetched_for_another_python(
    gpu_folder: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(gpu_folder, "run", lambda *command: commands.append([str(part) for part in command]))
    names = ["absl-py", "zstandard", "jax", "numpy"]
    version = {name: importlib.metadata.version(name) for name in names}
    there = gpu_folder.bring(names, "3.99", gpu_folder.OWN_JAX, tmp_path / "other")
    assert there == [f"absl-py=={version['absl-py']}", f"zstandard=={version['zstandard']}"]
    assert (tmp_path / "other/absl/flags/__init__.py").is_file() and not (tmp_path / "other/zstandard").exists()
    (command,) = commands
    assert command[-1] == f"zstandard=={version['zstandard']}" and "--no-deps" in command
    assert command[command.index("--python-version") + 1] == "3.99"

    gpu_folder.bring(names, gpu_folder.OWN_VERSION, gpu_folder.OWN_JAX, tmp_path / "own")
    assert len(commands) == 1 and list((tmp_path / "own/zstandard").glob("*.so"))
    assert not list((tmp_path / "own").rglob("*.pyc"))
    assert not (tmp_path / "own/jax").exists() and not (tmp_path / "own/numpy").exists()
    code = "import absl, zstandard; print(zstandard.decompress(zstandard.compress(b'there')).decode(), absl.__file__)"
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(tmp_path / 'own')!r}); {code}"]
    assert subprocess.run(bare, capture_output=True, text=True, check=True).stdout.startswith("there " + str(tmp_path))


def test_what_is_built_on_jax_is_fetched_to_fit_another_version_of_it(
    gpu_folder: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def pip(*command: object) -> str:
        commands.append([str(part) for part in command])
        versions = {"flax": "0.12.99", "optax": importlib.metadata.version("optax"), "orbax_checkpoint": "0.12.77"}
        return json.dumps({"install": [{"metadata": {"name": n, "version": v}} for n, v in versions.items()]})

    monkeypatch.setattr(gpu_folder, "run", pip)
    there = gpu_folder.bring(["flax", "optax", "orbax-checkpoint"], gpu_folder.OWN_VERSION, "0.99.0", tmp_path / "site")
    resolve, fetch = commands
    assert "--dry-run" in resolve and "jax==0.99.0" in resolve and any(part.startswith("flax") for part in resolve)
    assert fetch[-2:] == ["flax==0.12.99", "orbax-checkpoint==0.12.77"]
    assert there[0] == "flax==0.12.99" and (tmp_path / "site/optax/__init__.py").is_file()
    assert not (tmp_path / "site/flax").exists()
