#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compiles the step of train.py for a TPU slice that is not there, and prints what it will need and do.

    python scripts/compile_for_tpu.py --config=configs/xxlarge.py --topology=v5p-128 --fit
    python scripts/compile_for_tpu.py --config=configs/base.py --topology=v5e:4x4 --config.batch.rows_per_device=32
    python scripts/compile_for_tpu.py --config=configs/base.py --topology=8xH100 --fit     # GPUs: by a formula
    python scripts/compile_for_tpu.py --table       # all sizes and slices, into docs/scaling.md; costs, into configs/

Needs no TPU, only the package libtpu (`pip install -e '.[tpu]'`) and a CPU. A batch that the config gives in
examples is taken as that many rows, which is the most that it can be. What it says of memory, FLOPs and collectives is
read from the compiled program; what it says of time is an estimate. Exit status: 0 it fits, 1 it does not, 71
nothing does, 2 a bad input, named on standard error.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from albert_jax.config import AlbertConfig
from albert_jax.errors import OutOfMemoryError, UserError
from albert_jax.model.encoder import REMATERIALISATIONS
from albert_jax.training import costs, fitting, program
from albert_jax.training.chips import Cards, Slice, machine_of, slice_of
from albert_jax.training.fitting import TooLarge, expected_fit, gigabytes, told
from albert_jax.training.legs import lower_step
from albert_jax.training.planning import (
    Figures,
    Machine,
    Plan,
    compile_figures,
    machine_named,
    plan_step,
    step_seconds,
    topology_devices,
    versions,
    without_cache,
)
from albert_jax.training.recipe import read_overrides
from albert_jax.training.sharding import Split, make_mesh, mesh_shape

SIZES = ("base", "large", "xlarge", "xxlarge")
SLICES = ("v4-8", "v4-128", "v5e-16", "v5e-256", "v5p-128", "v6e-256")
ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
COSTS = ROOT / "albert_jax" / "training" / "costs.py"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
ASSUMPTIONS = """\
Assumptions: bf16 peak, memory and link rates of albert_jax/training/chips.py. "At best" is a roofline of each
operation: the longer of its products at peak and its memory traffic at full bandwidth, one operation after another,
every operand read once and every result written once, tiles not padded; what stays in the chip's own memory costs
nothing. Sums over chips go over all links at once, over both directions where an axis is a ring (v4, v5p: from 4 chips;
v5e, v6e: 16), and hide behind nothing. "Compiler" adds up the cycles that the TPU compiler expects of each operation at
the chip's clock, with the same sums over chips. No input, no host, no latency of links is counted.
"""


# --- compiling --------------------------------------------------------------------------------------------------------

Compile = Callable[[ml_collections.ConfigDict, Slice, Split], Figures | TooLarge]


def lower(config: ml_collections.ConfigDict, chips: Slice, split: Split) -> Any:
    """The step of train.py for a slice that is not there: JAX's `Lowered`."""
    devices = topology_devices(chips)
    return lower_step(config, make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices), split)


def compile_step(config: ml_collections.ConfigDict, chips: Slice, split: Split) -> Figures | TooLarge:
    """Compiles the step."""
    with without_cache():
        return compile_figures(lower(config, chips, split), split.parts, chips.chip)


class Compiler:
    """Compiles, and keeps the figures in a directory under a digest of all that they depend on."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, config: ml_collections.ConfigDict, chips: Slice, split: Split) -> Figures | TooLarge:
        """As `compile_step`."""
        lowered = lower(config, chips, split)
        reader = pathlib.Path(program.__file__).read_bytes() + inspect.getsource(compile_figures).encode()
        parts = (lowered.as_text().encode(), chips.topology.encode(), versions().encode(), reader)
        file = self.directory / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:32]}.json"
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            return TooLarge(**kept) if len(kept) == 1 else Figures(**kept)
        with without_cache():
            figures = compile_figures(lowered, split.parts, chips.chip)
        file.write_text(json.dumps(figures._asdict()), encoding="utf-8")
        return figures


# --- what fits --------------------------------------------------------------------------------------------------------


def shards_of(config: ml_collections.ConfigDict, machine: Slice | Cards) -> int:
    """Over how many shards the config's mesh splits rows there."""
    data, fsdp, _ = mesh_shape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, machine.chips)
    return data * fsdp


Found = TypeVar("Found")


