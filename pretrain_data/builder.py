# SPDX-License-Identifier: Apache-2.0
"""Builds the data set: sources -> sentences -> tokens -> shards, index and manifest, in place only when whole."""

import hashlib
import json
import os
import shutil
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
from albert_jax.tokenization import AlbertTokenizer
from pretrain_data import shards
from pretrain_data.corpora import Document, Source
from pretrain_data.holdout import Holdout
from pretrain_data.progress import documents_of
from pretrain_data.records import Counts, Dropped, Encoder
from pretrain_data.sentences import SentenceSplitter

FORMAT = 2
UNK = 1
# Sentences tokenized in one call: enough that calls cost nothing, few enough for memory.
_BATCH_SENTENCES = 4096


@dataclass
class Report:
    """What a build did; `table` prints it."""

    seconds: float = 0.0
    source_bytes: int = 0
    disk_bytes: int = 0
    near_duplicates: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    splits: dict[str, Counts] = field(default_factory=lambda: {split: Counts() for split in shards.SPLITS})

    def table(self) -> str:
        """The closing report: a column per split, and below it what concerns the whole build."""
        rows = [("", *self.splits)]
        counts = list(self.splits.values())
        for label, name in (
            ("documents", "documents"),
            ("  of one sentence (no order to learn)", "single_sentence_documents"),
            ("sentences", "sentences"),
            ("  longer than 2,048 tokens, split", "split_sentences"),
            ("    cuts inside a word", "split_inside_words"),
            ("tokens", "tokens"),
            ("text bytes", "text_bytes"),
            ("records", "records"),
        ):
            rows.append((label, *(f"{getattr(count, name):,}" for count in counts)))
        rows.append(("bytes per token", *(f"{count.text_bytes / max(1, count.tokens):.3f}" for count in counts)))
        rows.append(("unknown tokens", *(f"{count.unknown_tokens / max(1, count.tokens):.4%}" for count in counts)))
        lines = [f"{row[0]:<38}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows]
        return "\n".join([*lines, *self._whole()])

    def _whole(self) -> list[str]:
        return [
            f"near-duplicates of training text moved from validation to train: {self.near_duplicates:,} documents",
            f"without any token, left out: {self.dropped.sentences:,} sentences, "
            f"{self.dropped.documents:,} whole documents",
            f"bytes: {self.source_bytes:,} in, {self.disk_bytes:,} on disk",
            f"time: {self.seconds:.1f} s, {self.source_bytes / 1e6 / max(1e-9, self.seconds):.2f} MB/s",
        ]


def build(
    sources: Sequence[Source],
    tokenizer: AlbertTokenizer,
    out: Path,
    *,
    splitter: SentenceSplitter,
    validation_fraction: float = 0.01,
    overwrite: bool = False,
) -> Report:
    """Builds the data set `out`: a TFDS data set with ``index/``, ``manifest.json`` and ``spiece.model`` beside the
    shards.

    Three passes over the sources: choose the validation documents, guard them against near-duplicates (see `Holdout`),
    tokenize and write both splits in corpus order. Then everything is read back and compared with what was written.

    Args:
        sources: read three times, in order.
        tokenizer: decides the ids, the cleaning and the vocabulary file that is copied.
        out: must not exist, unless `overwrite` is given and it is a data set.
        splitter: for sources whose lines are paragraphs.
        validation_fraction: expected share of documents held out, in (0, 1).
        overwrite: replace the data set `out` once the new one is whole.

    Raises:
        UserError: `out` exists; a source cannot be read; nothing is left for a split.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"--validation-fraction {validation_fraction} must lie between 0 and 1, both excluded; 0.01 is usual"
        )
    check_output(out, overwrite)
    started = time.monotonic()
    report = Report(source_bytes=sum(source.size for source in sources))
    holdout = _hold_out(list(sources), validation_fraction, report)
    with _in_place_when_whole(out) as folder:
        written = _write_shards(list(sources), tokenizer, splitter, holdout, folder, report)
        found = shards.read_back(folder, tokenizer.vocab_size)
        _compare(found, written, report)
        shutil.copyfile(tokenizer.vocab_file, folder / "spiece.model")
        manifest = _manifest(folder / "spiece.model", sources, tokenizer, found, report)
        (folder / "manifest.json").write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        report.disk_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    report.seconds = time.monotonic() - started
    return report


def check_output(out: Path, overwrite: bool) -> None:
    """Refuses an output that is there, unless it is a data set that may be replaced.

    Raises:
        UserError: see above.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{str(out)!r} exists; give another --out, or --overwrite to replace it")
    if not (out / "manifest.json").is_file() or not (out / "dataset_info.json").is_file():
        raise UserError(
            f"{str(out)!r} is not a data set of this program, so --overwrite leaves it alone; give another --out"
        )


def _hold_out(sources: list[Source], fraction: float, report: Report) -> Holdout:
    holdout = Holdout(fraction)
    count = 0

    def counted() -> Iterator[Document]:
        nonlocal count
        for document in documents_of(sources, "choosing validation documents"):
            count += 1
            yield document

    holdout.choose(counted())
    if not count:
        raise UserError(
            f"the corpus is empty: no text in {', '.join(source.name for source in sources)}; "
            "give --source files with text"
        )
    holdout.guard(documents_of(sources, "comparing with training documents"))
    report.near_duplicates = holdout.near_duplicates
    if not len(holdout):
        raise _empty_split("validation", count, report)  # now, not after hours of tokenizing
    return holdout


@contextmanager
def _in_place_when_whole(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and is removed when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}.building-*"):
        print(
            f"note: {stale} is left over from an interrupted build, or another build is running; remove it if none is"
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
            os.rename(out, old / out.name)
            os.rename(folder, out)
            shutil.rmtree(old)
        else:
            os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _batches(sources: list[Source], splitter: SentenceSplitter) -> Iterator[list[tuple[Document, list[str]]]]:
    """Yields runs of (document, its sentences) of some thousand sentences."""
    batch: list[tuple[Document, list[str]]] = []
    size = 0
    for source in sources:
        for document in documents_of([source], f"tokenizing {source.name}"):
            lines = document.lines
            sentences = (
                lines if source.lines == "sentence" else [part for line in lines for part in splitter.split(line)]
            )
            batch.append((document, sentences))
            size += len(sentences)
            if size >= _BATCH_SENTENCES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _write_shards(
    sources: list[Source],
    tokenizer: AlbertTokenizer,
    splitter: SentenceSplitter,
    holdout: Holdout,
    folder: Path,
    report: Report,
) -> dict[str, str]:
    """Writes both splits and TFDS's metadata; returns the fingerprint of what was written to each split."""
    spec = shards.features(tokenizer.vocab_size)
    pieces = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
    encoder = Encoder(np.array([piece.startswith("▁") for piece in pieces]))
    writers = {split: shards.SplitWriter(folder, split, spec) for split in shards.SPLITS}
    try:
        for batch in _batches(sources, splitter):
            encoded = iter(tokenizer.encode_sentences([text for _, sentences in batch for text in sentences]))
            for document, sentences in batch:
                ids = [next(encoded) for _ in sentences]
                split = "validation" if document in holdout else "train"
                _write_document(document, sentences, ids, encoder, writers[split], report.splits[split], report.dropped)
    finally:
        for writer in writers.values():
            writer.close()
    _refuse_empty_split(report)
    shards.write_metadata(folder, spec, [writers[split].finish() for split in shards.SPLITS])
    return {split: writer.fingerprint.hexdigest() for split, writer in writers.items()}


def _refuse_empty_split(report: Report) -> None:
    for split, counts in report.splits.items():
        if not counts.records:
            raise _empty_split(split, sum(counts.documents for counts in report.splits.values()), report)


def _empty_split(split: str, documents: int, report: Report) -> UserError:
    remedy = {"train": "a lower", "validation": "a higher"}[split]
    return UserError(
        f"nothing is left for {split} of {documents:,} documents (near-duplicates moved to train: "
        f"{report.near_duplicates:,}); give more documents, separated by blank lines, or {remedy} --validation-fraction"
    )


def _write_document(
    document: Document,
    sentences: list[str],
    ids: list[list[int]],
    encoder: Encoder,
    writer: shards.SplitWriter,
    counts: Counts,
    dropped: Dropped,
) -> None:
    kept = [(text, tokens) for text, tokens in zip(sentences, ids, strict=True) if tokens]
    dropped.sentences += len(sentences) - len(kept)
    if not kept:
        dropped.documents += 1
        return
    counts.documents += 1
    counts.text_bytes += sum(len(text.encode()) for text, _ in kept)
    before = counts.sentences
    for part, (tokens, lengths) in enumerate(encoder.records([tokens for _, tokens in kept], counts)):
        array = np.array(tokens, shards.token_dtype(len(encoder.starts_word)))
        writer.write(array, np.array(lengths, np.uint16), document.id, part)
        counts.records += 1
        counts.sentences += len(lengths)
        counts.tokens += len(tokens)
        counts.unknown_tokens += int((array == UNK).sum())
    counts.single_sentence_documents += counts.sentences == before + 1


def _compare(found: dict[str, dict[str, Any]], written: dict[str, str], report: Report) -> None:
    """The read-back must be what was written, to the last token."""
    for split, content in found.items():
        counts = asdict(report.splits[split])
        differing = [name for name, value in content.items() if name in counts and counts[name] != value]
        if content["fingerprint"] != written[split]:
            differing.append("fingerprint")
        if differing:
            raise RuntimeError(
                f"the {split} split does not read back as it was written: {', '.join(differing)} differ; check the disk"
            )


def _manifest(
    vocabulary: Path,
    sources: Sequence[Source],
    tokenizer: AlbertTokenizer,
    found: dict[str, dict[str, Any]],
    report: Report,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "vocabulary": {
            "sha256": hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
            "size": tokenizer.vocab_size,
            "do_lower_case": tokenizer.do_lower_case,
            "remove_space": tokenizer.remove_space,
            "keep_accents": tokenizer.keep_accents,
            "cleaning": tokenizer.cleaning,
        },
        "splits": {
            split: {**content, "text_bytes": report.splits[split].text_bytes} for split, content in found.items()
        },
        "sources": [source.manifest() for source in sources],
        "created_by": f"albert_jax {albert_jax.__version__}",
    }
