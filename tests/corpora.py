# SPDX-License-Identifier: Apache-2.0
"""Made-up corpora, data sets built from them, and what these hold, read by TFDS alone."""

import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tensorflow_datasets as tfds

from pretrain_data.__main__ import main

NOUNS = ["river", "stone", "teacher", "garden", "winter", "letter", "engine", "harbor", "mountain", "answer", "market"]
VERBS = ["crosses", "follows", "remembers", "carries", "builds", "answers", "watches", "measures", "paints", "opens"]
ADVERBS = ["crosses", "follows", "remembers", "carries", "builds", "answers", "watches", "measures", "paints", "opens"]


def sentence(rng: random.Random) -> str:
    words = [
        f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} {rng.choice(ADVERBS)}" for _ in range(2)
    ]
    return f"{words[0].capitalize()}, and {words[1]} {rng.randrange(10000)} times."


def documents(seed: int, count: int, sentences: int = 6) -> list[list[str]]:
    rng = random.Random(seed)
    return [[sentence(rng) for _ in range(rng.randint(2, sentences))] for _ in range(count)]


def write(path: Path, texts: list[list[str]]) -> Path:
    path.write_text("\n\n".join("\n".join(lines) for lines in texts) + "\n", encoding="utf-8")
    return path


def identifiers(path: Path) -> list[str]:
    """The ids of the documents of a text file, in order: its name and the byte with which each begins."""
    text = path.read_bytes()
    begins = [match.start() for match in re.finditer(rb"(?:(?<=\n\n)|\A)(?!\n)", text) if match.start() < len(text)]
    return [f"{path.name}:{begin}" for begin in begins]


def build(source: Path | str, vocab: Path, out: Path, *options: str) -> int:
    return main(["build", "--source", str(source), "--vocab", str(vocab), "--out", str(out), *options])


def records(data: Path, split: str) -> list[dict[str, Any]]:
    return list(tfds.builder_from_directory(str(data)).as_data_source(split=split))


def sentences_of(data: Path, split: str) -> list[tuple[str, tuple[int, ...]]]:
    """(document, tokens) of each sentence, in store order, by the records' own boundaries."""
    found = []
    for record in records(data, split):
        ends = np.cumsum(record["sentence_lengths"], dtype=np.int64)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append((record["document"].decode(), tuple(int(t) for t in record["tokens"][start:end])))
    return found


def sentencepiece_ids(model: Path, text: str) -> tuple[int, ...]:
    """ALBERT's cleaning and SentencePiece, written out; texts here hold no digit before a comma (a rule of its own)."""
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    return tuple(sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(text))
