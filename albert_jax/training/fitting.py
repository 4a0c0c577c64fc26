# SPDX-License-Identifier: Apache-2.0
"""How many rows a device takes at a time: as many as its memory holds, by a formula first, then by the compiler's plan."""

from typing import NamedTuple

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.training.sharding import Split, split_rows

FILL = 0.9  # the share of a device's memory that may be planned for


class Expected(NamedTuple):
    """What the formula expects of a step.

    Attributes:
      split: the layout of a batch.
      memory: bytes of a device.
    """

    split: Split
    memory: float


def expected_memory(config: ml_collections.ConfigDict, shards: int, rows_per_device: int) -> float:
    """Bytes that a step needs on a device, by a formula: within 10 % of what the TPU compiler plans, mostly above.

    Args:
      config: the run's.
      shards: over how many shards its mesh splits rows.
      rows_per_device: rows that a device takes at a time.
    """
    model, slots, masks = _model(config), config.data.sequence_length, config.masking.slots
    tensor = max(1, config.mesh.tensor)
    fsdp = config.mesh.fsdp if config.mesh.fsdp > 0 else max(1, shards // config.mesh.data)
    width, scores = (2 if config.dtype == "bfloat16" else 4), 4 * model.num_attention_heads * slots**2 / tensor
    if config.attention == "cudnn":
        scores = 0
    layer_input, products = slots * model.hidden_size * width, slots * model.intermediate_size * width / tensor
    kept = {
        "nothing_saveable": layer_input,
        "dots_with_no_batch_dims_saveable": 6 * layer_input + products,
        "dots_saveable": 7 * layer_input + products + scores,
        "everything_saveable": 20 * layer_input + 6 * products + 3 * scores,
    }[config.remat]
    row = 1.15 * model.num_hidden_layers * model.inner_group_num * kept + 2 * scores + 8 * masks * model.vocab_size
    parameters = model.pretraining_parameters() / tensor
    moments = parameters / fsdp / (shards // fsdp if config.mesh.shard_optimizer else 1)
    # Parameters and two moments; then gathered parameters, gradients and their sums, casts, updates.
    return 4 * parameters / fsdp + 8 * moments + 16 * parameters + row * rows_per_device


def expected_fit(config: ml_collections.ConfigDict, shards: int, rows: int, memory: float) -> Expected:
    """The fewest micro-batches that fit by the formula; where not even single rows do, single rows.

    Args:
      config: the run's; `batch.rows_per_device` is taken where it is given.
      shards: over how many shards its mesh splits rows.
      rows: of a batch.
      memory: bytes of a device.
    """
    given = config.batch.rows_per_device
    none, one = (expected_memory(config, shards, n) for n in (0, 1))
    most = given or max(1, min(rows, int((FILL * memory - none) / (one - none))))
    split = split_rows(rows, shards, most)
    return Expected(split, expected_memory(config, shards, split.each))


def _model(config: ml_collections.ConfigDict) -> AlbertConfig:
    return AlbertConfig.from_dict(config.model.to_dict())
