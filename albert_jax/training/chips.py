# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do at best: the denominators of MFU and the limits of a roofline; and machines by name.

TPUs from jax-ml/scaling-book (`tpus.md`), checked against cloud.google.com/tpu/docs; GPUs from NVIDIA's data sheets,
dense rates without sparsity. A TPU v4 or v5p chip has two cores that JAX shows as one device (megacore).
"""

import difflib
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
    Chip("A100-40GB", r"A100.*40GB", 312e12, 40e9, 1.555e12),
    Chip("A100-80GB", r"A100.*80GB", 312e12, 80e9, 2.0e12),
    Chip("H100", r"H100(?!.*(PCIe|NVL))", 989e12, 80e9, 3.35e12),
    Chip("H200", r"H200", 989e12, 141e9, 4.8e12),
    Chip("L4", r"\bL4$", 121e12, 24e9, 3.0e11),
    Chip("A10G", r"\bA10G$", 70e12, 24e9, 6.0e11),
    # What GeForce cards sum in float32 they multiply at half the rate of what they sum in float16.
    Chip("RTX4090", r"RTX 4090$", 165.2e12, 24e9, 1.008e12),
    Chip("RTX3090", r"RTX 3090$", 71.2e12, 24e9, 9.36e11),
)
_GOOGLES = {"v5e": "v5litepod"}  # what Google's tools call a chip, where that is not its name

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
    def accelerator_type(self) -> str:
        """What Google's tools call it: v5litepod-16 where the name is v5e-16."""
        return f"{_GOOGLES.get(self.chip.name, self.chip.name)}-{self.cores}"

    @property
    def topology(self) -> str:
        """The TPU compiler's."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s that a chip can send in a sum over all chips: both directions of an axis that is a ring, else one."""
        rings = _RINGS_FROM[len(self.shape)]
        return sum(self.chip.link * (2 if size >= rings else 1) for size in self.shape if size > 1)


class Cards(NamedTuple):
    """GPUs, in one machine or several.

    Attributes:
      chip: each of them.
      chips: how many.
    """

    chip: Chip
    chips: int

    @property
    def name(self) -> str:
        """As `machine_of` takes it."""
        return f"{self.chips}x{self.chip.name}"


def machine_of(name: str) -> Slice | Cards:
    """The TPU slice that `slice_of` knows by the name, or the GPUs that '8xH100' or, for one, 'H100' names.

    Raises:
      UserError: where there are none of that name.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(.+)", name)
    chip = next((chip for chip in CHIPS if match and not chip.links and chip.name == match[2]), None)
    if match and chip:
        return Cards(chip, int(match[1] or 1))
    return _slice_of(name, others=[chip.name for chip in CHIPS if not chip.links])


def slice_of(name: str) -> Slice:
    """The slice that 'v4-128', 'v5e-16' (Google's tools: 'v5litepod-16') or, by its shape, 'v5p:4x4x4' names.

    Raises:
      UserError: where there is no such chip or shape.
    """
    return _slice_of(name, others=[])


def _slice_of(name: str, others: list[str]) -> Slice:
    """As `slice_of`; an unknown name is compared with those of the other machines too."""
    tpus = {name: chip for chip in CHIPS if chip.links for name in (chip.name, _GOOGLES.get(chip.name, chip.name))}
    match = re.fullmatch(r"(v\d\w*)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if not match or match[1] not in tpus:
        raise UserError(_unknown(name, tpus, others))
    chip = tpus[match[1]]
    axes = chip.links // 2
    if match[3]:
        shape = tuple(map(int, match[3].split("x")))
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{name!r} has {len(shape)} axes, but a slice of {chip.name} has {axes}, each at least 1.")
        return Slice(chip, shape)
    known = [Slice(chip, shape) for shape in _SHAPES[axes]]
    found = next((each for each in known if each.cores == int(match[2])), None)
    if found is None:
        named = ", ".join(each.name for each in known)
        raise UserError(f"the shape of {name!r} is not known; name it by its shape, or take one of {named}.")
    return found


def _unknown(name: str, tpus: dict[str, Chip], others: list[str]) -> str:
    """A sentence on a name that is none, with the nearest one, if any is near, and how the others are made."""
    count, card = re.fullmatch(r"(?:(\d+)x)?(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    names = {f"{tpu}-{math.prod(s) * c.cores}": "" for tpu, c in tpus.items() for s in _SHAPES[c.links // 2]}
    names |= {f"{count}x{other}" if int(count or 0) else other: other for other in others}
    lower = {known.lower(): known for known in names}
    near = [known for known, other in names.items() if card and other.startswith(card)]
    near = near or [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=1)]
    what = "is neither a TPU slice nor a GPU that is known here" if others else "is no TPU slice"
    guess = f"did you mean {' or '.join(near)}? Give" if near else "give"
    cards = f", or GPUs like 8xH100, of {', '.join(others)}" if others else ""
    return f"{name!r} {what}; {guess} a slice like v4-128, v5e-16 or v5p:4x4x4, of {', '.join(tpus)}{cards}."


def accelerator_type(name: str) -> str:
    """What Google's tools call a slice that `slice_of` knows by its size; v2 and v3, known to them alone, stay.

    Raises:
      UserError: where there is no such slice.
    """
    if re.fullmatch(r"v[23]-\d+", name):
        return name
    chips = slice_of(name)
    if ":" in name:
        raise UserError(f"{name!r} is a shape, and Google's tools take a size; give one like {chips.name}.")
    return chips.accelerator_type
