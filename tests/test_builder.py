# SPDX-License-Identifier: Apache-2.0
"""Building in parallel, killed and resumed, repaired: always the same data set."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albert_jax.data.store import TextStore
from albert_jax.errors import UserError
from pretrain_data import builder, passes, workers
from pretrain_data.__main__ import main
from pretrain_data.workplace import Workplace
from tests.corpora import build, documents, identifiers, records, sentences_of, write

ROOT = Path(__file__).parents[1]
# The program with parts of a few kilobytes instead of many megabytes, in it and in the processes that it starts.
SMALL_PARTS = """
import sys
from pretrain_data.sources import files
files.PART_BYTES = 4096
from pretrain_data.__main__ import program
if __name__ == "__main__":
    sys.exit(program())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builder")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Path:
    """Some 150 KB in 3 files: with small parts, about 40 parts."""
    for number in range(3):
        write(folder / f"text{number}.txt", documents(number, 220, 8))
    return folder / "text*.txt"


@pytest.fixture(scope="module")
def vocab(folder: Path, corpus: Path) -> Path:
    assert main(["vocab", "--source", str(corpus), "--size", "250", "--out", str(folder / "vocab")]) == 0
    return folder / "vocab" / "spiece.model"


def command(corpus: Path, vocab: Path, out: Path, *options: str) -> list[str]:
    arguments = ["build", "--source", str(corpus), "--vocab", str(vocab), "--out", str(out), "--lines", "sentence"]
    return [*arguments, "--validation-fraction", "0.1", *options]


@pytest.fixture(scope="module")
def program(folder: Path) -> list[str]:
    (folder / "small_parts.py").write_text(SMALL_PARTS)
    return [sys.executable, str(folder / "small_parts.py")]


def run(program: list[str], arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*program, *arguments], env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def straight(folder: Path, program: list[str], corpus: Path, vocab: Path) -> Path:
    """Built by one process without interruption."""
    done = run(program, command(corpus, vocab, folder / "straight", "--workers", "1"))
    assert done.returncode == 0, done.stderr
    return folder / "straight"


