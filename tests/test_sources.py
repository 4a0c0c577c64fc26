# SPDX-License-Identifier: Apache-2.0
"""Sources: every format gives its documents once, in order and whole, however it is divided, packed and stored."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from albert_jax.data.tfrecords import write_record
from albert_jax.errors import UserError
from pretrain_data.sources import base, files
from pretrain_data.sources.base import Document, Part, ReadLog, Source, Span, bounded, text_lines
from pretrain_data.sources.files import FileSource, is_blank, lines, look_at, strides
from pretrain_data.sources.json_lines import JsonLines
from pretrain_data.sources.opening import open_sources
from pretrain_data.sources.parquet import Parquet
from pretrain_data.sources.text import TextFiles
from pretrain_data.sources.tfds_source import TfdsSource

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
AWKWARD = [
    "\ufeff Eins.\r\nZwölf — 十二. \r\n \t\r\n\r\nOne\rtwo\r\rthree\u3000\n\u3000\n\n\n  last without an end".encode(),
    "\ufeff\n\n \n\nfirst\r\n\x1c\nsecond\r\r\n\nthird\r".encode(),
    "один\n\nдва\n \nтри\n\n".encode(),
    b"\n\r\n a \n\n\n\n",
    b"\xef\xbb\xbf",
]


class Splitter:
    """Sentences end in a period and a space, in every source."""

    def of(self, source: str) -> "Splitter":
        return self

    def split(self, paragraph: str) -> list[str]:
        return re.split(r"(?<=\.) ", paragraph)


def everything(source: Source, log: ReadLog | None = None) -> list[Document]:
    """All documents of a source, part by part, as another process would read them."""
    log = log or ReadLog()
    parts = pickle.loads(pickle.dumps(source.parts()))
    return [document for part in parts for document in pickle.loads(pickle.dumps(source)).read(part, log)]


def text_of(document: Document) -> str:
    return "\n".join(document.lines)


def opened(*specs: object, lines: str = "sentence", field: str = "text", **more: object) -> list[Source]:
    return open_sources([str(spec) for spec in specs], lines=lines, field=field, splitters=Splitter(), **more)[0]  # type: ignore[arg-type]


def blocks(content: bytes) -> list[tuple[int, list[str]]]:
    """What a text file holds: (offset of a document's first line, its lines). Slow and plain."""
    found: list[tuple[int, list[str]]] = []
    blank = True
    for match in re.finditer(rb"([^\r\n]*)(\r\n|\r|\n|$)", content):
        raw = match[1].removeprefix(b"\xef\xbb\xbf") if match.start() == 0 else match[1]
        line = raw.decode().strip()
        if line and blank:
            found.append((match.start(), []))
        if line:
            found[-1][1].append(line)
        blank = not line
    return found


def divided(path: Path, cuts: list[int]) -> Iterator[Part]:
    file = look_at(str(path))
    for begin, end in pairwise(cuts):
        yield Part((Span(str(path), begin, end, end - begin, file.state),))


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", AWKWARD)
def test_text_divided_anywhere_gives_the_documents_of_the_whole_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    expected = [Document(f"a.txt:{offset}", found) for offset, found in blocks(content)]
    source = TextFiles(str(path), "sentence", "a")
    assert everything(source) == expected
    for first in range(len(content) + 1):
        for second in range(first, len(content) + 1):
            parts = divided(path, [0, first, second, len(content)])
            assert [document for part in parts for document in source.read(part, ReadLog())] == expected


def test_random_text_divided_at_random_is_read_the_same_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(5)
    path = tmp_path / "r.txt"
    for _ in range(300):
        pieces = ["a", "bé", "漢", " ", "\t", "\n", "\n", "\r", "\r\n", "\n\n", "\u3000", "\u2028", "\x1c", "\v", "😀"]
        content = "".join(random.choices(pieces, k=random.randrange(60))).encode()
        path.write_bytes(content)
        monkeypatch.setattr(files, "_BLOCK", random.choice([1, 2, 3, 7, 64]))
        cuts = sorted([0, len(content), *(random.randrange(len(content) + 1) for _ in range(random.randrange(4)))])
        source = TextFiles(str(path), "sentence", "r")
        found = [document for part in divided(path, cuts) for document in source.read(part, ReadLog())]
        assert found == [Document(f"r.txt:{offset}", block) for offset, block in blocks(content)]


def test_a_line_too_long_is_cut_at_white_space_or_between_characters_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 20)
    path = tmp_path / "a.txt"
    for block in (1, 5, 50, 1000):
        monkeypatch.setattr(files, "_BLOCK", block)
        path.write_text(
            "short\none two three four five six\r\nдвадцатьбуквбезпробела\n\n" + " " * 50 + "\n\nx" + " " * 50
        )
        log = ReadLog()
        first, second = everything(TextFiles(str(path), "sentence", "a"), log)
        assert first.lines == ["short", "one two three four", "five six", "двадцатьбу", "квбезпробе", "ла"]
        assert second.lines == ["x"] and log.cut_lines == 3
        path.write_text("a" * 20 + "\r\n" + "b" * 20 + "\r" + "c" * 20)
        log = ReadLog()
        assert everything(TextFiles(str(path), "sentence", "a"), log)[0].lines == ["a" * 20, "b" * 20, "c" * 20]
        assert log.cut_lines == 0


