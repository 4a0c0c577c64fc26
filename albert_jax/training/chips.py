# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do at best: the denominators of MFU and the limits of a roofline; and slices of TPUs by name.

TPUs from jax-ml/scaling-book (`tpus.md`), checked against cloud.google.com/tpu/docs; GPUs from NVIDIA's data sheets,
dense rates without sparsity. A TPU v4 or v5p chip has two cores that JAX shows as one device (megacore).
"""

import math
import re
from typing import NamedTuple

from albert_jax.errors import UserError


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      name: as its vendor calls it.
      kind: regular expression of JAX's `device_kind`.
      peak: bfloat16 FLOP/s of the matrix units.
      memory: bytes of high-bandwidth memory.
      bandwidth: bytes/s between it and the chip.
      link: bytes/s of one interconnect link in one direction; 0 where it is not stated.
      links: how many of these a chip has on its slice's torus.
      cores: TensorCores on a TPU chip, which count in the names of v4 and v5p slices; 1 elsewhere.
      clock: cycles/s of a TPU at its peak: the peak over the FLOPs that its matrix units do in a cycle; 0 elsewhere.
    """

    name: str
    kind: str
    peak: float
    memory: float
    bandwidth: float
    link: float = 0.0
    links: int = 0
    cores: int = 1
    clock: float = 0.0


CHIPS = (
    Chip("v4", r"TPU v4", 275e12, 32e9, 1.2e12, 4.5e10, 6, 2, 1.05e9),
    Chip("v5e", r"TPU v5 ?(lite|e)", 197e12, 16e9, 8.1e11, 4.5e10, 4, 1, 1.5e9),
    Chip("v5p", r"TPU v5p?$", 459e12, 96e9, 2.8e12, 9e10, 6, 2, 1.75e9),
    Chip("v6e", r"TPU v6 ?(lite|e)", 918e12, 32e9, 1.6e12, 9e10, 4, 1, 1.75e9),
    Chip("A100", r"A100", 312e12, 80e9, 2.0e12),
    Chip("H100", r"H100(?!.*(PCIe|NVL))", 989e12, 80e9, 3.35e12),
    Chip("H200", r"H200", 989e12, 141e9, 4.8e12),
)

# The shapes in which Google lends slices whose name only gives their size, by number of chips.
_SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: (
        (2, 2, 1),
        (2, 2, 2),
        (2, 2, 4),
        (2, 4, 4),
        (4, 4, 4),
        (4, 4, 8),
        (4, 8, 8),
        (8, 8, 8),
        (8, 8, 16),
        (8, 16, 16),
    ),
}
_RINGS_FROM = {2: 16, 3: 4}  # the length from which an axis of a torus is closed to a ring


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None where it is not in the table (a CPU, for one)."""
    return next((chip for chip in CHIPS if re.search(chip.kind, device_kind)), None)


class Slice(NamedTuple):
    """TPU chips on one torus.

    Attributes:
      chip: each of them.
      shape: chips along each axis of the torus.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def cores(self) -> int:
        """TensorCores of all of them."""
        return self.chips * self.chip.cores

    @property
    def name(self) -> str:
        """Google's: v4 and v5p slices are named by their cores, the others by their chips."""
        return f"{self.chip.name}-{self.cores}"

    @property
    def topology(self) -> str:
        """The TPU compiler's."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s that a chip can send in a sum over all chips: both directions of an axis that is a ring, else one."""
        rings = _RINGS_FROM[len(self.shape)]
        return sum(self.chip.link * (2 if size >= rings else 1) for size in self.shape if size > 1)


def slice_of(name: str) -> Slice:
    """The slice that 'v4-128', 'v5e-16' or, by its shape, 'v5p:4x4x4' names.

    Raises:
      UserError: where there is no such chip or shape.
    """
    tpus = {chip.name: chip for chip in CHIPS if chip.links}
    match = re.fullmatch(r"(v\d\w?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if not match or match[1] not in tpus:
        raise UserError(f"{name!r} is no TPU slice; give one like v4-128, v5e-16 or v5p:4x4x4, of {', '.join(tpus)}.")
    chip = tpus[match[1]]
    axes = chip.links // 2
    if match[3]:
        shape = tuple(map(int, match[3].split("x")))
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{name!r} has {len(shape)} axes, but a slice of {chip.name} has {axes}, each at least 1.")
        return Slice(chip, shape)
    for shape in _SHAPES[axes]:
        if math.prod(shape) * chip.cores == int(match[2]):
            return Slice(chip, shape)
    known = ", ".join(f"{chip.name}-{math.prod(shape) * chip.cores}" for shape in _SHAPES[axes])
    raise UserError(f"the shape of {name!r} is not known; name it by its shape, or take one of {known}.")
