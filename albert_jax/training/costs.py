# SPDX-License-Identifier: Apache-2.0
"""What a run costs, in chip-hours: the FLOPs of its formula at the utilization that the TPU compiler expects.

These are estimates: nobody has measured them. `python scripts/compile_for_tpu.py --table` writes the numbers here and
in the recipes from its table in docs/scaling.md.
"""

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.training.chips import CHIPS, Chip

SLOTS = 512  # in a row of the table
# The share of a chip's bf16 peak that a step reaches, the lower one where the table has two slices of the chip.
# fmt: off
UTILIZATION: dict[str, dict[str, float]] = {  # the table begins
    "base": {"v4": 0.20, "v5e": 0.22, "v5p": 0.21, "v6e": 0.13},
    "large": {"v4": 0.25, "v5e": 0.26, "v5p": 0.26, "v6e": 0.16},
    "xlarge": {"v4": 0.47, "v5e": 0.50, "v5p": 0.47, "v6e": 0.29},
    "xxlarge": {"v4": 0.51, "v5e": 0.55, "v5p": 0.49, "v6e": 0.33},
}  # the table ends
# fmt: on


def flops_of_row(config: ml_collections.ConfigDict) -> float:
    """Matmul FLOPs to train on one row, as MFU counts them; see `AlbertConfig.train_flops_per_row`."""
    model, c = AlbertConfig.from_dict(config.model.to_dict()), config
    return model.train_flops_per_row(c.data.sequence_length, c.masking.slots, c.data.examples_per_row)


def utilization(config: ml_collections.ConfigDict, chip: Chip) -> float | None:
    """The share of the chip's peak that a step of this model is expected to reach, or None where nothing is known.

    Something is known of the four published sizes without dropout, on rows of 512 slots, on TPUs.
    """
    model, bfloat16 = AlbertConfig.from_dict(config.model.to_dict()), config.dtype == "bfloat16"
    if not bfloat16 or config.data.sequence_length != SLOTS:
        return None
    size = next((size for size in UTILIZATION if model == AlbertConfig.published(size)), "")
    return UTILIZATION.get(size, {}).get(chip.name)


def chip_hours(config: ml_collections.ConfigDict, rows: float, chip: Chip) -> float | None:
    """Hours of one chip that training on so many rows takes, or None where no estimate is known."""
    share = utilization(config, chip)
    return None if share is None else rows * flops_of_row(config) / (chip.peak * share) / 3600


def cost(config: ml_collections.ConfigDict) -> str:
    """What a run takes at most, every example in a row of its own; chip-hours to two digits, where one can tell.

    Returns:
      One line: steps, rows a step, matmul FLOPs and chip-hours.
    """
    rows = config.steps * config.batch.size
    hours = {chip.name: chip_hours(config, rows, chip) for chip in CHIPS}
    told = ", ".join(f"{rounded(value):,.0f} {name}" for name, value in hours.items() if value is not None)
    flops = f"{config.steps:,} steps of {config.batch.size:,} rows: {rows * flops_of_row(config):.2e} FLOPs"
    return f"{flops}; chip-hours: {told or 'no estimate'}"


def rounded(value: float) -> float:
    """To two digits, which is more than an estimate has."""
    return float(f"{value:.1e}")
