# SPDX-License-Identifier: Apache-2.0
"""Builds by Apache Beam are the builds of one process, byte for byte. Beam is in an environment of its own."""

from pathlib import Path

import pytest

from tests.corpora import write
from tests.peers import beam_python
from tests.test_builder import command, contents, corpus, documents, folder, program, run, straight, vocab

__all__ = ["corpus", "folder", "program", "straight", "vocab"]  # fixtures

SEVERAL = ("--runner", "DirectRunner", "--", "--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


@pytest.fixture(scope="module")
def beam_program(program: list[str]) -> list[str]:
    return [beam_python(), *program[1:]]


def test_several_processes_of_the_direct_runner_build_the_same_bytes(
    tmp_path: Path, beam_program: list[str], corpus: Path, vocab: Path, straight: Path
) -> None:
    done = run(beam_program, command(corpus, vocab, tmp_path / "out", *SEVERAL))
    assert done.returncode == 0, done.stderr
    assert "Apache Beam" in done.stdout
    assert contents(tmp_path / "out") == contents(straight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bad_line_ends_a_pipeline_with_the_same_sentence(
    tmp_path: Path, beam_program: list[str], vocab: Path
) -> None:
    source = write(tmp_path / "text.txt", documents(1, 60))
    source.write_bytes(source.read_bytes() + b"\xff\n")
    done = run(beam_program, command(source, vocab, tmp_path / "out", "--runner", "DirectRunner"))
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "text.txt" in error and "is not UTF-8" in error and "--on-bad-record=quarantine" in error


def test_without_beam_the_extra_is_named(
    tmp_path: Path, program: list[str], corpus: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apache_beam.py").write_text("raise ImportError('No module named apache_beam')")
    arguments = command(corpus, vocab, tmp_path / "out", "--runner", "DirectRunner")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; sys.argv = sys.argv[1:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run([program[0], "-c", script, program[1]], arguments)
    assert done.returncode == 2 and "pip install -e '.[beam]'" in done.stderr
