# SPDX-License-Identifier: Apache-2.0
"""``python -m pretrain_data vocab | build``: raw text to a vocabulary, and to a tokenized data set."""

import argparse
import errno
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer
from pretrain_data.builder import build, check_output
from pretrain_data.corpora import Source, open_sources
from pretrain_data.progress import documents_of
from pretrain_data.sentences import SentenceSplitter
from pretrain_data.vocabulary import train_vocabulary

# The disk is full, or not ours to write on.
_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, or 2 after an `error:` sentence, or 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        print(f"error: {error}; free some space or give another --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was left under the final name", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pretrain_data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    vocab = commands.add_parser(
        "vocab",
        help="train a SentencePiece vocabulary by ALBERT's recipe",
        description="Trains a unigram SentencePiece vocabulary and writes spiece.model and spiece.vocab.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    vocab.set_defaults(command=_vocab)
    _add_source_options(vocab)
    vocab.add_argument("--out", type=Path, required=True, help="folder for spiece.model and spiece.vocab")
    vocab.add_argument("--size", type=int, default=30000, help="number of pieces, special ones included")
    vocab.add_argument(
        "--input-sentence-size", type=int, default=10_000_000, help="train on at most so many sentences, sampled"
    )
    vocab.add_argument(
        "--character-coverage", type=float, default=0.99995, help="share of characters that get a piece of their own"
    )
    vocab.add_argument("--cased", action="store_true", help="do not lower-case")
    vocab.add_argument(
        "--keep-accents", action="store_true", help="keep combining marks (for languages that need them)"
    )

    data = commands.add_parser(
        "build",
        help="build the tokenized data set",
        description="Splits text to sentences, tokenizes them, writes a TFDS data set with two splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data.set_defaults(command=_build)
    _add_source_options(data)
    data.add_argument("--vocab", required=True, help="spiece.model, or the folder that holds it")
    data.add_argument(
        "--out", type=Path, required=True, help="folder of the data set; it appears only when it is whole"
    )
    data.add_argument(
        "--validation-fraction", type=float, default=0.01, help="share of documents held out, chosen by content"
    )
    data.add_argument(
        "--overwrite", action="store_true", help="replace the data set at --out once the new one is whole"
    )
    data.add_argument("--cased", action="store_true", help="do not lower-case; as the vocabulary was trained")
    data.add_argument("--keep-accents", action="store_true", help="keep combining marks; as the vocabulary was trained")
    return parser


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="PATH|GLOB|python-docs",
        help="UTF-8 text with a blank line between documents, a quoted glob of such files, or the documentation that "
        "this Python installation carries; may be given several times",
    )
    parser.add_argument(
        "--lines", choices=("sentence", "paragraph", "detect"), default="detect", help="what a line of a text file is"
    )
    parser.add_argument("--language", default="en", help="ISO 639 code, for sentence boundaries inside paragraphs")


def _opened(arguments: argparse.Namespace) -> tuple[list[Source], SentenceSplitter]:
    splitter = SentenceSplitter(arguments.language)
    sources, said = open_sources(arguments.source, arguments.lines, splitter)
    print(*said, sep="\n", flush=True)
    return sources, splitter


def _vocab(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.character_coverage <= 1:
        raise UserError(
            f"--character-coverage {arguments.character_coverage} must be above 0 and at most 1; 0.99995 is usual"
        )
    if arguments.size < 14 or arguments.input_sentence_size < 1:
        raise UserError(
            f"--size {arguments.size} must be at least 14 (13 pieces are special) and --input-sentence-size "
            f"{arguments.input_sentence_size} at least 1"
        )
    model = arguments.out / "spiece.model"
    if model.exists():
        raise UserError(f"{str(model)!r} exists; give another --out, or remove it, as data sets may depend on it")
    started = time.monotonic()
    sources, splitter = _opened(arguments)
    report = train_vocabulary(
        _sentences(sources, splitter),
        arguments.out,
        size=arguments.size,
        do_lower_case=not arguments.cased,
        keep_accents=arguments.keep_accents,
        input_sentence_size=arguments.input_sentence_size,
        character_coverage=arguments.character_coverage,
    )
    print(
        f"{model}: {report.size:,} pieces from {report.trained:,} of {report.sentences:,} sentences "
        f"({report.too_long:,} too long, left out; at most {arguments.input_sentence_size:,} sampled) "
        f"in {time.monotonic() - started:.1f} s"
    )
    return 0


def _sentences(sources: list[Source], splitter: SentenceSplitter) -> Iterator[str]:
    for source in sources:
        for document in documents_of([source], f"reading {source.name}"):
            for line in document.lines:
                yield from [line] if source.lines == "sentence" else splitter.split(line)


def _build(arguments: argparse.Namespace) -> int:
    check_output(arguments.out, arguments.overwrite)
    tokenizer = _tokenizer(arguments)
    started = time.monotonic()
    sources, splitter = _opened(arguments)
    report = build(
        sources,
        tokenizer,
        arguments.out,
        splitter=splitter,
        validation_fraction=arguments.validation_fraction,
        overwrite=arguments.overwrite,
    )
    report.seconds = time.monotonic() - started  # opening the embedded corpus takes time too
    print(report.table())
    print(f"data set: {arguments.out}")
    return 0


def _tokenizer(arguments: argparse.Namespace) -> AlbertTokenizer:
    """The vocabulary, with the cleaning that it was trained for, which `vocab` recorded, or that the options name."""
    asked = ({"do_lower_case": False} if arguments.cased else {}) | (
        {"keep_accents": True} if arguments.keep_accents else {}
    )
    tokenizer = AlbertTokenizer.from_pretrained(arguments.vocab, **asked)
    recorded = AlbertTokenizer.from_pretrained(arguments.vocab)
    beside = (tokenizer.vocab_file.parent / "tokenizer_config.json").is_file()
    if beside and (tokenizer.do_lower_case, tokenizer.keep_accents) != (recorded.do_lower_case, recorded.keep_accents):
        raise UserError(
            f"the vocabulary {arguments.vocab} was trained with do_lower_case={recorded.do_lower_case} and "
            f"keep_accents={recorded.keep_accents}; leave --cased and --keep-accents away, or train another"
        )
    print(f"cleaning: do_lower_case={tokenizer.do_lower_case}, keep_accents={tokenizer.keep_accents}")
    return tokenizer


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # SIGTERM ends like Ctrl-C: the temporary folder is removed on the way out.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
