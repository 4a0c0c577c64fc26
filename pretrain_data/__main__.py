# SPDX-License-Identifier: Apache-2.0
"""``python -m pretrain_data vocab | build | repair | show | report | tfrecords``."""

import argparse
import errno
import functools
import itertools
import re
import signal
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from albert_jax.data.mixture import source_weights
from albert_jax.errors import UserError
from albert_jax.remote import local_path
from albert_jax.tokenization import AlbertTokenizer
from albert_jax.tokenization.cleaning import Cleaning
from pretrain_data.arguments import make_parser
from pretrain_data.assembly import check_output
from pretrain_data.builder import Options, build
from pretrain_data.progress import documents_of
from pretrain_data.repair import repair
from pretrain_data.sentences import Splitters
from pretrain_data.sources.base import QUARANTINE, BadCount, ReadLog, Source
from pretrain_data.sources.opening import open_sources
from pretrain_data.sources.text import TextFiles
from pretrain_data.vocabulary import RESERVED, train_vocabulary

# Lines of each source that are looked at for letters that cleaning would change, and the share of letters above which
# the text is not English with a few names: English has 0.0002, Italian 0.008.
_SAMPLE_LINES, _MOST_CHANGED = 5000, 0.003
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, or 2 after an `error:` sentence, or 130 when interrupted."""
    parser = make_parser(
        {
            "vocab": _vocab,
            "build": _build,
            "repair": _repair,
            "show": _show,
            "report": _report,
            "tfrecords": _tfrecords,
        }
    )
    ours, beam = _divided(sys.argv[1:] if argv is None else argv)
    arguments, unknown = parser.parse_known_args(ours)
    if unknown:
        arguments.refuse(f"unrecognized arguments: {' '.join(unknown)}")
    if beam and not getattr(arguments, "runner", None):
        arguments.refuse(
            f"what stands behind -- ({' '.join(beam)}) is for Apache Beam; give --runner too, or leave it away"
        )
    arguments.beam = beam
    try:
        return int(arguments.command(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not (told := _told(error)):
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was left under the final name", file=sys.stderr)
        return 130


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours and, behind a ``--``, Beam's: it drops options that it does not know without a word."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def _told(error: OSError) -> str:
    """A sentence about a disk that is full or not ours to write on; none about anything else."""
    # NumPy's own words have no number.
    if error.errno in _FULL or (error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error))):
        return f"the disk is full ({error.strerror or error}); free some space or give another --out"
    if error.errno in _DENIED:
        return f"{error.filename!r} cannot be used ({error.strerror}); check its name and permissions, or give another"
    return ""


# --- sources ----------------------------------------------------------------------------------------------------------


def _source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the sources were named; a data set keeps it, so that it can be repaired."""
    return {
        "specs": arguments.source,
        "validation": getattr(arguments, "validation_source", []),
        "lines": arguments.lines,
        "documents": arguments.documents,
        "field": arguments.field,
        **_languages(arguments.language),
        "tfds_data_dir": arguments.tfds_data_dir,
    }


def _languages(given: Sequence[str]) -> dict[str, Any]:
    """The language of all sources, and of those that are named with one of their own."""
    own = dict(one.split("=", 1) for one in given if "=" in one)
    of_all = [one for one in given if "=" not in one] or ["en"]
    if len(of_all) + len(own) < max(1, len(given)) or len(of_all) > 1:
        raise UserError(f"--language {' '.join(given)} names a language twice; give one, and NAME=CODE for each source")
    return {"language": of_all[0], "languages": own}


def _opened(options: dict[str, Any]) -> tuple[list[Source], list[Source]]:
    """The sources, and those for validation."""
    splitters = Splitters(options["language"], options["languages"])
    opened, said = [], list[str]()
    for specs in (options["specs"], options["validation"]):
        sources, about = open_sources(
            specs,
            lines=options["lines"],
            field=options["field"],
            splitters=splitters,
            documents=options["documents"],
            tfds_data_dir=options["tfds_data_dir"],
        )
        opened.append(sources)
        said += about
    everything = [source for sources in opened for source in sources]
    if options["documents"] in ("line", "file") and not any(isinstance(source, TextFiles) for source in everything):
        raise UserError(f"--documents {options['documents']} is for plain text, and no --source is; leave it away")
    in_paragraphs = [source for source in everything if source.lines == "paragraph"]
    for source in in_paragraphs:  # a script without sentence marks is refused now, not after hours of other passes
        for line in itertools.islice(_lines(source), 100):
            splitters.of(source.name).split(line)
    names = {source.name for source in everything}
    if unknown := options["languages"].keys() - names:
        raise UserError(
            f"--language {min(unknown)}={options['languages'][min(unknown)]} names no source; name one of "
            f"{', '.join(sorted(names))}"
        )
    said += dict.fromkeys(splitters.of(source.name).describe() for source in in_paragraphs)
    print(*said, sep="\n", flush=True)
    return opened[0], opened[1]


