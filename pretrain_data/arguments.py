# SPDX-License-Identifier: Apache-2.0
"""The command line of ``python -m pretrain_data``: commands, options, their defaults and help."""

import argparse
from collections.abc import Callable, Mapping
from typing import NoReturn

from albert_jax.tokenization import RULES
from pretrain_data.holdout import MAX_SHARED
from pretrain_data.sources.base import QUARANTINE, STOP
from pretrain_data.workers import cores

_CLEANING = (
    "what is done to text before SentencePiece: by Google's code or Hugging Face's, both of which lower-case and drop "
    "accents, or unicode, which keeps case and accents, for other languages than English"
)
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one sentence, as every other mistake is said."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"error: {message}; {self.prog} --help lists what there is\n")


def make_parser(commands: Mapping[str, Command]) -> Parser:
    """The parser; `commands` are called with what it parsed, and `refuse` of it with what is wrong.

    Args:
        commands: for vocab, build, repair, show, report and tfrecords.
    """
    parser = Parser(
        prog="python -m pretrain_data",
        description="Raw text to a vocabulary and to a tokenized data set, and looking at what is in it.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, purpose: str, description: str) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(
            name, help=purpose, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        subparser.set_defaults(command=commands[name], refuse=subparser.error)
        return subparser

    _add_vocab(
        add(
            "vocab",
            "train a SentencePiece vocabulary by ALBERT's recipe",
            "Trains a unigram SentencePiece vocabulary and writes spiece.model and spiece.vocab.",
        )
    )
    _add_build(
        add(
            "build",
            "build the tokenized data set",
            "Splits text to sentences, tokenizes them, writes a TFDS data set with two splits. An interrupted build "
            "goes on by the same command.",
        )
    )
    repair = add("repair", "make damaged shards again", "Reads every shard and makes damaged ones again.")
    repair.add_argument("data", help="the data set's folder")
    _add_show(add("show", "print examples as training sees them", "Prints rows of the batch that a step trains on."))
    _add_report(add("report", "write a page about a data set", "Writes one HTML page that opens without a network."))
    _add_tfrecords(
        add(
            "tfrecords",
            "write Google's format",
            "Writes baked examples in the format of google-research/albert, which reads one example a row.",
        )
    )
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="[NAME=]WHAT",
        help="a file or quoted glob, local or gs://, of text, JSON lines (.jsonl) "
        "or a MediaWiki dump (.xml), each also .gz, .xz, .zst or .bz2, or of Parquet (.parquet); KIND:FILES with KIND "
        "text, jsonl, parquet, mediawiki or wikiextractor where the name does not tell; tfds:NAME; python-docs, which "
        "is what this Python installation carries. May be given several times",
    )
    parser.add_argument("--field", default="text", help="the JSON field, Parquet column or TFDS feature with the text")
    parser.add_argument(
        "--lines", choices=("sentence", "paragraph", "detect"), default="detect", help="what a line of text is"
    )
    parser.add_argument(
        "--documents",
        choices=("blank", "line", "file", "detect"),
        default="detect",
        help="what ends a document of plain text besides the end of its file: a blank line, a line's end, or nothing",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="[NAME=]CODE",
        help="ISO 639 code, for sentence boundaries inside paragraphs, en if not given; of one source by its name",
    )
    parser.add_argument("--tfds-data-dir", help="where TFDS keeps its data sets, if not in ~/tensorflow_datasets")
    parser.add_argument(
        "--on-bad-record",
        "--on_bad_record",
        choices=(STOP, QUARANTINE),
        default=STOP,
        help="what to do about a line or record that cannot be read: stop, or set it aside and count it",
    )


def _add_vocab(parser: argparse.ArgumentParser) -> None:
    _add_sources(parser)
    parser.add_argument("--out", required=True, help="folder for spiece.model and spiece.vocab")
    parser.add_argument("--size", type=int, default=30000, help="number of pieces, special ones included")
    parser.add_argument(
        "--input-sentence-size", type=int, default=10_000_000, help="train on at most so many sentences, sampled"
    )
    parser.add_argument(
        "--character-coverage", type=float, default=0.99995, help="share of characters that get a piece of their own"
    )
    parser.add_argument("--cleaning", choices=sorted(RULES), default="huggingface", help=_CLEANING)


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_sources(parser)
    parser.add_argument("--vocab", required=True, help="spiece.model, or the folder that holds it")
    parser.add_argument("--out", required=True, help="folder of the data set, or gs://...; it appears only when whole")
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="how often an epoch sees a source, by its name (2.5 or 0.5; 1 where not given); training can override it",
    )
    parser.add_argument(
        "--validation-fraction",
        type=float,
        help="share of documents held out, chosen by content: 0.01 if not given; 0 makes no validation split",
    )
    parser.add_argument(
        "--validation-overlap",
        type=float,
        default=MAX_SHARED,
        metavar="SHARE",
        help="held-out documents of which more than this share of the runs of 8 words stands in training text go to "
        "train; higher where documents share a form's wording",
    )
    parser.add_argument(
        "--validation-source",
        action="append",
        default=[],
        metavar="[NAME=]WHAT",
        help="as --source: text that is validation as it is, so that nothing is held out of --source",
    )
    parser.add_argument(
        "--drop-near-duplicates", action="store_true", help="leave out documents that nearly repeat another one"
    )
    parser.add_argument(
        "--cleaning",
        choices=sorted(RULES),
        default=argparse.SUPPRESS,
        help=f"{_CLEANING}; by default what tokenizer_config.json beside the vocabulary says, else huggingface",
    )
    parser.add_argument("--workers", type=int, default=cores(), help="processes; the data set does not depend on it")
    parser.add_argument(
        "--runner",
        metavar="RUNNER",
        help="run on Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner; its options follow --",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the data set at --out once the new one is whole"
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="the data set's folder, or gs://...")
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="the recipe, such as configs/base.py; without it the defaults",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe, such as data.sequence_length=128; may be given several times",
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--step", type=int, default=1, help="the training step, or the batch of an evaluation")
    parser.add_argument("--rows", type=int, default=2, help="how many rows of its batch")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="which split")


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--out", default="report.html", help="the page")


def _add_tfrecords(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--out", required=True, metavar="NAME-*.tfrecord", help="the files; * becomes their number")
    parser.add_argument("--epochs", type=int, default=1, help="passes, each with its own masks: Google's dupe_factor")
    parser.add_argument("--shards", type=int, default=16, help="number of files")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="which split")
