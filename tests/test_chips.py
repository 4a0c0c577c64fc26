# SPDX-License-Identifier: Apache-2.0
"""albert_jax/training/chips.py: the names of machines as users, Google's tools, the TPU compiler and JAX say them."""

import pytest

from albert_jax.errors import UserError
from albert_jax.training.chips import CHIPS, accelerator_type, chip_of, machine_of, slice_of

GPUS = "A100-40GB, A100-80GB, H100, H200, L4, A10G, RTX4090, RTX3090"


# --- slices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chips", "cores", "topology", "googles"),
    [
        ("v4-8", 4, 8, "v4:2x2x1", "v4-8"),
        ("v4-128", 64, 128, "v4:4x4x4", "v4-128"),
        ("v5e-16", 16, 16, "v5e:4x4", "v5litepod-16"),
        ("v5e-256", 256, 256, "v5e:16x16", "v5litepod-256"),
        ("v5p-128", 64, 128, "v5p:4x4x4", "v5p-128"),
        ("v6e-256", 256, 256, "v6e:16x16", "v6e-256"),
    ],
)
def test_a_slice_is_the_same_by_each_of_its_names(name, chips, cores, topology, googles):
    found = slice_of(name)
    assert (found.chips, found.cores, found.topology, found.name) == (chips, cores, topology, name)
    assert found == slice_of(googles) == slice_of(topology) == machine_of(name) == machine_of(googles)


@pytest.mark.parametrize(
    ("name", "googles"),
    [("v5e-16", "v5litepod-16"), ("v5litepod-16", "v5litepod-16"), ("v6e-16", "v6e-16"), ("v3-8", "v3-8")],
)
def test_googles_tools_are_given_their_own_name(name, googles):
    assert accelerator_type(name) == googles


def test_a_shape_is_no_name_for_googles_tools():
    with pytest.raises(UserError, match=r"'v5p:4x4x4' is a shape, .* give one like v5p-128"):
        accelerator_type("v5p:4x4x4")


def test_links_of_a_ring_carry_both_ways():
    assert slice_of("v4-8").link_bandwidth == 2 * 4.5e10
    assert slice_of("v4-128").link_bandwidth == 6 * 4.5e10
    assert slice_of("v5e:4x16").link_bandwidth == (1 + 2) * 4.5e10
    assert slice_of("v5e:1x1").link_bandwidth == 0


def test_the_clock_is_the_peak_over_what_the_matrix_units_do_in_a_cycle():
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    for chip in CHIPS:
        if chip.links:
            assert chip.peak == pytest.approx(2 * units[chip.name] * chip.clock, rel=0.005)


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chips", "memory"),
    [("8xH100", 8, 80e9), ("H100", 1, 80e9), ("1xRTX4090", 1, 24e9), ("16xA100-40GB", 16, 40e9), ("L4", 1, 24e9)],
)
def test_gpus_are_named_by_their_number_and_card(name, chips, memory):
    found = machine_of(name)
    assert (found.chips, found.chip.memory) == (chips, memory)
    assert machine_of(found.name) == found


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", None),  # slower, and so are the three below that only look alike
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("cpu", None),
    ],
)
def test_jaxs_name_of_a_device_tells_the_chip(device_kind, name):
    found = chip_of(device_kind)
    assert (found and found.name) == name


# --- what is unknown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5lite-16", "did you mean v5litepod-16?"),
        ("v6e16", "did you mean v6e-16?"),
        ("8xh100", "did you mean 8xH100?"),
        ("2xRTX490", "did you mean 2xRTX4090?"),
        ("8xA100", "did you mean 8xA100-40GB or 8xA100-80GB?"),
        ("0xH100", "did you mean H100?"),
        ("", "known here; give a slice like"),
        ("banana", f"of v4, v5e, v5litepod, v5p, v6e, or GPUs like 8xH100, of {GPUS}."),
    ],
)
def test_an_unknown_machine_is_refused_with_the_nearest_and_the_known_ones(name, message):
    with pytest.raises(UserError) as caught:
        machine_of(name)
    assert str(caught.value).startswith(f"{name!r} is neither a TPU slice nor a GPU that is known here; ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v4", "'v4' is no TPU slice; did you mean v4-.*? Give a slice like v4-128, v5e-16 or v5p:4x4x4, of v4, v5e, "),
        ("H100", "'H100' is no TPU slice; give a slice like"),
        ("v5p:4x4", "'v5p:4x4' has 2 axes, but a slice of v5p has 3"),
        ("v4-4", "the shape of 'v4-4' is not known; name it by its shape, or take one of v4-8, v4-16"),
        ("v5litepod-12", "the shape of 'v5litepod-12' is not known; name it by its shape, or take one of v5e-1, v5e-4"),
    ],
)
def test_what_is_no_slice_is_refused_where_one_is_needed(name, message):
    with pytest.raises(UserError, match=message):
        slice_of(name)