def test_white_space_within_a_long_line_is_no_blank_line_and_a_long_blank_line_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_text("begin" + " " * 60 + "end\n" + " " * 60 + "\nnext")
    for block in (1, 9, 1000):
        monkeypatch.setattr(files, "_BLOCK", block)
        log = ReadLog()
        found = everything(TextFiles(str(path), "sentence", "a"), log)
        assert [document.lines for document in found] == [["begin", "end"], ["next"]]
        assert log.cut_lines == 1
    size = path.stat().st_size
    for cut in range(size):
        parts = divided(path, [0, cut, size])
        source = TextFiles(str(path), "sentence", "a")
        assert [document for part in parts for document in source.read(part, ReadLog())] == found


def test_a_line_of_200_megabytes_passes_in_a_few(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write("Слово word 言葉 ".encode() * 46_000)
    tracemalloc.start()
    log = ReadLog()
    source = TextFiles(str(path), "sentence", "long")
    documents = sum(document.size for document in source.read(source.parts()[0], log))
    assert sum(1 for part in source.parts()[1:] for _ in source.read(part, log)) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents > 0.99 * path.stat().st_size and log.cut_lines == 1 and log.split_documents == 1
    assert peak < 60e6


def test_a_long_document_becomes_several_none_larger_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_DOCUMENT_BYTES", 100)
    log = ReadLog()
    text = [f"строка {number}" for number in range(100)]
    found = list(bounded("x:0", text, log))
    assert [line for document in found for line in document.lines] == text
    assert [document.id for document in found[:3]] == ["x:0", "x:0#2", "x:0#3"]
    assert all(85 < document.size <= 100 for document in found[:-1])
    assert (log.split_documents, log.empty_documents) == (1, 0)
    assert list(bounded("x:1", [], log)) == [] and log.empty_documents == 1


def test_a_long_line_of_a_text_in_memory_is_cut_as_one_of_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_LINE_BYTES", 20)
    log = ReadLog()
    text = "short\r\rone two three four five six\r\n\n двадцатьбуквбезпробела\u2028x"
    assert list(text_lines(text, log)) == [
        *("short", "one two three four", "five six", "двадцатьбу", "квбезпробе", "ла\u2028x"),
    ]
    assert log.cut_lines == 2


def test_small_files_share_a_part_and_large_ones_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 100)
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("Thirty bytes are in this file.\n" * (1 if number != 4 else 20))
    source = TextFiles(str(tmp_path / "*.txt"), "sentence", "a")
    parts = source.parts()
    assert [len(part.spans) for part in parts] == [3, *[1] * 8, 3, 2]
    assert all(part.size <= 100 for part in parts) and sum(part.size for part in parts) == source.size
    (tmp_path / "empty.txt").write_text("")
    assert TextFiles(str(tmp_path / "empty.txt"), "sentence", "a").parts() == []
    assert "(1 empty)" in TextFiles(str(tmp_path / "*.txt"), "sentence", "a").describe()


