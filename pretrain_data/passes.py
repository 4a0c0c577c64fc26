# SPDX-License-Identifier: Apache-2.0
"""What is done with one part of the corpus, by one process on its own. A build is these passes over all parts.

1. `scan`: which documents may be held out for validation; with near-duplicate removal also a signature of each.
2. `guard`: which word runs of the held-out documents occur in this part's training documents.
3. `tokenize`: sentences, token ids, one shard for each split, read back and compared.

Between the passes `pretrain_data.builder` joins what the parts gave. A pass over a part is a function of the corpus and
of these joined results, and leaves its own in a folder of the workplace; so it does not matter who runs it, when, or
how often.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import compress, pairwise
from pathlib import Path

import numpy as np

from albert_jax.data.vocabulary import UNK
from albert_jax.remote import named_refusals
from albert_jax.tokenization import AlbertTokenizer
from pretrain_data import shards
from pretrain_data.duplicates import Duplicates, signatures
from pretrain_data.holdout import Candidates, Shingler, contains, content_hash, seen_in_training
from pretrain_data.records import Counts, Encoder
from pretrain_data.sentences import Splitters
from pretrain_data.sources.base import BadCount, BadRecord, Document, Part, ReadLog, Source
from pretrain_data.workplace import Workplace

# Sentences tokenized in one call, and documents whose signatures are computed in one: enough that calls cost nothing.
_BATCH_SENTENCES = 4096
_BATCH_DOCUMENTS = 256
# Characters in such a batch, about, and a document more: few enough for memory where sentences or documents are long.
_BATCH_CHARACTERS = 2**22
# Characters tokenized in one call of the tokenizer, about, and a sentence more.
_CALL_CHARACTERS = 2**20


@dataclass(frozen=True)
class Job:
    """A build, as it is pickled to the processes that work on its parts.

    Attributes:
        sources: the corpus, those for validation alone at its end.
        training_sources: how many of them are for training.
        parts: (number of the source, part), in corpus order.
        tokenizer: decides the ids and the cleaning.
        model: its spiece.model, which goes into the data set whatever becomes of the file meanwhile.
        splitters: for the sources whose lines are paragraphs.
        validation_fraction: expected share of documents held out, 0 where validation has sources or there is none.
        validation_overlap: see `pretrain_data.builder.Options`.
        near_duplicates: whether documents that nearly repeat another one are left out.
        on_bad_record: see `ReadLog`.
        workplace: where the results go.
    """

    sources: tuple[Source, ...]
    training_sources: int
    parts: tuple[tuple[int, Part], ...]
    tokenizer: AlbertTokenizer
    model: bytes
    splitters: Splitters
    validation_fraction: float
    validation_overlap: float
    near_duplicates: bool
    on_bad_record: str
    workplace: Workplace

    @property
    def has_validation_sources(self) -> bool:
        """Whether validation has sources of its own, so that nothing is split off the others."""
        return self.training_sources < len(self.sources)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that the data set has."""
        return shards.SPLITS if self.has_validation_sources or self.validation_fraction else shards.SPLITS[:1]

    def is_for_validation(self, number: int) -> bool:
        """Whether a part is of a source for validation alone."""
        return self.parts[number][0] >= self.training_sources

    def validates(self, key: int, number: int, held_out: np.ndarray) -> bool:
        """Whether a document of part `number` is in validation, where the keys `held_out` are split off."""
        return self.is_for_validation(number) if self.has_validation_sources else contains(held_out, key)

    def documents(self, number: int, log: ReadLog) -> Iterator[Document]:
        """A part's documents in order."""
        source, part = self.parts[number]
        return self.sources[source].read(part, log)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """bool [V]: pieces that begin with "▁"."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(range(self.tokenizer.vocab_size)))
        return np.array([piece.startswith("▁") for piece in pieces])

    @functools.cached_property
    def duplicates(self) -> Duplicates | None:
        """What pass 1 found, if it was asked."""
        if not self.near_duplicates:
            return None
        with self.workplace.opened("joined/duplicates") as folder:
            return Duplicates.load(folder / "duplicates.npz")

    @functools.cached_property
    def chosen(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys chosen after pass 1, and their distinct shingles."""
        with self.workplace.opened("joined/chosen") as folder:
            return np.load(folder / "keys.npy"), np.load(folder / "vocabulary.npy")

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """uint64, sorted: the keys of the validation documents, after pass 2."""
        with self.workplace.opened("joined/held_out") as folder:
            held_out: np.ndarray = np.load(folder / "keys.npy")
            return held_out

    def keeps(self, key: int, number: int, ordinal: int) -> bool:
        """Whether a document, the `ordinal`-th of part `number`, is no duplicate that is left out."""
        return self.duplicates is None or self.duplicates.keep(key, number, ordinal)


