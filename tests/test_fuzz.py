# SPDX-License-Identifier: Apache-2.0
"""Generated corpora through the builder and the streams, compared with slow readings of the same bytes.

Every case is a seed: it makes files, options and settings. 200 cases run by default, 2,000 more by

    pytest -m slow tests/test_fuzz.py

and others, or a single one, by the environment: ``FUZZ_SEEDS=1234:1235 pytest -m slow tests/test_fuzz.py``. A failure
says the seed of its case. What a case may be refused for is in `REFUSALS`, and each is compared with what the slow
reading expects.
"""

import bz2
import dataclasses
import functools
import gzip
import itertools
import json
import lzma
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sentencepiece
import zstandard
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from albert_jax.data import plan as plans
from albert_jax.data.google_words import google_starts_word
from albert_jax.data.masking import MaskRule
from albert_jax.data.mixture import source_weights
from albert_jax.data.parity import GoogleStream, google_rule
from albert_jax.data.plan import PlanSettings, cached_plan
from albert_jax.data.store import TextStore
from albert_jax.data.stream import BORROWING, SENTENCE_ORDERS, PretrainingStream
from albert_jax.data.vocabulary import CLS, MASK, PAD, SEP, SPECIAL_IDS, Vocabulary, is_punctuation
from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer, clean
from pretrain_data import holdout, passes, shards, vocabulary
from pretrain_data.builder import Options, build
from pretrain_data.records import MAX_RECORD_TOKENS, Encoder
from pretrain_data.sentences import SentenceSplitter, Splitters
from pretrain_data.sources import base, files, text
from pretrain_data.sources.base import Source
from pretrain_data.sources.opening import open_sources
from tests import corpora
from tests.text_store import Example, read_batch

QUICK = range(200)
_MOST_ROWS = 300  # of a stream that are looked at token by token
# What a case may be refused for, and nothing else; the key is what it is called in the count of cases.
REFUSALS = {
    "empty corpus": r"the corpus is empty",
    "bad record": r"set such records aside by --on-bad-record=quarantine",
    "language without sentences": r"in which ICU finds no sentences",
    "nothing for a split": r"nothing is left for (train|validation) of",
    "too few mask slots": r"masking\.slots \d+ is less than the \d+",
    "no other document": r"none to take other text from",
    "weights of 0": r"all sources \(.*\) have weight 0",
    "weight of an absent source": r"data\.weights names the source",
}


# --- text -------------------------------------------------------------------------------------------------------------


def _words(words: str) -> list[str]:
    return words.split()