def _lines(source: Source) -> Iterator[str]:
    log = ReadLog(QUARANTINE)  # bad records are named when the source is read
    for part in source.parts():
        for document in source.read(part, log):
            yield from document.lines


def _warn_of_cleaning(sources: Sequence[Source], cleaning: Cleaning, remedy: str) -> None:
    """One line where a rule that is right for English changes letters of the text, and not only their case."""
    text = "".join(line for source in sources for line in itertools.islice(_lines(source), _SAMPLE_LINES))
    letters = Counter(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c)[0] in "LM")
    changed = {c: n for c, n in letters.items() if not c.isascii() and _loses(c, cleaning)}
    if sum(changed.values()) > _MOST_CHANGED * letters.total():
        most = sorted(changed, key=lambda c: (-changed[c], c))
        print(
            f"warning: cleaning {cleaning.rule!r} is for English and changes {sum(changed.values()):,} of "
            f"{letters.total():,} sample letters, case apart ({', '.join(f'{c} {changed[c]:,}' for c in most[:6])}"
            f"{', ...' if len(most) > 6 else ''}); {remedy}",
            flush=True,
        )


@functools.cache
def _loses(character: str, cleaning: Cleaning) -> bool:
    """Whether a letter, or a mark behind a letter, is not left by a rule, case and compatibility forms apart."""
    text = f"a{character}" if unicodedata.category(character)[0] == "M" else character
    return _folded(cleaning(text)) != _folded(text)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


# --- vocab ------------------------------------------------------------------------------------------------------------


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
    out = local_path(arguments.out)
    model = out / "spiece.model"
    if model.exists():
        raise UserError(f"{str(model)!r} exists; give another --out, or remove it, as data sets may depend on it")
    started = time.monotonic()
    bad = BadCount()
    log = ReadLog(arguments.on_bad_record, bad)
    named = _source_options(arguments)
    sources, _ = _opened(named)
    _warn_of_cleaning(sources, Cleaning.named(arguments.cleaning), "give --cleaning unicode to keep them")
    report = train_vocabulary(
        _sentences(sources, Splitters(named["language"], named["languages"]), log),
        out,
        size=arguments.size,
        cleaning=arguments.cleaning,
        input_sentence_size=arguments.input_sentence_size,
        character_coverage=arguments.character_coverage,
    )
    print(
        f"{model}: {report.size:,} pieces from {report.trained:,} of {report.sentences:,} sentences "
        f"({report.cut:,} too long, cut; {report.reserved:,} with {RESERVED}, left out; at most "
        f"{arguments.input_sentence_size:,} sampled) "
        f"in {time.monotonic() - started:.1f} s"
    )
    if bad.first is not None:
        print(f"bad records that were passed over: {len(bad):,}, the first: {' '.join(bad.first)}")
    return 0


def _sentences(sources: list[Source], splitters: Splitters, log: ReadLog) -> Iterator[str]:
    for source, document in documents_of(sources, "reading", log):
        for line in document.lines:
            yield from [line] if source.lines == "sentence" else splitters.of(source.name).split(line)


# --- build and repair -------------------------------------------------------------------------------------------------


