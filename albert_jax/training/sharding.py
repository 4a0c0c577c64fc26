# SPDX-License-Identifier: Apache-2.0
"""The device mesh, and where parameters, optimizer state and rows live on it.

Three axes. Rows are split over `data` and `fsdp` together. Over `fsdp` parameters and moments are split too; a step
gathers them once, before the layers, since all layers use the same ones. Over `tensor` heads and feed-forward units are
split, and the partitioner adds the sums that this needs inside the layers. Which dimension goes over which axis is said
by rules on logical names, as in Flax and t5x: `mesh.rules`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from albert_jax.data.stream import Batch
from albert_jax.errors import UserError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)  # the axes over which rows are split
LOGICAL_AXES = ("vocab", "embedding", "hidden", "heads", "ffn")

# Path of a parameter -> the logical name of each dimension; None is never split.
_LOGICAL: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"word_embeddings/embedding", ("vocab", "embedding")),
    (r"(position|token_type)_embeddings/embedding", (None, "embedding")),
    (r"embedding_hidden_mapping_in/kernel", ("embedding", "hidden")),
    (r"(query|key|value)/kernel", ("hidden", "heads")),
    (r"(query|key|value)/bias", ("heads",)),
    (r"attention/dense/kernel", ("heads", "hidden")),
    (r"ffn/kernel", ("hidden", "ffn")),
    (r"ffn/bias", ("ffn",)),
    (r"ffn_output/kernel", ("ffn", "hidden")),
    (r"pooler/kernel", ("hidden", None)),
    (r"predictions/dense/kernel", ("hidden", "embedding")),
    (r"predictions/bias", ("vocab",)),
    (r"classifier/kernel", ("hidden", None)),
    (r"(bias|scale)", (None,)),
)


# --- the mesh ---------------------------------------------------------------------------------------------------------


def mesh_shape(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Devices on each axis of a mesh.

    Args:
      data, fsdp, tensor: as asked; one of them may be -1, which takes what the others leave.
      devices: how many there are.

    Raises:
      UserError: where the axes do not fit the devices.
    """
    shape = (data, fsdp, tensor)
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if min(shape) < -1 or 0 in shape or shape.count(-1) > 1:
        raise UserError(f"{asked} is no mesh: each axis is at least 1, and one of them may be -1.")
    others = math.prod(size for size in shape if size != -1)
    if others > devices or (-1 in shape and devices % others):
        raise UserError(f"{asked} does not fit {devices} devices; choose divisors, -1 takes the rest.")
    data, fsdp, tensor = (devices // others if size == -1 else size for size in shape)
    return data, fsdp, tensor


def make_mesh(data: int, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor).

    Args:
      data, fsdp, tensor: as for `mesh_shape`.
      devices: all of the run's where None.

    Raises:
      UserError: where the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(data, fsdp, tensor, len(devices))
    count = math.prod(shape)
    if jax.process_count() > 1 and count < len(devices):
        asked = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(f"{asked} leaves some of the {len(devices)} devices of several processes idle; use all.")
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices[:count])


def row_shards(mesh: Mesh) -> int:
    """Over how many shards the rows of a batch are split."""
    return int(mesh.shape[DATA] * mesh.shape[FSDP])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the row axes."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


# --- parameters and their moments -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one array is split: the dimension for each mesh axis, or None where it is whole over that axis."""

    fsdp: int | None = None
    tensor: int | None = None
    data: int | None = None

    def spec(self, rank: int, axes: Sequence[str] = AXES) -> PartitionSpec:
        """As a PartitionSpec of the given axes; where two share a dimension, fsdp is the outer one."""
        at = dataclasses.asdict(self)
        split = (tuple(axis for axis in (FSDP, DATA, TENSOR) if axis in axes and at[axis] == d) for d in range(rank))
        return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in split))


def read_rules(rules: str) -> list[tuple[str, str]]:
    """Parses `mesh.rules`, 'hidden:fsdp heads:tensor', into pairs of logical and mesh axis.

    Raises:
      UserError: naming what is no axis.
    """
    pairs = []
    for rule in rules.split():
        logical, _, axis = rule.partition(":")
        if logical not in LOGICAL_AXES or axis not in (FSDP, TENSOR):
            raise UserError(
                f"mesh.rules has {rule!r}; a rule is LOGICAL:AXIS, of {', '.join(LOGICAL_AXES)} and {FSDP}, {TENSOR}."
            )
        pairs.append((logical, axis))
    return pairs


def logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """The logical names of a parameter's dimensions.

    Args:
      path: "/"-joined.
      rank: dimensions that it has.
    """
    for pattern, names in _LOGICAL:
        if re.search(f"(^|/){pattern}$", path) and len(names) == rank:
            return names
    raise ValueError(f"no logical axes are known for the parameter {path} of rank {rank}")


def _place(path: str, shape: tuple[int, ...], rules: list[tuple[str, str]], mesh: Mesh) -> Placement:
    """Takes for each mesh axis the first rule whose dimension is free and divisible.

    Vectors stay whole over fsdp: they are too small to be worth a message each. Over `tensor` they go with their
    matrix.
    """
    names, at = logical_axes(path, len(shape)), dict[str, int]()
    for logical, axis in rules:
        if mesh.shape[axis] == 1 or axis in at or (axis == FSDP and len(shape) < 2):
            continue
        for d, name in enumerate(names):
            if name == logical and d not in at.values() and shape[d] % mesh.shape[axis] == 0:
                at[axis] = d
                break
    return Placement(**at)


def _place_moments(shape: tuple[int, ...], params: Placement, mesh: Mesh) -> Placement:
    """Splits a parameter's moments over `data` too, along the first dimension that can be."""
    if len(shape) < 2 or mesh.shape[DATA] == 1:
        return params
    for d, size in enumerate(shape):
        if d != params.tensor and size % (mesh.shape[DATA] * (mesh.shape[FSDP] if d == params.fsdp else 1)) == 0:
            return dataclasses.replace(params, data=d)
    return params


def placements(shapes: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[Any, Any]:
    """Where parameters and their moments go.

    Args:
      shapes: tree of arrays or of their shapes, as nested dicts.
      config: the run's: `mesh.rules`, `mesh.shard_optimizer`, `model`.
      mesh: the devices.

    Returns:
      Two trees of `Placement`: of the parameters and gradients, and of the moments. They differ where
      `mesh.shard_optimizer` splits moments over the data axis.

    Raises:
      UserError: where the rules are wrong, or the model's heads or feed-forward units cannot be split as they say.
    """
    rules = read_rules(config.mesh.rules)
    for logical, field in (("heads", "num_attention_heads"), ("ffn", "intermediate_size")):
        if (logical, TENSOR) in rules and config.model[field] % mesh.shape[TENSOR]:
            raise UserError(
                f"mesh.tensor={mesh.shape[TENSOR]} does not divide model.{field}={config.model[field]}; choose a "
                "divisor."
            )

    def place(path: tuple[Any, ...], x: Any) -> Placement:
        return _place("/".join(str(entry.key) for entry in path), x.shape, rules, mesh)

    params = jax.tree_util.tree_map_with_path(place, shapes)
    if not config.mesh.shard_optimizer:
        return params, params
    return params, jax.tree.map(lambda x, at: _place_moments(x.shape, at, mesh), shapes, params)


# --- one shard's view -------------------------------------------------------------------------------------------------


def over_rows(
    function: Callable[..., Any], mesh: Mesh, in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    """`shard_map` over the row axes: the function sees one shard's rows, and sums over the others by itself.

    An axis `tensor` of more than one device is left to the partitioner. Beside it, row axes of one device in all are
    too: the partitioner does not take a reduction over nothing, see `sum_over_rows`.
    """
    if not _rows_are_manual(mesh):
        return function
    manual = set(AXES) if mesh.shape[TENSOR] == 1 else set(ROWS)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=manual)


def _rows_are_manual(mesh: Mesh) -> bool:
    return row_shards(mesh) > 1 or mesh.shape[TENSOR] == 1


def sum_over_rows(tree: Any, mesh: Mesh) -> Any:
    """Inside `over_rows`: the sum of every shard's arrays."""
    return jax.lax.psum(tree, ROWS) if _rows_are_manual(mesh) else tree


def as_own(tree: Any, mesh: Mesh, axes: str | tuple[str, ...] = ROWS) -> Any:
    """Inside `over_rows`: marks what all shards have alike as each one's own, so that its gradient is not reduced."""
    return jax.lax.pcast(tree, axes, to="varying") if _rows_are_manual(mesh) else tree


def gather(params: Any, where: Any, mesh: Mesh) -> Any:
    """Inside `over_rows`: whole parameters on every device, as each one's own.

    Args:
      params: tree of arrays, split over fsdp.
      where: tree of their `Placement`.
      mesh: the devices.
    """

    def whole(x: jax.Array, at: Placement) -> jax.Array:
        if at.fsdp is None:
            return as_own(x, mesh)
        return as_own(jax.lax.all_gather(x, FSDP, axis=at.fsdp, tiled=True), mesh, DATA)

    return jax.tree.map(whole, params, where)


def scatter_sums(gradient: Any, where: Any, mesh: Mesh) -> Any:
    """Inside `over_rows`: the sum of every shard's arrays, of which each device keeps what its placement gives it."""

    def total(x: jax.Array, at: Placement) -> jax.Array:
        over = [axis for axis, dimension in ((FSDP, at.fsdp), (DATA, at.data)) if dimension is None]
        for axis, dimension in ((FSDP, at.fsdp), (DATA, at.data)):
            if dimension is not None:
                x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)
        return jax.lax.psum(x, tuple(over)) if over else x

    return jax.tree.map(total, gradient, where) if _rows_are_manual(mesh) else gradient


