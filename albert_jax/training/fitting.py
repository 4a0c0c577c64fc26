# SPDX-License-Identifier: Apache-2.0
"""How many rows a device takes at a time: as many as its memory holds, by a formula first, then by the compiler's plan.

The decision depends on the config, the rows, the devices' total memory and the compiler, never on what happens to be
free: a run that is started again decides the same.
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import OutOfMemoryError, is_exhaustion
from albert_jax.model.encoder import REMATERIALISATIONS
from albert_jax.training.chips import chip_of
from albert_jax.training.sharding import Split, split_rows

FILL = 0.9  # the share of a device's memory that may be planned for


# --- by formula -------------------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What the formula expects of a step: the layout of its batch, and bytes of memory on a device."""

    split: Split
    memory: float


def expected_memory(config: ml_collections.ConfigDict, shards: int, rows_per_device: int) -> float:
    """Bytes that a step needs on a device, within 10 % of what the TPU compiler plans for the published sizes.

    Args:
      config: the run's; an `attention` of 'auto' is counted as 'xla', which needs more.
      shards: over how many shards its mesh splits rows.
      rows_per_device: rows that a device takes at a time.
    """
    model, slots = AlbertConfig.from_dict(config.model.to_dict()), config.data.sequence_length
    tensor = max(1, config.mesh.tensor)
    fsdp = config.mesh.fsdp if config.mesh.fsdp > 0 else max(1, shards // config.mesh.data)
    width = 2 if config.dtype == "bfloat16" else 4
    scores = 0.0 if config.attention == "cudnn" else 4 * model.num_attention_heads * slots**2 / tensor
    layer_input, products = slots * model.hidden_size * width, slots * model.intermediate_size * width / tensor
    kept = {
        "nothing_saveable": layer_input,
        "dots_with_no_batch_dims_saveable": 6 * layer_input + products,
        "dots_saveable": 7 * layer_input + products + scores,
        "everything_saveable": 20 * layer_input + 6 * products + 3 * scores,
    }[config.remat]
    layers = model.num_hidden_layers * model.inner_group_num
    row = 1.15 * layers * kept + 2 * scores + 8 * config.masking.slots * model.vocab_size
    parameters = model.pretraining_parameters() / tensor
    moments = parameters / fsdp / (shards // fsdp if config.mesh.shard_optimizer else 1)
    # Parameters and two moments are held; gathered parameters, their gradients, sums and updates come and go.
    return 4 * parameters / fsdp + 8 * moments + 16 * parameters + row * rows_per_device


def expected_fit(config: ml_collections.ConfigDict, shards: int, rows: int, memory: float) -> Expected:
    """The fewest micro-batches that fit by the formula; where not even single rows do, single rows.

    Args:
      config: the run's; `batch.rows_per_device` is taken where it is given.
      shards: over how many shards its mesh splits rows.
      rows: of a batch.
      memory: bytes of a device.
    """
    none, one = (expected_memory(config, shards, n) for n in (0, 1))
    most = config.batch.rows_per_device or max(1, min(rows, int((FILL * memory - none) / (one - none))))
    split = split_rows(rows, shards, most)
    return Expected(split, expected_memory(config, shards, split.each))


def rows_that_fit(config: ml_collections.ConfigDict, shards: int, rows: int, memory: float) -> int | None:
    """How many rows a device can take at a time by the formula, whatever the config gives; None where not even one."""
    free = config.copy_and_resolve_references()
    free.batch.rows_per_device = 0
    split, needs = expected_fit(free, shards, rows, memory)
    return split.each if fits(needs, memory) else None


def device_memory(device: Any) -> float:
    """Bytes of a device's memory, in all: as JAX states them, else by its name, else a share of the machine's."""
    stated = (device.memory_stats() or {}).get("bytes_limit")
    if stated:
        return float(stated)
    if chip := chip_of(device.device_kind):
        return chip.memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()


# --- by the compiler --------------------------------------------------------------------------------------------------


class Compiled(NamedTuple):
    """A compiled program, and the bytes of a device's memory that it is planned to need."""

    program: Any
    memory: float


class TooLarge(NamedTuple):
    """What the compiler refused: bytes of temporaries, or of everything, that it would need; infinite if untold."""

    memory: float


def compile_within(lowered: jax.stages.Lowered) -> Compiled | TooLarge:
    """Compiles a program."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if not is_exhaustion(e):
            raise
        needs = re.search(r"(?:\(|[Uu]sed )([\d.]+)([KMGT])", str(e))
        return TooLarge(float(needs[1]) * 1024 ** ("KMGT".index(needs[2]) + 1) if needs else math.inf)
    m: Any = program.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return Compiled(program, held + m.temp_size_in_bytes + m.generated_code_size_in_bytes)


def fits(memory: float, of: float) -> bool:
    """Whether bytes leave the rest of `FILL` free, of so many."""
    return memory <= FILL * of


_Figures = TypeVar("_Figures")  # has `memory`, as `Compiled`


def fit(
    config: ml_collections.ConfigDict,
    shards: int,
    rows: int,
    memory: float,
    compiler: Callable[[Split], _Figures | TooLarge],
) -> tuple[Split, _Figures]:
    """The layout of a batch that fits, and its program.

    It begins at the formula's and takes fewer rows until the compiler's plan fits. What the config gives is taken as it
    is, up to the last byte.

    Args:
      config: the run's.
      shards: over how many shards its mesh splits rows.
      rows: of a batch.
      memory: bytes of a device.
      compiler: gives what has a `memory` in bytes.

    Raises:
      OutOfMemoryError: where a given number of rows does not fit, or not even single rows.
    """
    given, split = config.batch.rows_per_device, expected_fit(config, shards, rows, memory).split
    while True:
        found: Any = compiler(split)
        if not isinstance(found, TooLarge) and (found.memory <= memory if given else fits(found.memory, memory)):
            return split, found
        fewer = _fewer(config, split, found.memory, memory)
        if given and fewer is not None:  # it stands in a sentence, so it had better fit at once
            fewer = min(fewer, rows_that_fit(config, shards, rows, memory) or fewer)
        if given or fewer is None:
            needs = gigabytes(found.memory) if math.isfinite(found.memory) else f"more than {gigabytes(memory)}"
            raise OutOfMemoryError(
                f"a step that takes {counted(split.each, 'row')} a device at a time needs {needs}, and a "
                f"device has {gigabytes(memory)}; {remedy(config, split, fewer)}."
            )
        split = split_rows(rows, shards, fewer)


def _fewer(config: ml_collections.ConfigDict, split: Split, needs: float, memory: float) -> int | None:
    """Rows a device at a time that should fit where `split` needs so many bytes; None where it takes one already."""
    if split.each == 1:
        return None
    none = min(expected_memory(config, split.shards, 0), needs / 2)
    share = (FILL * memory - none) / (needs - none) if math.isfinite(needs) else 0.5
    return max(1, min(int(split.each * min(share, 0.9)), split.each - 1))


# --- what is said -----------------------------------------------------------------------------------------------------


def remedy(config: ml_collections.ConfigDict, split: Split | None, fewer: int | None = None) -> str:
    """What to try where memory is too small.

    Args:
      config: the run's.
      split: the layout of its batches; None where not even the state fits.
      fewer: rows a device at a time that should fit, where that is known.
    """
    if split is not None and split.each > 1:
        return f"pass --config.batch.rows_per_device={fewer or max(1, split.each * 3 // 4)}"
    less = REMATERIALISATIONS.index(config.remat) - 1
    if split is not None and less >= 0:
        return f"pass --config.remat={REMATERIALISATIONS[less]}"
    return "split the model by --config.mesh.fsdp or --config.mesh.tensor, or take devices with more memory"


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things for a reader; `more` is the plural where an s does not make it."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def told(split: Split) -> str:
    """How a shard takes its rows, for a reader."""
    return f"{counted(split.parts, 'micro-batch', 'micro-batches')} of {counted(split.each, 'row')}"


def gigabytes(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 1e9:.2f} GB"
