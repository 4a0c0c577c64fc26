# SPDX-License-Identifier: Apache-2.0
"""Paths in object stores (``gs://bucket/folder``), through fsspec."""

import importlib.util
import os
from typing import Any

import fsspec

from albert_jax.errors import UserError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object store (``gs://...``) and no local file."""
    return "://" in str(path)


def filesystem(path: str) -> Any:
    """The fsspec file system of a remote path.

    Raises:
        UserError: the package for this kind of store is not installed, or there is none.
    """
    scheme = path.split("://", 1)[0]
    if scheme in ("gs", "gcs") and importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} needs the package gcsfs; install it by pip install 'albert_jax[gcs]'.")
    try:
        return fsspec.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened ({error}); gs:// paths are supported.") from error
