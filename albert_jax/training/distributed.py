# SPDX-License-Identifier: Apache-2.0
"""Several processes as one run: how they find each other, wait for each other and agree.

What must not wait for a device (a refusal, a wish to stop during a compilation) goes through the key-value store of
`jax.distributed`, whose server is process 0. Every wait is bounded: a peer that is gone ends the process, and the
launcher starts all of them again.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # its client has no public name; Orbax reaches for it in the same way

from albert_jax.errors import UserError, is_exhaustion

_log = logging.getLogger(__name__)
PATIENCE = 600  # seconds that processes wait for each other before they give up
_turn = itertools.count()  # all processes come to the same meetings in the same order


class LostPeerError(RuntimeError):
    """Another process of the run did not answer in time or is gone; all of them have to be started again."""


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the run's processes; call it before JAX touches a device.

    TPU pods, Slurm, Open MPI and GKE are recognised by `jax.distributed`. Elsewhere a run has one process unless the
    three arguments are given.

    Args:
      coordinator: host:port of process 0.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      UserError: where only some of the arguments are given.
      LostPeerError: where the others cannot be reached.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise UserError(
            f"several processes need --coordinator, --processes and --process together, not {coordinator!r}, "
            f"{processes!r} and {process!r}."
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(f"--process must lie between 0 and {processes - 1}, not {process}.")
    # JAX's own answer to SIGTERM would take the place of ours (interruption.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, cluster_detection_method="deactivate" if coordinator else None
        )
    except ValueError as e:
        if coordinator or "coordinator_address should be defined" not in str(e):
            raise UserError(f"the processes cannot be started ({e}); see --coordinator, --processes, --process.") from e
    except RuntimeError as e:
        raise LostPeerError(f"the other processes cannot be reached ({str(e).splitlines()[0]})") from e


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return jax.process_index(), jax.process_count()


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone: ours say so, and with several processes the runtime's do."""
    if isinstance(error, LostPeerError):
        return True
    return several() and isinstance(error, jax.errors.JaxRuntimeError) and not is_exhaustion(error)


def by_first(action: Callable[[], Any]) -> Any:
    """Lets process 0 act for all: its result, or the sentence of its UserError, is everyone's.

    Args:
      action: gives something that JSON can hold.

    Raises:
      UserError: where it failed so.
      LostPeerError: where process 0 does not answer.
    """
    if not several():
        return action()
    key = f"albert_jax/by_first/{next(_turn)}"
    if not first():
        said = json.loads(_ask(lambda: _client().blocking_key_value_get(key, PATIENCE * 1000)))
        if "error" in said:
            raise UserError(said["error"])
        return said["result"]
    try:
        result = action()
    except Exception as e:  # whatever it is, the others must not wait for an answer
        error = str(e) if isinstance(e, UserError) else f"process 0 failed ({type(e).__name__}: {e})."
        put(key, json.dumps({"error": error}))
        raise
    put(key, json.dumps({"result": result}))
    return result


def meet(place: str) -> None:
    """Waits until all processes have come here.

    Raises:
      LostPeerError: naming the place, where one does not come.
    """
    if several():
        name = f"albert_jax/{place}/{next(_turn)}"
        _ask(lambda: _client().wait_at_barrier(name, PATIENCE * 1000))


def part(patience: float = 10.0) -> None:
    """Takes leave of the others if all come here within `patience` seconds, so that none is ended by a loss."""
    if not several():
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("albert_jax/part", int(patience * 1000))
        jax.distributed.shutdown()


def put(key: str, value: str) -> bool:
    """Writes into the common store unless something stands there; says whether it wrote."""
    try:
        _client().key_value_set(key, value)
    except jax.errors.JaxRuntimeError as e:
        if "ALREADY_EXISTS" in str(e):
            return False
        raise LostPeerError(str(e).splitlines()[0]) from e
    return True


def get(key: str) -> str | None:
    """Reads from the common store; None where nothing stands there or the store is gone."""
    try:
        return str(_client().key_value_try_get(key))
    except jax.errors.JaxRuntimeError:
        return None


def _client() -> Any:
    return distributed.global_state.client


def _ask(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except jax.errors.JaxRuntimeError as e:
        raise LostPeerError(str(e).splitlines()[0]) from e
