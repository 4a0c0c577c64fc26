# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run agree on whether something went well for all of them, from any thread.

`distributed.by_first` and `meet` count their meetings, so only the main thread may call them. These have names instead.
"""

import json
import time

import jax

from albert_jax.training.distributed import PATIENCE, LostPeerError, first, get, put, several

_SHORTEST, _LONGEST = 0.001, 0.1  # seconds between two looks at the common store


def agree(name: str, word: str, patience: float = PATIENCE) -> list[str]:
    """Waits for each process's word on a matter; gives all of them, in any order.

    Process 0 collects them: n processes ask 2n times and not n * n times.

    Args:
      name: of the matter, the same for all, and used once in a run.
      word: this process's; empty where all is well.
      patience: seconds for the others to come.

    Raises:
      LostPeerError: where one does not say anything in time.
    """
    if not several():
        return [word]
    deadline = time.monotonic() + patience
    if first():
        words = [word, *(_await(f"{name}/{process}", deadline) for process in range(1, jax.process_count()))]
        put(f"{name}/all", json.dumps(words))
        return words
    say(name, word)
    words = json.loads(_await(f"{name}/all", deadline))
    return words


def say(name: str, word: str) -> None:
    """Says a word on a matter without waiting for the others'; from process 0 it ends the matter for all."""
    if several():
        key, value = (f"{name}/all", json.dumps([word])) if first() else (f"{name}/{jax.process_index()}", word)
        put(key, value)


def _await(key: str, deadline: float) -> str:
    pause = _SHORTEST
    while (found := get(key)) is None:
        if time.monotonic() > deadline:
            raise LostPeerError(f"another process of the run did not come to {key} in time.")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)
    return found