def test_blank_lines_are_what_python_takes_for_white_space() -> None:
    for point in range(0x110000):
        if not 0xD800 <= point < 0xE000 and chr(point).isspace():
            assert is_blank(chr(point).encode())
            assert is_blank(f" {chr(point)}\t".encode())
            assert not is_blank(f"{chr(point)}a".encode())
    assert is_blank(b"") and not is_blank("é".encode()) and not is_blank(b"\xc2") and not is_blank(b"\0")


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_archives_of_several_members_are_read_to_the_end(suffix: str, tmp_path: Path) -> None:
    pack = PACK[suffix]
    for number, content in enumerate(AWKWARD[:3]):
        middle = len(content) // 2
        packed = pack(content[:middle]) + pack(b"") + pack(content[middle:])
        path = tmp_path / f"{number}.txt{suffix}"
        path.write_bytes(packed + (b"\0" * 512 if suffix in (".gz", ".xz") else b""))
        expected = [Document(f"{path.name}:{offset}", found) for offset, found in blocks(content)]
        assert everything(TextFiles(str(path), "sentence", "a")) == expected


def test_forty_megabytes_from_a_tiny_archive_take_less_memory(tmp_path: Path) -> None:
    text = b"a" * 4 * 10**7
    for suffix, pack in PACK.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(pack(text) * (2 if suffix == ".zst" else 1))
        size = 0
        tracemalloc.start()
        with files.open_binary(str(path)) as stream:
            while block := stream.read(2**20):
                size += len(block)
        assert tracemalloc.get_traced_memory()[1] < 25e6
        tracemalloc.stop()
        assert size == len(text) * (2 if suffix == ".zst" else 1)


def test_a_large_archive_is_shared_by_parts_that_count_each_document_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COMPRESSED_PART_BYTES", 60)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 12)
    random.seed(1)
    content = "\n\n".join(
        f"{random.random()}"[:11] + (" a long line" if i % 3 == 0 else "") for i in range(50)
    ).encode()
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(content + b"\n\nbad \xff line\ngood\n\n\xfe"))
    source = TextFiles(str(path), "sentence", "a")
    assert [part.spans[0].offset for part in source.parts()] == [0, 1, 2, 3]
    assert sum(part.size for part in source.parts()) == source.size
    log = ReadLog("quarantine")
    found = everything(source, log)
    offset_of = {document.id: int(document.id.split(":")[1]) for document in found}
    assert sorted(offset_of.values()) == [offset for offset, _ in blocks(content)] + [len(content) + 2]
    assert log.cut_lines == 17 and log.empty_documents == 1
    assert sorted(raw for _, _, raw in log.bad) == [b"bad \xff line", b"\xfe"]
    assert len(strides(files.File("x.gz", 10**12, ""))) == 4


# --- JSON lines -------------------------------------------------------------------------------------------------------


def test_json_lines_divided_anywhere_give_each_line_once(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "Eins.\nZwölf.\r\n\n 十二 "}, {"text": ""}, {"text": "\u2028 \n"}, {"text": "Ende 😀."}]
    for end in ("\n", "\r\n", "\r"):
        path = tmp_path / "a.jsonl"
        content = "\ufeff" + end.join([*(json.dumps(row) for row in rows[:2]), "", "  "]) + end
        content += end.join(json.dumps(row, ensure_ascii=False) for row in rows[2:])
        path.write_bytes(content.encode())
        size = path.stat().st_size
        source = JsonLines(str(path), "text", "sentence", "a")
        log = ReadLog()
        found = everything(source, log)
        assert [document.lines for document in found] == [["Eins.", "Zwölf.", "十二"], ["Ende 😀."]]
        assert found[0].id == "a.jsonl:0" and log.empty_documents == 2
        for cut in range(size + 1):
            log = ReadLog()
            parts = divided(path, [0, cut, size])
            assert [document for part in parts for document in source.read(part, log)] == found
            assert log.empty_documents == 2


