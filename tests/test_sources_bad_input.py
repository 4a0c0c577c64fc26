# SPDX-License-Identifier: Apache-2.0
"""Bad corpora: each ends in one sentence that names the place, or is set aside with its bytes; nothing goes unsaid."""

import bz2
import contextlib
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from albert_jax.errors import UserError
from pretrain_data.sources import files, json_lines
from pretrain_data.sources.base import Document, Part, ReadLog, Source, Span
from pretrain_data.sources.files import expand, look_at
from pretrain_data.sources.json_lines import JsonLines
from pretrain_data.sources.opening import open_sources
from pretrain_data.sources.parquet import Parquet
from pretrain_data.sources.text import TextFiles
from tests.test_sources import PACK, Splitter, everything, make_tfds, opened

TEXT = "Die Zwölf — 十二.\nThe river is wide.\n\n".encode() * 2000


def refusal(action: Callable[[], object]) -> str:
    """The one sentence that an action ends in."""
    with pytest.raises(UserError) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message and "; " in message  # what is wrong; what to do about it
    return message


def read(path: Path, log: ReadLog | None = None) -> list[Document]:
    return everything(opened(path)[0], log)


# --- names ------------------------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refusal(lambda: opened(tmp_path / "nowhere.txt"))
    assert "no file matches" in refusal(lambda: opened(tmp_path / "*.text"))
    assert "is a folder, not a file" in refusal(lambda: opened(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    assert "pipe.txt' is no regular file" in refusal(lambda: opened(tmp_path / "pipe.txt"))
    (tmp_path / "real.txt").write_text("One.")
    assert "pipe.txt' is no regular file" in refusal(lambda: opened(tmp_path / "*.txt"))
    os.remove(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    assert "link.txt' is no regular file" in refusal(lambda: opened(tmp_path / "*.txt"))
    os.remove(tmp_path / "link.txt")
    (tmp_path / "folder.txt").mkdir()
    assert expand(str(tmp_path / "*")) == [str(tmp_path / "real.txt")]
    assert "is a folder" in refusal(lambda: opened(tmp_path / "folder*"))


@contextlib.contextmanager
def someone_else() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_or_folder_without_the_right_to_read_it_is_named() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        (folder / "secret.txt").write_text("One.")
        (folder / "secret.txt").chmod(0)
        (folder / "closed").mkdir()
        (folder / "closed" / "a.txt").write_text("One.")
        (folder / "closed").chmod(0)
        with someone_else():
            message = refusal(lambda: opened(folder / "secret.txt"))
            assert "secret.txt' cannot be read (Permission denied); check its permissions" in message
            assert "(Permission denied)" in refusal(lambda: opened(folder / "closed" / "a.txt"))
        (folder / "closed").chmod(0o755)
    finally:
        shutil.rmtree(folder)


def test_a_source_file_or_name_given_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("One.")
    a = tmp_path / "a.txt"
    assert "is given twice" in refusal(lambda: opened(a, a))
    assert "a.txt' is named by more than one --source" in refusal(lambda: opened(a, tmp_path / "*.txt"))
    assert "a.txt' is named by more than one --source" in refusal(
        lambda: opened(a, f"x={tmp_path}/../{tmp_path.name}/a.txt")
    )
    (tmp_path / "c.txt").symlink_to(a)
    message = refusal(lambda: opened(tmp_path / "*.txt"))
    assert f"'{tmp_path}/c.txt' is the same file as '{a}'" in message
    assert "two sources are called 'x'" in refusal(lambda: opened(f"x={a}", f"x={tmp_path}/b.txt"))


def test_a_sample_of_bad_records_ends_early_and_keeps_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "One. Two."}\n' * 9999 + '{"text": "One. Two."}\n')
    looked_at = 0

    def parsed(raw: bytes, offset: int) -> object:
        nonlocal looked_at
        looked_at += 1
        return json.loads(raw)

    monkeypatch.setattr(json_lines, "_parsed", parsed)
    assert opened(tmp_path / "a.jsonl", lines="detect")[0].lines == "sentence"
    assert 0 < looked_at < 5000


def test_kinds_that_are_unknown_or_mixed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.jsonl").write_text("{}")
    assert "'json:'" in (message := refusal(lambda: opened("json:a.json"))) and "'jsonl'" in message
    message = refusal(lambda: opened(tmp_path / "*"))
    assert "different kinds (jsonl, text)" in message and f"text:{tmp_path}/*" in message
    (tmp_path / "wiki_00").write_text('<doc id="1" url="u" title="T">\nT\n\nOne.\n</doc>\n')
    assert "looks like output of WikiExtractor" in refusal(lambda: opened(tmp_path / "wiki_00"))
    assert everything(opened(f"text:{tmp_path}/wiki_00")[0])[0].lines[1] == "T"


def test_files_in_an_object_store_that_are_not_there_are_named() -> None:
    assert "there is no file 'memory://bucket/none.txt'" in refusal(lambda: opened("memory://bucket/none.txt"))
    assert "no file matches 'memory://bucket/*.txt'" in refusal(lambda: opened("memory://bucket/*.txt"))
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.txt", b"One.")
    try:
        assert "is a folder" in refusal(lambda: opened("memory://bucket"))
        source = opened("memory://bucket/a.txt")[0]
        parts = source.parts()
        store.pipe("/bucket/a.txt", b"Two.")
        assert "changed while it was read" in refusal(lambda: list(source.read(parts[0], ReadLog())))
        store.rm("/bucket/a.txt")
        assert "a.txt" in refusal(lambda: list(source.read(parts[0], ReadLog())))
    finally:
        with contextlib.suppress(FileNotFoundError):
            store.rm("/bucket", recursive=True)


# --- files that change ------------------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Changes a file without changing its size."""
    status = path.stat()
    path.write_bytes(content[: status.st_size].ljust(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
def test_a_file_that_changes_before_or_while_it_is_read_stops_the_build(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [f"One {number}.{' more' * 50}" for number in range(500)]
    content = {
        "a.txt": "\n\n".join(rows).encode(),
        "a.txt.gz": gzip.compress("\n\n".join(rows).encode()),
        "a.jsonl": "\n".join(json.dumps({"text": row}) for row in rows).encode(),
    }
    pq.write_table(pa.table({"text": rows}), path)
    original = content.get(name) or path.read_bytes()
    for change in (lambda: rewrite(path, original), lambda: path.open("ab").write(b"more")):
        path.write_bytes(original)
        source = opened(path)[0]
        (part,) = source.parts()
        change()
        assert "changed while it was read (it had " in refusal(lambda: list(source.read(part, ReadLog())))  # noqa: B023
        path.write_bytes(original)
        source = opened(path)[0]
        documents = source.read(source.parts()[0], ReadLog())
        assert next(documents).lines == [rows[0]]
        change()
        assert "copy it first" in refusal(lambda: list(documents))  # noqa: B023
    source = opened(path)[0]
    path.unlink()
    assert "cannot be read (No such file" in refusal(lambda: list(source.read(part, ReadLog())))


def test_a_file_that_is_cut_while_it_is_read_is_said_to_change_and_not_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(2**21).hex().replace("a", "\n\n").encode(), compresslevel=1))
    source = opened(path)[0]
    documents = source.read(source.parts()[0], ReadLog())
    next(documents)
    os.truncate(path, 2**20 + 1000)  # beyond what was read ahead
    assert "changed while it was read" in refusal(lambda: list(documents))


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_archive_is_named_with_the_place_and_how_to_check_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    text = b"\n\n".join(b"%d %d" % (number, number**5) for number in range(20_000))
    pack = PACK[suffix] if suffix != ".zst" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = pack(text)
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 0x40]) + packed[middle + 1 :]
    tool = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}[suffix]
    for damaged, what in (
        (packed[:middle], "is cut off near byte"),
        (packed[:-1], "is cut off near byte"),
        (packed + packed[:20], "is cut off near byte"),
        (b"", "is cut off near byte 0"),
        (flipped, "is damaged ("),
        (packed + b"garbage behind the end", "is damaged ("),
        (b"plain text under a wrong name", "is damaged ("),
    ):
        path.write_bytes(damaged)
        message = refusal(lambda: list(TextFiles(str(path), "sentence", "a").read(source_part(path), ReadLog())))
        assert f"{path.name}' {what}" in message and f"check it with {tool} -t" in message
        assert "of the archive, byte " in message


