# SPDX-License-Identifier: Apache-2.0
"""Each bad input ends in one sentence on standard error and exit status 2, and leaves nothing behind."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from albert_jax.tokenization import AlbertTokenizer
from pretrain_data.__main__ import main

TEXT = "The river is wide.\nThe harbor is near.\n\nThe winter was long.\nThe garden sleeps.\n" * 40


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocab")
    (folder / "text.txt").write_text(TEXT)
    assert main(["vocab", "--source", str(folder / "text.txt"), "--size", "32", "--out", str(folder / "v")]) == 0
    return folder / "v" / "spiece.model"


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command line and returns its one sentence."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().split("\n")
    error = [line for line in said if not line.startswith("note: finished work is kept in ")]
    assert len(error) == 1 and error[0].startswith("error: ")
    return error[0]


def test_the_command_prints_one_error_line_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain_data", "vocab", "--source", "missing.txt", "--out", str(tmp_path / "v")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no file 'missing.txt'") and done.stderr.count("\n") == 1


def test_a_missing_file_and_a_glob_without_matches_are_named(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "nowhere.txt" in fails(capsys, "build", "--source", tmp_path / "nowhere.txt", "--vocab", vocab, "--out", out)
    assert "*.text" in fails(capsys, "build", "--source", tmp_path / "*.text", "--vocab", vocab, "--out", out)
    assert "is a folder" in fails(capsys, "build", "--source", tmp_path, "--vocab", vocab, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("content", ["", " \n\n\t\n"])
def test_an_empty_corpus_is_refused(
    content: str, capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(content)
    for command in (["vocab"], ["build", "--vocab", vocab]):
        message = fails(capsys, *command, "--source", tmp_path / "empty.txt", "--out", tmp_path / "out")
        assert "the corpus is empty" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt"]


def test_a_binary_file_is_refused_with_the_place_of_its_nul_byte(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.txt").write_bytes(b"text\nmore\0\x01\x02")
    message = fails(capsys, "build", "--source", tmp_path / "b.txt", "--vocab", vocab, "--out", tmp_path / "out")
    assert "b.txt" in message and "line 2" in message and "byte 9" in message


def test_invalid_utf8_is_refused_with_its_line_its_byte_and_a_remedy(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    # The bad byte stands behind many good documents: found only when the stream gets there.
    good = TEXT.encode()
    (tmp_path / "latin.txt").write_bytes(good + b"caf\xe9 au lait\n")
    for lines in ("sentence", "detect"):
        arguments = ["--source", tmp_path / "latin.txt", "--vocab", vocab, "--out", tmp_path / "out", "--lines", lines]
        message = fails(capsys, "build", *arguments)
        number = len(good.split(b"\n"))
        assert f"byte {len(good) + 3} " in message and f"line {number} " in message
        assert "0xe9" in message and "iconv" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.txt"]


def test_a_vocabulary_whose_special_ids_differ_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "other"), vocab_size=25, minloglevel=2
    )
    arguments = ["--source", tmp_path / "text.txt", "--vocab", tmp_path / "other.model", "--out", tmp_path / "out"]
    message = fails(capsys, "build", *arguments)
    assert "<pad>" in message and "<unk>" in message
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_larger_than_the_corpus_allows_names_the_largest_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    message = fails(capsys, "vocab", "--source", tmp_path / "text.txt", "--size", 5000, "--out", tmp_path / "v")
    largest = message.split()[-1].rstrip(".")
    assert "5000" in message and not (tmp_path / "v").exists()
    assert main(["vocab", "--source", str(tmp_path / "text.txt"), "--size", largest, "--out", str(tmp_path / "v")]) == 0
    message = fails(capsys, "vocab", "--source", tmp_path / "text.txt", "--size", 15, "--out", tmp_path / "w")
    assert "too small" in message


WORDS = ["river", "wide", "harbor", "near", "winter", "long", "garden", "sleeps", "stone", "bridge", "letter", "house"]


def numbered(count: int, mark: str = "") -> str:
    return "".join(f"{mark}{WORDS[i % 12]} {WORDS[i // 12 % 12]} {WORDS[i * 7 % 12]}.\n" for i in range(count))


def test_sentences_that_sentencepiece_would_drop_are_counted_and_the_others_trained_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "half.txt").write_text(numbered(60) + numbered(40, "load ▅▅ "))
    assert main(["vocab", "--source", str(tmp_path / "half.txt"), "--size", "40", "--out", str(tmp_path / "v")]) == 0
    assert "40 pieces from 60 of 100 sentences (0 too long, cut; 40 with ▅, left out;" in capsys.readouterr().out
    alone = tmp_path / "alone"
    (tmp_path / "all.txt").write_text(numbered(60))
    assert main(["vocab", "--source", str(tmp_path / "all.txt"), "--size", "40", "--out", str(alone)]) == 0
    assert (alone / "spiece.model").read_bytes() == (tmp_path / "v" / "spiece.model").read_bytes()
    (tmp_path / "none.txt").write_text(numbered(60, "▁▂▃▄▅▆ "))
    message = fails(capsys, "vocab", "--source", tmp_path / "none.txt", "--size", "40", "--out", tmp_path / "out")
    assert "of 60 sentences 60 hold ▅ (U+2585), which SentencePiece keeps for itself" in message
    assert not (tmp_path / "out").exists()


def test_lines_longer_than_sentencepiece_takes_are_cut_at_spaces_and_trained_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = " ".join(WORDS[i * i % 12] + str(i) for i in range(1200))
    assert len(line) > 2 * 4192
    (tmp_path / "long.txt").write_text(f"{line}\n\n{line[::-1]}\n")
    for lines in ("sentence", "paragraph"):
        out = tmp_path / lines
        command = ["vocab", "--source", str(tmp_path / "long.txt"), "--size", "60", "--lines", lines, "--out", str(out)]
        assert main(command) == 0
        assert "60 pieces from 2 of 2 sentences (2 too long, cut; 0 with ▅, left out;" in capsys.readouterr().out


def test_a_corpus_that_fills_only_one_split_is_refused(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("The river is wide.\nThe harbor is near.\n")
    arguments = ["--source", tmp_path / "one.txt", "--vocab", vocab, "--out", tmp_path / "out"]
    assert "nothing is left for validation" in fails(capsys, "build", *arguments, "--validation-fraction", "0.0000001")
    assert "nothing is left for train" in fails(capsys, "build", *arguments, "--validation-fraction", "0.9999999")
    for fraction in ("-0.1", "1", "nan"):
        assert "--validation-fraction" in fails(capsys, "build", *arguments, "--validation-fraction", fraction)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.txt"]


def test_an_existing_output_and_an_existing_vocabulary_are_kept(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    arguments = ["--source", tmp_path / "text.txt", "--vocab", vocab, "--out", tmp_path / "out"]
    assert "--overwrite" in fails(capsys, "build", *arguments)
    assert "is not a data set" in fails(capsys, "build", *arguments, "--overwrite")
    assert (tmp_path / "out" / "mine").read_text() == "keep"
    before = vocab.read_bytes()
    assert "exists" in fails(capsys, "vocab", "--source", tmp_path / "text.txt", "--size", 30, "--out", vocab.parent)
    assert vocab.read_bytes() == before


def test_a_source_named_twice_and_an_unknown_language_are_refused(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["--source", tmp_path / "text.txt", "--vocab", vocab, "--out", tmp_path / "out"]
    assert "more than one --source" in fails(capsys, "build", *arguments, "--source", tmp_path / "*.txt")
    assert "'xx'" in fails(capsys, "build", *arguments, "--language", "xx")


def test_a_script_without_sentence_marks_is_refused_before_any_pass(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The river is wide.\n\nภาษาไทยไม่มีเครื่องหมายวรรคตอน\n\n" * 20, encoding="utf-8")
    arguments = ["--source", tmp_path / "text.txt", "--vocab", vocab, "--out", tmp_path / "out", "--language", "th"]
    assert "--lines sentence" in fails(capsys, "build", *arguments, "--lines", "paragraph")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_a_full_disk_is_one_sentence_and_costs_no_finished_work(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk:
        def __init__(self, *arguments: object) -> None: ...

        def write(self, record: bytes) -> None: ...

        def close(self) -> None:
            raise RuntimeError("write() failed: No space left on device; at byte 1048576")  # array_record's own words

    (tmp_path / "text.txt").write_text("\n\n".join(f"The river {i} is wide and {i * i} long." for i in range(200)))
    monkeypatch.setattr("pretrain_data.shards.ArrayRecordWriter", FullDisk)
    arguments = ["--source", tmp_path / "text.txt", "--vocab", vocab, "--out", tmp_path / "out"]
    arguments += ["--validation-fraction", "0.2"]
    assert "disk is full" in fails(capsys, "build", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.building", "text.txt"]
    monkeypatch.undo()
    assert main(["build", *map(str, arguments)]) == 0
    assert "going on from" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


def test_a_disk_that_fills_while_an_array_is_written_is_one_sentence_too(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("103539 requested and 40944 written")  # NumPy's own words

    (tmp_path / "text.txt").write_text("\n\n".join(f"The river {i} is wide and {i * i} long." for i in range(200)))
    arguments = ["--source", tmp_path / "text.txt", "--vocab", vocab, "--out", tmp_path / "out"]
    arguments += ["--validation-fraction", "0.2", "--workers", "1"]
    monkeypatch.setattr("pretrain_data.builder.np.save", full)
    assert "the disk is full (103539 requested and 40944 written)" in fails(capsys, "build", *arguments)
    monkeypatch.undo()
    monkeypatch.setattr("pretrain_data.shards.ArrayRecordWriter", raising(RuntimeError("write(): File too large")))
    assert "the disk is full (write(): File too large)" in fails(capsys, "build", *arguments)
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out"))
    monkeypatch.setattr("pretrain_data.__main__.build", raising(denied))
    assert "out' cannot be used (Permission denied); check" in fails(capsys, "build", *arguments)
    monkeypatch.setattr("pretrain_data.__main__.build", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        main(["build", *map(str, arguments)])


def raising(error: Exception) -> Callable[..., None]:
    def raises(*arguments: object, **options: object) -> None:
        raise error

    return raises


def test_a_corpus_of_bad_records_only_is_not_called_empty_without_saying_why(
    capsys: pytest.CaptureFixture[str], vocab: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "The river is wide."}\n' * 1000)
    arguments = ["--source", tmp_path / "a.jsonl", "--vocab", vocab, "--out", tmp_path / "out"]
    message = fails(capsys, "build", *arguments, "--on-bad-record", "quarantine")
    assert (
        "all 1,000 records of a are bad, of which '" in message and "a.jsonl' line 1 (byte 0) has no field" in message
    )


def test_a_vocabulary_in_a_tokenizer_json_becomes_the_data_sets_model(vocab: Path, tmp_path: Path) -> None:
    AlbertTokenizer.from_pretrained(vocab).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "spiece.model").unlink()
    (tmp_path / "text.txt").write_text("\n\n".join(f"The river {i} is wide and {i * i} long." for i in range(200)))
    arguments = ["--source", tmp_path / "text.txt", "--vocab", tmp_path / "hf", "--out", tmp_path / "out"]
    assert main(["build", *map(str, arguments), "--validation-fraction", "0.2"]) == 0
    text = "The river is wide."
    original, copy = (AlbertTokenizer.from_pretrained(file) for file in (vocab, tmp_path / "out" / "spiece.model"))
    assert original(text).input_ids == copy(text).input_ids


def test_a_vocabulary_keeps_its_cleaning_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(f"The Müller number {i} met Zoë at the café. She left at {i} o'clock." for i in range(300))
    (tmp_path / "a.txt").write_text("\n\n".join(text.split("\n")), encoding="utf-8")
    source = ["--source", str(tmp_path / "a.txt"), "--lines", "sentence"]
    assert main(["vocab", *source, "--cleaning", "unicode", "--size", "60", "--out", str(tmp_path / "vocab")]) == 0
    build = ["build", *source, "--vocab", str(tmp_path / "vocab"), "--validation-fraction", "0.1"]
    assert main([*build, "--out", str(tmp_path / "data")]) == 0
    assert "cleaning: unicode, do_lower_case=False, keep_accents=True" in capsys.readouterr().out
    assert main([*build, "--cleaning", "unicode", "--out", str(tmp_path / "same")]) == 0
    assert main([*build, "--cleaning", "google", "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "--cleaning google is not what the vocabulary was trained with" in error and "says unicode" in error
    # A vocabulary by itself says nothing of its cleaning.
    (tmp_path / "vocab" / "tokenizer_config.json").unlink()
    assert main([*build, "--cleaning", "google", "--out", str(tmp_path / "other")]) == 0
    assert "cleaning: google, do_lower_case=True, keep_accents=False" in capsys.readouterr().out