def least_remat(
    config: ml_collections.ConfigDict, machine: str, search: Callable[[ml_collections.ConfigDict], Found]
) -> tuple[ml_collections.ConfigDict, Found]:
    """The least recomputation, from the config's on, with which a search for rows a device finds some that fit.

    Args:
      config: the run's; it is left as it is.
      machine: its name.
      search: raises OutOfMemoryError where nothing fits.

    Returns:
      The config with `remat` set, and what was found.

    Raises:
      OutOfMemoryError: where nothing fits.
    """
    for remat in reversed(REMATERIALISATIONS[: REMATERIALISATIONS.index(config.remat) + 1]):
        candidate = config.copy_and_resolve_references()
        candidate.remat, candidate.batch.rows_per_device = remat, 0
        with contextlib.suppress(OutOfMemoryError):
            return candidate, search(candidate)
    raise OutOfMemoryError(
        f"nothing fits {machine}: not even one row a device at a time with remat {REMATERIALISATIONS[0]!r}; split "
        "the model by --config.mesh.fsdp or --config.mesh.tensor."
    )


def fit(
    config: ml_collections.ConfigDict, chips: Slice, rows: int, compiler: Compile = compile_step
) -> tuple[ml_collections.ConfigDict, Split, Figures]:
    """The least recomputation with which any number of rows a chip fits by the compiler's plan, and that number.

    Returns:
      The config with `remat` and `batch.rows_per_device` set, the layout of a batch, and its figures.

    Raises:
      OutOfMemoryError: where nothing fits.
    """
    shards, memory = shards_of(config, chips), chips.chip.memory
    config, (split, figures) = least_remat(
        config, chips.name, lambda c: fitting.fit(c, shards, rows, memory, functools.partial(compiler, c, chips))
    )
    config.batch.rows_per_device = split.each
    return config, split, figures


# --- what is printed --------------------------------------------------------------------------------------------------


def report(config: ml_collections.ConfigDict, chips: Slice, split: Split, figures: Figures | TooLarge) -> str:
    """All figures of one step, for a terminal."""
    rows = split.rows
    head = f"{rows:,} rows of {config.data.sequence_length} on {described(chips)}, one device a chip; {versions()}"
    flags_ = f"--config.batch.rows_per_device={split.each} --config.remat={config.remat}: {in_words(split)}"
    room = fitting.FILL * chips.chip.memory
    if isinstance(figures, TooLarge):
        needs = f"the compiler would need {gigabytes(figures.memory)} of {gigabytes(chips.chip.memory)}"
        return f"{head}\nwith {flags_}\nmemory       DOES NOT FIT: {needs}; --fit finds what fits"
    verdict = "fits in" if fitting.fits(figures.memory, chips.chip.memory) else "DOES NOT FIT in"
    count, wanted = parameters(config), formula(config, chips, rows)
    mfu = wanted / chips.chip.peak
    estimates = step_seconds(figures, chips)
    lines = [
        head,
        f"with {flags_}",
        f"memory       {verdict} {gigabytes(room)}, {fitting.FILL:.0%} of a chip: {gigabytes(figures.memory)} a device "
        f"({figures.memory / chips.chip.memory:.0%})",
        f"             arguments {gigabytes(figures.arguments)}, of which {gigabytes(figures.reused)} become the "
        f"results of {gigabytes(figures.results)}; temporaries {gigabytes(figures.temporaries)}; program "
        f"{gigabytes(figures.code)}",
        f"FLOPs        {figures.flops:.4g} a device, {figures.flops / wanted:.4f} x the formula's",
        f"collectives  {figures.reduced / 1e6:,.1f} MB are summed over devices, "
        f"{figures.reduced / (4 * count):.4f} x 4 bytes x {count:,} parameters; "
        f"{figures.in_loops / 1e6:,.1f} MB are exchanged inside loops",
        *(f"             {line}" for line in _collective_lines(figures)),
        f"compile time {figures.wall:.1f} s, {figures.cpu:.1f} s of processor time",
        "step time    an ESTIMATE, not a measurement:",
        *(
            f"             {name:<15}{1e3 * t:10,.1f} ms" + ("" if "alone" in name else f", MFU {mfu / t:.0%}")
            for name, t in estimates.items()
        ),
        ASSUMPTIONS,
    ]
    return "\n".join(lines)


def in_words(split: Split) -> str:
    """The layout of a batch."""
    empty = f", {1 - split.rows / split.held:.1%} of them empty" if split.held > split.rows else ""
    return f"{told(split)} a chip{empty}"


def formula(config: ml_collections.ConfigDict, chips: Slice, rows: int) -> float:
    """FLOPs of a step on one device, as MFU counts them."""
    return rows * costs.flops_of_row(config) / chips.chips


def parameters(config: ml_collections.ConfigDict) -> int:
    """How many the model has."""
    return AlbertConfig.from_dict(config.model.to_dict()).pretraining_parameters()


