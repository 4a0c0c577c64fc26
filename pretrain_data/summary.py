# SPDX-License-Identifier: Apache-2.0
"""What a build did: counts by split, what was changed or left out, and the table that is printed at the end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pretrain_data.records import Counts

LEAST_WORD_STARTS = 1 / 6  # share of tokens; text with spaces has 0.4 and more


@dataclass
class Summary:
    """What a build did.

    Attributes:
        split_names: which splits the data set has.
        seconds: wall time.
        source_bytes: bytes of the sources on disk.
        disk_bytes: bytes of the data set, all told.
        workers: who worked, such as "2 processes".
        guard: one line about validation text that training text repeats.
        duplicates: one line about near-duplicate removal, if it was asked for.
        dropped: what is in no split: "sentences" and "documents" without any token, "duplicates".
        log: what reading came upon, see `pretrain_data.sources.base.ReadLog`.
        quarantined: bad records that were set aside.
        splits: for each split.
        sources: for each split and source: records, documents, sentences, tokens.
    """

    split_names: Sequence[str]
    seconds: float = 0.0
    source_bytes: int = 0
    disk_bytes: int = 0
    workers: str = ""
    guard: str = ""
    duplicates: str = ""
    dropped: Counter[str] = field(default_factory=Counter)
    log: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    splits: dict[str, Counts] = field(init=False)
    sources: dict[str, dict[str, Counter[str]]] = field(init=False)

    def __post_init__(self) -> None:
        """Begins to count from nothing."""
        self.splits = {split: Counts() for split in self.split_names}
        self.sources = {split: {} for split in self.split_names}

    def add(self, source: str, counts: dict[str, Any]) -> None:
        """Adds a part's counts.json."""
        self.dropped.update(counts["dropped"])
        self.log.update(counts["log"])
        self.quarantined += counts["quarantined"]
        for split, own in counts["splits"].items():
            total = self.splits[split]
            for name in fields(Counts):
                setattr(total, name.name, getattr(total, name.name) + own[name.name])
            of_source = self.sources[split].setdefault(source, Counter())
            of_source.update({name: own[name] for name in ("records", "documents", "sentences", "tokens")})

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
        rows.append(("tokens that begin a word", *(f"{c.word_starts / max(1, c.tokens):.1%}" for c in counts)))
        rows.append(("unknown tokens", *(f"{count.unknown_tokens / max(1, count.tokens):.4%}" for count in counts)))
        for source in self.sources["train"] if len(self.sources["train"]) > 1 else ():
            rows.append((f"tokens of {source}", *(f"{own[source]['tokens']:,}" for own in self.sources.values())))
        lines = [f"{row[0]:<38}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows]
        return "\n".join([*lines, *self._whole(), *self._warnings()])

    def _warnings(self) -> Iterator[str]:
        """What the text makes of a default, or of sentence order, with the option that helps."""
        train = self.splits["train"]
        if train.word_starts < LEAST_WORD_STARTS * train.tokens:
            yield (
                "warning: few tokens begin a word, as in text without spaces, where whole words are phrases and masked "
                "whole or never: train with --config.masking.whole_word=False"
            )
        if train.single_sentence_documents > 0.9 * train.documents:
            yield (
                f"warning: {train.single_sentence_documents / train.documents:.0%} of the training documents have one "
                "sentence, so that no sentence order can be learnt: build with --documents file if a file is one text, "
                "or train with --config.data.sentence_order=none"
            )

    def _whole(self) -> list[str]:
        tokens = sum(count.tokens for count in self.splits.values())
        lines = [
            self.guard,
            f"without any token, left out: {self.dropped['sentences']:,} sentences, "
            f"{self.dropped['documents']:,} whole documents",
        ]
        if self.duplicates:
            lines.append(f"{self.duplicates}; {self.dropped['duplicates']:,} documents left out")
        if self.quarantined:
            lines.append(f"bad records set aside in quarantined.jsonl: {self.quarantined:,}")
        told = {
            "empty_documents": "documents without text",
            "cut_lines": "lines too long to be held in memory, cut",
            "split_documents": "documents too long to be held in memory, split",
            "markup": "pieces of markup that stood in extracted text, removed",
        }
        lines += [f"{told.get(name, name)}: {count:,}" for name, count in self.log.items() if count]
        speed = self.source_bytes / 1e6 / max(1e-9, self.seconds)
        return [
            *lines,
            f"bytes: {self.source_bytes:,} in, {self.disk_bytes:,} on disk, "
            f"{self.disk_bytes / max(1, tokens):.3f} a token",
            f"time: {self.seconds:.1f} s, {speed:.2f} MB/s, {self.workers}",
        ]
