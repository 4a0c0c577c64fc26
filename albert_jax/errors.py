# SPDX-License-Identifier: Apache-2.0
"""The exceptions that a person is meant to read."""

import difflib
import re

EXIT_OUT_OF_MEMORY = 71  # EX_OSERR of sysexits.h: the same command would fail again, so no launcher repeats it


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """The end of a sentence on a name that is not known: the one that it may stand for, or all that there are.

    Args:
      name: without the prefix.
      known: those that there are, without it too, as they would look alike by it.
      prefix: stands before each.
    """
    near = difflib.get_close_matches(name, known, n=1) or [other for other in known if name in other]
    if near:
        return f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(repr(prefix + other) for other in near)}"
    return f"there are {', '.join(prefix + other for other in known)}"


class UserError(ValueError):
    """A bad input, file or setting: one sentence that names the value and says what to do about it.

    The command lines print it as ``error: <sentence>`` on standard error and exit with its status, 2; any other
    exception is a defect of ours and keeps its traceback.

    Args:
      sentence: gets its full stop here where it has none.
    """

    status = 2

    def __init__(self, sentence: str) -> None:
        sentence = sentence.rstrip()
        super().__init__(sentence if sentence.endswith((".", "?")) else f"{sentence}.")


class OutOfMemoryError(UserError):
    """A device cannot hold what the config asks of it; the sentence names the setting that fits, or is next to try."""

    status = EXIT_OUT_OF_MEMORY


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error of JAX says that a device's memory is too small: XLA's words differ between CPU, GPU and TPU."""
    text = str(error)
    wanted = re.search(r"out of memory|allocat|reserve", text, re.IGNORECASE)
    return bool(text.startswith("RESOURCE_EXHAUSTED") and wanted) or "CUDA_ERROR_OUT_OF_MEMORY" in text