def contents(data: Path) -> dict[str, Any]:
    """Everything that must not depend on who built it: every byte of every file but the note of the command."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for path in sorted(data.rglob("*"))
        if path.is_file() and path.name != "command.json"
    }


def test_the_corpus_of_these_tests_is_built_in_many_parts(straight: Path) -> None:
    assert len(list(straight.glob("*train*-of-*"))) > 20


def test_shards_index_and_manifest_have_the_same_bytes_for_1_and_for_8_processes(
    folder: Path, program: list[str], corpus: Path, vocab: Path, straight: Path
) -> None:
    done = run(program, command(corpus, vocab, folder / "eight", "--workers", "8"))
    assert done.returncode == 0, done.stderr
    assert "8 processes" in done.stdout
    assert contents(folder / "eight") == contents(straight)


def test_the_content_does_not_depend_on_where_parts_end(
    folder: Path, corpus: Path, vocab: Path, straight: Path
) -> None:
    assert main(command(corpus, vocab, folder / "whole")) == 0
    for split in ("train", "validation"):
        assert sentences_of(folder / "whole", split) == sentences_of(straight, split)
    manifests = [json.loads((data / "manifest.json").read_text()) for data in (folder / "whole", straight)]
    fingerprints = [[content["fingerprint"] for content in manifest["splits"].values()] for manifest in manifests]
    assert fingerprints[0] == fingerprints[1]


def test_the_content_does_not_depend_on_how_much_is_tokenized_or_compared_at_once(
    tmp_path: Path, corpus: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--drop-near-duplicates", "--workers", "1"]
    assert main(command(corpus, vocab, tmp_path / "large", *options)) == 0
    monkeypatch.setattr(passes, "_BATCH_CHARACTERS", 300)  # some documents
    monkeypatch.setattr(passes, "_CALL_CHARACTERS", 100)  # some sentences
    assert main(command(corpus, vocab, tmp_path / "small", *options)) == 0
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_the_index_names_the_parts_of_cut_sentences_wherever_they_stand(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain_data.sources.files.PART_BYTES", 30_000)
    texts = documents(7, 400)
    for place in (30, 200, 390):
        texts[place] = [" ".join(["garden"] * 5000 + [str(place)])]  # one sentence of more than two records
    source = write(tmp_path / "text.txt", texts)
    assert main(command(source, vocab, tmp_path / "data", "--workers", "1")) == 0
    assert len(list((tmp_path / "data").glob("*train*-of-*"))) > 3
    cut = {identifiers(source)[place] for place in (30, 200, 390)}
    found = 0
    for split in ("train", "validation"):
        names = [name for name, _ in sentences_of(tmp_path / "data", split)]
        expected = [i for i in range(1, len(names)) if names[i] == names[i - 1] and names[i] in cut]
        assert TextStore(tmp_path / "data", split).continued_sentences.tolist() == expected
        found += len(expected)
    assert found >= 6


def killed(arguments: list[str], out: Path, sign: int, finished: int) -> int:
    """Starts a build in a process group of its own and sends `sign` to it when `finished` results are there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let background jobs ignore it
    )
    while process.poll() is None and len(Workplace(str(out)).finished()) < finished:
        time.sleep(0.001)
    process.send_signal(sign)
    return process.wait()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_at_any_moment_goes_on_to_the_same_data_set(
    tmp_path: Path, program: list[str], corpus: Path, vocab: Path, straight: Path, sign: int
) -> None:
    out = tmp_path / "out"
    arguments = command(corpus, vocab, out, "--workers", "2")
    parts = len(list(straight.glob("*train*-of-*")))
    statuses = []
    for finished in sorted(random.Random(int(sign)).choices(range(2 * parts), k=2)):
        statuses.append(killed([*program, *arguments], out, sign, finished))
        assert not out.exists()
    expected = {signal.SIGTERM: 130, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[signal.Signals(sign)]
    assert expected in statuses
    if not out.exists():
        done = run(program, arguments)
        assert done.returncode == 0, done.stderr
        assert "going on from" in done.stdout
    assert contents(out) == contents(straight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_processes_of_a_killed_builder_end_too(
    tmp_path: Path, program: list[str], corpus: Path, vocab: Path
) -> None:
    arguments = [*program, *command(corpus, vocab, tmp_path / "out", "--workers", "2")]
    killed(arguments, tmp_path / "out", signal.SIGKILL, 5)
    deadline = time.monotonic() + 20
    while running := [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]:
        assert time.monotonic() < deadline, [_read(path) for path in running]
        time.sleep(0.05)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_another_command_left_is_not_used(
    tmp_path: Path, program: list[str], corpus: Path, vocab: Path, straight: Path
) -> None:
    out = tmp_path / "out"
    killed([*program, *command(corpus, vocab, out, "--validation-fraction", "0.3")], out, signal.SIGKILL, 60)
    assert Workplace(str(out)).finished()
    done = run(program, command(corpus, vocab, out))
    assert done.returncode == 0 and "going on from" not in done.stdout
    assert contents(out) == contents(straight)


def test_a_second_build_of_the_same_output_is_refused_while_the_first_one_runs(
    tmp_path: Path, corpus: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Workplace(str(tmp_path / "out")).locked():
        assert main(command(corpus, vocab, tmp_path / "out")) == 2
    assert "another build is writing to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(command(corpus, vocab, tmp_path / "out")) == 0


def test_what_comes_to_be_at_the_output_during_a_build_is_not_replaced(
    tmp_path: Path, corpus: Path, vocab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: Any) -> None:
        assemble(*arguments)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")

    assemble = builder.assemble
    monkeypatch.setattr(builder, "assemble", late)
    assert main(command(corpus, vocab, tmp_path / "out")) == 2
    assert "out' exists; give another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_part_that_is_run_twice_leaves_the_first_result(tmp_path: Path) -> None:
    workplace = Workplace(f"{tmp_path}/out/")
    for _ in range(2):
        with workplace.making("scan/000001") as folder:
            (folder / "read.json").write_text("{}")
    assert workplace.finished() == {"scan/000001"} and workplace.path == f"{tmp_path}/.out.building"
    assert [path.name for path in Path(workplace.path).iterdir()] == ["scan"]


def test_the_start_of_processes_is_not_interrupted_and_no_signal_is_lost() -> None:
    came: list[int] = []
    before = [signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with workers._uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert not came
        assert sorted(came) == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_a_worker_that_is_killed_is_told_and_its_parts_are_done_by_the_next_call(
    tmp_path: Path, folder: Path, program: list[str], corpus: Path, vocab: Path, straight: Path
) -> None:
    marker = tmp_path / "killed"
    (tmp_path / "killing.py").write_text(
        SMALL_PARTS.replace(
            "from pretrain_data.__main__",
            "import os, pathlib, signal\nfrom pretrain_data import passes\ntokenize = passes.PASSES['tokenize']\n"
            f"marker = pathlib.Path({str(marker)!r})\n"
            "def killing(job, number, folder):\n"
            "    if number == 7 and not marker.exists():\n"
            "        marker.touch()\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    tokenize(job, number, folder)\n"
            "passes.PASSES['tokenize'] = killing\n"
            "from pretrain_data.__main__",
        )
    )
    arguments = command(corpus, vocab, tmp_path / "out", "--workers", "2")
    done = run([sys.executable, str(tmp_path / "killing.py")], arguments)
    assert done.returncode == 2 and "a worker process was killed" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(program, arguments).returncode == 0
    assert contents(tmp_path / "out") == contents(straight)


def test_a_job_can_be_sent_to_other_processes(corpus: Path, vocab: Path, tmp_path: Path) -> None:
    from albert_jax.tokenization import AlbertTokenizer
    from pretrain_data.builder import Options, make_job
    from pretrain_data.python_docs import PythonDocs

    tokenizer = AlbertTokenizer.from_pretrained(vocab)
    job = make_job([PythonDocs(packages=())], [], tokenizer, Options(), Workplace(str(tmp_path / "out")))
    assert job.splitters.of("any").split("One. Two.") == ["One.", "Two."]
    again = pickle.loads(pickle.dumps(job))
    assert again.parts == job.parts
    assert passes.result("scan", 3) == "scan/000003"


# --- repair -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, straight: Path) -> Path:
    import shutil

    return Path(shutil.copytree(straight, tmp_path / "data"))


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    at = int(len(content) * place)
    content[at : at + 64] = bytes(255 - byte for byte in content[at : at + 64])
    path.write_bytes(content)


def first_shard(data: Path) -> Path:
    return sorted(data.glob("*train*-of-*"))[0]


def largest_shard(data: Path) -> Path:
    return max(data.glob("*train*-of-*"), key=lambda path: (path.stat().st_size, path.name))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "empty", "another's"])
def test_a_damaged_shard_is_named_with_the_command_that_makes_it_again(
    copy: Path, straight: Path, program: list[str], damage: str
) -> None:
    shard = first_shard(copy)
    if damage == "flipped":
        data = bytearray(shard.read_bytes())
        used = len(bytes(data).rstrip(b"\0"))
        for at in range(1024, min(used, 60000), 997):
            data[at] ^= 0xFF
        shard.write_bytes(data)
    elif damage == "cut":
        os.truncate(shard, shard.stat().st_size // 3)
    elif damage == "missing":
        shard.unlink()
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        shard.write_bytes(sorted(copy.glob("*train*-of-*"))[1].read_bytes())
    with pytest.raises(UserError, match="python -m pretrain_data repair") as error:
        store = TextStore(copy, "train")
        for record in range(len(store.sentences_per_record)):
            store.read(np.array([record]))
    assert shard.name in str(error.value)
    done = run(program, ["repair", str(copy)])
    assert done.returncode == 0, done.stderr
    assert shard.name in done.stdout and "1 of" in done.stdout
    assert contents(copy) == contents(straight)


def test_repair_of_a_whole_data_set_says_so(copy: Path, program: list[str]) -> None:
    done = run(program, ["repair", str(copy)])
    assert done.returncode == 0 and "all" in done.stdout and "whole" in done.stdout


def test_repair_refuses_sources_that_have_changed(
    tmp_path: Path, vocab: Path, program: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "text.txt", documents(1, 100))
    assert main(command(source, vocab, tmp_path / "data")) == 0
    first_shard(tmp_path / "data").unlink()
    write(source, documents(2, 100))
    assert main(["repair", str(tmp_path / "data")]) == 2
    assert "are not what it was built from" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


# --- what a build leaves out or sets aside ----------------------------------------------------------------------------


def test_bad_lines_are_set_aside_with_their_bytes_and_everything_else_is_there(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = documents(4, 120)
    source = write(tmp_path / "text.txt", texts)
    lines = source.read_bytes().split(b"\n")
    lines[10] += b" \xff\xfe"
    lines[20] += b"\0"
    source.write_bytes(b"\n".join(lines))
    assert build(source, vocab, tmp_path / "stopped", "--lines", "sentence") == 2
    error = capsys.readouterr().err
    assert "--on-bad-record=quarantine" in error and "text.txt" in error
    options = ["--lines", "sentence", "--validation-fraction", "0.1", "--on_bad_record=quarantine"]
    assert build(source, vocab, tmp_path / "out", *options) == 0
    assert "bad records set aside in quarantined.jsonl: 2" in capsys.readouterr().out
    bad = [json.loads(line) for line in (tmp_path / "out" / "quarantined.jsonl").read_text("utf-8").splitlines()]
    assert [record["bytes_as_latin1"].encode("latin-1") for record in bad] == [lines[10], lines[20]]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["quarantined"] == 2
    sentences = sum(len(sentences_of(tmp_path / "out", split)) for split in ("train", "validation"))
    assert sentences == sum(len(text) for text in texts) - 2


def test_near_duplicates_are_left_out_on_request_and_counted(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = documents(5, 150, 8)
    again = [[*text[:-1], text[-1].replace("the", "a", 1)] for text in texts if len(text) >= 7]
    source = write(tmp_path / "text.txt", [*texts, *again, *texts[:10]])
    options = ["--lines", "sentence", "--validation-fraction", "0.1"]
    assert build(source, vocab, tmp_path / "all", *options) == 0
    assert build(source, vocab, tmp_path / "distinct", *options, "--drop-near-duplicates") == 0
    kept = [
        len({r["document"] for s in ("train", "validation") for r in records(tmp_path / d, s)})
        for d in ("all", "distinct")
    ]
    assert kept[0] == len(texts) + len(again) + 10
    assert len(texts) * 0.95 <= kept[1] <= len(texts)
    assert f"{kept[0] - kept[1]:,} documents left out" in capsys.readouterr().out


def test_the_command_line_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--source", "x", "--vocab", "v", "--out", "o", "--wrokers", "3"])
    assert "--wrokers" in capsys.readouterr().err
