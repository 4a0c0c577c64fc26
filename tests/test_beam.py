# SPDX-License-Identifier: Apache-2.0
"""Builds by Apache Beam are the builds of one process, byte for byte."""

import importlib.util
from pathlib import Path

import pytest

from tests.corpora import write
from tests.test_builder import command, contents, corpus, documents, folder, program, run, straight, vocab

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed (the extra `beam`): builds by Beam are not tried",
)
__all__ = ["corpus", "folder", "program", "straight", "vocab"]  # fixtures

SEVERAL = ("--runner", "DirectRunner", "--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


def test_several_processes_of_the_direct_runner_build_the_same_bytes(
    tmp_path: Path, program: list[str], corpus: Path, vocab: Path, straight: Path
) -> None:
    done = run(program, command(corpus, vocab, tmp_path / "out", *SEVERAL))
    assert done.returncode == 0, done.stderr
    assert "Apache Beam" in done.stdout
    assert contents(tmp_path / "out") == contents(straight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bad_line_ends_a_pipeline_with_the_same_sentence(tmp_path: Path, program: list[str], vocab: Path) -> None:
    source = write(tmp_path / "text.txt", documents(1, 60))
    source.write_bytes(source.read_bytes() + b"\xff\n")
    done = run(program, command(source, vocab, tmp_path / "out", "--runner", "DirectRunner"))
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "text.txt" in error and "is not UTF-8" in error and "--on-bad-record=quarantine" in error
