# SPDX-License-Identifier: Apache-2.0
"""A JAX platform named `standin` that behaves as an accelerator does, on Linux on any x86 CPU.

On a CPU, JAX hides a kind of fault. An array's memory is the host's, so that reading it is no transfer and the transfer
guard refuses nothing; and whatever asks whether the platform is "cpu" hears yes. Here XLA's CPU does the work too, but
it is loaded as a plugin, as a TPU is, and two functions of the plugin are replaced, so that

- the platform's name is `standin`, and
- no buffer says that the host may read it in place: reading is a transfer, and the guard refuses it unless it is
  explicit (`jax.device_get`).

The plugin comes with the package lammps-jax-pjrt-cpu. JAX finds this module by its directory:

    PYTHONPATH=tests/stand_ins/accelerator JAX_PLATFORMS=standin python train.py ...

STANDIN_DEVICES is the number of devices (4). As on any accelerator, donated buffers are gone after the call, and
compiled programs can be kept on the disk. It does not show how fast anything is, limits of memory, or copies that go on
while the host does. Nobody has tried several processes on it.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

NAME = "standin"

# --- the part of XLA's pjrt_c_api.h that is needed --------------------------------------------------------------------
# Fields and functions are only ever added at the ends, so that the places of those named here stay what they are.

_CLIENT_PLATFORM_NAME, _BUFFER_IS_ON_CPU = 12, 71  # numbers of functions in the table


class _Version(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """What a PJRT_Api begins with; pointers to its functions follow."""

    _fields_ = (("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p), ("version", _Version))


class _PlatformName(ctypes.Structure):
    """PJRT_Client_PlatformName_Args."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("client", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("name_size", ctypes.c_size_t),
    )


class _IsOnCpu(ctypes.Structure):
    """PJRT_Buffer_IsOnCpu_Args."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("buffer", ctypes.c_void_p),
        ("is_on_cpu", ctypes.c_bool),
    )


# --- the two answers --------------------------------------------------------------------------------------------------

_NAME = ctypes.create_string_buffer(NAME.encode())


def _platform_name(arguments: Any) -> None:
    arguments.contents.name = ctypes.cast(_NAME, ctypes.c_char_p)
    arguments.contents.name_size = len(NAME)


def _is_on_cpu(arguments: Any) -> None:
    arguments.contents.is_on_cpu = False


def _function(arguments: type[ctypes.Structure], answer: Callable[[Any], None]) -> Any:
    """As a C function that returns no error."""
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(arguments))(answer)


_FUNCTIONS = {
    _CLIENT_PLATFORM_NAME: _function(_PlatformName, _platform_name),
    _BUFFER_IS_ON_CPU: _function(_IsOnCpu, _is_on_cpu),
}


# --- the plugin -------------------------------------------------------------------------------------------------------

_KIND = b"pjrt_c_api"  # the name by which JAX asks for what a capsule holds
_kept: list[Any] = []  # what C has pointers to


def _table(original: Any) -> ctypes.Array[ctypes.c_char]:
    """A copy of a PJRT_Api, with the functions above in the place of its own."""
    table = ctypes.create_string_buffer(ctypes.string_at(original, original.contents.size))
    functions = (ctypes.c_void_p * (1 + max(_FUNCTIONS))).from_buffer(table, ctypes.sizeof(_Header))
    for number, function in _FUNCTIONS.items():
        functions[number] = ctypes.cast(function, ctypes.c_void_p).value
    return table


def initialize() -> None:
    """Registers the platform; JAX calls this when it starts."""
    import lammps_jax_pjrt_cpu
    from jax._src import compilation_cache, xla_bridge
    from jax._src.interpreters import mlir

    library = ctypes.CDLL(str(lammps_jax_pjrt_cpu.PLUGIN_PATH))
    library.GetPjrtApi.restype = ctypes.POINTER(_Header)
    table = _table(library.GetPjrtApi())
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    _kept.extend((library, table))
    # JAX has lists of the platforms that take donated buffers, and that can keep compiled programs.
    mlir._platforms_with_donation.append(NAME)
    compilation_cache._cache_checked = compilation_cache._cache_used = True
    devices = {"cpu_device_count": int(os.environ.get("STANDIN_DEVICES", "4"))}
    xla_bridge.register_plugin(NAME, c_api=capsule(ctypes.addressof(table), _KIND, None), options=devices)
