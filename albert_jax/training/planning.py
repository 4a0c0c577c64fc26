# SPDX-License-Identifier: Apache-2.0
"""What a step needs and how long it takes, on a machine that need not be here: by the compiler or by formulas.

For TPUs that are not here the package libtpu compiles the very step that a run would take. Memory, FLOPs and
collectives are read from the compiled program; times are estimates.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import time
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import OutOfMemoryError, UserError
from albert_jax.model.attention import choose_attention
from albert_jax.training import program
from albert_jax.training.chips import Cards, Chip, Slice, chip_of, machine_of
from albert_jax.training.costs import flops_of_row, utilization
from albert_jax.training.fitting import (
    TooLarge,
    compile_within,
    device_memory,
    expected_fit,
    fit,
    fits,
    gigabytes,
    remedy,
    rows_that_fit,
)
from albert_jax.training.legs import lower_step
from albert_jax.training.sharding import Split, make_mesh, mesh_shape, row_shards
from albert_jax.training.step import DTYPES

# How far expected_memory is from what the TPU compiler plans for the four sizes on six slices: -1 % to +9 %.
FORMULA_ERROR = 0.1


# --- compiling for TPUs that are not here -----------------------------------------------------------------------------


class Figures(NamedTuple):
    """What a compiled step says of itself, for one device, which is a chip; bytes and seconds.

    Attributes:
      arguments, results, reused, temporaries, code: memory; `reused` of the arguments becomes results.
      flops, traffic: of a step, see `Program`.
      at_best: seconds of a step by the roofline of each operation, without collectives.
      cycles: that the compiler expects of a step, without collectives.
      collectives: kind, bytes, devices that take part, and how often each loop around it runs.
      wall, cpu: seconds that compiling took, and the processor's in all threads.
    """

    arguments: float
    results: float
    reused: float
    temporaries: float
    code: float
    flops: float
    traffic: float
    at_best: float
    cycles: float
    collectives: list[tuple[str, float, int, tuple[int, ...]]]
    wall: float
    cpu: float

    @property
    def memory(self) -> float:
        """Bytes of high-bandwidth memory while a step runs."""
        return self.arguments + self.results - self.reused + self.temporaries + self.code

    @property
    def reduced(self) -> float:
        """Bytes that are summed over devices in a step."""
        return sum(b * math.prod(loops) for kind, b, _, loops in self.collectives if kind in program.REDUCTIONS)

    @property
    def in_loops(self) -> float:
        """Bytes of all collectives that stand in a loop, each counted as often as it runs."""
        return sum(b * math.prod(loops) for _, b, _, loops in self.collectives if loops)


def topology_devices(chips: Slice) -> list[Any]:
    """The devices of a slice that is not there, one a chip.

    Raises:
      UserError: where libtpu is missing or does not know the shape.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs the package libtpu; pip install -e '.[tpu]' in the checkout.")
    # libtpu asks what machine it is on, in vain; what it is told here does not change what it compiles.
    told = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in ({"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"} | told).items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if chips.chip.cores > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=chips.topology, **options)
    except Exception as e:
        raise UserError(
            f"libtpu has no topology {chips.topology} ({str(e).splitlines()[0]}); name another slice."
        ) from e
    return list(found.devices)


def compile_figures(lowered: jax.stages.Lowered, parts: int, chip: Chip) -> Figures | TooLarge:
    """Compiles a step for TPUs and reads the program.

    Args:
      lowered: the step.
      parts: its micro-batches: how often a loop runs whose number the program does not hold, as a growing batch has it.
      chip: what it is compiled for.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    compiled = compile_within(lowered)
    if isinstance(compiled, TooLarge):
        return compiled
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    read = program.read_program(compiled.program.as_text(), unknown_trips=parts)
    memory = compiled.program.memory_analysis()
    seconds = [max(o.flops / chip.peak, o.traffic / chip.bandwidth) * o.times for o in read.operations]
    return Figures(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        reused=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=read.flops,
        traffic=read.traffic,
        at_best=sum(seconds),
        cycles=sum(o.cycles * o.times for o in read.operations if not o.collectives),
        collectives=[(c.kind, c.bytes, c.group, loops) for c, loops in read.collectives],
        wall=wall,
        cpu=cpu,
    )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Without JAX's cache of programs: times are measured, and a program for absent TPUs cannot be read back."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def versions() -> str:
    """Of what decides what is compiled."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


# --- how long a step takes --------------------------------------------------------------------------------------------


def exchange_seconds(figures: Figures, chips: Slice) -> float:
    """Time of all collectives by the bandwidth of the links; those of some chips only have one axis' links."""
    seconds = 0.0
    for kind, size, group, loops in figures.collectives:
        whole = group in (0, chips.chips)
        rate = chips.link_bandwidth if whole else 2 * chips.chip.link
        rounds = 2 if kind == "all-reduce" else 1  # a sum is a reduce-scatter and an all-gather
        count = group or chips.chips
        seconds += rounds * size * (count - 1) / max(count, 1) / rate * math.prod(loops) if rate else 0.0
    return seconds


def step_seconds(figures: Figures, chips: Slice) -> dict[str, float]:
    """Estimates of a step's time, in seconds, see docs/scaling.md for their assumptions."""
    links = exchange_seconds(figures, chips)
    return {
        "products alone": figures.flops / chips.chip.peak,
        "memory alone": figures.traffic / chips.chip.bandwidth,
        "links alone": links,
        "at best": figures.at_best + links,
        "compiler": figures.cycles / chips.chip.clock + links,
    }