def scan(job: Job, number: int, folder: Path) -> None:
    """Pass 1; leaves candidates.npz, read.json and, to remove near-duplicates, signatures.npz."""
    fraction = 1.0 if job.is_for_validation(number) else job.validation_fraction
    candidates = Candidates(fraction, bounded=not job.near_duplicates)
    shingler = Shingler()
    keys: list[np.ndarray] = []
    values: list[np.ndarray] = []
    batch: list[Document] = []
    count = size = 0

    def sign() -> None:
        found = signatures(batch)
        keys.append(found[0])
        values.append(found[1])
        batch.clear()

    bad = BadCount()
    for document in job.documents(number, ReadLog(job.on_bad_record, bad)):
        count += 1
        candidates.offer(document, content_hash(document.lines), shingler)
        if job.near_duplicates:
            batch.append(document)
            size += _characters(document)
            if len(batch) == _BATCH_DOCUMENTS or size > _BATCH_CHARACTERS:
                sign()
                size = 0
    if job.near_duplicates:
        sign()
        np.savez(folder / "signatures.npz", keys=np.concatenate(keys), signatures=np.concatenate(values))
    np.savez(
        folder / "candidates.npz",
        keys=np.array(candidates.keys, np.uint64),
        sizes=np.array(candidates.sizes, np.int64),
        offsets=np.cumsum([0, *map(len, candidates.shingles)], dtype=np.int64),
        shingles=np.concatenate([np.zeros(0, np.uint64), *candidates.shingles]),
    )
    (folder / "read.json").write_text(json.dumps({"documents": count, "bad": len(bad), "first": bad.first}))


def guard(job: Job, number: int, folder: Path) -> None:
    """Pass 2; leaves seen.npy, bits over the chosen documents' shingles."""
    keys, vocabulary = job.chosen
    ordinals = iter(range(2**62))

    def in_training(document: Document) -> bool:
        key = content_hash(document.lines)
        return job.keeps(key, number, next(ordinals)) and not job.validates(key, number, keys)

    documents = job.documents(number, ReadLog(job.on_bad_record, BadCount()))
    seen = seen_in_training(vocabulary, documents, in_training)
    np.save(folder / "seen.npy", np.packbits(seen))


@dataclass
class _Split:
    """What `tokenize` writes of one split."""

    writer: shards.ShardWriter
    counts: Counts


def tokenize(job: Job, number: int, folder: Path) -> None:
    """Pass 3; leaves a shard and its index for each split, counts.json and, where there are any, quarantined.jsonl."""
    log = ReadLog(job.on_bad_record, _Quarantine(folder / "quarantined.jsonl"))
    vocab_size = job.tokenizer.vocab_size
    splits = {
        split: _Split(shards.ShardWriter(folder / f"{split}.array_record", vocab_size), Counts())
        for split in job.splits
    }
    encoder = Encoder(job.starts_word)
    dropped: Counter[str] = Counter()
    try:
        for batch in _batches(job, number, log, dropped):
            texts = [text for _, _, sentences in batch for text in sentences]
            tokens, lengths = _encoded(job.tokenizer, texts)
            first, begin = 0, 0
            for document, key, sentences in batch:
                own = lengths[first : first + len(sentences)]
                end = begin + int(own.sum())
                split = splits["validation" if job.validates(key, number, job.held_out) else "train"]
                _write_document(document, sentences, tokens[begin:end], own, encoder, split, dropped)
                first, begin = first + len(sentences), end
    finally:
        for split in splits.values():
            split.writer.close()
    for name, split in splits.items():
        shards.check(split.writer, vocab_size)
        np.savez(folder / f"{name}.npz", **split.writer.index.arrays())
    _write_counts(folder, splits, dropped, log)


