# SPDX-License-Identifier: Apache-2.0
"""Trains a SentencePiece vocabulary by ALBERT's recipe (the command in google-research/albert's README)."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from albert_jax.errors import UserError
from albert_jax.tokenization import settle_scores
from albert_jax.tokenization.cleaning import Cleaning
from pretrain_data.sources.base import cut

CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")
USER_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
# SentencePiece leaves out of training, without a word, sentences that are longer and those with the character that it
# writes for unknown ones. Here the longer ones are cut, as in a build, the others are left out, and both are counted.
MAX_SENTENCE_BYTES = 4192
RESERVED = "\u2585"
# Sums of floats in the trainer follow the number of threads, so it is part of the recipe, as is the seed of the
# sampling.
_THREADS = 4
_SEED = 0


@dataclass
class VocabularyReport:
    """Sentences given, cut for their length, left out for `RESERVED`, trained on; the vocabulary's size."""

    sentences: int = 0
    cut: int = 0
    reserved: int = 0
    trained: int = 0
    size: int = 0


def train_vocabulary(
    sentences: Iterable[str],
    out: Path,
    *,
    size: int = 30000,
    cleaning: str = "huggingface",
    do_lower_case: bool | None = None,
    keep_accents: bool | None = None,
    input_sentence_size: int = 10_000_000,
    character_coverage: float = 0.99995,
) -> VocabularyReport:
    """Writes ``out/spiece.model`` and ``out/spiece.vocab``; both appear whole or not at all.

    Deterministic: the same sentences, options and sentencepiece version give the same bytes (fixed seed and thread
    count).

    Args:
        sentences: raw text; it is cleaned as `AlbertTokenizer` cleans.
        out: a folder, made if need be.
        size: number of pieces, the 13 special and user-defined ones included.
        cleaning: the name of a rule, see `albert_jax.tokenization.RULES`.
        do_lower_case, keep_accents: None for what the rule does. With `cleaning` they are written to
            ``out/tokenizer_config.json``, by which a data set is built with the same.
        input_sentence_size: at most so many sentences, sampled at random, are trained on.
        character_coverage: share of the text's characters that get a piece of their own.

    Raises:
        UserError: no text, a size that the text cannot fill (the sentence says the largest that it can) or too small a
        size; a cleaning that is none.
    """
    clean = Cleaning.named(cleaning, do_lower_case, keep_accents)
    report = VocabularyReport(size=size)
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(_SEED)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cleaned(sentences, report, clean),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=list(CONTROL_SYMBOLS),
            user_defined_symbols=list(USER_SYMBOLS),
            shuffle_input_sentence=True,
            input_sentence_size=input_sentence_size,
            character_coverage=character_coverage,
            max_sentence_length=MAX_SENTENCE_BYTES,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _trainer_error(error, size, report) from error
    _write(out, settle_scores(model.getvalue()), clean)
    return report


def _cleaned(sentences: Iterable[str], report: VocabularyReport, clean: Cleaning) -> Iterator[str]:
    for sentence in sentences:
        text = clean(sentence)
        report.sentences += 1
        if RESERVED in text:
            report.reserved += 1
        elif text:
            report.trained += 1
            pieces = cut(text.encode(), MAX_SENTENCE_BYTES)
            report.cut += len(pieces) > 1
            yield from (piece.decode().strip() for piece in pieces)


def _trainer_error(error: Exception, size: int, report: VocabularyReport) -> Exception:
    """The trainer's own messages in plain words; anything else unchanged, as it would be a defect."""
    too_high = re.search(r"value <= (\d+)", str(error))
    if too_high:
        return UserError(
            f"--size {size} is too large for this corpus of {report.sentences:,} sentences; the largest possible is "
            f"{too_high.group(1)}"
        )
    too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if too_low:
        return UserError(
            f"--size {size} is too small: the corpus's characters alone need {too_low.group(1)} pieces; give a larger "
            "size or a lower --character-coverage"
        )
    if not report.sentences:
        return UserError("the corpus is empty: no text to train a vocabulary on; give --source files with text")
    if not report.trained:
        remedy = f"take {RESERVED} out of the text" if report.reserved else "look at what the cleaning leaves of it"
        return UserError(
            f"nothing to train on: of {report.sentences:,} sentences {report.reserved:,} hold {RESERVED} (U+2585), "
            f"which SentencePiece keeps for itself, and the others are empty; {remedy}"
        )
    return error


def _write(out: Path, model: bytes, clean: Cleaning) -> None:
    out.mkdir(parents=True, exist_ok=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = "".join(
        f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(processor.get_piece_size())
    )
    # What the text was cleaned with, for whoever uses the vocabulary.
    flags = {"cleaning": clean.rule, "do_lower_case": clean.do_lower_case, "keep_accents": clean.keep_accents}
    settings = json.dumps(flags, indent=2) + "\n"
    files = {"spiece.vocab": pieces.encode(), "tokenizer_config.json": settings.encode(), "spiece.model": model}
    for name, content in files.items():
        partial = out / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, out / name)