def test_a_nested_field_is_named_with_dots_and_archives_share_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COMPRESSED_PART_BYTES", 100)
    rows = [{"content": {"body": f"Text {number}. {random.random()}"}} for number in range(50)]
    plain = "\n\n".join(json.dumps(row) for row in rows).encode()
    for suffix, pack in PACK.items():
        path = tmp_path / f"a.ndjson{suffix}"
        path.write_bytes(pack(plain))
        source = opened(path, field="content.body")[0]
        assert isinstance(source, JsonLines) and len(source.parts()) == 4
        assert sorted(text_of(document) for document in everything(source)) == sorted(
            row["content"]["body"] for row in rows
        )


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_gives_a_document_a_row_from_any_type_of_text(tmp_path: Path) -> None:
    texts = ["Zwölf.\n十二.", None, "", "Ende.", "Ende."]
    plain = pa.array(texts)
    columns = {
        "text": plain,
        "large": plain.cast(pa.large_string()),
        "view": plain.cast(pa.string_view()),
        "words": plain.dictionary_encode(),
        "raw": plain.cast(pa.binary()),
        "in": pa.StructArray.from_arrays([plain, pa.array(range(5))], ["body", "n"]),
        "a.b": plain,
        "number": pa.array(range(5)),
        "nothing": pa.nulls(5),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    for field in ("text", "large", "view", "words", "raw", "in.body", "a.b"):
        log = ReadLog()
        found = everything(opened(tmp_path / "a.parquet", field=field)[0], log)
        assert [(document.id, document.lines) for document in found] == [
            ("a.parquet:0", ["Zwölf.", "十二."]),
            ("a.parquet:3", ["Ende."]),
            ("a.parquet:4", ["Ende."]),
        ]
        assert log.empty_documents == 2
    assert everything(opened(tmp_path / "a.parquet", field="nothing")[0]) == []


def test_parquet_is_divided_by_row_groups_and_large_ones_are_read_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(97, 123, 100_000, np.uint8).tobytes().decode() for _ in range(400)]
    table = pa.table({"text": texts, "n": range(400)})
    # By default pages are closed every 1,024 rows at the soonest, and a page is read as a whole.
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=4)
    source = Parquet(str(tmp_path / "a.parquet"), "text", "sentence", "a")
    assert len(source.parts()) == 1
    pa.default_memory_pool().release_unused()
    before, peak = pa.total_allocated_bytes(), 0
    for document, text in zip(source.read(source.parts()[0], ReadLog()), texts, strict=True):
        assert document.lines == [text]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 20e6
    pq.write_table(pa.table({"text": texts[:40]}), tmp_path / "b.parquet", row_group_size=5)
    monkeypatch.setattr("pretrain_data.sources.parquet.PART_BYTES", 10**6)
    source = Parquet(str(tmp_path / "b.parquet"), "text", "sentence", "b")
    spans = [span for part in source.parts() for span in part.spans]
    assert [(span.begin, span.end) for span in spans] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
    ]
    assert sum(span.size for span in spans) == source.size
    assert [document.id for document in everything(source)] == [f"b.parquet:{row}" for row in range(40)]
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert everything(Parquet(str(tmp_path / "c.parquet"), "text", "sentence", "c")) == []


# --- TFDS -------------------------------------------------------------------------------------------------------------


