# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do at best: the denominators of MFU and the limits of a roofline.

TPUs from jax-ml/scaling-book (`tpus.md`), checked against cloud.google.com/tpu/docs; GPUs from NVIDIA's data sheets, dense
rates without sparsity. A TPU v4 or v5p chip has two cores that JAX shows as one device (megacore).
"""

import re
from typing import NamedTuple


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
    """

    name: str
    kind: str
    peak: float
    memory: float
    bandwidth: float
    link: float = 0.0
    links: int = 0
    cores: int = 1


CHIPS = (
    Chip("v4", r"TPU v4", 275e12, 32e9, 1.2e12, 4.5e10, 6, 2),
    Chip("v5e", r"TPU v5 ?(lite|e)", 197e12, 16e9, 8.1e11, 4.5e10, 4),
    Chip("v5p", r"TPU v5p?$", 459e12, 96e9, 2.8e12, 9e10, 6, 2),
    Chip("v6e", r"TPU v6 ?(lite|e)", 918e12, 32e9, 1.6e12, 9e10, 4),
    Chip("A100", r"A100", 312e12, 80e9, 2.0e12),
    Chip("H100", r"H100(?!.*(PCIe|NVL))", 989e12, 80e9, 3.35e12),
    Chip("H200", r"H200", 989e12, 141e9, 4.8e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None where it is not in the table (a CPU, for one)."""
    return next((chip for chip in CHIPS if re.search(chip.kind, device_kind)), None)