def _build(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers} must be at least 1")
    check_output(arguments.out, arguments.overwrite)
    tokenizer = _tokenizer(arguments)
    started = time.monotonic()
    named = _source_options(arguments)
    if arguments.validation_source and arguments.validation_fraction is not None:
        raise UserError(
            f"--validation-fraction {arguments.validation_fraction} holds documents out of --source, and "
            "--validation-source is there so that none are; leave one of the two away"
        )
    sources, validation = _opened(named)
    cleaning = Cleaning.named(tokenizer.cleaning, tokenizer.do_lower_case, tokenizer.keep_accents)
    _warn_of_cleaning(sources, cleaning, "train a vocabulary with --cleaning unicode to keep them")
    options = Options(
        language=named["language"],
        languages=named["languages"],
        validation_fraction=0.01 if arguments.validation_fraction is None else arguments.validation_fraction,
        validation_overlap=arguments.validation_overlap,
        near_duplicates=arguments.drop_near_duplicates,
        on_bad_record=arguments.on_bad_record,
    )
    summary = build(
        sources,
        tokenizer,
        arguments.out,
        options,
        validation=validation,
        weights=_weights(arguments.weight, sources),
        workers=arguments.workers,
        beam=[f"--runner={arguments.runner}", *arguments.beam] if arguments.runner else None,
        overwrite=arguments.overwrite,
        command=named,
    )
    summary.seconds = time.monotonic() - started  # opening the embedded corpus takes time too
    print(summary.table())
    print(f"data set: {arguments.out}")
    return 0


def _weights(given: Sequence[str], sources: Sequence[Source]) -> dict[str, float]:
    """Read as training reads them, so that it cannot refuse them later."""
    weights = source_weights(",".join(given), {source.name: 1.0 for source in sources}, "--weight")
    return {name: float(weight) for name, weight in weights.items()}


def _tokenizer(arguments: argparse.Namespace) -> AlbertTokenizer:
    """The vocabulary, with the cleaning that it was trained for, which `vocab` recorded, or that the option names."""
    tokenizer = AlbertTokenizer.from_pretrained(arguments.vocab)
    asked = getattr(arguments, "cleaning", tokenizer.cleaning)
    if asked != tokenizer.cleaning:
        recorded = tokenizer.vocab_file.parent / "tokenizer_config.json"
        if recorded.is_file():
            raise UserError(
                f"--cleaning {asked} is not what the vocabulary was trained with: {str(recorded)!r} says "
                f"{tokenizer.cleaning}; leave --cleaning away, or train another vocabulary"
            )
        tokenizer = AlbertTokenizer.from_pretrained(arguments.vocab, cleaning=asked)
    print(
        f"cleaning: {tokenizer.cleaning}, do_lower_case={tokenizer.do_lower_case}, "
        f"keep_accents={tokenizer.keep_accents}"
    )
    return tokenizer


def _repair(arguments: argparse.Namespace) -> int:
    made, count = repair(local_path(arguments.data), _opened)
    for path in made:
        print(f"made again: {path}")
    print(f"{len(made):,} of {count:,} shards were damaged" if made else f"all {count:,} shards are whole")
    return 0


# --- looking at a data set --------------------------------------------------------------------------------------------
# What these need of training takes seconds to import, as it brings JAX along.


def _show(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from albert_jax.data.staging import staged
    from pretrain_data.recipes import load_recipe
    from pretrain_data.show import show

    config = load_recipe(arguments.config, arguments.set)
    data = staged(arguments.data)
    show(data, config, step=arguments.step, rows=arguments.rows, split=arguments.split, console=Console())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pretrain_data.recipes import load_recipe
    from pretrain_data.report import report

    out = local_path(arguments.out)
    report(arguments.data, load_recipe(arguments.config, arguments.set), out)
    print(f"report: {out}")
    return 0


def _tfrecords(arguments: argparse.Namespace) -> int:
    from albert_jax.data.google_words import google_starts_word
    from albert_jax.data.staging import staged
    from albert_jax.training.data import open_data
    from pretrain_data.recipes import load_recipe
    from pretrain_data.show import with_data
    from pretrain_data.tfrecords import write_tfrecords

    out = local_path(arguments.out)
    data = staged(arguments.data)
    opened = open_data(with_data(load_recipe(arguments.config, arguments.set), data, arguments.split))
    tokenizer = AlbertTokenizer(data / "spiece.model")
    pieces = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
    stream = opened.train if arguments.split == "train" else opened.validation
    written = write_tfrecords(stream, google_starts_word(pieces), out, epochs=arguments.epochs, shards=arguments.shards)
    print(written.table())
    return 0


def program() -> int:
    """`main` as a process of its own: SIGTERM ends it like Ctrl-C, so finished work is told and workers end too."""
    signal.signal(signal.SIGTERM, _interrupt)
    return main()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(program())