def source_part(path: Path) -> Part:
    return TextFiles(str(path), "sentence", "a").parts()[0]


# --- text -------------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_text_stop_the_build_with_their_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT + b"caf\xe9 au lait\n")
    at, number = len(TEXT), TEXT.count(b"\n") + 1
    message = refusal(lambda: read(path))
    assert f"a.txt' line {number} (byte {at}) is not UTF-8: byte {at + 3} is 0xe9; convert it, for" in message
    assert "iconv" in message and message.endswith("--on-bad-record=quarantine.")
    path.write_bytes(b"text\nmore\0\x01\x02")
    message = refusal(lambda: read(path))
    assert "a.txt' line 2 (byte 5) is no text: it holds a NUL byte at byte 9; unpack it" in message


def test_in_the_middle_of_a_file_the_byte_is_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_BYTES", len(TEXT) // 2)
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT + b"\xff\n")
    assert f"a.txt' byte {len(TEXT)} is not UTF-8: byte {len(TEXT)} is 0xff" in refusal(lambda: read(path))


def test_lines_set_aside_leave_the_rest_of_their_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"One.\nbad \xff\nTwo.\n\n\xfe\n\nThree.\nnul \0 byte \r\n\n\xed\xa0\x80")
    log = ReadLog("quarantine")
    assert [document.lines for document in read(path, log)] == [["One.", "Two."], ["Three."]]
    assert [(raw, place) for place, _, raw in log.bad] == [
        (b"bad \xff", f"{str(path)!r} line 2 (byte 5)"),
        (b"\xfe", f"{str(path)!r} line 5 (byte 17)"),
        (b"nul \0 byte ", f"{str(path)!r} line 8 (byte 27)"),
        (b"\xed\xa0\x80", f"{str(path)!r} line 10 (byte 41)"),
    ]
    assert log.empty_documents == 2


