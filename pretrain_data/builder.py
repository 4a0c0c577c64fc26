# SPDX-License-Identifier: Apache-2.0
"""Builds the data set: three passes over the parts of the corpus, and between them what joins their results."""

import hashlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import albert_jax
from albert_jax.errors import UserError
from albert_jax.remote import named_refusals
from albert_jax.tokenization import AlbertTokenizer
from pretrain_data.assembly import FORMAT, assemble, check_output, collect, place
from pretrain_data.duplicates import find_duplicates
from pretrain_data.holdout import MAX_SHARED, SHINGLE_WORDS, HeldOut, choose, settle
from pretrain_data.passes import Job, result
from pretrain_data.sentences import Splitters
from pretrain_data.sources.base import STOP, Source
from pretrain_data.summary import Summary
from pretrain_data.workers import Here, Processes, Workers, cores
from pretrain_data.workplace import Workplace


@dataclass(frozen=True)
class Options:
    """What a data set depends on besides its sources and its vocabulary.

    Attributes:
        language: ISO 639 code, for sentences inside paragraphs.
        languages: source's name -> its code, where it has another.
        validation_fraction: expected share of documents held out, in [0, 1); 0 holds none out.
        validation_overlap: the share of its runs of words that a held-out document may have in common with training.
        near_duplicates: leave out documents that nearly repeat another one.
        on_bad_record: "stop" or "quarantine", see `pretrain_data.sources.base.ReadLog`.
    """

    language: str = "en"
    languages: dict[str, str] = field(default_factory=dict)
    validation_fraction: float = 0.01
    validation_overlap: float = MAX_SHARED
    near_duplicates: bool = False
    on_bad_record: str = STOP


def build(
    sources: Sequence[Source],
    tokenizer: AlbertTokenizer,
    out: str,
    options: Options,
    *,
    validation: Sequence[Source] = (),
    weights: dict[str, float] | None = None,
    workers: int | None = None,
    beam: Sequence[str] | None = None,
    overwrite: bool = False,
    command: dict[str, Any] | None = None,
) -> Summary:
    """Builds the data set `out`: a TFDS data set with ``index/``, ``build/``, ``manifest.json`` and ``spiece.model``
    beside the shards.

    The content depends on the sources, the vocabulary and the options alone, and never on who does the work. Finished
    parts are kept beside `out` until the data set is whole, so the same call goes on from there after an interruption.

    Args:
        sources: read three times.
        tokenizer: decides the ids, the cleaning and the vocabulary file that is copied.
        out: a folder, or an address in an object store (``gs://...``); must not exist unless `overwrite` is given.
        options: see `Options`.
        validation: sources that are all of validation; nothing is then held out of the others.
        weights: how often an epoch sees a source, by its name; 1 where none is given. Training can choose others.
        workers: processes; all cores by default.
        beam: Apache Beam's pipeline options, to run on Beam in place of processes.
        overwrite: replace the data set `out` once the new one is whole.
        command: how the sources were named, kept for `pretrain_data.repair`.

    Raises:
        UserError: `out` exists; a source cannot be read; nothing is left for a split.
    """
    if not 0 <= options.validation_fraction < 1:
        raise UserError(
            f"--validation-fraction {options.validation_fraction} must be at least 0 and below 1; 0.01 is usual"
        )
    if not 0 <= options.validation_overlap <= 1:
        raise UserError(f"--validation-overlap {options.validation_overlap} must be from 0 to 1; {MAX_SHARED} is usual")
    out = out.rstrip("/") or out
    check_output(out, overwrite)
    started = time.monotonic()
    job = make_job(sources, validation, tokenizer, options, Workplace(out))
    with named_refusals(out), job.workplace.locked(), _kept_for_next_time(job.workplace):
        resumed = _claim(job, options)
        count = min(workers or cores(), len(job.parts))
        team = _team(job, count, beam)
        try:
            summary = _passes(job, team)
        finally:
            team.close()
        with tempfile.TemporaryDirectory(dir=None if job.workplace.remote else job.workplace.path) as temporary:
            folder = Path(temporary, "data")
            folder.mkdir()
            assemble(job, summary, weights or {}, folder)
            (folder / "build" / "identity.json").write_text(json.dumps(identity(job, options)))
            (folder / "build" / "command.json").write_text(json.dumps(command or {}))
            summary.disk_bytes = place(job, folder, out, overwrite=overwrite)
        job.workplace.remove()
    summary.workers = "Apache Beam" if beam is not None else f"{count} process{'es' * (count > 1)}"
    summary.workers += ", with what an earlier call had finished" * resumed
    summary.seconds = time.monotonic() - started
    return summary


