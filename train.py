# SPDX-License-Identifier: Apache-2.0
"""Pretrains ALBERT.

    python train.py --config=configs/base.py --workdir=runs/base --config.data.path=runs/data

Any field of the config can be set on the command line (`--config.batch.size=256`). The same command resumes a run that
was interrupted. On TPU pods, Slurm and GKE the processes of a run find each other; elsewhere each is told by
--coordinator=HOST:PORT --processes=N --process=I.

    python train.py --config=configs/base.py --config.data.path=runs/data --check

says what would run and writes nothing into a workdir: settings, data, rows, memory, time and cost, on this machine.
--check=v5e-16 or --check=8xH100 does so for one that is not here, --check=config for settings and data alone, and
--check=fields for settings alone. Its exit status: 0 it would run, 1 it does not fit, 2 as below.

Exit status: 0 finished; 75 interrupted and saved, run it again; 76 another process is gone or nothing moved any more,
start all of them again; 71 a device's memory is too small, and standard error names the setting that fits; 2 a bad
input, named on standard error.
"""

import errno
import logging
import os
import pathlib
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from albert_jax.errors import UserError
from albert_jax.training.interruption import EXIT_INTERRUPTED, Interruption, Register
from albert_jax.training.recipe import read_overrides
from albert_jax.training.watchdog import EXIT_STUCK

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="the recipe, e.g. configs/base.py or configs/base.py:v1"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot find it by itself")
_PROCESSES = flags.DEFINE_integer("processes", None, "with --coordinator: how many processes the run has")
_PROCESS = flags.DEFINE_integer("process", None, "with --coordinator: which of them this is, from 0")
_WORKDIR = flags.DEFINE_string("workdir", None, "for checkpoints, metrics and events: a directory or a gs:// path")
_CHECK = flags.DEFINE_string("check", None, "train nothing, say what would run: here, or on v5e-16, 8xH100, ...")

_ECHOES = ("Event loop is closed", "Encountered error while reading array index")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags and makes every mistake in them a UserError."""
    if {"-h", "--help"} & {*arguments[1:]}:  # absl's own ends with status 1
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    arguments = [*arguments[:1], *read_overrides(arguments[1:])]
    try:
        rest = flags.FLAGS(["--check=here" if a.lstrip("-") == "check" else a for a in arguments])
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
    if config is None or not (_WORKDIR.value or _CHECK.value):
        raise UserError("train.py needs --config=configs/NAME.py and --workdir=DIRECTORY, or --check.")
    return rest


def _report(unraisable: Any) -> None:
    """Python's report of an error that nothing can catch, but for the echoes of a failed write or read.

    Where a disk is full or a file damaged, several of Orbax's writes or reads fail at once. It raises the first one's
    error, which this program names in a sentence, and drops the others, which tell nobody anything new.
    """
    if not str(unraisable.exc_value).startswith(_ECHOES):
        sys.__unraisablehook__(unraisable)


def _keep_compiled_programs() -> None:
    """Gives JAX a place for compiled programs, so that a resumed run starts in seconds; JAX's own variable wins."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "albert_jax" / "compiled"))


def _train(interruption: Interruption) -> int:
    # Imported here because JAX and TFDS take seconds to load, and a misspelt flag should not have to wait for them.
    from albert_jax.remote import directory, named_refusals
    from albert_jax.training import distributed
    from albert_jax.training.identity import saved_run
    from albert_jax.training.initialization import take_architecture
    from albert_jax.training.lock import WorkdirLock
    from albert_jax.training.loop import Run

    _keep_compiled_programs()
    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if distributed.several():
        interruption.share(Register(distributed.put, distributed.get), *distributed.place())
        interruption.before_leaving(distributed.part)
    if not distributed.first():
        logging.getLogger("albert_jax").setLevel(logging.WARNING)
    workdir = directory(str(_WORKDIR.value))
    try:
        with named_refusals(workdir), WorkdirLock(workdir) as lock:
            interruption.before_leaving(lock.release)
            take_architecture(_CONFIG.value, _given(), saved_run(workdir))
            finished = Run(_CONFIG.value, workdir, lock, interruption).train()
            distributed.meet("end")
    except OSError as e:  # metrics and events; checkpoints speak for themselves
        raise _named(e, str(workdir)) from e
    return 0 if finished else EXIT_INTERRUPTED


def _given() -> Collection[str]:
    """The fields of the config that the command line names."""
    names: dict[str, Any] = config_flags.get_override_values(flags.FLAGS["config"])
    return names.keys()


def _check(machine: str) -> int:
    """What --check says; see `albert_jax.training.check`."""
    if _PROCESSES.value is not None:
        raise UserError("--check looks at the run as a whole, in one process; leave --processes away.")
    if machine != "here":
        os.environ["JAX_PLATFORMS"] = "cpu"  # what is here may be another run's, or hang for want of its peers
    from albert_jax.training.check import check
    from albert_jax.training.initialization import take_architecture

    _keep_compiled_programs()
    logging.getLogger("albert_jax").setLevel(logging.WARNING)  # the lines of the check say more
    if machine != "fields" or os.path.isdir(_CONFIG.value.init_from):  # it may be only where the run will be
        take_architecture(_CONFIG.value, _given())
    return check(_CONFIG.value, machine)


def _named(e: OSError, workdir: str) -> Exception:
    """An error of writing the records as a sentence; any other as it is."""
    from albert_jax.remote import is_remote

    if e.errno not in _UNWRITABLE and not str(e.filename).startswith(workdir):
        return e
    place, other = f"the workdir {workdir}", "choose another --workdir"
    if is_remote(workdir):
        place, other = f"{tempfile.gettempdir()}, where the records of {workdir} grow,", "set TMPDIR"
    return UserError(f"{place} cannot be written ({e.strerror}); make room there or {other}.")


def main(interruption: Interruption) -> int:
    """Runs the training that the flags describe and returns the exit status."""
    sys.unraisablehook = _report
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax tells every file that it opens and every error it raises
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    try:
        return _train(interruption) if _CHECK.value is None else _check(_CHECK.value)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        status = e.status
    except Exception as e:
        from albert_jax.training import distributed

        if not distributed.several() and not isinstance(e, distributed.LostPeerError):
            raise
        if distributed.is_loss_of_peer(e):
            print(f"error: another process of the run is gone ({e}); start all of them again.", file=sys.stderr)
            status = EXIT_STUCK
        else:
            traceback.print_exc()
            status = 1
    return _leave(status, interruption)


def _leave(status: int, interruption: Interruption) -> int:
    """Ends a process of several, where something failed: in peace if it failed in all, else so that they notice."""
    from albert_jax.training import distributed

    if interruption.leaving.is_set():  # what failed is that the other thread is about to end the process
        threading.Event().wait()
    if distributed.several():
        distributed.part()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with Interruption(last=True) as entered:  # before all that takes long
        try:
            app.run(lambda _: main(entered), flags_parser=parse)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
