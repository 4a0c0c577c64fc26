# SPDX-License-Identifier: Apache-2.0
"""Data sets of more shards than a process may have open files: they are trained on, and none is called damaged."""

import itertools
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds

from albert_jax.data.shards import Shards
from pretrain_data.__main__ import main as pretrain_data
from pretrain_data.sources import files
from tests.runs import ROOT, STEPS, Runs, make_vocabulary, records, write_text

pytest_plugins = ["tests.runs"]
DOCUMENTS = 330


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set of more than 200 shards a split."""
    place = tmp_path_factory.mktemp("many")
    words = write_text(place / "words.txt", slice(0, 40)).read_text().split()
    chosen = np.random.default_rng(0).choice(words, (DOCUMENTS, 6, 7))
    text = "\n\n".join("\n".join(" ".join(words) for words in document) for document in chosen)
    (place / "text.txt").write_text(text)
    vocabulary = make_vocabulary(place / "text.txt", place / "vocabulary")
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(files, "PART_BYTES", len(text) // 400)
        pretrain_data(
            [
                *("build", "--source", str(place / "text.txt"), "--lines", "sentence", "--vocab", str(vocabulary)),
                *("--out", str(place / "data"), "--validation-fraction", "0.2", "--workers", "1"),
            ]
        )
    return place / "data"


@pytest.fixture(scope="module")
def shards(many: pathlib.Path) -> Callable[[], Shards]:
    info = tfds.builder_from_directory(str(many)).info.splits["train"]
    files = dict(zip(map(str, info.filepaths), info.shard_lengths, strict=True))
    assert len(files) > 200
    return lambda: Shards(files)


@pytest.fixture(scope="module")
def wanted(many: pathlib.Path) -> list[bytes]:
    """All records, as TFDS reads them."""
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = tfds.builder_from_directory(str(many)).as_data_source(split="train", deserialize_method=raw)
    return [bytes(record) for record in source.__getitems__(range(len(source)))]


@pytest.mark.parametrize("most", [1, 3, None])
def test_records_are_what_tfds_reads_in_any_order_from_any_number_of_threads(shards, wanted, most):
    read = shards()
    assert len(read) == len(wanted)
    assert read.most_open == len(read._files) > 200
    read.most_open = most or read.most_open
    wrong: list[np.ndarray] = []

    def look(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(20):
            positions = random.integers(0, len(wanted), 40)
            if [bytes(record) for record in read.read(positions)] != [wanted[i] for i in positions]:
                wrong.append(positions)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(read._open) <= read.most_open
    assert read.read(np.zeros(0, np.int64)) == []


def limited(soft: int, hard: int, *command: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Runs a command under limits of open files."""
    shell = ["bash", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "bash", *command]
    done = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


LOOK = """
import sys, numpy as np
from albert_jax.data.store import TextStore
from albert_jax.errors import UserError
stores = [TextStore(sys.argv[1], split) for split in ("train", "validation")]
taken = [open("/dev/null") for _ in range(int(sys.argv[2]))]
try:
    for store in stores:
        store.read(np.arange(len(store.sentences_per_record)))
        print(store._shards.most_open)
except UserError as e:
    print("error:", e)
"""


def test_the_limit_of_open_files_is_raised_as_far_as_the_process_may(many):
    status, out, err = limited(64, 1024, sys.executable, "-c", LOOK, str(many), "0")
    assert status == 0, err
    train, validation = map(int, out.split())
    assert train > 200 and validation > 50  # all of them


def test_where_no_file_can_be_opened_the_limit_is_named_and_no_shard_is_called_damaged(many):
    for taken in itertools.count(0, 8):
        status, out, err = limited(64, 64, sys.executable, "-c", LOOK, str(many), str(taken))
        if status != 0 or "error:" in out:
            break
    assert status == 0, err
    assert "cannot be opened (Too many open files): a process may have 64 files open at once here; have an" in out
    assert "damaged" not in out and "administrator raise the hard limit" in out


def test_a_run_trains_on_200_shards_where_64_files_may_be_open(runs: Runs, many, tmp_path):
    found = []
    for limit in (64, 4096):
        arguments = runs.arguments(tmp_path / str(limit), {"data.path": many})
        environment = os.environ | runs.environment
        status, out, err = limited(limit, limit, sys.executable, "train.py", *arguments, environment=environment)
        assert status == 0 and f"finished: step {STEPS}" in out, err
        found.append(records(tmp_path / str(limit)))
    assert found[0] == found[1]