def make_tfds(data_dir: Path, config: str, file_format: str, version: str = "1.0.0") -> Path:
    """A prepared data set ``toy`` of two shards with 3 and 200 examples, as TFDS lays it out."""
    folder = data_dir / "toy" / config / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "more": {"body": tfds.features.Text()},
            "label": tfds.features.ClassLabel(num_classes=2),
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name="toy", split="train", filetype_suffix=file_format
    )
    for shard, count in enumerate((3, 200)):
        path = str(template.sharded_filepath(shard_index=shard, num_shards=2))
        examples = (
            {"text": f"Zwölf {shard}.\n{i}", "more": {"body": "b"}, "label": 1, "words": ["w"]} for i in range(count)
        )
        records = [features.serialize_example(example) for example in examples]
        if file_format == "array_record":
            writer = ArrayRecordWriter(path, "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
        else:
            with open(path, "wb") as file:
                for record in records:
                    write_record(file, record)
    info = tfds.core.SplitInfo(name="train", shard_lengths=[3, 200], num_bytes=1000, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[info], version=version, check_data=False
    )
    return folder


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_tfds_data_set_is_read_by_name_or_folder_in_both_formats(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tfds(tmp_path, "old", file_format, "0.9.0")
    folder = make_tfds(tmp_path, "old", file_format, "0.10.0")
    texts = [f"Zwölf {shard}.\n{number}" for shard, count in enumerate((3, 200)) for number in range(count)]
    for spec in ("tfds:toy", "tfds:toy/old", "tfds:toy/old:0.9.0", f"tfds:{folder}"):
        source = opened(spec, tfds_data_dir=tmp_path)[0]
        found = everything(source)
        assert [text_of(document) for document in found] == texts
        assert found[3].id == f"toy-train.{file_format}-00001-of-00002:0"
    assert opened("tfds:toy", tfds_data_dir=tmp_path)[0].files[0].path.startswith(str(folder))  # type: ignore[attr-defined]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("pretrain_data.sources.tfds_source.PART_BYTES", 2000)
    source = TfdsSource("tfds:toy", "train[2:102]", "more.body", "sentence", "toy")
    assert len(source.spans(source.files[1])) > 2
    assert [text_of(document) for document in everything(source)] == ["b"] * 100
    (sliced,) = opened("half=tfds:toy@train[:50%]")
    assert len(everything(sliced)) == 102 and sliced.name == "half"


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_suffix_tells_the_format_and_a_prefix_overrides_it(tmp_path: Path) -> None:
    row = json.dumps({"text": "One."}).encode()
    pq.write_table(pa.table({"text": ["One."]}), tmp_path / "a.parquet")
    for name in ("a.json", "b.jsonl", "c.NDJSON"):
        (tmp_path / name).write_bytes(row)
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(row))
    (tmp_path / "e.txt").write_bytes(b"One.\n" + row)
    (tmp_path / "f").write_bytes(b"One.")
    (tmp_path / "g.md.XZ").write_bytes(lzma.compress(b"One."))
    (tmp_path / "[x]*.txt").write_bytes(b"One.")
    kinds = {"a.parquet": Parquet, "e.txt": TextFiles, "f": TextFiles, "g.md.XZ": TextFiles, "[x]*.txt": TextFiles}
    for path in sorted(tmp_path.iterdir()):
        source = opened(path)[0]
        assert type(source) is kinds.get(path.name, JsonLines)
        if path.name != "e.txt":
            assert [document.lines for document in everything(source)] == [["One."]]
    assert isinstance(opened(f"jsonl:{tmp_path}/e.txt")[0], JsonLines)
    assert isinstance(opened(f"text:{tmp_path}/[ab]*")[0], TextFiles)
    dump = "<mediawiki><siteinfo><namespaces/></siteinfo></mediawiki>"
    (tmp_path / "dewiki-pages-articles1.xml-p1p41.bz2").write_bytes(bz2.compress(dump.encode()))
    (source,) = opened(f"{tmp_path}/dewiki*")
    assert (type(source).__name__, source.name, source.lines) == ("MediaWikiDump", "dewiki", "paragraph")
    (source,) = opened(f"wikiextractor:{tmp_path}/f")
    assert (type(source).__name__, source.name, source.lines) == ("WikiExtractor", "f", "paragraph")


CSV = 'label,text\n1,"A headline, with a comma. It has two sentences."\n2,"Another ""quoted"" row.\nwith a break"\n'


def test_tables_are_refused_with_a_command_that_makes_them_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pa.table({"text": ["One.", "Two, three."]})
    Path("a.csv").write_text(CSV)
    Path("b.CSV.gz").write_bytes(gzip.compress(CSV.encode()))
    Path("c.tsv").write_text('label\ttext\n1\tOne "quoted" row.\n')
    with pa.OSFile("d.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    pa.feather.write_feather(table, "e.feather")
    with pa.OSFile("f.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    for name in sorted(str(path) for path in Path().iterdir()):
        with pytest.raises(UserError, match="if it is plain text") as refused:
            opened(name)
        command = re.search(r"run (python -c '.*?') and name (\S+) with --field", str(refused.value))
        assert command is not None
        subprocess.run([sys.executable, *shlex.split(command[1])[1:]], check=True)
        lines = [line for document in everything(opened(command[2])[0]) for line in document.lines]
        assert len(lines) == (1 if name == "c.tsv" else 3 if "csv" in name.lower() else 2), name


REFUSED = {
    "a.html": b"<html><body>Text.</body></html>",
    "b.warc.wet.gz": b"",
    "c.pdf": b"%PDF-1.7",
    "d.zip": b"PK",
    "e.txt.lz4": b"",
    "f.epub": b"",
    "g.tfrecord": b"",
    "h.lst": b"One.",
    "1": b"WARC/1.0\r\nWARC-Type: conversion\r\n",
    "2.txt": b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>",
    "3.text": b'<?xml version="1.0"?>\n<TEI>',
    "4.md": b"\x1f\x8b\x08\0",
    "5.txt.gz": gzip.compress(b"%PDF-1.4"),
    "6.txt": b'{"text": "One."}\n',
    "7": b'<?xml version="1.0"?><mediawiki xmlns="x">',
    "8.001": b"a" * 257 + b"ustar\x0000",
    "9.txt": b"PAR1\x15",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_by_its_name_or_its_first_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(REFUSED[name])
    with pytest.raises(UserError, match=re.escape(f"text:{tmp_path}/{name}")):
        opened(tmp_path / name)
    assert isinstance(opened(f"text:{tmp_path}/{name}")[0], TextFiles)


@pytest.mark.parametrize("name", ["a", "wiki_00", "part.0001", "b.txt", "c.md.gz", "news-2023.09"])
def test_text_is_read_under_these_names(tmp_path: Path, name: str) -> None:
    content = b"{Braces}, <tags> and WARC are text too. So is PK."
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert isinstance(opened(tmp_path / name)[0], TextFiles)


def test_sources_have_the_names_they_are_given_or_short_ones_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("news/a.txt", "news/b.txt", "wiki/part-0.txt", "lang=en/a.txt", "корпус/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("One.")
    specs = [
        f"{tmp_path}/news/*.txt",
        f"{tmp_path}/wiki/part-*",
        f"a={tmp_path}/lang=en/*.txt",
        f"{tmp_path}/корпус/a.txt",
    ]
    assert [source.name for source in opened(*specs)] == ["news", "part", "a", "a-2"]
    previous = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert opened("lang=en/*.txt")[0].name == "lang-en"
        assert opened("lang=корпус/*.txt")[0].name == "lang"
        assert opened("корпус/**")[0].name == "text"
    finally:
        os.chdir(previous)
    monkeypatch.setattr("pretrain_data.python_docs.PythonDocs.describe", lambda docs: docs.name)  # takes long
    (docs,) = opened("docs=python-docs")
    assert docs.name == "docs" and opened("python-docs")[0].name == "python-docs"


def test_ids_hold_the_whole_path_where_file_names_repeat_in_the_corpus(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("One.\n\nTwo.")
    (tmp_path / "b" / "y.txt").write_text("Three.")
    sources = opened(tmp_path / "a" / "*", tmp_path / "b" / "*")
    assert [document.id for source in sources for document in everything(source)] == [
        *(f"{tmp_path}/a/x.txt:0", f"{tmp_path}/a/x.txt:6"),
        *(f"{tmp_path}/b/x.txt:0", f"{tmp_path}/b/x.txt:6", "y.txt:0"),
    ]


def test_detect_tells_sentences_from_paragraphs_for_each_source_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("The river is wide.\nThe harbor is near.\n\n" * 30)
    paragraph = "The river is wide. The harbor is near. It rains."
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": f"{paragraph}\n{paragraph}"}) + "\n")
    pq.write_table(pa.table({"text": [paragraph] * 30}), tmp_path / "q.parquet")
    sources, said = open_sources(
        [str(tmp_path / name) for name in ("s.txt", "p.jsonl", "q.parquet")],
        lines="detect",
        field="text",
        splitters=Splitter(),
    )
    assert [source.lines for source in sources] == ["sentence", "paragraph", "paragraph"]
    assert said[0].startswith("lines of s: one sentence a line, because 0% of 60 sample lines")
    assert said[1].startswith("lines of p: one paragraph a line, because 100% of 2 sample lines")
    assert said[3].startswith("s: 1 file of text, 0.0 MB, one sentence a line")
    _, said = open_sources([str(tmp_path / "s.txt")], lines="detect", field="text", splitters=Splitter())
    assert said[0].startswith("lines: one sentence a line, because") and "--lines overrides" in said[0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_document_ends_with_a_blank_line_or_with_its_line_or_with_its_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["One.\r\nTwo.\n\n \nThree.\n", "\n\nFour.\nFive.\n\nSix."]
    for number, text in enumerate(texts):
        raw = text.encode()
        (tmp_path / f"{number}.txt{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
    wanted = {
        "blank": [["One.", "Two."], ["Three."], ["Four.", "Five."], ["Six."]],
        "line": [["One."], ["Two."], ["Three."], ["Four."], ["Five."], ["Six."]],
        "file": [["One.", "Two.", "Three."], ["Four.", "Five.", "Six."]],
    }
    for size in (1, 3, 5, 7, 1000):
        monkeypatch.setattr(files, "PART_BYTES", size)
        monkeypatch.setattr(files, "COMPRESSED_PART_BYTES", size)
        for ends, expected in wanted.items():
            (source,), _ = open_sources(
                [str(tmp_path / f"*.txt{suffix}")], lines="sentence", field="", splitters=Splitter(), documents=ends
            )
            found = everything(source)
            assert sorted(document.lines for document in found) == sorted(expected)
            assert len({document.id for document in found}) == len(expected)
            assert source.manifest()["documents"] == ends


def detected(tmp_path: Path, text: str, **options: str) -> tuple[str, str]:
    """What ends a document of a file with this text, and what is said of it."""
    (tmp_path / "a.txt").write_text(text)
    arguments = {"lines": "detect", "field": "text", "documents": "detect"} | options
    (source,), said = open_sources([str(tmp_path / "a.txt")], splitters=Splitter(), **arguments)
    return str(source.manifest()["documents"]), next((one for one in said if one.startswith("documents")), "")


def test_what_ends_a_document_is_told_from_the_text_with_its_figures(tmp_path: Path) -> None:
    paragraph = "The river is wide. The harbor is near. It rains."
    ends, said = detected(tmp_path, f"{paragraph}\n{paragraph}\n\n" * 300)
    assert ends == "blank" and "6.0 sentences each in 600 sample lines (--documents overrides)" in said
    ends, said = detected(tmp_path, f"{paragraph}\n" * 300)
    assert ends == "line" and "300 sample lines hold no blank line and are paragraphs" in said
    ends, said = detected(tmp_path, "It rains.\n\n" * 300)
    assert ends == "blank" and "1.0 sentences each in 300 sample lines; if these are paragraphs of longer" in said
    assert "give --documents file" in said
    assert detected(tmp_path, "It rains.\n" * 300)[0] == "blank"  # a short text
    assert detected(tmp_path, "It rains.\n" * 300, documents="file") == ("file", "")


def test_a_long_file_of_sentences_without_blank_lines_is_asked_about_and_each_advice_helps(tmp_path: Path) -> None:
    text = "It rains.\n" * 3000
    with pytest.raises(UserError, match=r"3,000 sample lines have none, and a file has about 3,000 lines"):
        detected(tmp_path, text)
    for ends in ("file", "line"):
        assert detected(tmp_path, text, documents=ends)[0] == ends
    assert detected(tmp_path, ("It rains.\n" * 10 + "\n") * 300)[0] == "blank"


def test_samples_come_from_all_over_a_large_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first file is a glossary of short lines; most of the corpus is paragraphs.
    (tmp_path / "0.txt").write_text("Word.\n\n" * 5000)
    for number in range(1, 9):
        (tmp_path / f"{number}.txt").write_text("One. Two.\n\n" * 5000)
    source, _ = open_sources([str(tmp_path / "*.txt")], lines="detect", field="text", splitters=Splitter())
    assert source[0].lines == "paragraph"


# --- object stores ----------------------------------------------------------------------------------------------------


def test_an_object_store_is_read_as_the_disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 30)
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a/x.txt", AWKWARD[0])
    store.pipe("/bucket/b/x.txt.zst", zstandard.compress(AWKWARD[2]))
    store.pipe("/bucket/j.jsonl", b'{"text": "One."}\n{"text": "Two."}\n{"text": "Three."}\n')
    pq.write_table(pa.table({"text": ["Four."]}), tmp_path / "p.parquet")
    store.pipe("/bucket/p.parquet", (tmp_path / "p.parquet").read_bytes())
    try:
        text, json_lines, parquet = opened(
            *("memory://bucket/**/x.txt*", "j=memory://bucket/j.jsonl", "memory://bucket/*.parquet")
        )
        assert isinstance(text, FileSource) and text.size == len(AWKWARD[0]) + text.files[1].size
        assert [document.lines for document in everything(text)] == [
            *(found for _, found in blocks(AWKWARD[0])),
            *(found for _, found in blocks(AWKWARD[2])),
        ]
        assert everything(text)[0].id == "x.txt:0" and len(text.parts()) > 2
        assert [text_of(document) for document in everything(json_lines)] == ["One.", "Two.", "Three."]
        assert len(json_lines.parts()) == 2 and [text_of(document) for document in everything(parquet)] == ["Four."]
    finally:
        store.rm("/bucket", recursive=True)


def test_lines_come_with_their_offsets() -> None:
    found = list(lines(io.BytesIO("a\r\n\rбв\n\nz".encode()), ReadLog()))
    assert found == [(0, b"a"), (3, b""), (4, "бв".encode()), (9, b""), (10, b"z")]
