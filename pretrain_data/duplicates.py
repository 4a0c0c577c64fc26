# SPDX-License-Identifier: Apache-2.0
"""Placeholder; being written."""

from typing import Any

Duplicates = Any


def signatures(documents: Any) -> Any:
    """Being written."""
    raise NotImplementedError


def find_duplicates(found: Any) -> Any:
    """Being written."""
    raise NotImplementedError
