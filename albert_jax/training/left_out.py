# SPDX-License-Identifier: Apache-2.0
"""Rows that a run leaves out after updates on them went out of bounds, and how far back it has gone for it.

A run that rolls back trains again from a checkpoint, on the same rows but for those of the updates that were left out.
What is left out stands in a file of the workdir, written before anything else is changed, so that a run which is killed
at any moment goes on as if it had not been.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Any

from albert_jax.errors import UserError
from albert_jax.remote import directory, first_line

_FILE = "left_out.json"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What a run leaves out.

    Attributes:
      rows: (first step of the phase, begin, end): rows of that phase's stream.
      told: the step at which the last rollback began, 0 where there was none.
      restored: the step that it went back to.
      times: how often the run has gone back there without getting past `told`.
      abandoned: checkpoints after `restored` that were made with the rows; they have to be removed.
    """

    rows: tuple[tuple[int, int, int], ...] = ()
    told: int = 0
    restored: int = 0
    times: int = 0
    abandoned: tuple[int, ...] = ()

    def of_phase(self, begin: int) -> list[tuple[int, int]]:
        """The ranges of rows in the stream of the phase that begins at a step, ascending."""
        return sorted((first, last) for phase, first, last in self.rows if phase == begin)

    def going_back(
        self, rows: Iterable[tuple[int, int, int]], *, told: int, steps: list[int]
    ) -> tuple["LeftOut", list[int]]:
        """What is left out from now on, and which checkpoints to go back to, the newest first.

        The first time that is the newest one. Where the run has not got past `told` since, as far as it has saved, the
        next one is older.

        Args:
          rows: first step of the phase, begin and end, of each update that was left out.
          told: the step of the last of these.
          steps: checkpoints that there are, ascending.
        """
        helped = not self.told or max(steps, default=0) > self.told
        older = steps if helped else [step for step in steps if step < self.restored]
        candidates = older or [step for step in steps if step <= self.restored]
        new = {*rows, *self.rows}
        times = self.times if not helped and not older else 0
        told = told if helped else max(told, self.told)
        return dataclasses.replace(self, rows=tuple(sorted(new)), told=told, times=times + 1), candidates[::-1]

    @staticmethod
    def of(found: dict[str, Any]) -> "LeftOut":
        """As `read_left_out` gives it."""
        rows = tuple((int(phase), int(begin), int(end)) for phase, begin, end in found["rows"])
        told, restored, times = (int(found[name]) for name in ("told", "restored", "times"))
        return LeftOut(rows, told, restored, times, tuple(map(int, found["abandoned"])))

    def write(self, workdir: str | os.PathLike[str]) -> None:
        """Puts it into the workdir, whole or not at all."""
        file = directory(workdir) / _FILE
        temporary = directory(workdir) / f"{_FILE}.tmp"
        temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")
        temporary.replace(file)


def read_left_out(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands in a workdir, as JSON can hold it; see `LeftOut.of`.

    Raises:
      UserError: where the file is damaged.
    """
    file = directory(workdir) / _FILE
    if not file.is_file():
        return dataclasses.asdict(LeftOut())
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        LeftOut.of(found)
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{file} is damaged ({first_line(e)}); restore it from a backup, or remove it to train on the rows that it "
            "names again (they stand in metrics.jsonl's records 'rollback')."
        ) from e
    return found


def forget_left_out(workdir: str | os.PathLike[str]) -> None:
    """Removes the file from a workdir."""
    (directory(workdir) / _FILE).unlink(missing_ok=True)


def merged(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same rows in as few ranges as they take, ascending."""
    ranges: list[tuple[int, int]] = []
    for begin, end in sorted(rows):
        if ranges and begin <= ranges[-1][1]:
            begin, end = ranges[-1][0], max(ranges.pop()[1], end)
        ranges.append((begin, end))
    return ranges