def report_by_formula(config: ml_collections.ConfigDict, machine: Machine, plan: Plan) -> str:
    """What a formula says of a step, for a terminal."""
    split, slots, seconds = plan.split, config.data.sequence_length, plan.seconds or 0.0
    needs, room = f"{gigabytes(plan.memory)} a device", f"{fitting.FILL:.0%} of {gigabytes(machine.memory)}"
    lines = [
        f"{split.rows:,} rows of {slots} on {machine.name}",
        f"with --config.batch.rows_per_device={split.each} --config.remat={config.remat}: {in_words(split)}",
        f"memory       fits in {room}: {needs}, {plan.memory_by}",
        f"step time    at least {1e3 * seconds:,.1f} ms, {plan.seconds_by}",
    ]
    return "\n".join(lines)


def described(chips: Slice) -> str:
    """Name, chips and cores of a slice."""
    return f"{chips.name} ({chips.topology}): {chips.chips} chips, {chips.cores} cores"


def _collective_lines(figures: Figures) -> list[str]:
    """A line for each kind, group and place of collectives."""
    kinds: dict[tuple[str, int, tuple[int, ...]], list[float]] = {}
    for kind, size, group, loops in figures.collectives:
        kinds.setdefault((kind, group, tuple(loops)), []).append(size)
    return [
        f"{len(sizes)} {kind} over {group or 'all'} devices, {sum(sizes) / 1e6:,.3f} MB, "
        + (f"in a loop that runs {' x '.join(map(str, loops))} times" if loops else "in no loop")
        for (kind, group, loops), sizes in kinds.items()
    ]


# --- the table --------------------------------------------------------------------------------------------------------

_COLUMNS = (
    *("size", "slice", "chips (cores)", "micro-batches x rows a chip", "remat", "GB a chip", "FLOPs : formula"),
    *("reduced : 4 x parameters", "in loops", "compile, s of CPU", "step at best, s", "MFU at best", "MFU, compiler"),
)


