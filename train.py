# SPDX-License-Identifier: Apache-2.0
"""Pretrains ALBERT.

    python train.py --config=configs/base.py --workdir=runs/base --config.data.path=runs/data

Any field of the config can be set on the command line (`--config.batch.size=256`). The same command resumes a run that
was interrupted. Exit status: 0 finished, 75 interrupted and saved (run it again), 2 a bad input, named on standard
error.
"""

import errno
import logging
import os
import sys
import tempfile
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from albert_jax.errors import UserError
from albert_jax.training.interruption import EXIT_INTERRUPTED, Interruption
from albert_jax.training.recipe import check_overrides

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="the recipe, e.g. configs/base.py or configs/base.py:v1"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "for checkpoints, metrics and events: a directory or a gs:// path")

_ECHOES = ("Event loop is closed", "Encountered error while reading array index")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags and makes every mistake in them a UserError."""
    check_overrides(arguments[1:])
    try:
        rest = flags.FLAGS(arguments)
        config = _CONFIG.value and _CONFIG.value.lock()  # the file's absence shows at the first use
    except (flags.Error, OSError) as e:
        # ml_collections quotes the traceback of a config file that refuses its variant; its last line says why.
        raise UserError(str(e).strip().splitlines()[-1].split("UserError: ")[-1].strip()) from e
    except (AttributeError, ImportError, SyntaxError, TypeError) as e:
        named = next((argument for argument in arguments if argument.startswith("--config=")), "--config")
        raise UserError(
            f"{named} cannot be loaded ({type(e).__name__}: {e}); give a Python file with get_config(), as in configs/."
        ) from e
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag; every setting is given as --name=value.")
    if config is None or not _WORKDIR.value:
        raise UserError("train.py needs --config=configs/NAME.py and --workdir=DIRECTORY.")
    return rest


def _report(unraisable: Any) -> None:
    """Python's report of an error that nothing can catch, but for the echoes of a failed write or read.

    Where a disk is full or a file damaged, several of Orbax's writes or reads fail at once. It raises the first one's
    error, which this program names in a sentence, and drops the others, which tell nobody anything new.
    """
    if not str(unraisable.exc_value).startswith(_ECHOES):
        sys.__unraisablehook__(unraisable)


def main(arguments: list[str]) -> int:
    """Runs the training that the flags describe and returns the exit status."""
    del arguments  # the flags hold them
    # Imported here because JAX and TFDS take seconds to load, and a misspelt flag should not have to wait for them.
    from albert_jax.remote import directory, is_remote, named_refusals
    from albert_jax.training.loop import Run

    sys.unraisablehook = _report
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax tells every file that it opens and every error it raises
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    workdir = directory(str(_WORKDIR.value))
    try:
        with named_refusals(workdir):
            run = Run(_CONFIG.value, workdir)
            # Before this there is nothing to save: a signal ends the process at once.
            with Interruption() as interruption:
                finished = run.train(interruption)
    except OSError as e:  # metrics and events; checkpoints speak for themselves
        if e.errno not in _UNWRITABLE and not str(e.filename).startswith(str(workdir)):
            raise
        place, other = f"the workdir {workdir}", "choose another --workdir"
        if is_remote(workdir):
            place, other = f"{tempfile.gettempdir()}, where the records of {workdir} grow,", "set TMPDIR"
        raise UserError(f"{place} cannot be written ({e.strerror}); make room there or {other}.") from e
    return 0 if finished else EXIT_INTERRUPTED


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