# --- rows -------------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """How the rows of a batch are laid out: over shards, and in each over micro-batches, filled up with empty rows.

    Attributes:
      rows: R, of a full batch.
      shards: over how many shards they are split.
      parts: micro-batches of a shard.
      each: rows of a micro-batch, which a device takes at a time.
    """

    rows: int
    shards: int
    parts: int
    each: int

    @property
    def per_shard(self) -> int:
        """Rows of a shard with the empty ones."""
        return self.parts * self.each

    @property
    def held(self) -> int:
        """Rows of all shards with the empty ones."""
        return self.shards * self.per_shard

    def begin(self, shard: int, count: int | None = None) -> int:
        """The first row of a shard where the batch has `count` rows; the shard ends where the next one begins.

        Rounded up, so that the first shard is the fullest and never empty.
        """
        return -(-(self.rows if count is None else count) * shard // self.shards)

    def parts_of(self, count: int) -> int:
        """How many micro-batches hold rows where the batch has `count` rows."""
        return -(-self.begin(1, count) // self.each)


def split_rows(rows: int, shards: int, rows_per_device: int) -> Split:
    """Lays out `rows` rows so that a device takes at most `rows_per_device` at a time.

    Micro-batches are as few as that allows, or up to a quarter more where that leaves fewer rows empty: 65 rows of a
    shard, eight at a time, are 11 micro-batches of 6, not 9 of 8.
    """
    fullest = -(-rows // shards)
    least = -(-fullest // rows_per_device)
    parts = min(range(least, least + least // 4 + 1), key=lambda parts: (parts * -(-fullest // parts), parts))
    each = -(-fullest // parts)
    return Split(rows, shards, -(-fullest // each), each)


class Rows:
    """Which rows of each batch this process makes, and how they are placed.

    Args:
      mesh: the devices.
      split: the layout of a batch.

    Attributes:
      split: the same.
      mine: numbers of the shards that this process's devices hold, ascending; where processes share a shard (because
        the tensor axis runs across them) each makes its rows.
    """

    def __init__(self, mesh: Mesh, split: Split):
        self.split = split
        self._sharding = by_rows(mesh)
        held = self._sharding.addressable_devices_indices_map((split.held,))
        self._shard_of = {device: (index[0].start or 0) // split.per_shard for device, index in held.items() if index}
        self.mine = sorted(set(self._shard_of.values()))

    def place(self, local: Batch) -> Batch:
        """Puts the rows of `mine`, one shard after the other, on this process's devices, as part of the whole batch."""
        size, devices = self.split.per_shard, list(self._shard_of)
        at = [self.mine.index(self._shard_of[device]) * size for device in devices]
        parts = [[x[begin : begin + size] for begin in at] for x in local]
        placed = jax.device_put(parts, [devices] * len(local))  # explicit, as the transfer guard wants it
        return Batch(
            *(
                jax.make_array_from_single_device_arrays((self.split.held, *x.shape[1:]), self._sharding, arrays)
                for x, arrays in zip(local, placed, strict=True)
            )
        )


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Splits a batch that every process has as a whole, of a multiple of the shards, over the devices."""
    count, shards = len(batch.row_ids), row_shards(mesh)
    rows = Rows(mesh, split_rows(count, shards, count))
    mine = np.concatenate([np.arange(rows.split.begin(s), rows.split.begin(s + 1)) for s in rows.mine])
    return rows.place(Batch(*(x[mine] for x in batch)))
