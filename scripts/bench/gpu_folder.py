# SPDX-License-Identifier: Apache-2.0
"""Fills the folder that scripts/bench/gpu.sh takes to a machine with a GPU and JAX, but neither network nor TFDS.

    bash scripts/bench/gpu.sh prepare FOLDER --python-version 3.12 --text 'corpus/*.txt' --vocab spiece.model

FOLDER/data is the data set with its packing plans; FOLDER/site holds the packages that train.py loads, without JAX and
what comes with it, in the versions of this environment. They are copied; native code for another Python version, and
what must fit another version of JAX (--jax), is fetched by pip. prepared.json says what there is.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
OWN_JAX = importlib.metadata.version("jax")
# JAX and its requirements are the other machine's own; of torch and this project nothing is needed from there.
LEFT_OUT = re.compile(
    r"(jax|jaxlib|jax-cuda.*|libtpu|nvidia-.*|torch|triton|numpy|scipy|ml-dtypes|opt-einsum|albert-jax|pip|setuptools)"
)
ENOUGH = 128  # rows: the largest batch of gpu.py
BUILT_ON_JAX = ("flax", "optax", "orbax-checkpoint")  # a version of these fits some versions of JAX
# A training that is over in seconds, yet opens the data as the benchmark does, which makes the plans, and saves.
GLANCE = {
    "model.hidden_size": 16,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 16,
    "model.num_hidden_layers": 1,
    "dtype": "float32",
    "batch.size": 1,
    "batch.unit": "rows",
    "optimizer.warmup_steps": 1,
    "steps": 2,
    "log.every": 1,
    "eval.rows": 1,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="is made; must not exist or be empty")
    parser.add_argument(
        "--text", action="append", required=True, help="a source, as for `pretrain_data build --source`"
    )
    parser.add_argument("--vocab", required=True, help="spiece.model; the models take its size")
    parser.add_argument("--python-version", default=OWN_VERSION, metavar="X.Y", help="of the machine with the GPU")
    parser.add_argument("--jax", default=OWN_JAX, metavar="X.Y.Z", help="version there; this environment's by default")
    parser.add_argument("--without-packages", action="store_true", help="that machine has this project's environment")
    return parser.parse_args()


def canonical(name: str) -> str:
    """A distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(*command: object) -> str:
    """Runs a command in the repository's root, on one CPU device; gives its output. Its failure ends the program."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    result = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.stderr.write((result.stdout + result.stderr)[-3000:])
        sys.exit(f"error: {' '.join(map(str, command[:5]))} ... ended with status {result.returncode}.")
    return result.stdout


# --- the data set -----------------------------------------------------------------------------------------------------


def make_data(options: argparse.Namespace, data: pathlib.Path) -> int:
    """Builds the data set; gives the size of its vocabulary."""
    sources = [part for text in options.text for part in ("--source", text)]
    build = [*sources, "--vocab", options.vocab, "--out", data, "--validation-fraction", 0.05]
    run(sys.executable, "-m", "pretrain_data", "build", *build)
    return int(json.loads((data / "manifest.json").read_text(encoding="utf-8"))["vocabulary"]["size"])


def glance(data: pathlib.Path, vocabulary: int) -> list[str]:
    """Trains for a moment, which makes the packing plans; gives the distributions that were loaded meanwhile."""
    with tempfile.TemporaryDirectory() as workdir:
        fields = GLANCE | {"data.path": data.resolve(), "model.vocab_size": vocabulary}
        flags = ["--config=configs/base.py", f"--workdir={workdir}/run"]
        flags += [f"--config.{name}={value}" for name, value in fields.items()]
        report = pathlib.Path(workdir) / "loaded.json"
        run(sys.executable, __file__, "loaded", report, *flags)
        return list(json.loads(report.read_text(encoding="utf-8")))


def training_rows(data: pathlib.Path) -> int:
    """Rows of the training split, which is the larger of the two that are planned."""
    return max(len(np.load(file, mmap_mode="r")) for file in data.glob("plans/*/row_examples.npy"))


def report_loaded(report: str, arguments: list[str]) -> None:
    """Runs train.py in this process and writes the names of the distributions that own the modules then loaded."""
    sys.argv = ["train.py", *arguments]
    sys.path.insert(0, str(ROOT))
    try:
        runpy.run_path("train.py", run_name="__main__")
    finally:
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        loaded = {
            distribution.metadata["Name"]
            for distribution in importlib.metadata.distributions()
            if any(str(distribution.locate_file(file)) in files for file in distribution.files or [])
        }
        pathlib.Path(report).write_text(json.dumps(sorted(loaded)), encoding="utf-8")


# --- the packages -----------------------------------------------------------------------------------------------------


def is_native(distribution: importlib.metadata.Distribution) -> bool:
    """Whether it has compiled code, which fits one Python version."""
    return any(file.suffix in (".so", ".pyd") for file in distribution.files or [])


def copy(distribution: importlib.metadata.Distribution, site: pathlib.Path) -> None:
    """Copies an installed distribution, without its scripts and bytecode."""
    for file in distribution.files or []:
        source = pathlib.Path(str(distribution.locate_file(file)))
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def pip_flags(version: str, site: pathlib.Path) -> list[str]:
    """Flags by which `pip install` puts wheels for a Python version, on this kind of machine, into a directory."""
    machine = platform.machine()
    # pip takes each of these names literally, so all that a recent Linux can load are named.
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(39, 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1")]
    flags = [part for name in platforms for part in ("--platform", name)]
    flags += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    # `pip install` compares Requires-Python with the Python that it runs under, whatever it installs for.
    return ["--quiet", "--no-compile", "--ignore-requires-python", "--target", str(site), *flags]


def fitting(jax: str, version: str, site: pathlib.Path) -> dict[str, str]:
    """The newest versions of `BUILT_ON_JAX` that this project and a version of JAX allow, as pip finds them."""
    ours = importlib.metadata.requires("albert_jax") or []
    ranges = [r for r in ours if canonical(re.split(r"[^\w.-]", r)[0]) in BUILT_ON_JAX]
    resolve = ["--dry-run", "--report", "-", *pip_flags(version, site)]
    report = json.loads(run(sys.executable, "-m", "pip", "install", *resolve, f"jax=={jax}", *ranges))
    found = {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    return {name: found[name] for name in BUILT_ON_JAX}


def bring(names: Iterable[str], version: str, jax: str, site: pathlib.Path) -> list[str]:
    """Puts distributions into `site`.

    Args:
      names: of distributions; those that `LEFT_OUT` names are left out.
      version: of the other machine's Python, as '3.12'.
      jax: the version of JAX there.
      site: a directory, which is made.

    Returns:
      What is there, as 'name==version'.
    """
    wanted = {canonical(n): importlib.metadata.distribution(n) for n in names}
    wanted = {name: found for name, found in wanted.items() if not LEFT_OUT.fullmatch(name)}
    versions = {name: distribution.version for name, distribution in wanted.items()}
    if jax != OWN_JAX:
        versions |= fitting(jax, version, site)
    fetched = {
        name
        for name, distribution in wanted.items()
        if versions[name] != distribution.version or (version != OWN_VERSION and is_native(distribution))
    }
    site.mkdir(exist_ok=True)
    if fetched:  # first, because pip passes over what it has to put into a directory that is there, such as google/
        requirements = [f"{name}=={versions[name]}" for name in sorted(fetched)]
        run(sys.executable, "-m", "pip", "install", "--no-deps", *pip_flags(version, site), *requirements)
    for name in wanted.keys() - fetched:
        copy(wanted[name], site)
    return [f"{name}=={versions[name]}" for name in wanted]


def main() -> None:
    """Fills the folder."""
    if sys.argv[1:2] == ["loaded"]:
        report_loaded(sys.argv[2], sys.argv[3:])
        return
    options = parse()
    folder, version, jax = options.folder, options.python_version, options.jax
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty; name a new folder.")
    if not re.fullmatch(r"3\.\d+", version):
        sys.exit(f"error: --python-version {version!r} is no version like 3.12.")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = make_data(options, folder / "data")
    loaded = glance(folder / "data", vocabulary)
    packages = [] if options.without_packages else bring(loaded, version, jax, folder / "site")
    rows = training_rows(folder / "data")
    prepared = {"python_version": version, "jax": jax, "vocabulary": vocabulary, "rows": rows, "packages": packages}
    (folder / "prepared.json").write_text(json.dumps(prepared, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:,.0f} MB, {len(packages)} packages for Python {version} and JAX {jax}.")
    if rows < ENOUGH:
        print(f"note: {rows} rows of 512 slots are enough for a rehearsal only; the real run takes {ENOUGH}.")


if __name__ == "__main__":
    main()
