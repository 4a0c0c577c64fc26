# SPDX-License-Identifier: Apache-2.0
"""Pretrains ALBERT.

    python train.py --config=configs/base.py --workdir=runs/base --config.data.path=runs/data

Any field of the config can be set on the command line (`--config.batch.size=256`). The same command resumes a run that
was interrupted. Exit status: 0 finished, 75 interrupted and saved (run it again), 2 a bad input, named on standard
error.
"""

import logging
import os
import pathlib
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from albert_jax.errors import UserError
from albert_jax.training.interruption import EXIT_INTERRUPTED, Interruption
from albert_jax.training.recipe import check_overrides

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="the recipe, e.g. configs/base.py or configs/base.py:v1"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints, metrics and TensorBoard events")


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags and makes every mistake in them a UserError."""
    check_overrides(arguments[1:])
    try:
        rest = flags.FLAGS(arguments)
        config = _CONFIG.value and _CONFIG.value.lock()  # the file's absence shows at the first use
    except (flags.Error, OSError) as e:
        # ml_collections quotes the traceback of a config file that refuses its variant; its last line says why.
        raise UserError(str(e).strip().splitlines()[-1].split("UserError: ")[-1].strip()) from e
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag; every setting is given as --name=value.")
    if config is None or not _WORKDIR.value:
        raise UserError("train.py needs --config=configs/NAME.py and --workdir=DIRECTORY.")
    return rest


def main(arguments: list[str]) -> int:
    """Runs the training that the flags describe and returns the exit status."""
    del arguments  # the flags hold them
    # Imported here because JAX and TFDS take seconds to load, and a misspelt flag should not have to wait for them.
    from albert_jax.training.loop import Run

    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells every file that it opens
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    with Interruption() as interruption:
        finished = Run(_CONFIG.value, pathlib.Path(str(_WORKDIR.value))).train(interruption)
    return 0 if finished else EXIT_INTERRUPTED


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