def test_detecting_lines_leaves_bad_records_to_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\nOne.\n")
    (source,), said = open_sources([str(tmp_path / "a.txt")], lines="detect", field="text", splitters=Splitter())
    assert source.lines == "sentence" and "1 sample lines" in said[0]


# --- JSON lines -------------------------------------------------------------------------------------------------------

BAD_JSON = [
    (b"{'text': 1}", "is not JSON (Expecting property name enclosed in double quotes at character 2)"),
    (b'{"text": "cut', "is not JSON (Unterminated string starting at at character 10)"),
    (b'{"text": "tab\there"}', "is not JSON (Invalid control character at at character 14)"),
    (b'["text"]', "is JSON but no object (a list)"),
    (b"[", "is not JSON (Expecting value at character 2)"),
    (b"[" * 100_000, "is no JSON that can be read ("),
    (b'{"text": ' + b"9" * 5000 + b"}", "is no JSON that can be read (Exceeds the limit"),
    (b'{"body": "x", "id": 3}', "has no field 'text' (it has 'body', 'id'); name the field by --field"),
    (b'{"text": null}', "holds null in field 'text', not a string"),
    (b'{"text": {"body": "x"}}', "holds an object in field 'text', not a string"),
    (b'{"text": 3.5}', "holds a number in field 'text', not a string"),
    (b'{"text": "ab\\ud800c"}', "holds half a surrogate pair (\\ud800) at character 3 of field 'text'"),
    (b'{"text": "\\udc00\\ud800"}', "holds half a surrogate pair (\\udc00) at character 1"),
    (b'{"text": "a\\u0000"}', "is no text: field 'text' holds a NUL at character 2"),
    (b'{"text": "caf\xe9"}', "is not UTF-8: byte 35 is 0xe9"),
    (b'{"text": "a\0"}', "is no text: it holds a NUL byte at byte 33"),
    (b'{"text": "' + b"long " * 500 + b'"}', "is longer than 2,000 bytes"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_JSON)
def test_a_bad_line_of_json_is_named_or_set_aside(
    line: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_RECORD_BYTES", 2000 if b"long" in line else 2**20)
    path = tmp_path / "a.jsonl"
    good = '{"text": "Gut, 好."}'.encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    message = refusal(lambda: read(path))
    assert f"a.jsonl' line 2 (byte {len(good) + 1}) {problem}" in message
    log = ReadLog("quarantine")
    assert [document.lines for document in read(path, log)] == [["Gut, 好."]] * 2
    assert [raw for _, _, raw in log.bad] == [line if b"long" not in line else b""]


def test_a_huge_array_on_one_line_is_refused_once_and_not_read_to_its_end_by_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_RECORD_BYTES", 5000)
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    monkeypatch.setattr(files, "_BLOCK", 1000)
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"text": "One."}, ' * 20_000 + b"]\n" + b'{"text": "Two."}\n')
    source = opened(path)[0]
    log = ReadLog("quarantine")
    assert [document.lines for document in everything(source, log)] == [["Two."]] and len(log.bad) == 1
    assert "line 1 (byte 0) is longer than 5,000 bytes" in refusal(lambda: everything(source))
    with path.open("rb") as stream:
        stream.seek(9_999)
        assert list(files.whole_lines(stream, 9_999, 5000, 20_000)) == [(9_999, None)]
        assert stream.tell() < 35_000


def test_a_nested_field_that_is_missing_is_named_where_it_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": {"head": "x"}, "text": "y"}')
    source = JsonLines(str(path), "content.body", "sentence", "a")
    assert "has no field 'content.body' (it has 'head' where 'body' should be)" in refusal(lambda: everything(source))
    source = JsonLines(str(path), "text.body", "sentence", "a")
    assert "has no field 'text.body': above 'body' is a string" in refusal(lambda: everything(source))


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_a_missing_column_or_one_without_text_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    body = pa.StructArray.from_arrays([pa.array(["x"])], ["body"])
    pq.write_table(pa.table({"id": [1], "words": [["a", "b"]], "content": body}), path)
    message = refusal(lambda: everything(opened(path)[0]))
    assert "has no column 'text' (it has 'id', 'words', 'content', 'content.body')" in message
    assert "holds int64 in column 'id', not text" in refusal(lambda: everything(opened(path, field="id")[0]))
    assert "holds list<" in refusal(lambda: everything(opened(path, field="words")[0]))
    assert "holds struct<" in refusal(lambda: everything(opened(path, field="content")[0]))
    assert "has no column" in refusal(lambda: opened(path, lines="detect"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"Text {number**7}" for number in range(5000)]})
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (flipped, whole[:-1], whole[:middle], b"", b"plain text", whole[:-100] + b"\xff" * 92 + whole[-8:]):
        path.write_bytes(content)
        message = refusal(lambda: everything(Parquet(str(path), "text", "sentence", "a")))
        assert "a.parquet' is damaged or no Parquet file (" in message
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(whole))
    assert "a.parquet.gz' is packed" in refusal(lambda: read(tmp_path / "a.parquet.gz"))


