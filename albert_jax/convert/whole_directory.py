# SPDX-License-Identifier: Apache-2.0
"""A directory that appears whole or not at all."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from albert_jax.errors import UserError


def is_taken(out: pathlib.Path) -> bool:
    """Whether something is at `out` that is not an empty directory."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


@contextlib.contextmanager
def whole_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a new directory to fill, which then takes the place of `out`; an error leaves `out` as it was.

    Raises:
      UserError: where it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            directory = pathlib.Path(temporary) / "new"
            directory.mkdir()
            yield directory
            if out.exists():
                out.rename(pathlib.Path(temporary) / "old")  # deleted with the temporary directory
            directory.rename(out)
    except OSError as e:
        raise UserError(f"{out} cannot be written ({e.strerror}); make room or choose another directory.") from e