FLAVOURS = {
    "english": [*corpora.NOUNS, *corpora.VERBS, "The", "and", "don't", "e.g.", "Dr.", "U.S.", "I", "well-known"],
    "scripts": _words(
        "Привет мир γλῶσσα ΣΟΦΟΣ İstanbul ıssız straße ﬁnance Việt Việt नमस्ते דברים שלום مرحبا السَّلامُ "
        "สวัสดี ភាសា 한국어 가 ｆｕｌｌ Å Å ﷺ Ǆ ŉ"
    ),
    "han": ["中文没有空格", "日本語のテスト。", "「雨。」と言った", "漢", "字！", "㍿", "𠮷野家", "你好，世界？"],
    "emoji": ["😀", "👩‍👩‍👧", "🇩🇪", "❤️", "1️⃣", "👍🏽", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"],
    "marks": ["\u0301", "e\u0301\u0323", "e\u0323\u0301", "\u0344", "\u20dd", "a" + "\u0300" * 30, "\u0e33", "\u05bf"],
    "odd": [*"\x01\x07\x1b\x7f\xad\u200b\u200d\u200f\u202e\u2060\u0378\ue000\ufeff\ufffd\ufffe\uffff", "\U0010ffff"],
    "special": _words("[MASK] [CLS] [SEP] <pad> <unk> ▁ ▁▁ <s> [MASK]. ▁the [mask] the[SEP]the <0x0A>"),
    "numbers": _words("1,000 3, 12,345,678.90 ٣, ７, ², 9,9,9, １,０００ 0 1. 2024 3.14, v1,"),
    "punctuation": ["...", "?!", "—", "``", "''", '"', "(", ")", "-", "$", "£", "。", "「", "」", ",", "«", "»", "."],
}
SPACES = ["\t", "\u2028", "\u2029", "\x85", "\xa0", "\u3000", "  ", "", "\x0b", "\x0c", "\x1c", "\x1f", "\u200b"]
BLANK = ["", "", "", " ", "\t \t", "\u3000", "\xa0\u2003", "\x85", "\u2028", "\x0c", "\x1d ", " " * 50]
NEWLINES = ["\n", "\n", "\r\n", "\r"]
BAD_LINES = [b"\xff\xfe", b"caf\xe9", b"a\0b", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80", b"the \xe2\x82"]
BAD_RECORDS = [
    b"{", b"[1]", b'{"text": 3}', b'{"text": null}', b'{"txt": "a"}', b'"text"', b'{"text": "a\\u0000b"}',
    b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"nul\0", b'{"text": "a"} {"text": "b"}', b"9" * 5000,
]  # fmt: skip


class Prose:
    """Makes text of a taste of its own: some kinds of words, and how strange what stands between them is."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        kinds = ["english"] * 2 + rng.sample([*FLAVOURS, "long", "any"], rng.randint(0, 4))
        self._kinds = rng.choice([kinds, kinds, kinds[-1:]])
        self._strange = rng.choice([0, 0, 0.05, 0.3])
        self._most_words = rng.choice([1, 4, 12, 12, 40])
        self._tiny = rng.random() < 0.1  # nothing but documents of a character, so that parts end anywhere in one

    def word(self) -> str:
        rng = self._rng
        kind = rng.choice(self._kinds)
        if kind == "long":
            return "".join(rng.choices("abcdeéß中", k=rng.choice([1, 9, 30, 300])))
        if kind == "any":
            return "".join(map(_character, rng.choices(range(1, 0x10FFFF), k=rng.randint(1, 6))))
        return rng.choice(FLAVOURS[kind])

    def sentence(self) -> str:
        rng = self._rng
        words = [self.word() for _ in range(rng.randint(1, self._most_words))]
        if rng.random() < 0.0006:  # longer than a record
            words *= -(-3000 // len(words))
        spaces = [rng.choice(SPACES) if rng.random() < self._strange else " " for _ in words]
        return "".join(itertools.chain(*zip(words, spaces, strict=True))).strip(" ") + rng.choice([".", ".", "!", ""])

    def document(self) -> list[str]:
        """Lines, of a sentence or of several."""
        rng = self._rng
        if self._tiny:
            return [rng.choice("abcxyz.7中é") + rng.choice(["", "", "a"])]
        if rng.random() < 0.002:
            few = [self.sentence()[:60] for _ in range(20)]
            return rng.choices(few, k=rng.randint(500, 3000))
        line = rng.choice([1, 1, 4])
        count = rng.choice([1, rng.randint(1, 4), rng.randint(1, 15)])
        return [" ".join(self.sentence() for _ in range(rng.randint(1, line))) for _ in range(count)]

    def documents(self) -> list[list[str]]:
        """Documents, with copies and near copies among them."""
        rng = self._rng
        found: list[list[str]] = []
        for _ in range(rng.choice([0, 1, *(rng.randint(2, most) for most in (5, 10, 15, 25))])):
            document = self.document()
            if found and not self._tiny and rng.random() < 0.12:
                document = list(rng.choice(found))
                if rng.random() < 0.6:
                    document[rng.randrange(len(document))] += rng.choice([" " + self.word(), ".", " "])
            found.append(document)
        return found


def _character(code: int) -> str:
    return " " if 0xD800 <= code < 0xE000 else chr(code)


def _text_file(rng: random.Random, documents: list[list[str]], bad: bool) -> bytes:
    newline = rng.choice([*NEWLINES, None])
    out = [rng.choice([b"", b"", b"", b"\xef\xbb\xbf", b"\n", b"\r\n \n"])]

    def put(line: bytes) -> None:
        out.append(line + (newline or rng.choice(NEWLINES)).encode())

    for lines in documents:
        for line in lines:
            put((rng.choice(["", "", " ", "\u3000"]) + line.replace("\r", " ").replace("\n", " ")).encode())
            if bad and rng.random() < 0.2:
                put(rng.choice(BAD_LINES))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            put(rng.choice(BLANK).encode())
    content = b"".join(out)
    return content.rstrip() if rng.random() < 0.3 else content


def _json_file(rng: random.Random, documents: list[list[str]], field: str, bad: bool) -> bytes:
    lines = []
    for number, document in enumerate(documents):
        value: Any = "".join(line + rng.choice([*NEWLINES, "\n\n"]) for line in document)
        for key in reversed(field.split(".")):
            value = {"number": number, key: value} if rng.random() < 0.5 else {key: value}
        lines.append(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode())
        if bad and rng.random() < 0.2:
            lines.append(rng.choice(BAD_RECORDS))
        if rng.random() < 0.1:
            lines.append(
                rng.choice([b"", b"  ", b"\t", b'{"%s": ""}' % field.encode(), b'{"%s": " \\n"}' % field.encode()])
            )
    return b"".join(line + rng.choice(NEWLINES).encode() for line in lines)


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """What is built, and how.

    Attributes:
        specs: the sources, as `open_sources` takes them.
        contents: what each file holds, decompressed, in order of the sources and files, and the number of its source.
        lines: as for `open_sources`.
        field: as for `open_sources`.
        options: of the build.
        weights: of the sources, by name.
        limits: of bytes in a line and a document, and of tokens in a record.
    """

    specs: list[str]
    contents: list[tuple[int, Path, bytes]]
    lines: str
    field: str
    options: Options
    weights: dict[str, float]
    limits: tuple[int, int, int]


_PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def _packed(rng: random.Random, content: bytes, suffix: str) -> bytes:
    if not suffix:
        return content
    pack = _PACK[suffix]
    at = rng.choice([0, rng.randint(0, len(content))])
    return b"".join(pack(part) for part in ([content[:at], content[at:]] if at else [content]))


def make_case(rng: random.Random, folder: Path) -> Case:
    bad = rng.random() < 0.2
    field = rng.choice(["text", "text", "content.body"])
    specs, contents, weights = [], [], {}
    for number in range(rng.choice([1, 1, 2, 3])):
        name, kind = f"source{number}", rng.choice(["text", "text", "jsonl"])
        prose = Prose(rng)
        (folder / name).mkdir()
        label = rng.choice(["same", name])
        for count in range(rng.choice([1, 1, 2, 4])):
            documents = prose.documents()
            content = _text_file(rng, documents, bad) if kind == "text" else _json_file(rng, documents, field, bad)
            suffix = rng.choice([""] * 4 + list(_PACK))
            path = folder / name / f"{label}{count}.x{suffix}"
            path.write_bytes(_packed(rng, content, suffix))
            contents.append((number, path, content))
        specs.append(f"{name}={kind}:{folder / name / '*'}")
        if rng.random() < 0.3:
            weights[name] = rng.choice([2.0, 0.5, 3.25, 1])
    options = Options(
        language=rng.choice(["en"] * 6 + ["de", "ru", "ja", "ar", "zh", "tr", "hi", "sr-Latn", "th"]),
        validation_fraction=rng.choice([0.05, 0.3, 0.4, 0.5, 0.5, 0.6]),
        near_duplicates=rng.random() < 0.35,
        on_bad_record=rng.choice(["stop", "quarantine", "quarantine"]),
    )
    line, document = rng.choice([base.MAX_LINE_BYTES] * 4 + [40, 200]), rng.choice([base.MAX_DOCUMENT_BYTES] * 4 + [90])
    record = rng.choice([MAX_RECORD_TOKENS] * 3 + [9, 50])
    lines = rng.choice(["sentence", "sentence", "paragraph", "detect"])
    return Case(specs, contents, lines, field, options, weights, (line, document, record))


def part_bytes(rng: random.Random, case: Case) -> int:
    """Of some sizes of parts the one with most ends where a blank line begins, as a document may get lost there."""
    contents = [content for _, _, content in case.contents if content]
    whole = sum(map(len, contents))
    blanks = [{m.start() for m in re.finditer(rb"(?<=\n)[^\r\n]*", c) if _is_blank(m[0])} for c in contents]

    def ends(size: int) -> int:
        found = 0
        for content, places in zip(contents, blanks, strict=True):
            count = -(-len(content) // size)
            found += len(places.intersection(index * len(content) // count for index in range(1, count)))
        return found

    return max((rng.randint(whole // 8, whole // 2) + 1 for _ in range(60)), key=ends)


def patch(patching: pytest.MonkeyPatch, rng: random.Random, case: Case) -> None:
    """Makes everything small that is large: what is cut at such places must not show."""
    line, document, record = case.limits
    patching.setattr(base, "MAX_LINE_BYTES", line)
    patching.setattr(files, "MAX_LINE_BYTES", line)
    patching.setattr(base, "MAX_DOCUMENT_BYTES", document)
    patching.setattr(passes, "Encoder", functools.partial(Encoder, limit=record))
    whole = sum(len(content) for _, _, content in case.contents)
    patching.setattr(files, "PART_BYTES", rng.choice([files.PART_BYTES, part_bytes(rng, case), part_bytes(rng, case)]))
    patching.setattr(files, "COMPRESSED_PART_BYTES", rng.choice([files.COMPRESSED_PART_BYTES, whole // 12 + 1]))
    patching.setattr(files, "_BLOCK", rng.choice([files._BLOCK, files._BLOCK, rng.randint(1, 300)]))
    patching.setattr(text, "_RUN_BYTES", rng.choice([text._RUN_BYTES, rng.randint(1, 300)]))
    patching.setattr(passes, "_BATCH_SENTENCES", rng.choice([passes._BATCH_SENTENCES, rng.randint(1, 9)]))
    patching.setattr(passes, "_BATCH_DOCUMENTS", rng.choice([passes._BATCH_DOCUMENTS, rng.randint(1, 9)]))
    patching.setattr(shards, "_READ_BATCH", rng.choice([shards._READ_BATCH, 3]))
    patching.setattr(holdout, "MAX_VALIDATION_BYTES", rng.choice([holdout.MAX_VALIDATION_BYTES] * 3 + [1000]))
    patching.setattr(plans, "_BLOCK_SENTENCES", rng.choice([plans._BLOCK_SENTENCES, rng.randint(1, 40)]))


# --- the slow reading of a corpus -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reading:
    """Documents in the order of the data set, as (id, lines), and what was met on the way."""

    documents: list[tuple[int, str, list[str]]]
    bad: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)


def _is_blank(raw: bytes) -> bool:
    return not raw.decode("utf-8", "replace").strip()


def _good(raw: bytes) -> bool:
    try:
        return "\0" not in raw.decode()
    except UnicodeDecodeError:
        return False


def _cut(raw: bytes, limit: int) -> list[tuple[int, bytes]]:
    """Pieces of a line with their places: behind the last space or tab of the second half, or between characters."""
    pieces, begin = [], 0
    while len(raw) - begin > limit:
        end = begin + limit
        after = 1 + max((i for i in range(begin + limit // 2, end) if raw[i] in b" \t"), default=-1)
        if not after:
            after = next((i for i in range(end, end - 4, -1) if raw[i] & 0xC0 != 0x80), end)
        pieces.append((begin, raw[begin:after]))
        begin = after
    return [*pieces, (begin, raw[begin:])]


def _text_documents(content: bytes, reading: Reading, limit: int) -> Iterator[tuple[int, list[str] | None]]:
    """The byte with which each document begins, and its lines that are text."""
    documents: list[list[tuple[int, bytes]]] = [[]]
    for match in re.finditer(rb"([^\r\n]+)(?:\r\n|\r|\n|\Z)|\r\n|\r|\n", content):
        pieces = _cut(match[1] or b"", limit)
        if not match.start():
            pieces[0] = (0, pieces[0][1].removeprefix(b"\xef\xbb\xbf"))
        full = [(match.start() + begin, piece) for begin, piece in pieces if not _is_blank(piece)]
        if full:
            reading.counts["cut_lines"] += len(pieces) > 1
            documents[-1] += full
        else:
            documents.append([])
    for document in filter(None, documents):
        reading.bad += sum(not _good(raw) for _, raw in document)
        yield document[0][0], [raw.decode().strip() for _, raw in document if _good(raw)]


def _json_documents(content: bytes, field: str, reading: Reading, limit: int) -> Iterator[tuple[int, list[str] | None]]:
    for match in re.finditer(rb"[^\r\n]+", content):
        raw = match[0] if match.start() else match[0].removeprefix(b"\xef\xbb\xbf")
        if _is_blank(raw):
            continue
        try:
            value: Any = json.loads(raw.decode()) if _good(raw) else None
            for key in field.split("."):
                value = value[key]
            assert isinstance(value, str) and _good(value.encode())
        except (ValueError, LookupError, TypeError, AssertionError):
            reading.bad += 1
            yield match.start(), None  # it counts where documents are shared out
            continue
        lines = []
        for line in re.split(r"\r\n|\r|\n", value):
            pieces = _cut(line.strip().encode(), limit)
            reading.counts["cut_lines"] += len(pieces) > 1
            lines += [piece.decode().strip() for _, piece in pieces if piece.strip()]
        yield match.start(), [line for line in lines if line]


def _bounded(lines: list[str], limit: int) -> list[list[str]]:
    found: list[list[str]] = []
    size = limit
    for line in lines:
        size += len(line.encode()) + 1
        if size > limit:
            found.append([])
            size = len(line.encode()) + 1
        found[-1].append(line)
    return found


def read_slowly(case: Case, sources: list[Source]) -> Reading:
    reading = Reading([])
    names = Counter(path.name for _, path, _ in case.contents)
    line_limit, document_limit, _ = case.limits
    for number, path, content in case.contents:
        if "=text:" in case.specs[number]:
            found = list(_text_documents(content, reading, line_limit))
        else:
            found = list(_json_documents(content, case.field, reading, line_limit))
        spans = [span for part in sources[number].parts() for span in part.spans if span.path == str(path)]
        strides = max((span.stride for span in spans), default=1)  # parts share an archive's documents
        for begin, lines in itertools.chain(*(found[offset::strides] for offset in range(strides))):
            if lines is None:
                continue
            pieces = _bounded(lines, document_limit)
            reading.counts["empty_documents"] += not pieces
            reading.counts["split_documents"] += len(pieces) > 1
            label = str(path) if names[path.name] > 1 else path.name
            for place, piece in enumerate(pieces, start=1):
                reading.documents.append((number, f"{label}:{begin}" + (f"#{place}" if place > 1 else ""), piece))
    return reading


class Vocab(NamedTuple):
    """A vocabulary, opened in the ways in which it is used here."""

    tokenizer: AlbertTokenizer
    vocabulary: Vocabulary
    processor: sentencepiece.SentencePieceProcessor

    def ids(self, sentence: str) -> tuple[int, ...]:
        """Cleaning, SentencePiece and the rule for numbers before commas, for one sentence by itself."""
        encode, ids = self.processor.encode, []
        cleaned = clean(sentence, cleaning=self.tokenizer.cleaning)
        for i, piece in zip(encode(cleaned), encode(cleaned, return_type=str), strict=True):
            if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
                ids.append(i)
                continue
            parts = encode(piece[:-1].replace("▁", ""), return_type=str)
            if piece[0] != "▁" and parts and parts[0][0] == "▁":
                parts[:1] = [parts[0][1:]] if len(parts[0]) > 1 else []
            ids += [self.processor.piece_to_id(part) for part in [*parts, ","]]
        return tuple(ids)


# --- the data set -----------------------------------------------------------------------------------------------------

Text = list[tuple[int, ...]]  # the sentences of a document
Split = list[tuple[int, Text]]  # the number of the source and the text of each document, in order


def expected_texts(case: Case, sources: list[Source], reading: Reading, vocab: Vocab) -> list[Text]:
    """For each document its sentences' ids, without sentences that have none."""
    splitter = SentenceSplitter(case.options.language)
    ids = functools.cache(vocab.ids)
    texts = []
    for number, _, lines in reading.documents:
        sentences = lines
        if sources[number].lines == "paragraph":
            sentences = [sentence for line in lines for sentence in splitter.split(line)]
            assert "".join("".join(sentences).split()) == "".join("".join(lines).split())
        tokens = [ids(sentence) for sentence in sentences]
        reading.counts["empty_sentences"] += sum(not one for one in tokens)
        texts.append([one for one in tokens if one])
    return texts


class Record(NamedTuple):
    """A record of the data set, by its features' names."""

    document: str
    part: int
    sentence_lengths: list[int]
    tokens: list[int]


def records(data: Path, split: str) -> Iterator[Record]:
    """The records of a split, in order, read here, which takes a tenth of the time that TFDS takes."""
    readers = [ArrayRecordReader(str(shard)) for shard in sorted(data.glob(f"*-{split}.array_record-*"))]
    for record in itertools.chain(*(reader.read(0, reader.num_records()) for reader in readers)):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        lengths, tokens = (
            np.frombuffer(feature[name].bytes_list.value[0], np.uint16).tolist() for name in Record._fields[2:]
        )
        name = feature["document"].bytes_list.value[0].decode()
        yield Record(name, feature["part"].int64_list.value[0], lengths, tokens)
    for reader in readers:
        reader.close()


def stored(data: Path, store: TextStore) -> dict[str, Text]:
    """The documents that a data set holds, by id, in order, with sentences that were cut put together."""
    found: dict[str, Text] = {}
    sentence, continued = 0, set(store.continued_sentences.tolist())
    kept = list(records(data, store.split))
    assert store.read(np.arange(len(kept)))[0].tolist() == list(itertools.chain(*(record.tokens for record in kept)))
    last, parts = "", 0
    for name, part, lengths, tokens in kept:
        assert name == last or name not in found
        last, parts = name, parts + 1 if name == last else 0
        assert part == parts and sum(lengths) == len(tokens)
        at = 0
        for length in lengths:
            ids = tuple(tokens[at : at + length])
            if sentence in continued:
                found[name][-1] += ids
            else:
                found.setdefault(name, []).append(ids)
            sentence, at = sentence + 1, at + length
    return found


def check_data_set(
    case: Case, data: Path, stores: list[TextStore], reading: Reading, texts: list[Text]
) -> dict[str, Split]:
    """The documents of each split are those of the slow reading, each once; copies are missing only where asked."""
    manifest = json.loads((data / "manifest.json").read_text())
    found = {store.split: stored(data, store) for store in stores}
    assert not found["train"].keys() & found["validation"].keys()
    kept = [name in found["train"] or name in found["validation"] for _, name, _ in reading.documents]
    for names in found.values():
        assert list(names) == [name for _, name, _ in reading.documents if name in names]
    places: dict[tuple[str, ...], set[str]] = {}
    for (_, name, lines), tokens, stays in zip(reading.documents, texts, kept, strict=True):
        if stays:
            split = "train" if name in found["train"] else "validation"
            assert found[split][name] == tokens, name
            places.setdefault(tuple(lines), set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    dropped = Counter(manifest["dropped"])
    if case.options.near_duplicates:
        check_duplicates(reading, texts, kept)
        assert dropped["duplicates"] + dropped["documents"] + sum(kept) == len(kept)
    else:
        assert kept == [bool(tokens) for tokens in texts]
        assert dropped["documents"] == kept.count(False) and dropped["sentences"] == reading.counts["empty_sentences"]
    assert manifest["quarantined"] == reading.bad
    for name in ("cut_lines", "split_documents", "empty_documents"):
        assert manifest["reading"].get(name, 0) == reading.counts[name], name
    documents = [(number, name, tokens) for (number, name, _), tokens in zip(reading.documents, texts, strict=True)]
    return {
        split: [(number, tokens) for number, name, tokens in documents if name in names]
        for split, names in found.items()
    }


_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def check_duplicates(reading: Reading, texts: list[Text], kept: list[bool]) -> None:
    """No two documents with the same runs of words are left, and each that is missing is like another one."""
    contents = ["\n".join(lines) for _, _, lines in reading.documents]
    words = [_WORD.findall(content.lower()) for content in contents]
    runs = [frozenset(tuple(w[i : i + 5]) for i in range(max(1, len(w) - 4))) if w else frozenset() for w in words]
    stay = [i for i, stays in enumerate(kept) if stays]
    assert max(Counter(contents[i] for i in stay).values(), default=1) == 1
    assert max(Counter(runs[i] for i in stay if runs[i]).values(), default=1) == 1
    there = {contents[i] for i in stay}
    for i, stays in enumerate(kept):
        if stays or contents[i] in there or not texts[i]:
            continue
        others = [r for k, r in enumerate(runs) if contents[k] != contents[i]]
        # 0.8 is asked for, and estimated to within 0.035.
        assert any(len(runs[i] & r) >= 0.6 * len(runs[i] | r) for r in others if r and runs[i]), reading.documents[i]


# --- streams ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tokens:
    """A split, token by token.

    Attributes:
        ids: int [T].
        document, sentence: int [T], the number of each token's own.
        lengths: of each sentence.
        starts: the places at which sentences begin, and T.
        source: of each document.
        strings: each document as a string with a character for each token, which Python searches quickly.
        heads: for each document the places in its string at which sentences begin, parts of cut ones included.
    """

    ids: list[int]
    document: list[int]
    sentence: list[int]
    lengths: list[int]
    starts: set[int]
    source: list[int]
    strings: list[str]
    heads: list[set[int]]

    @classmethod
    def of(cls, split: Split, store: TextStore) -> "Tokens":
        found = cls([], [], [], [], {0}, [], [], [])
        for number, (source, sentences) in enumerate(split):
            begin = len(found.ids)
            found.source.append(source)
            own = slice(*store.document_sentences[number : number + 2])
            found.heads.append({0, *np.cumsum(store.sentence_lengths[own], dtype=np.int64).tolist()})
            for sentence in sentences:
                found.sentence += [len(found.lengths)] * len(sentence)
                found.lengths.append(len(sentence))
                found.ids += sentence
                found.starts.add(len(found.ids))
            found.document += [number] * (len(found.ids) - begin)
            found.strings.append("".join(map(chr, found.ids[begin:])))
        return found

    def holders(self, ids: list[int], head: bool = False) -> set[int]:
        """The documents in which a run of tokens occurs; with `head` from the beginning of a sentence on."""
        wanted = "".join(map(chr, ids))
        return {
            d
            for d, string in enumerate(self.strings)
            if any(not head or at in self.heads[d] for at in _all(wanted, string))
        }


def _all(wanted: str, string: str) -> Iterator[int]:
    at = string.find(wanted)
    while at >= 0:
        yield at
        at = string.find(wanted, at + 1)


@dataclasses.dataclass
class Masking:
    """The settings of a stream, as numbers."""

    rate: float
    count: int
    longest_ngram: int
    whole_word: bool
    corrupt_by: str

    def budget(self, length: int) -> int:
        most = max(1, round(length * self.rate))
        return min(most, self.count) if self.count else most


def words_of(example: Example, starts: Sequence[bool], across: bool) -> list[list[int]]:
    """The positions in an example of each of its words."""
    words: list[list[int]] = []
    for number, (begin, ids) in enumerate(((1, example.first), (len(example.first) + 2, example.second or []))):
        for i, token in enumerate(ids):
            if starts[token] or (i == 0 and (number == 0 or not across)):
                words.append([])
            words[-1].append(begin + i)
    return words


def check_masks(example: Example, masking: Masking, words: list[list[int]], ordinary: set[int], google: bool) -> None:
    """Whole words, within the budget, at least one where one fits; and what stands in their place."""
    masked = {position: (label, found) for position, label, found in example.targets}
    ids = [CLS, *example.first, SEP, *([*example.second, SEP] if example.second is not None else [])]
    assert len(masked) == len(example.targets)
    assert not {PAD, CLS, SEP, MASK} & set(ids[1 : 1 + len(example.first)] + (example.second or []))
    assert all(ids[position] == label and label not in (PAD, CLS, SEP, MASK) for position, (label, _) in masked.items())
    if not google:
        assert all(found in (label, MASK) or found in ordinary for label, found in masked.values())
    budget = masking.budget(example.length)
    assert len(masked) <= budget
    chosen = [word for word in words if word[0] in masked]
    assert sorted(itertools.chain(*chosen)) == sorted(masked)
    assert bool(masked) == any(len(word) <= budget for word in words)
    if masking.longest_ngram == 1:  # then every word gets its turn by itself
        assert all(len(word) > budget - len(masked) for word in words if word[0] not in masked)
    if masking.corrupt_by == "span" and not google:
        assert all(len({masked[position][1] == MASK for position in word}) == 1 for word in chosen)


def check_text(example: Example, number: int, stream: PretrainingStream, tokens: Tokens, limit: int) -> None:
    """An example's own text stands where the plan says, in order; other text begins another document's sentence."""
    begin, end = (int(stream.plan.example_begins[number + i]) for i in (0, 1))
    own, order, budget = tokens.ids[begin:end], stream.sentence_order, stream.settings.slots - 3
    assert tokens.document[begin] == tokens.document[end - 1]
    single = stream.plan.example_units[number + 1] - stream.plan.example_units[number] == 1
    if single:
        assert tokens.sentence[begin] == tokens.sentence[end - 1]
        whole = begin in tokens.starts and end in tokens.starts
        assert whole or tokens.lengths[tokens.sentence[begin]] > min(budget, limit)
    else:
        assert begin in tokens.starts and end in tokens.starts
    a, b, label = example.first, example.second, example.label
    borrowed = order in BORROWING and label == 1 and (single or order == "nsp")
    if borrowed:
        assert b and (a == own if single else a == own[: len(a)] and begin + len(a) in tokens.starts - {end})
        assert tokens.holders(b, head=True) - {tokens.document[begin]}
        assert len(a) + len(b) + 3 <= int(stream.plan.example_slots[number])
        return
    assert (b is None) == single
    if single:
        assert a == own and label == -100
        assert order not in BORROWING or len(a) == budget
        return
    assert b and label in {"none": (-100,), "nsp": (0,)}.get(order, (0, 1))
    assert (b + a if label == 1 else a + b) == own
    assert begin + len(b if label == 1 else a) in tokens.starts


def check_same(rng: random.Random, stream: PretrainingStream | GoogleStream) -> None:
    """Some rows, at once and in batches of other sizes."""
    count = rng.randint(1, 12)
    far = 10**6 if isinstance(stream, PretrainingStream) else 3 * stream.rows  # Google's passes are gone through
    start = rng.choice([0, max(0, stream.rows - 5), rng.randrange(far)])
    whole = stream.batch(start, count)
    cuts = sorted({0, count, *(rng.randint(0, count) for _ in range(3))})
    parts = [stream.batch(start + a, b - a) for a, b in itertools.pairwise(cuts)]
    for name, array, *pieces in zip(whole._fields, whole, *parts, strict=True):
        np.testing.assert_array_equal(array, np.concatenate(pieces), err_msg=name)
        assert array.dtype == np.int32


def check_stream(
    stream: PretrainingStream, masking: Masking, tokens: Tokens, vocab: Vocab, weights: list[Fraction], limit: int
) -> None:
    """Reads the first epoch, and of a long one so many rows."""
    settings, plan = stream.settings, stream.plan
    numbers, _ = stream.examples_at(0, stream.mixture._begin(1))
    batch = stream.batch(0, min(len(numbers), _MOST_ROWS))
    pieces = [vocab.processor.id_to_piece(i) for i in range(len(vocab.processor))]
    starts = [not masking.whole_word or piece[0] == "▁" or is_punctuation(piece) for piece in pieces]
    ordinary = {i for i in range(len(pieces)) if i not in SPECIAL_IDS.values()}
    uses = Counter(numbers[numbers >= 0].tolist())
    for row, ordinals in zip(read_batch(batch), numbers.tolist(), strict=False):
        assert 1 <= len(row) <= settings.examples and ordinals[len(row) :] == [-1] * (settings.examples - len(row))
        assert sum(example.length for example in row) <= settings.slots
        assert sum(len(example.targets) for example in row) <= settings.mask_slots
        assert len({tokens.source[tokens.document[int(plan.example_begins[k])]] for k in ordinals[: len(row)]}) == 1
        for example, number in zip(row, ordinals, strict=False):
            check_text(example, number, stream, tokens, limit)
            check_masks(example, masking, words_of(example, starts, False), ordinary, False)
    begins = plan.example_begins
    assert begins[0] == 0 and begins[-1] == len(tokens.ids) and (np.diff(begins) > 0).all()
    for number in range(len(begins) - 1):
        weight = weights[tokens.source[tokens.document[int(begins[number])]]]
        assert int(weight) <= uses[number] <= -(-weight // 1), number


def check_google_stream(stream: GoogleStream, masking: Masking, tokens: Tokens, vocab: Vocab) -> None:
    """Reads the beginning of the first pass."""
    pieces = [vocab.processor.id_to_piece(i) for i in range(len(vocab.processor))]
    starts = google_starts_word(pieces).tolist() if masking.whole_word else [True] * len(pieces)
    for (example,) in read_batch(stream.batch(0, min(stream.rows, _MOST_ROWS))):
        assert example.second and example.first and example.label in (0, 1)
        assert example.length <= stream.settings.slots and len(example.targets) <= stream.settings.mask_slots
        a, b = tokens.holders(example.first), tokens.holders(example.second)
        assert a and b and (a & b if example.label == 0 else len(a | b) > 1 or not stream.next_sentence)
        check_masks(example, masking, words_of(example, starts, True), set(), True)


# --- one case ---------------------------------------------------------------------------------------------------------


def draw_settings(rng: random.Random, order: str, google: bool) -> tuple[dict[str, Any], Masking]:
    slots = rng.choice([8, 9, 13, 16, 32, 64, 128, 128, 512, 4096, rng.randint(8, 4096)])
    masking = Masking(
        rate=rng.choice([0.15, 0.15, 0.01, 0.3, 0.7, 1.0]),
        count=rng.choice([0, 0, 0, 1, 3, 20]),
        longest_ngram=rng.choice([1, 2, 3, 3, 10]),
        whole_word=rng.random() < 0.7,
        corrupt_by=rng.choice(["token", "span"]) if not google else "token",
    )
    needed = masking.budget(slots)
    settings = {
        "slots": slots,
        "examples": 1 if google else rng.choice([1, 1, 2, 3, 4, 16]),
        "mask_slots": needed + rng.choice([0, 0, rng.randint(0, needed), -1 if rng.random() < 0.2 else 1]),
        "mask_rate": masking.rate,
        "short_fraction": rng.choice([0.0, 0.1, 0.5, 1.0]),
        "mask_count": masking.count,
        "pair_singles": order in BORROWING,
    }
    return settings, masking


def draw_weights(rng: random.Random, names: list[str]) -> str:
    if rng.random() < 0.5:
        return ""
    return ",".join(f"{name}={rng.choice(['0', '1', '1', '2', '0.5', '3.125', '0.333'])}" for name in names)


def read(rng: random.Random, case: Case, store: TextStore, tokens: Tokens, vocab: Vocab) -> str:
    """Opens a stream of a split and checks it; returns what became of it."""
    google = rng.random() < 0.15
    order = rng.choice(BORROWING if google else SENTENCE_ORDERS)
    numbers, masking = draw_settings(rng, order, google)
    sources = [f"source{number}" for number in range(len(case.specs))]
    named: str | None = draw_weights(rng, sources)
    given = [Fraction(str(case.weights.get(name, 1))) for name in sources]
    weights = [Fraction(part.split("=")[1]) for part in named.split(",")] if named else given
    if google or (store.split == "validation" and rng.random() < 0.5):
        weights, named = [Fraction(1)] * len(sources), None
    there = set(tokens.source)
    drawn_from = sum(weights[source] > 0 for source in tokens.source)
    refusals = {
        "too few mask slots": numbers["mask_slots"] < masking.budget(numbers["slots"]),
        "weight of an absent source": bool(named) and len(there) < len(sources),
        "weights of 0": not any(weights[source] for source in there),
        "no other document": order in BORROWING and drawn_from < 2,
    }
    try:
        stream = open_stream(rng, store, PlanSettings(**numbers), masking, order, named, vocab, google)
    except UserError as error:
        reason = reason_of(error)
        assert refusals.get(reason), f"{reason}: {error}"
        return reason
    assert not any(refusals.values()), refusals
    if isinstance(stream, GoogleStream):
        check_google_stream(stream, masking, tokens, vocab)
    else:
        check_stream(stream, masking, tokens, vocab, weights, case.limits[2])
    check_same(rng, stream)
    return "google" if google else order


def open_stream(
    rng: random.Random,
    store: TextStore,
    settings: PlanSettings,
    masking: Masking,
    order: str,
    weights: str | None,
    vocab: Vocab,
    google: bool,
) -> PretrainingStream | GoogleStream:
    shuffle, seed = rng.random() < 0.8, rng.randrange(2**32)
    common: dict[str, Any] = {"rate": masking.rate, "count": masking.count, "longest_ngram": masking.longest_ngram}
    common["whole_word"] = masking.whole_word
    if google:
        rule = google_rule(vocab.vocabulary, **common)
        return GoogleStream(store, settings, rule, seed=seed, next_sentence=order == "nsp", shuffle=shuffle)
    exact = None if weights is None else source_weights(weights, store.weights)
    plan = cached_plan(store, vocab.vocabulary.starts_word, settings)
    assert cached_plan(store, vocab.vocabulary.starts_word, settings).digest == plan.digest
    rule = MaskRule.paper(vocab.vocabulary, **common, corrupt_by=masking.corrupt_by)
    return PretrainingStream(
        store, plan, settings, rule, seed=seed, sentence_order=order, weights=exact, shuffle=shuffle
    )


def reason_of(error: UserError) -> str:
    found = [name for name, pattern in REFUSALS.items() if re.search(pattern, str(error))]
    assert len(found) == 1, error
    return found[0]


def run_case(seed: int, folder: Path, vocabs: list[Vocab]) -> list[str]:
    """Builds and reads one corpus; returns what became of its data set and its streams."""
    rng = random.Random(seed)
    case = make_case(rng, folder)
    vocab = rng.choice(vocabs)
    with pytest.MonkeyPatch.context() as patching:
        patch(patching, rng, case)
        splitters = Splitters(case.options.language, {})
        data, options = folder / "data", case.options
        reading = None
        try:
            sources, _ = open_sources(case.specs, lines=case.lines, field=case.field, splitters=splitters)
            reading = read_slowly(case, sources)
            build(sources, vocab.tokenizer, str(data), options, weights=case.weights, workers=1)
        except UserError as error:
            reason = reason_of(error)
            assert not data.exists()
            check_refused(reason, str(error), case, reading, vocab)
            return [reason]
        assert options.on_bad_record == "quarantine" or not reading.bad
        texts = expected_texts(case, sources, reading, vocab)
        stores = [TextStore(data, split) for split in ("train", "validation")]
        splits = check_data_set(case, data, stores, reading, texts)
        return ["built", *(read(rng, case, store, Tokens.of(splits[store.split], store), vocab) for store in stores)]


def check_refused(reason: str, said: str, case: Case, reading: Reading | None, vocab: Vocab) -> None:
    """A build was refused for a reason that there is."""
    options = case.options
    if reason == "language without sentences":
        assert options.language == "th" and case.lines != "sentence"
        return
    assert reading is not None
    if reason == "bad record":
        assert options.on_bad_record == "stop" and reading.bad
        return
    assert options.on_bad_record == "quarantine" or not reading.bad
    assert (reason == "empty corpus") == (not reading.documents)
    if "left for validation" in said and ("went 0" in said or "was chosen" in said) and not options.near_duplicates:
        below = options.validation_fraction * 2**64
        chosen = [lines for *_, lines in reading.documents if holdout.content_hash(lines) < below]
        assert not any(vocab.ids(line) for lines in chosen for line in lines)


def run(seeds: Iterable[int], folder: Path, vocabs: list[Vocab]) -> Counter[str]:
    """Runs cases; returns how often each end was reached."""
    ends: Counter[str] = Counter()
    for seed in seeds:
        work = folder / str(seed)
        work.mkdir()
        try:
            ends.update(run_case(seed, work, vocabs))
        except BaseException as error:
            error.add_note(f"seed {seed}: FUZZ_SEEDS={seed}:{seed + 1} pytest -m slow tests/test_fuzz.py")
            raise
        shutil.rmtree(work)
    return ends


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: half of the time of a small build goes to making and removing files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as temporary:
        yield Path(temporary)


@pytest.fixture(scope="module")
def vocabs(tmp_path_factory: pytest.TempPathFactory) -> list[Vocab]:
    """English, with pieces such as ``1,`` in use as in Google's; all scripts, with case and accents; and a small one
    that does not know the comma."""
    rng = random.Random(0)
    english = [corpora.sentence(rng) + " 1,000 2, 3," for _ in range(300)]
    every = [" ".join(rng.choices([*itertools.chain(*FLAVOURS.values())], k=8)) for _ in range(600)]
    bare = [sentence.replace(",", "") for sentence in english]
    found = []
    for name, (sentences, size, cleaning) in {
        "english": (english, 150, "huggingface"),
        "every": (every, 300, "unicode"),
        "bare": (bare, 60, "google"),
    }.items():
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patching:
            if name == "english":
                patching.setattr(vocabulary, "settle_scores", lambda model: model)
            vocabulary.train_vocabulary(sentences, folder, size=size, cleaning=cleaning)
        model = folder / "spiece.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        found.append(Vocab(AlbertTokenizer.from_pretrained(folder), Vocabulary.load(model), processor))
    return found


def check_ends(ends: Counter[str]) -> None:
    """The cases were not refused for the most part, and led to every end that there is."""
    print(dict(ends.most_common()))
    assert ends.keys() == {"built", "google", *SENTENCE_ORDERS, *REFUSALS}
    assert ends["built"] > 0.6 * sum(ends[name] for name in ("built", *list(REFUSALS)[:4]))


def test_generated_corpora_are_read_whole_and_once_and_masked_within_bounds(folder: Path, vocabs: list[Vocab]) -> None:
    check_ends(run(QUICK, folder, vocabs))


@pytest.mark.slow
def test_thousands_of_generated_corpora_are_read_whole_and_once_and_masked_within_bounds(
    folder: Path, vocabs: list[Vocab]
) -> None:
    begin, _, end = os.environ.get("FUZZ_SEEDS", "200:2200").partition(":")
    ends = run(range(int(begin), int(end)), folder, vocabs)
    if int(end) - int(begin) >= len(QUICK):
        check_ends(ends)