# --- machines ---------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a step is planned for.

    Attributes:
      name: for a reader.
      size: devices.
      memory: bytes of each.
      chip: what they are, or None where that is not known.
      chips: them as TPUs on a torus, or None.
      devices: what JAX compiles for, or None where formulas have to do.
    """

    name: str
    size: int
    memory: float
    chip: Chip | None
    chips: Slice | None
    devices: list[Any] | None


def this_machine() -> Machine:
    """The one that this runs on."""
    devices = jax.devices()
    kind, chip = devices[0].device_kind, chip_of(devices[0].device_kind)
    chips = slice_of_devices(devices) if chip and chip.links else None
    return Machine(f"{len(devices)} x {kind}", len(devices), device_memory(devices[0]), chip, chips, devices)


def machine_named(name: str) -> Machine:
    """One that need not be here.

    Raises:
      UserError: where there is none of that name, or libtpu does not know its shape.
    """
    found = machine_of(name)
    chip = found.chip
    if isinstance(found, Cards):
        return Machine(f"{found.chips} x {chip.name}", found.chips, chip.memory, chip, None, None)
    devices = topology_devices(found) if importlib.util.find_spec("libtpu") else None
    return Machine(
        f"{found.chips} x {chip.name} ({found.name}, {found.topology})", found.chips, chip.memory, chip, found, devices
    )


def slice_of_devices(devices: list[Any]) -> Slice:
    """The torus of TPUs, from their coordinates."""
    chip = chip_of(devices[0].device_kind)
    assert chip is not None
    axes = [[device.coords[axis] for device in devices] for axis in range(chip.links // 2)]
    return Slice(chip, tuple(max(axis) - min(axis) + 1 for axis in axes))


# --- plans ------------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What a step is expected to need and take.

    Attributes:
      split: the layout of a batch.
      memory: bytes of a device.
      seconds: of a step, or None where nothing is known.
      memory_by, seconds_by: what says so, in words; `bound` where the time is the least that it can be.
    """

    split: Split
    memory: float
    memory_by: str
    seconds: float | None
    seconds_by: str
    bound: bool = False


def plan_step(config: ml_collections.ConfigDict, machine: Machine, rows: int) -> Plan:
    """Plans a step of `rows` rows on a machine.

    Raises:
      OutOfMemoryError: where it does not fit.
      UserError: where the config's mesh does not fit the devices.
    """
    if machine.devices is None:
        return _by_formula(config, machine, rows)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, machine.devices)
    chip, shards = machine.chip, row_shards(mesh)
    if machine.chips is None or chip is None:
        split, compiled = fit(
            config, shards, rows, machine.memory, lambda split: compile_within(lower_step(config, mesh, split))
        )
        told = _seconds(config, split, mesh.size, chip)
        return Plan(split, compiled.memory, "by the compiler's plan", *told)

    def compiler(split: Split) -> Figures | TooLarge:
        with without_cache():
            return compile_figures(lower_step(config, mesh, split), split.parts, chip)

    split, figures = fit(config, shards, rows, machine.memory, compiler)
    seconds = step_seconds(figures, machine.chips)["compiler"]
    return Plan(split, figures.memory, "by the compiler's plan", seconds, "by the compiler's cycles")


def _by_formula(config: ml_collections.ConfigDict, machine: Machine, rows: int) -> Plan:
    data, fsdp, tensor = mesh_shape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, machine.size)
    config = with_attention(config, machine)
    split, memory = expected_fit(config, data * fsdp, rows, machine.memory)
    given = config.batch.rows_per_device
    if not (memory <= machine.memory if given else fits(memory, machine.memory)):
        fewer = rows_that_fit(config, data * fsdp, rows, machine.memory)
        raise OutOfMemoryError(
            f"by a formula, a step that takes {split.each} rows a device at a time needs {gigabytes(memory)}, and a "
            f"device has {gigabytes(machine.memory)}; {remedy(config, split, fewer)}."
        )
    by = f"by a formula that is within {FORMULA_ERROR:.0%} of the TPU compiler's plans"
    if machine.chip and not machine.chips:
        by += f" and untried on {machine.chip.name}, with the attention {config.attention}"
    else:
        by += "; install libtpu for those"
    return Plan(split, memory, by, *_seconds(config, split, data * fsdp * tensor, machine.chip))


def with_attention(config: ml_collections.ConfigDict, machine: Machine) -> ml_collections.ConfigDict:
    """The config with the attention that it means on a machine that is not here."""
    kind = "tpu" if machine.chips else "gpu"
    assert machine.chip is not None
    # All GPUs that have names here are of Ampere or later.
    device: Any = types.SimpleNamespace(platform=kind, device_kind=machine.chip.name, compute_capability="8.0")
    model, dtype = AlbertConfig.from_dict(config.model.to_dict()), DTYPES[config.dtype]
    meant = config.copy_and_resolve_references()
    meant.attention, _ = choose_attention(config.attention, model, dtype, device, config.data.sequence_length)
    return meant


def _seconds(
    config: ml_collections.ConfigDict, split: Split, devices: int, chip: Chip | None
) -> tuple[float | None, str, bool]:
    """How long a step takes, what says so, and whether it is a lower bound."""
    if chip is None:
        return None, "nothing is known of this device's speed", False
    row = flops_of_row(config) / (devices * chip.peak)
    share = utilization(config, chip)
    if share is not None:
        return split.rows * row / share, f"at {share:.0%} of the peak, as docs/scaling.md has it of {chip.name}", False
    return split.held * row, f"if the peak of {chip.name} were reached", True
