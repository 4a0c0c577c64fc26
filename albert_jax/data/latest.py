# SPDX-License-Identifier: Apache-2.0
"""What was computed last, kept for several threads."""

import functools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """A pure function of hashable arguments that keeps its latest values: two, as threads cross from one to the next.

    Where several threads ask at once, one computes and the others wait for it.

    Args:
      compute: the function.
      kept: how many of its values.
    """

    def __init__(self, compute: Callable[..., Value], kept: int = 2):
        self._compute, self._lock = functools.lru_cache(maxsize=kept)(compute), threading.Lock()

    def __call__(self, *arguments: int) -> Value:
        with self._lock:
            return self._compute(*arguments)