def make_job(
    sources: Sequence[Source],
    validation: Sequence[Source],
    tokenizer: AlbertTokenizer,
    options: Options,
    workplace: Workplace,
) -> Job:
    """The job of building `sources`, and `validation` if that has its own, in `workplace`."""
    # Sources of one name are one source of the data set, and in both splits these have the same order.
    order = {source.name: number for number, source in enumerate(sources)}
    every = [*sources, *sorted(validation, key=lambda source: order.get(source.name, len(order)))]
    parts = [(number, part) for number, source in enumerate(every) for part in source.parts()]
    return Job(
        sources=tuple(every),
        training_sources=len(sources),
        parts=tuple(parts),
        tokenizer=tokenizer,
        model=_model_of(tokenizer),
        splitters=Splitters(options.language, options.languages),
        validation_fraction=0.0 if validation else options.validation_fraction,
        validation_overlap=options.validation_overlap,
        near_duplicates=options.near_duplicates,
        on_bad_record=options.on_bad_record,
        workplace=workplace,
    )


def _model_of(tokenizer: AlbertTokenizer) -> bytes:
    """The spiece.model, also of a tokenizer that was opened from a tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(*tokenizer.save_vocabulary(folder)).read_bytes()


def identity(job: Job, options: Options) -> dict[str, Any]:
    """All that the content of the data set depends on; work that was done for another one is of no use."""
    tokenizer = job.tokenizer
    return {
        "format": FORMAT,
        "versions": {
            "albert_jax": albert_jax.__version__,
            **{name: importlib.metadata.version(name) for name in ("sentencepiece", "pyicu-wheels", "rensa")},
        },
        "options": asdict(options),
        "vocabulary": hashlib.sha256(job.model).hexdigest(),
        "cleaning": [tokenizer.cleaning, tokenizer.do_lower_case, tokenizer.keep_accents, tokenizer.remove_space],
        "sources": [[source.name, source.lines, getattr(source, "ends", "")] for source in job.sources],
        "training_sources": job.training_sources,
        "parts": hashlib.sha256(repr(job.parts).encode()).hexdigest(),
    }


class UnusableCorpusError(UserError):
    """The same corpus with the same options cannot become a data set, so finished work is of no use."""


@contextmanager
def _kept_for_next_time(workplace: Workplace) -> Iterator[None]:
    """Says what becomes of the work when the block fails: a folder that nobody was told of would stay for ever."""
    try:
        yield
    except BaseException as error:
        if workplace.finished() and not isinstance(error, UnusableCorpusError):
            print(f"note: finished work is kept in {workplace.path}; the same command uses it", file=sys.stderr)
        else:
            workplace.remove()
        raise


def _claim(job: Job, options: Options) -> bool:
    """Takes the workplace; returns whether there is work to go on from."""
    resumed = job.workplace.claim(identity(job, options))
    if resumed:
        done = sum(name.startswith("tokenize/") for name in job.workplace.finished())
        print(f"going on from {job.workplace.path}: {done:,} of {len(job.parts):,} parts are tokenized", flush=True)
    return resumed


def _team(job: Job, count: int, beam: Sequence[str] | None) -> Workers:
    if beam is not None:
        try:
            from pretrain_data.beam import BeamWorkers
        except ImportError as error:
            raise UserError(
                f"Apache Beam is not installed ({error}); pip install -e '.[beam]' in the checkout."
            ) from error
        return BeamWorkers(beam)
    return Processes(job, count) if count > 1 else Here()


def _passes(job: Job, team: Workers) -> Summary:
    """Runs what is not finished yet."""
    finished = job.workplace.finished()

    def over_parts(name: str) -> None:
        numbers = [number for number in range(len(job.parts)) if result(name, number) not in finished]
        if numbers:
            team.run(job, name, numbers)

    if "joined/chosen" not in finished:
        over_parts("scan")
        _join_scan(job)
    if "joined/held_out" not in finished:
        if len(job.chosen[0]):
            over_parts("guard")
        _join_guard(job)
    over_parts("tokenize")
    summary = collect(job)
    with job.workplace.opened("joined/held_out") as folder:
        summary.guard = (folder / "guard.txt").read_text()
    if job.duplicates is not None:
        summary.duplicates = job.duplicates.describe()
    for split, counts in summary.splits.items():
        if not counts.records:
            documents = sum(counts.documents for counts in summary.splits.values())
            raise _empty_split(job, split, documents, summary.guard)
    return summary


def _join_scan(job: Job) -> None:
    """Chooses the held-out documents, and the duplicates before them."""
    keys, sizes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    read = []
    for number in range(len(job.parts)):
        with job.workplace.opened(result("scan", number)) as folder:
            read.append(json.loads((folder / "read.json").read_text()))
            with np.load(folder / "candidates.npz") as part:
                keys.append(part["keys"])
                sizes.append(part["sizes"])
    documents = sum(part["documents"] for part in read)
    if not documents:
        raise _empty_corpus(job, read)
    all_keys, all_sizes = np.concatenate(keys), np.concatenate(sizes)
    if job.near_duplicates:
        _join_signatures(job)
        assert job.duplicates is not None
        kept = ~job.duplicates.dropped(all_keys)
        all_keys, all_sizes = all_keys[kept], all_sizes[kept]
    if not len(all_keys) and "validation" in job.splits:  # now, not after hours of tokenizing
        raise _empty_split(job, "validation", documents, "no document's content was chosen")
    chosen = choose(all_keys, all_sizes)

    def parts() -> Any:
        for number in range(len(job.parts)):
            with job.workplace.opened(result("scan", number)) as folder, np.load(folder / "candidates.npz") as part:
                yield part["keys"], part["offsets"], part["shingles"]

    held_out = HeldOut.of(chosen, parts())
    with job.workplace.making("joined/chosen") as folder:
        np.save(folder / "keys.npy", held_out.keys)
        np.save(folder / "offsets.npy", held_out.offsets)
        np.save(folder / "shingles.npy", held_out.shingles)
        np.save(folder / "vocabulary.npy", held_out.vocabulary)


def _join_signatures(job: Job) -> None:
    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(len(job.parts)):
            with job.workplace.opened(result("scan", number)) as folder, np.load(folder / "signatures.npz") as part:
                yield part["keys"], part["signatures"]

    with job.workplace.making("joined/duplicates") as folder:
        find_duplicates(parts()).save(folder / "duplicates.npz")


def _join_guard(job: Job) -> None:
    """Settles which documents stay held out."""
    with job.workplace.opened("joined/chosen") as folder:
        held_out = HeldOut(*(np.load(folder / f"{name}.npy") for name in ("keys", "offsets", "shingles")))
    size = len(held_out.vocabulary)
    bits = np.zeros((size + 7) // 8, np.uint8)
    for number in range(len(job.parts)) if len(held_out.keys) else ():
        with job.workplace.opened(result("guard", number)) as folder:
            bits |= np.load(folder / "seen.npy")
    seen, most = np.unpackbits(bits, count=size).astype(bool), job.validation_overlap
    keys = held_out.keys if job.has_validation_sources else settle(held_out, seen, most)
    told = _told_of_guard(job, held_out.shared(seen), len(held_out.keys) - len(keys))
    if len(held_out.keys) and not len(keys):
        raise _empty_split(job, "validation", len(held_out.keys), told)
    with job.workplace.making("joined/held_out") as folder:
        np.save(folder / "keys.npy", keys)
        (folder / "guard.txt").write_text(told)


def _told_of_guard(job: Job, shared: np.ndarray, moved: int) -> str:
    """One line: how much of validation stands in training text, and what became of it.

    Args:
        job: the build.
        shared: share of each chosen document's runs of words that does.
        moved: documents that went to training.
    """
    if not len(shared):
        return "no validation split, as was asked"
    most = job.validation_overlap
    above = int(np.count_nonzero(shared > most))
    told = (
        f"validation documents with more than {most:.0%} of their runs of {SHINGLE_WORDS} words in training text: "
        f"{above:,} of {len(shared):,}"
    )
    told += ", which stay" if job.has_validation_sources else f"; to train with them went {moved:,}"
    if 2 * max(above, moved) > len(shared):
        told += f"; half of all have {np.median(shared):.0%} or more there; --validation-overlap sets the share"
    return told


def _empty_corpus(job: Job, read: Sequence[dict[str, Any]]) -> UnusableCorpusError:
    names = ", ".join(source.name for source in job.sources)
    bad = sum(part["bad"] for part in read)
    if not bad:
        return UnusableCorpusError(f"the corpus is empty: no text in {names}; give --source files with text")
    place, problem = next(part["first"] for part in read if part["first"])
    return UnusableCorpusError(
        f"the corpus is empty: all {bad:,} records of {names} are bad, of which {place} {problem}; give --source files "
        "with text, or mend these"
    )


def _empty_split(job: Job, split: str, documents: int, told: str) -> UnusableCorpusError:
    """What can be done depends on where the split was to come from."""
    if split == "train":
        remedy = "give more documents or, where they are separated by blank lines, a lower --validation-fraction"
    elif job.has_validation_sources:
        remedy = "give a --validation-source with text"
    else:
        remedy = (
            "give more documents, a higher --validation-fraction, a higher --validation-overlap where documents share "
            "a form's wording, a --validation-source, or --validation-fraction 0 for a data set without validation"
        )
    return UnusableCorpusError(f"nothing is left for {split} of {documents:,} documents ({told}); {remedy}")