def test_a_text_in_parquet_that_is_not_utf8_is_named_by_its_row_or_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pa.array([b"One.", b"caf\xe9", None, b"a\0", b"Two."], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 5, raw.buffers())}), path, row_group_size=1)
    assert "a.parquet' row 1 is not UTF-8: byte 3 is 0xe9; convert it" in refusal(lambda: read(path))
    log = ReadLog("quarantine")
    assert [document.id for document in read(path, log)] == ["a.parquet:0", "a.parquet:4"]
    assert [raw for _, _, raw in log.bad] == [b"caf\xe9", b"a\0"] and log.empty_documents == 1


# --- TFDS -------------------------------------------------------------------------------------------------------------


def test_a_tfds_data_set_that_is_not_as_asked_for_is_refused(tmp_path: Path) -> None:
    folder = make_tfds(tmp_path, "one", "array_record")
    make_tfds(tmp_path, "two", "array_record")

    def message(spec: str, field: str = "text") -> str:
        return refusal(lambda: opened(spec, field=field, tfds_data_dir=tmp_path))

    assert "is not prepared in" in (said := message("tfds:c4/en:3.0.1")) and "tfds build c4/en" in said
    assert "versions there: '1.0.0'" in message("tfds:toy/one:2.0.0")
    assert "several configs" in (said := message("tfds:toy")) and "'one', 'two'" in said
    assert "has no split 'test' (it has 'train')" in message("tfds:toy/one@test")
    assert "has no split 'train[:x]'" in message("tfds:toy/one@train[:x]")
    assert "has no feature 'body' (it has " in message("tfds:toy/one", "body")
    assert "holds ClassLabel in feature 'label', not Text" in message("tfds:toy/one", "label")
    assert "holds Sequence in feature 'words'" in message("tfds:toy/one", "words")
    assert "cannot be opened as a TFDS data set" in message("tfds:memory://bucket/none/1.0.0")
    (folder / "dataset_info.json").write_text("{")
    assert "cannot be opened as a TFDS data set" in message(f"tfds:{folder}")
    shutil.copytree(tmp_path / "toy" / "two", tmp_path / "toy" / "three")
    other = tmp_path / "toy" / "three" / "1.0.0"
    info = json.loads((other / "dataset_info.json").read_text())
    (other / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "riegeli"}))
    assert "riegeli, of which only array_record and tfrecord are read" in message("tfds:toy/three")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_damaged_shard_is_named(file_format: str, tmp_path: Path) -> None:
    folder = make_tfds(tmp_path, "one", file_format)
    path = folder / f"toy-train.{file_format}-00001-of-00002"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", whole[:100] + b"\xff" + whole[101:]):
        path.write_bytes(content)
        source = opened("tfds:toy", tfds_data_dir=tmp_path)[0]
        assert path.name in refusal(lambda: everything(source))  # noqa: B023
    path.write_bytes(whole)
    source = opened("tfds:toy", tfds_data_dir=tmp_path)[0]
    (part,) = source.parts()
    rewrite(path, whole)
    assert "changed while it was read" in refusal(lambda: list(source.read(part, ReadLog())))
    path.unlink()
    assert "cannot be read (No such file" in refusal(lambda: opened("tfds:toy", tfds_data_dir=tmp_path))


def test_every_bad_record_of_a_shared_archive_is_set_aside_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COMPRESSED_PART_BYTES", 30)
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "x"}\n{"nope": 1}\n\n7\n{"text": ""}\n' * 50))
    source: Source = opened(tmp_path / "a.jsonl.bz2")[0]
    log = ReadLog("quarantine")
    assert len(source.parts()) == 4 and len(everything(source, log)) == 50
    assert (len(log.bad), log.empty_documents) == (100, 50)


def test_a_span_of_another_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.")
    state = look_at(str(path)).state
    assert "4 bytes, modified " in state
    wrong = Part((Span(str(path), 0, 4, 4, state.replace("4 bytes", "5 bytes")),))
    source = TextFiles(str(path), "sentence", "a")
    assert "it had 5 bytes" in refusal(lambda: list(source.read(wrong, ReadLog())))
