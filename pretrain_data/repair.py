# SPDX-License-Identifier: Apache-2.0
"""Finds the damaged shards of a data set and makes them again from its sources, to the same content."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.data.store import read_manifest
from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer
from pretrain_data import passes, shards
from pretrain_data.builder import Options, identity, make_job
from pretrain_data.passes import Job
from pretrain_data.sources.base import Source
from pretrain_data.workplace import Workplace


@dataclass(frozen=True)
class Shard:
    """A shard of a data set.

    Attributes:
        path: the file.
        split: "train" or "validation".
        part: the number of the part of the corpus that it was made from.
        digests: uint8 [records, 16], what its records should be.
    """

    path: Path
    split: str
    part: int
    digests: np.ndarray

    def is_whole(self, vocab_size: int) -> bool:
        """Whether all its records are there and are what they should be."""
        try:
            found = [
                shards.record_digest(tokens, lengths) for tokens, lengths, _ in shards.read_back(self.path, vocab_size)
            ]
        except Exception:  # array_record raises RuntimeError, ValueError or IndexError, protobuf its own
            return False
        return b"".join(found) == self.digests.tobytes()


def shards_of(data: Path) -> list[Shard]:
    """All shards of a data set, as its manifest and index describe them.

    Raises:
        UserError: there is no data set, or its index is damaged.
    """
    found = []
    for split, content in read_manifest(data)["splits"].items():
        file = data / "index" / f"{split}.digests.npy"
        try:
            digests = np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the index {file} cannot be read ({error}); build the data set again") from error
        if hashlib.sha256(digests.tobytes()).hexdigest() != content["fingerprint"]:
            raise UserError(f"the index {file} is damaged; build the data set again")
        ends = np.cumsum(content["shard_records"])
        for index, (part, end, count) in enumerate(zip(content["parts"], ends, content["shard_records"], strict=True)):
            name = shards.shard_name(split, index, len(ends))
            found.append(Shard(data / name, split, part, digests[end - count : end]))
    return found


def repair(
    data: Path, reopen: Callable[[dict[str, Any]], tuple[Sequence[Source], Sequence[Source]]]
) -> tuple[list[Path], int]:
    """Reads every shard of a data set, and makes those that are damaged or missing again from the sources.

    Args:
        data: the data set's folder.
        reopen: opens the sources, and those for validation, again from what `build` kept of its command.

    Returns:
        The shards that were made again, and how many there are in all.

    Raises:
        UserError: the sources, the vocabulary or the programs are not those that the data set was built from.
    """
    vocab_size = read_manifest(data)["vocabulary"]["size"]
    everything = shards_of(data)
    damaged = [shard for shard in everything if not shard.is_whole(vocab_size)]
    if damaged:
        with _job_of(data, reopen) as job:
            for number in sorted({shard.part for shard in damaged}):
                passes.run(job, "tokenize", number)
                with job.workplace.opened(passes.result("tokenize", number)) as folder:
                    for shard in (one for one in damaged if one.part == number):
                        _replace(shard, folder, vocab_size)
    return [shard.path for shard in damaged], len(everything)


def _replace(shard: Shard, folder: Path, vocab_size: int) -> None:
    made = folder / f"{shard.split}.array_record"
    if not Shard(made, shard.split, shard.part, shard.digests).is_whole(vocab_size):
        raise UserError(
            f"{shard.path} cannot be made again: part {shard.part} of the sources gives other records now; build the "
            "data set again"
        )
    os.replace(made, shard.path)


@contextmanager
def _job_of(data: Path, reopen: Callable[[dict[str, Any]], tuple[Sequence[Source], Sequence[Source]]]) -> Iterator[Job]:
    """The job that built a data set, in a workplace of its own."""
    try:
        was = json.loads((data / "build" / "identity.json").read_text(encoding="utf-8"))
        command = json.loads((data / "build" / "command.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{data} does not say how it was built ({error}); build it again") from error
    cleaning, do_lower_case, keep_accents, remove_space = was["cleaning"]
    tokenizer = AlbertTokenizer(
        data / "spiece.model",
        do_lower_case=do_lower_case,
        keep_accents=keep_accents,
        remove_space=remove_space,
        cleaning=cleaning,
    )
    options = Options(**was["options"])
    job = make_job(*reopen(command), tokenizer, options, Workplace(f"{data}.repair"))
    now = json.loads(json.dumps(identity(job, options)))
    differing = [name for name in was if now[name] != was[name]]
    if differing:
        raise UserError(
            f"{data} cannot be repaired: its {', '.join(differing)} are not what it was built from; build it again"
        )
    with job.workplace.locked():
        job.workplace.claim(now)
        try:
            _hand_over(data / "build", job)
            yield job
        finally:
            job.workplace.remove()


def _hand_over(kept: Path, job: Job) -> None:
    """Gives the job what the passes over the whole corpus found when the data set was built."""
    with job.workplace.making("joined/held_out") as folder:
        shutil.copyfile(kept / "held_out.npy", folder / "keys.npy")
    if job.near_duplicates:
        with job.workplace.making("joined/duplicates") as folder:
            shutil.copyfile(kept / "duplicates.npz", folder / "duplicates.npz")