def _encoded(tokenizer: AlbertTokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """`encode_sentences_flat` in several calls where the texts are long: a call takes up to 300 bytes a character."""
    groups = np.cumsum([len(text) for text in texts]) // _CALL_CHARACTERS
    cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(texts)]
    calls = [tokenizer.encode_sentences_flat(texts[a:b]) for a, b in pairwise(cuts)]
    tokens, lengths = (np.concatenate(arrays) for arrays in zip(*calls, strict=True))
    return tokens, lengths


def _write_counts(folder: Path, splits: dict[str, _Split], dropped: Counter[str], log: ReadLog) -> None:
    counts = {
        "splits": {name: asdict(split.counts) for name, split in splits.items()},
        "dropped": dict(dropped),
        "log": {name: value for name, value in vars(log).items() if isinstance(value, int)},
        "quarantined": len(log.bad),
    }
    (folder / "counts.json").write_text(json.dumps(counts))


class _Quarantine(BadCount):
    """Writes bad records to a file as they come, for they may be many; no file is made where none comes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def append(self, record: BadRecord, /) -> None:
        super().append(record)
        place, problem, raw = record
        # Latin-1 gives every byte a character, so nothing of a record that is no UTF-8 is lost.
        kept = {"place": place, "problem": problem, "bytes_as_latin1": raw.decode("latin-1")}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def _batches(
    job: Job, number: int, log: ReadLog, dropped: Counter[str]
) -> Iterator[list[tuple[Document, int, list[str]]]]:
    """Yields runs of (document, its key, its sentences) of some thousand sentences, or fewer if they are long."""
    source = job.sources[job.parts[number][0]]
    splitter = job.splitters.of(source.name) if source.lines == "paragraph" else None
    batch: list[tuple[Document, int, list[str]]] = []
    size = characters = 0
    for ordinal, document in enumerate(job.documents(number, log)):
        key = content_hash(document.lines)
        if not job.keeps(key, number, ordinal):
            dropped["duplicates"] += 1
            continue
        lines = document.lines
        sentences = lines if splitter is None else [s for line in lines for s in splitter.split(line)]
        batch.append((document, key, sentences))
        size += len(sentences)
        characters += _characters(document)
        if size >= _BATCH_SENTENCES or characters > _BATCH_CHARACTERS:
            yield batch
            batch, size, characters = [], 0, 0
    if batch:
        yield batch


def _characters(document: Document) -> int:
    return sum(map(len, document.lines))


def _write_document(
    document: Document,
    sentences: list[str],
    tokens: np.ndarray,
    lengths: np.ndarray,
    encoder: Encoder,
    split: _Split,
    dropped: Counter[str],
) -> None:
    """Writes a document's records; `tokens` [T] are its sentences', of `lengths` [N]."""
    full = lengths > 0
    if not full.all():
        dropped["sentences"] += int(np.count_nonzero(~full))
        sentences, lengths = list(compress(sentences, full)), lengths[full]
    if not len(lengths):
        dropped["documents"] += 1
        return
    counts, index = split.counts, split.writer.index
    counts.documents += 1
    counts.text_bytes += len("".join(sentences).encode())
    before = counts.sentences
    for part, record in enumerate(encoder.records(tokens, lengths, counts)):
        index.continued += (index.sentences + record.continued).tolist()
        split.writer.write(record.tokens, record.lengths, document.id, part)
        counts.records += 1
        counts.sentences += len(record.lengths)
    counts.tokens += len(tokens)
    counts.unknown_tokens += int(np.count_nonzero(tokens == UNK))
    counts.word_starts += int(np.count_nonzero(encoder.starts_word[tokens]))
    counts.single_sentence_documents += counts.sentences == before + 1


PASSES: dict[str, Callable[[Job, int, Path], None]] = {"scan": scan, "guard": guard, "tokenize": tokenize}


def run(job: Job, name: str, number: int) -> int:
    """Runs one pass over one part and keeps the result; returns the part's number.

    Raises:
        UserError: the part cannot be read, or the workplace's store cannot be reached.
    """
    with named_refusals(job.workplace.path), job.workplace.making(result(name, number)) as folder:
        PASSES[name](job, number, folder)
    return number


def result(name: str, number: int) -> str:
    """The workplace's name for what a pass over a part leaves."""
    return f"{name}/{number:06d}"
