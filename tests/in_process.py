# SPDX-License-Identifier: Apache-2.0
"""The tiny run of tests/runs.py inside the test's process, where its data can be tampered with."""

import pathlib
from typing import Any

import ml_collections

from albert_jax.training.interruption import STOP, Interruption
from albert_jax.training.lock import WorkdirLock
from albert_jax.training.loop import Run
from configs import quickstart
from tests.runs import TINY


def tiny(data: pathlib.Path, **changes: Any) -> ml_collections.ConfigDict:
    """The tiny run's config, on one device."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(TINY | {"data.path": str(data), "mesh.data": 1} | changes)
    return config


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, stop_after: int | None = None) -> bool:
    """Trains; says whether the run is finished.

    Args:
      config: of the run.
      workdir: of the run.
      stop_after: a step after which the wish to stop comes, as by a signal while the next one is being started.
    """
    with Interruption() as interruption, WorkdirLock(workdir) as lock:
        started = Run(config, workdir, lock, interruption)
        take_step = started._take_step

        def stopping(*args: Any) -> Any:
            if started.step == stop_after:
                interruption.request(STOP)
            return take_step(*args)

        started._take_step = stopping  # type: ignore[method-assign,assignment]
        return started.train()