def write_table(sizes: tuple[str, ...], slices: tuple[str, ...], compiler: Compiler) -> None:
    """Compiles every cell and writes the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise UserError(f"{PAGE} must hold {BEGIN} and {END}, once each.")
    rows = []
    for size in sizes:
        for name in slices:
            rows.append(table_row(size, slice_of(name), compiler))
            print(rows[-1], flush=True)
    header = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"
    text = f"{BEGIN}\n{versions()}.\n\n{header}\n" + "\n".join(rows) + f"\n\n{ASSUMPTIONS}{END}"
    PAGE.write_text(page[: page.index(BEGIN)] + text + page[page.index(END) + len(END) :], encoding="utf-8")


def write_costs(sizes: tuple[str, ...]) -> None:
    """Brings what the page's table expects of a step into `costs.UTILIZATION`, and what that makes into the recipes."""
    found: dict[str, dict[str, float]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(_COLUMNS) and cells[0] in sizes:
            of_size, chip = found.setdefault(cells[0], {}), slice_of(cells[1]).chip.name
            of_size[chip] = min(of_size.get(chip, 1.0), int(cells[-1].removesuffix("%")) / 100)
    costs.UTILIZATION.update(found)
    rows = [
        f'    "{size}": {{{", ".join(f"{chip!r}: {share:.2f}" for chip, share in of.items())}}},'.replace("'", '"')
        for size, of in costs.UTILIZATION.items()
    ]
    _replace(COSTS, r"(# the table begins\n).*?(\n}  # the table ends)", "\n".join(rows))
    for size in sizes:
        config = importlib.import_module(f"configs.{size}").get_config()
        _replace(ROOT / "configs" / f"{size}.py", r"(\nCost:   )[^\n]*(\n)", costs.cost(config))


def _replace(file: pathlib.Path, around: str, text: str) -> None:
    """Puts a text between the two groups of a regular expression that the file must match once."""
    before = file.read_text(encoding="utf-8")
    after, count = re.subn(around, lambda match: match[1] + text + match[2], before, flags=re.DOTALL)
    if count != 1:
        raise UserError(f"{file} must match {around!r} once, not {count} times.")
    file.write_text(after, encoding="utf-8")


def table_row(size: str, chips: Slice, compiler: Compile) -> str:
    """One cell of the table, as a row of Markdown."""
    recipe = importlib.import_module(f"configs.{size}").get_config()
    rows = recipe.batch.size
    config, split, figures = fit(recipe, chips, rows, compiler)
    flops, estimates = formula(config, chips, rows), step_seconds(figures, chips)
    cells = (
        *(size, chips.name, f"{chips.chips} ({chips.cores})", f"{split.parts} x {split.each}", config.remat),
        f"{figures.memory / 1e9:.1f} of {chips.chip.memory / 1e9:.0f}",
        f"{figures.flops / flops:.3f}",
        f"{figures.reduced / (4 * parameters(config)):.4f}",
        f"{figures.in_loops:.0f} bytes",
        f"{figures.cpu:.0f}",
        f"{estimates['at best']:.3g}",
        *(f"{flops / chips.chip.peak / estimates[name]:.0%}" for name in ("at best", "compiler")),
    )
    return f"| {' | '.join(cells)} |"


# --- the command line -------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> flags.FlagValues:
    """Parses the flags and makes every mistake in them a UserError."""
    arguments = [*arguments[:1], *read_overrides(arguments[1:])]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", help_string="the recipe, e.g. configs/base.py", flag_values=values)
    text = "the slice, e.g. v4-128 (64 chips) or, by its shape, v5p:4x4x4"
    flags.DEFINE_string("topology", "", text, flag_values=values)
    flags.DEFINE_bool("fit", False, "search the remat and the rows a chip takes at a time that fit", flag_values=values)
    text = "compile with this many layers as well, and compare the times"
    flags.DEFINE_integer("compare_layers", 0, text, lower_bound=0, flag_values=values)
    text = f"compile every size for every slice, into {PAGE.relative_to(ROOT)}"
    flags.DEFINE_bool("table", False, text, flag_values=values)
    text = "where --table keeps what it has compiled, so that it can go on after an interruption"
    flags.DEFINE_string("kept", str(ROOT / "runs" / "compiled_for_tpu"), text, flag_values=values)
    if {"-h", "--help"} & {*arguments[1:]}:
        print(__doc__, values.get_help(), sep="\n")
        sys.exit(0)
    try:
        rest = values(arguments)
        config = values.config and values.config.lock()
    except (flags.Error, OSError) as e:
        raise UserError(str(e).strip().splitlines()[-1].split("UserError: ")[-1].strip()) from e
    except (AttributeError, ImportError, SyntaxError, TypeError) as e:
        raise UserError(f"--config cannot be loaded ({type(e).__name__}: {e}); give a file as in configs/.") from e
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag; every setting is given as --name=value.")
    if values.table == bool(config) or bool(values.topology) != bool(config):
        raise UserError("give either --config=configs/NAME.py and --topology=SLICE, or --table.")
    return values


def compare_layers(config: ml_collections.ConfigDict, chips: Slice, split: Split, layers: int) -> str:
    """Compile time with another depth, each compiled twice in turns; the shorter times count."""
    other = config.copy_and_resolve_references()
    other.model.num_hidden_layers = layers
    both, words, times = {c.model.num_hidden_layers: c for c in (config, other)}, [], []
    found = [{depth: compile_step(c, chips, split) for depth, c in both.items()} for _ in range(2)]
    for depth in both:
        done = [figures for figures in (turn[depth] for turn in found) if isinstance(figures, Figures)]
        if not done:
            raise UserError(f"{depth} layers do not fit {chips.name}; lower batch.rows_per_device.")
        times.append((min(figures.wall for figures in done), min(figures.cpu for figures in done)))
        words.append(f"at {depth} layers {times[-1][0]:.1f} s, {times[-1][1]:.1f} s of processor time")
    ratios = [after / before for before, after in zip(times[0], times[-1], strict=True)]
    return f"compiles     {'; '.join(words)}: {ratios[0]:.2f} x, {ratios[1]:.2f} x"


def main(arguments: list[str]) -> int:
    """Does what the flags say and returns the exit status."""
    values = parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # the slice need not be there, and a TPU that is there is left to others
    if values.table:
        write_table(SIZES, SLICES, Compiler(pathlib.Path(values.kept)))
        write_costs(SIZES)
        return 0
    config, chips, rows = values.config, machine_of(values.topology), values.config.batch.size
    if isinstance(chips, Cards):
        if not values.fit or values.compare_layers:
            raise UserError(
                f"for {chips.name} nothing can be compiled here; pass --fit alone, which says by a formula what fits."
            )
        machine = machine_named(values.topology)
        config, plan = least_remat(config, chips.name, lambda c: plan_step(c, machine, rows))
        print(report_by_formula(config, machine, plan))
        return 0
    figures: Figures | TooLarge
    if values.fit:
        config, split, figures = fit(config, chips, rows)
    else:
        split = expected_fit(config, shards_of(config, chips), rows, chips.chip.memory).split
        figures = compile_step(config, chips, split)
    print(report(config, chips, split, figures))
    if values.compare_layers:
        print(compare_layers(config, chips, split, values.compare_layers))
    return 0 if fitting.fits(figures.memory, chips.chip.memory) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # recipes import each other as configs.NAME
    try:
        sys.exit(main(sys.argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
