# SPDX-License-Identifier: Apache-2.0
"""From text, wherever it lies, to an exported model: the commands as their user types them, in processes of their own.

As a program, this file is the other side of `Commands`.
"""

import bz2
import functools
import gzip
import html
import importlib
import json
import lzma
import os
import pathlib
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from albert_jax.data import staging
from tests.object_store import ObjectStore
from tests.runs import STEPS, TINY, Finished, Runs, arrays, exit_status, records, release, wait_for

pytest_plugins = ["tests.object_store"]
ROOT = pathlib.Path(__file__).parent.parent
PIECES = 200
# The same for all runs here, so that their programs are compiled once: one example a row, as Google's records have.
SMALL: dict[str, Any] = TINY | {
    "model.vocab_size": PIECES,
    "model.hidden_dropout_prob": 0.0,
    "model.attention_probs_dropout_prob": 0.0,
    "data.examples_per_row": 1,
    "masking.slots": 8,
    "batch.rows_per_device": 0,
    "eval.rows": 8,
}
DATA, RUN = "gs://bucket/data", "gs://bucket/run"
WIKI, BOOKS = ("river", "stone", "winter", "harbor", "mountain"), ("teacher", "garden", "letter", "engine", "market")
VERBS = ("crosses", "follows", "remembers", "carries", "measures")


# --- processes --------------------------------------------------------------------------------------------------------


class Commands(Runs):
    """Runs commands in processes forked from one that has imported everything, which saves seconds for each.

    Args:
      directory: for what they print, and for the cache of compiled programs.
      store: what gs:// paths lead to.
    """

    def __init__(self, directory: pathlib.Path, store: ObjectStore):
        super().__init__(directory, directory)
        self.environment |= store.environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled sooner
        self._forking: subprocess.Popen[str] | None = None
        self._count = 0

    def run(self, *command: object) -> Finished:
        """Runs a command: what stands after "python" or, for a module, after "python -m"."""
        if self._forking is None:
            self._forking = self._popen("tests/test_data_end_to_end.py", stdin=subprocess.PIPE)
        self._count += 1
        out, err = (self._directory / f"command-{self._count}.{name}" for name in ("out", "err"))
        assert self._forking.stdin is not None and self._forking.stdout is not None
        request = [[str(word) for word in command], os.environ.get(staging.CACHE, ""), str(out), str(err)]
        print(json.dumps(request), file=self._forking.stdin, flush=True)
        status = int(self._forking.stdout.readline())
        return Finished(status, out.read_text(), err.read_text())

    def killed(self, reached: Callable[[], bool], *command: object) -> str:
        """Starts a fresh Python process and kills it as soon as something is reached; gives what it had printed."""
        process = self._popen(*command)
        try:
            deadline = time.monotonic() + 60
            while not reached():
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()
                time.sleep(0.01)
        finally:
            process.kill()
        printed = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
        return printed

    def _popen(self, *command: object, stdin: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | self.environment | {"PYTHONPATH": str(ROOT)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends the process that `run` forks from."""
        if self._forking is not None:
            assert self._forking.stdin is not None
            self._forking.stdin.close()
            self._forking.wait()


@pytest.fixture(scope="module")
def commands(_object_store_server: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"), _object_store_server)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where data sets of the object store are copied to."""
    monkeypatch.setenv(staging.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def done(finished: Finished) -> str:
    """What a command that has to end well printed."""
    assert finished.status == 0, finished
    return finished.out


def refused(finished: Finished) -> str:
    """The one sentence of a command that has to be refused."""
    *notes, error = finished.err.splitlines()
    assert finished.status == 2 and "Traceback" not in finished.out, finished
    # tensorflow's libraries and Google's have messages of their own.
    assert error.startswith("error: ") and not [note for note in notes if note.startswith(("error", "Traceback"))], (
        finished
    )
    return error


# --- texts ------------------------------------------------------------------------------------------------------------


def texts(seed: int, count: int, nouns: tuple[str, ...] = WIKI + BOOKS) -> list[str]:
    """Documents of two to eight short sentences, one a line, of which none resembles another."""
    draw = random.Random(seed)

    def sentence() -> str:
        return f"The {draw.choice(nouns)} {draw.choice(VERBS)} {draw.randrange(10**4)} {draw.choice(nouns)}s."

    return ["\n".join(sentence() for _ in range(draw.randint(2, 8))) for _ in range(count)]


def plain(documents: list[str]) -> bytes:
    return ("\n\n".join(documents) + "\n").encode()


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def parquet(path: pathlib.Path, documents: list[str]) -> pathlib.Path:
    pq.write_table(pa.table({"text": documents}), path)
    return path


@pytest.fixture(scope="module")
def vocabulary(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text.txt").write_bytes(plain(texts(0, 200)))
    source = ("--source", folder / "text.txt")
    printed = done(commands.run("pretrain_data", "vocab", *source, "--size", PIECES, "--out", folder / "v"))
    assert f"{folder}/v/spiece.model: {PIECES} pieces from" in printed
    return folder / "v"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a text, an archive of JSON lines and a Parquet file."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "a.txt").write_bytes(plain(texts(1, 120)))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(texts(2, 100)), mtime=0))
    parquet(folder / "c.parquet", texts(3, 80))
    return folder


def build(vocabulary: pathlib.Path, out: object, *sources: object) -> list[object]:
    """The command line of a build in this process alone."""
    named = [word for source in sources for word in ("--source", source)]
    fixed = ["--validation-fraction", 0.15, "--lines", "sentence", "--workers", 1]
    return ["pretrain_data", "build", "--vocab", vocabulary, "--out", out, *fixed, *named]


@pytest.fixture(scope="module")
def local(
    commands: Commands, vocabulary: pathlib.Path, files: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A data set of `files` on this disk."""
    out = tmp_path_factory.mktemp("local") / "data"
    done(commands.run(*build(vocabulary, out, *(files / name for name in ("a.txt", "b.jsonl.gz", "c.parquet")))))
    return out


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """A data set's files; without what training keeps beside them."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("plans/")}


def manifest_of(data: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / "manifest.json").read_text())
    return found


def train(workdir: object, data: object, **fields: object) -> list[object]:
    """The command line of a small run; "__" stands for the dots of a field's name."""
    values = SMALL | {"data.path": data} | {name.replace("__", "."): value for name, value in fields.items()}
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return ["train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]


# --- an object store --------------------------------------------------------------------------------------------------


@pytest.fixture
def uploaded(object_store: ObjectStore, files: pathlib.Path) -> list[str]:
    """`files` in the store."""
    for path in sorted(files.iterdir()):
        object_store.put("bucket", f"text/{path.name}", path.read_bytes())
    return [f"gs://bucket/text/{path.name}" for path in sorted(files.iterdir())]


def in_store(store: ObjectStore, prefix: str = "data/") -> dict[str, bytes]:
    return {name.removeprefix(prefix): store.get("bucket", name) for name in store.names("bucket", prefix)}


def assert_same_data_set(found: dict[str, bytes], local: pathlib.Path, files: pathlib.Path) -> None:
    """Compares byte for byte but for where the sources lay, which three files tell."""
    expected = contents(local)
    assert found.keys() == expected.keys()
    told = {"manifest.json", "build/command.json", "build/identity.json"}
    assert {name for name in found if found[name] != expected[name]} == told
    for name in ("manifest.json", "build/command.json"):
        assert found[name].decode().replace("gs://bucket/text/", f"{files}/") == expected[name].decode()
    identities = [json.loads(of["build/identity.json"]) for of in (found, expected)]
    assert {name for name in identities[0] if identities[0][name] != identities[1][name]} == {"parts"}


def assert_only_the_data_set_is_left(store: ObjectStore) -> None:
    assert {name.split("/")[0] for name in store.names("bucket")} == {"data", "text"}


def test_a_build_in_the_store_is_one_on_the_disk_and_its_manifest_comes_last(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, files, local
):
    printed = done(commands.run(*build(vocabulary, DATA, *uploaded)))
    assert f"data set: {DATA}" in printed and "c: 1 file of Parquet" in printed
    assert_same_data_set(in_store(object_store), local, files)
    assert_only_the_data_set_is_left(object_store)
    written = [re.split("name=|rewriteTo/b/bucket/o/", request)[-1] for request in object_store.requests]
    written = [name.split("&")[0].split("?")[0] for name in written if name.startswith("data/")]
    assert written[-1] == "data/manifest.json" and set(written) == set(object_store.names("bucket", "data/"))


def test_an_output_in_the_store_is_replaced_on_demand_only_and_whole(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, files, local
):
    done(commands.run(*build(vocabulary, f"{DATA}/", *uploaded[:2]), "--on-bad-record=quarantine"))
    object_store.put("bucket", "data/plans/old/digest", b"")
    before = in_store(object_store)
    command = build(vocabulary, DATA, *uploaded)
    assert f"{DATA!r} exists; give another --out, or --overwrite to replace it" in refused(commands.run(*command))
    assert in_store(object_store) == before
    done(commands.run(*command, "--overwrite"))
    assert_same_data_set(in_store(object_store), local, files)
    object_store.put("bucket", "mine/notes.txt", b"mine")
    command = [*build(vocabulary, "gs://bucket/mine", *uploaded), "--overwrite"]
    assert "'gs://bucket/mine' is not a data set of this program" in refused(commands.run(*command))
    assert in_store(object_store, "mine/") == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("stuck", "there", "tokenized"),
    [
        (".data.building/tokenize/000001/", ".data.building/tokenize/000000/done", "1 of 3 parts"),
        ("data/manifest.json", "data/spiece.model", "3 of 3 parts"),
    ],
)
def test_a_build_in_the_store_that_is_killed_goes_on_to_the_same_bytes(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, files, local, stuck, there, tokenized
):
    command = build(vocabulary, DATA, *uploaded)
    object_store.fail(1000, method="POST", containing=f"name={stuck}")  # it tries again and again
    commands.killed(lambda: there in object_store.names("bucket"), "-m", *command)
    assert "data/manifest.json" not in object_store.names("bucket")
    object_store.clear_faults()
    printed = done(commands.run(*command))
    assert f"going on from gs://bucket/.data.building: {tokenized} are tokenized" in printed
    assert "with what an earlier call had finished" in printed
    assert_same_data_set(in_store(object_store), local, files)
    assert_only_the_data_set_is_left(object_store)


@pytest.mark.slow
def test_a_build_in_the_store_by_several_processes_is_the_same(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, files, local
):
    printed = done(commands.run(*build(vocabulary, DATA, *uploaded), "--workers", 3))
    assert "3 processes" in printed
    assert_same_data_set(in_store(object_store), local, files)


@pytest.mark.parametrize(
    ("method", "containing"),
    [("GET", "prefix=data/"), ("POST", "building/identity"), ("POST", "scan/000001"), ("POST", "data/index")],
)
def test_a_store_that_refuses_ends_a_build_with_one_sentence(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, method, containing
):
    object_store.fail(1000, method=method, containing=containing, status=403)
    told = refused(commands.run(*build(vocabulary, DATA, *uploaded)))
    assert re.match(r"error: gs://bucket/\S+ cannot be reached \(.*Forbidden.*check the bucket's name", told), told
    assert "data/manifest.json" not in object_store.names("bucket")


def test_a_data_set_in_the_store_is_trained_on_and_the_run_there_exported(
    commands: Commands, object_store: ObjectStore, uploaded, vocabulary, local, tmp_path
):
    from albert_jax import AlbertTokenizer, FlaxAlbertForMaskedLM
    from albert_jax.training.restoring import load_parameters

    done(commands.run(*build(vocabulary, DATA, *uploaded)))
    printed = done(commands.run(*train(RUN, DATA)))
    assert f"staged {DATA} in {tmp_path / 'cache'}" in printed and f"step {STEPS} is saved in {RUN}" in printed
    assert object_store.get("bucket", "run/spiece.model") == (vocabulary / "spiece.model").read_bytes()
    done(commands.run(*train(tmp_path / "w", local)))
    lines = [json.loads(line) for line in object_store.get("bucket", "run/metrics.jsonl").splitlines()]
    lines = [line for line in lines if line["kind"] != "start"]
    assert [{k: v for k, v in line.items() if k != "timing"} for line in lines] == records(tmp_path / "w")

    exporting = ("scripts/export.py", f"--workdir={RUN}", f"--out={tmp_path / 'hf'}")
    assert f"exported step {STEPS} of {RUN} to {tmp_path / 'hf'}" in done(commands.run(*exporting))
    model = FlaxAlbertForMaskedLM.from_pretrained(tmp_path / "hf")
    tokenizer = AlbertTokenizer.from_pretrained(tmp_path / "hf")
    logits = model(**tokenizer("The river [MASK] 12 stones.", return_tensors="np")).logits
    assert logits.shape[-1] == PIECES and np.isfinite(logits).all()
    assert load_parameters(tmp_path / "w")[1]["digests"] == load_parameters(RUN)[1]["digests"]


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_one_in_the_store(
    commands: Commands, object_store: ObjectStore, local, tmp_path
):
    done(commands.run(*train(RUN, local)))
    printed = done(commands.run(*train(tmp_path / "next", local, init_from=RUN, seed=1)))
    assert f"starting from step {STEPS} of {RUN}, with a fresh optimizer." in printed
    later = json.loads((tmp_path / "next" / "metrics.jsonl").read_text().splitlines()[1])
    before = json.loads(object_store.get("bucket", "run/metrics.jsonl").splitlines()[1])
    assert (later["step"], later["kind"]) == (before["step"], before["kind"]) and later["loss"] < before["loss"]
    told = refused(commands.run(*train(tmp_path / "other", local, init_from="gs://bucket/none")))
    assert "init_from gs://bucket/none is no training workdir" in told


def test_a_data_set_in_the_store_is_shown_reported_and_written_as_one_on_the_disk(
    commands: Commands, object_store: ObjectStore, uploaded, local, tmp_path
):
    for name, data in contents(local).items():
        object_store.put("bucket", f"data/{name}", data)
    short = ("--set", "data.sequence_length=48", "--set", "batch.size=8")
    shown = [done(commands.run("pretrain_data", "show", data, *short, "--step", 2)) for data in (DATA, local)]
    assert shown[0] == shown[1] and "step 2 · row" in shown[0] and "MASK" in shown[0]
    for name, data_set in (("store", DATA), ("disk", local)):
        page = tmp_path / name / "report.html"
        assert done(commands.run("pretrain_data", "report", data_set, *short, "--out", page)) == f"report: {page}\n"
        parity = ("--config", "configs/base.py:parity", *short, "--out", tmp_path / name / "x-*.tfrecord")
        done(commands.run("pretrain_data", "tfrecords", data_set, *parity, "--shards", 2))
    assert contents(tmp_path / "store") == contents(tmp_path / "disk")
    assert len(contents(tmp_path / "store")) == 3


# --- Google's records -------------------------------------------------------------------------------------------------

BAKED_FIELDS = ("--set", "data.sequence_length=48", "--set", "masking.slots=8", "--set", "masking.count=8")


@pytest.fixture(scope="module")
def baked(commands: Commands, local: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with Google's records of both splits."""
    folder = tmp_path_factory.mktemp("baked")
    for split, prefix in (("train", "x"), ("validation", "held")):
        out = ("--split", split, "--out", folder / f"{prefix}-*.tfrecord", "--shards", 3)
        command = ("tfrecords", local, "--config=configs/base.py:parity", *BAKED_FIELDS, *out)
        assert f"TFRecord files: 3, {folder / prefix}-00000-of-00003.tfrecord and on" in done(
            commands.run("pretrain_data", *command)
        )
    return folder


def of_records(workdir: object, baked: pathlib.Path, vocabulary: pathlib.Path, **fields: object) -> list[object]:
    """The command line of a run on the records."""
    chosen: dict[str, object] = {
        "data__recipe": "baked",
        "data__validation_path": baked / "held-*.tfrecord",
        "data__vocab": vocabulary / "spiece.model",
    }
    return train(workdir, baked / "x-*.tfrecord", **(chosen | fields))


def test_a_run_on_googles_records_stopped_and_resumed_ends_with_the_bits_of_a_straight_one(
    commands: Commands, baked, vocabulary, tmp_path
):
    straight = tmp_path / "straight"
    printed = done(commands.run(*of_records(straight, baked, vocabulary)))
    assert "train: " in printed and "which the files hold (3 TFRecord files" in printed
    stopped = commands.start([str(word) for word in of_records(tmp_path / "w", baked, vocabulary)[1:]], hold="step:6")
    wait_for(stopped, "held step:6")
    stopped.send_signal(signal.SIGTERM)
    release(stopped)
    ended = commands.finish(stopped)
    assert ended.status == 75 and "interrupted by SIGTERM: step 7 is saved in" in ended.out, ended
    assert "resumed from step 7 in" in done(commands.run(*of_records(tmp_path / "w", baked, vocabulary)))
    assert records(tmp_path / "w") == records(straight)
    found, expected = arrays(tmp_path / "w"), arrays(straight)
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}

    out = tmp_path / "hf"
    done(commands.run("scripts/export.py", f"--workdir={straight}", f"--out={out}"))
    assert (out / "spiece.model").read_bytes() == (vocabulary / "spiece.model").read_bytes()
    from albert_jax import FlaxAlbertForMaskedLM

    assert FlaxAlbertForMaskedLM.from_pretrained(out).config.vocab_size == PIECES


def test_what_does_not_agree_with_googles_records_is_named_with_its_remedy(
    commands: Commands, baked, vocabulary, local, tmp_path
):
    def told(**fields: object) -> str:
        return refused(commands.run(*of_records(tmp_path / "w", baked, vocabulary, **fields)))

    files = f"the records of {baked}/x-*.tfrecord have"
    assert f"data.sequence_length is 40, but {files} 48; pass --config.data.sequence_length=48" in told(
        data__sequence_length=40
    )
    assert f"masking.slots is 10, but {files} 8; pass --config.masking.slots=8" in told(masking__slots=10)
    assert f"data.examples_per_row is 3, but {files} 1" in told(data__examples_per_row=3)
    assert "needs spiece.model; pass --config.data.vocab=" in told(data__vocab="")
    assert "needs held-out files; pass --config.data.validation_path=" in told(data__validation_path="")
    assert "names no TFRecord file" in told(data__path=baked / "y-*.tfrecord")
    assert "a vocabulary of 200 pieces and the model has one of 300" in told(model__vocab_size=300)
    assert "is for data.recipe 'baked'" in told(data__recipe="clean", data__path=local)
    assert "gs://bucket/x-*.tfrecord" in told(data__path="gs://bucket/x-*.tfrecord")
    assert "gs://bucket/spiece.model" in told(data__vocab="gs://bucket/spiece.model")
    assert not (tmp_path / "w").exists()


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(commands: Commands, vocabulary: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set of two sources that have no noun in common, the second to be seen twice as often."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "a.txt").write_bytes(plain(texts(4, 110, WIKI)))
    (folder / "b.txt").write_bytes(plain(texts(5, 70, BOOKS)))
    sources = (f"wiki={folder / 'a.txt'}", f"books={folder / 'b.txt'}")
    printed = done(commands.run(*build(vocabulary, folder / "data", *sources), "--weight", "books=2"))
    assert re.search(r"tokens of wiki +[\d,]+ +[\d,]+\ntokens of books +[\d,]+ +[\d,]+\n", printed)
    return folder / "data"


def rows_by_source(data: pathlib.Path, weights: str, epochs: int) -> tuple[int, int]:
    """How many of the rows of some epochs have text of each source, told by their nouns."""
    from albert_jax.training.data import open_data
    from pretrain_data.recipes import load_recipe
    from pretrain_data.show import Reader, read_row, with_data

    fields = [f"{name}={value}" for name, value in SMALL.items() if name.startswith(("data.", "masking."))]
    stream = open_data(with_data(load_recipe(None, [*fields, f"data.weights={weights}"]), data)).train
    reader = Reader(data / "spiece.model")
    end = 0
    while stream.epoch(end) < epochs:
        end += 1
    batch, found = stream.batch(0, end), []
    for row in range(end):
        text = "".join(reader.text(example.first.originals) for example in read_row(batch, row))
        of_wiki, of_books = (any(noun in text for noun in nouns) for nouns in (WIKI, BOOKS))
        assert of_wiki != of_books
        found.append(of_wiki)
    return sum(found), len(found) - sum(found)


def test_an_epoch_has_the_rows_of_each_source_as_often_as_its_weight_says(mixed):
    assert {source["name"]: source["weight"] for source in manifest_of(mixed)["sources"]} == {"wiki": 1, "books": 2}
    wiki, books = rows_by_source(mixed, "books=1", 1)
    assert wiki > 40 and books > 25
    assert rows_by_source(mixed, "", 3) == (3 * wiki, 3 * 2 * books)
    assert rows_by_source(mixed, "wiki=1,books=0.5", 4) == (4 * wiki, 2 * books)
    assert rows_by_source(mixed, "wiki=0", 1) == (0, 2 * books)


def test_training_says_how_far_it_is_in_each_source_and_takes_other_weights(commands: Commands, mixed, tmp_path):
    printed = done(commands.run(*train(tmp_path / "w", mixed)))
    line = next(line for line in printed.splitlines() if line.startswith("12/12 "))
    epoch, wiki, books = (float(x) for x in re.search(r"12/12 +(\S+) .* wiki (\S+) books (\S+)$", line).groups())  # type: ignore[union-attr]
    assert " 96 " in line and wiki == pytest.approx(epoch, abs=0.01) and books == pytest.approx(2 * epoch, abs=0.02)
    last = [record for record in records(tmp_path / "w") if record["kind"] == "train"][-1]
    assert (last["step"], last["position"], round(last["epoch/books"], 3)) == (12, 96, books)

    done(commands.run(*train(tmp_path / "v", mixed, data__weights="wiki=1,books=0.5")))
    last = [record for record in records(tmp_path / "v") if record["kind"] == "train"][-1]
    assert last["epoch/books"] == pytest.approx(last["epoch/wiki"] / 2, abs=0.02)
    told = refused(commands.run(*train(tmp_path / "v", mixed, data__weights="wiki=1,boks=0.5")))
    assert "data.weights names the source 'boks'; the data set has wiki, books" in told
    told = refused(commands.run(*train(tmp_path / "v", mixed)))
    assert "belongs to another run: data.weights was" in told


# --- every kind of source ---------------------------------------------------------------------------------------------

PAGE = "<page><title>P {0}</title><ns>0</ns><id>{0}</id><revision><id>1</id><text>{1}</text></revision></page>\n"


def mediawiki(documents: list[str]) -> bytes:
    """A dump with a redirect and a talk page besides, and with markup."""
    pages = [PAGE.format(10 + i, text.replace("\n", "\n\n'''Bold''' ")) for i, text in enumerate(documents)]
    pages[3:3] = [
        PAGE.format(1, "#REDIRECT [[P 2]]").replace("<revision>", '<redirect title="P 2" /><revision>'),
        PAGE.format(2, "Talk.").replace("<ns>0</ns>", "<ns>1</ns>"),
    ]
    space = "http://www.mediawiki.org/xml/export-0.11/"
    info = "<siteinfo><dbname>enwiki</dbname><namespaces><namespace key='0' /></namespaces></siteinfo>"
    return f"<mediawiki xmlns='{space}' version='0.11' xml:lang='en'>{info}{''.join(pages)}</mediawiki>".encode()


def extracted(documents: list[str]) -> bytes:
    records = [f'<doc id="{i}" url="u" title="T {i}">\nT {i}\n\n{text}\n</doc>\n' for i, text in enumerate(documents)]
    return "".join(records).encode()


def tfds_data_set(folder: pathlib.Path, documents: list[str]) -> pathlib.Path:
    """A prepared TFDS data set in one array_record file."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int32)})
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name="toy", split="train", filetype_suffix="array_record"
    )
    writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
    for i, text in enumerate(documents):
        writer.write(features.serialize_example({"text": text, "label": i}))
    writer.close()
    info = tfds.core.SplitInfo(name="train", shard_lengths=[len(documents)], num_bytes=1000, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[info], version="1.0.0", check_data=False
    )
    return folder


@pytest.fixture(scope="module")
def everything(
    commands: Commands, vocabulary: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, dict[str, int], str]:
    """A data set of all kinds of sources, how many documents each has, and what the build printed."""
    folder = tmp_path_factory.mktemp("everything")
    writers: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
        "plain": ("plain.txt", plain),
        "gz": ("a.txt.gz", lambda documents: gzip.compress(plain(documents))),
        "xz": ("b.txt.xz", lambda documents: lzma.compress(plain(documents))),
        "zst": ("c.txt.zst", lambda documents: zstandard.compress(plain(documents))),
        "bz2": ("d.txt.bz2", lambda documents: bz2.compress(plain(documents))),
        "jsonl": ("e.jsonl", json_lines),
        "packed-jsonl": ("f.ndjson.zst", lambda documents: zstandard.compress(json_lines(documents))),
        "parquet": ("g.parquet", lambda documents: parquet(folder / "g.parquet", documents).read_bytes()),
        "wikiextractor": ("AA/wiki_00", extracted),
        "mediawiki": ("enwiki-pages-articles.xml.bz2", lambda documents: bz2.compress(mediawiki(documents))),
    }
    (folder / "AA").mkdir()
    counts, sources = {}, []
    for number, (name, (file, written)) in enumerate(writers.items()):
        counts[name] = 20 + number
        (folder / file).write_bytes(written(texts(100 + number, counts[name])))
        what = {"wikiextractor": f"wikiextractor:{folder}/A*/wiki_*"}.get(name, folder / file)
        sources.append(f"{name}={what}")
    counts["tfds"] = 33
    sources.append(f"tfds=tfds:{tfds_data_set(folder / 'toy' / '1.0.0', texts(200, 33))}")
    return folder / "data", counts, done(commands.run(*build(vocabulary, folder / "data", *sources)))


def test_all_kinds_of_sources_are_built_together_and_counted_one_by_one(everything):
    data, counts, printed = everything
    manifest = manifest_of(data)
    assert [source["name"] for source in manifest["sources"]] == list(counts)
    found = {name: 0 for name in counts}
    for split in manifest["splits"].values():
        for name, content in split["sources"].items():
            found[name] += content["documents"]
        assert sum(content["tokens"] for content in split["sources"].values()) == split["tokens"]
    assert found == counts
    for name in counts:
        assert re.search(rf"^{name}: 1 (file|TFDS) ?", printed, re.MULTILINE), printed
        assert f"tokens of {name} " in printed


def test_a_data_set_of_all_kinds_is_shown_described_and_repaired(commands: Commands, everything, tmp_path):
    data, counts, _ = everything
    short = ("--set", "data.sequence_length=48")
    assert "in order · A " in done(commands.run("pretrain_data", "show", data, *short, "--rows", 20))
    shown = done(commands.run("pretrain_data", "show", data, *short, "--split", "validation"))
    assert "evaluation batch 1 · row 0 of" in shown
    done(commands.run("pretrain_data", "report", data, *short, "--out", tmp_path / "r.html"))
    page = html.unescape((tmp_path / "r.html").read_text())
    assert all(f">{name}<" in page for name in counts)

    before = contents(data)
    gone = sorted(data.glob("*-train.array_record-*"))[4]
    gone.unlink()
    told = refused(commands.run("pretrain_data", "show", data, *short))
    assert str(gone) in told and f"`python -m pretrain_data repair {data}`" in told
    printed = done(commands.run("pretrain_data", "repair", data))
    assert f"made again: {gone}\n" in printed and "1 of " in printed
    assert contents(data) == before
    assert "shards are whole" in done(commands.run("pretrain_data", "repair", data))


# --- what cannot be ---------------------------------------------------------------------------------------------------


def refusals(files: pathlib.Path, local: pathlib.Path) -> dict[str, list[tuple[list[object], str]]]:
    """For each command its mistakes, and words of the sentence that each gets."""
    text, packed = ["--source", files / "a.txt"], ["--source", files / "b.jsonl.gz"]
    return {
        "vocab": [
            ([*text, "--size", 5, "--out", "v"], "--size 5 must be at least 14"),
            ([*text, "--out", "gs://bucket/v"], "gs://bucket/v is in an object store"),
            ([*text], "the following arguments are required: --out; python -m pretrain_data vocab --help lists"),
        ],
        "build": [
            ([*text, "--workers", 0], "--workers 0 must be at least 1"),
            ([*text, "--workers", "two"], "argument --workers: invalid int value: 'two'"),
            ([*text, "--wrokers", 2], "unrecognized arguments: --wrokers 2; python -m pretrain_data build --help"),
            ([*text, "--language", "xx"], "--language 'xx' is no language that ICU knows"),
            ([*packed, "--field", "missing"], "has no field 'missing' (it has 'text'); name the field by --field"),
            (["--source", files / "c.parquet", "--field", "missing"], "has no column 'missing' (it has 'text')"),
            ([*text, "--weight", "nonsense"], "--weight 'nonsense' has 'nonsense' where NAME=WEIGHT is needed"),
            ([*text, "--weight", "b=2"], "--weight names the source 'b'; the data set has a"),
            ([*text, "--weight", "a=many"], "the weight 'many' of the source a is not a number"),
            ([*text, "--weight", "a=2000"], "the weight 2000 of the source a must lie between 0 and 1000"),
            ([*text, "--weight", "a=0.12345"], "at most three decimals"),
            ([*text, "--weight", "a=1/3"], "at most three decimals"),
            ([*text, "--weight", "a=0"], "all sources (a) have weight 0; give one of them more in --weight"),
            ([*text, "--validation-fraction", 2], "--validation-fraction 2.0 must be at least 0 and below 1"),
            (["--source", "a:b:c"], "'a:' in --source 'a:b:c' is no kind of source"),
            ([*text, "--out", "s3://bucket/data"], "s3://bucket/data is in no store that can be written to"),
        ],
        "show": [
            ([local, "--step", 0], "--step 0 must be from 1 to the recipe's 125000 steps"),
            ([local, "--rows", 0], "--rows 0 must be at least 1"),
            ([local, "--set", "data.length=3"], "no field 'config.data.length'"),
            ([local, "--set", "data.sequence_length"], "--set data.sequence_length has no value; give FIELD=VALUE"),
            ([local, "--set", "data.sequence_length=x"], "is not a whole number; give one like"),
            ([local, "--set", "data.weights=z=1"], "data.weights names the source 'z'; the data set has a, b, c"),
            ([local, "--config", "tests/conftest.py"], "cannot be loaded (AttributeError"),
            ([local, "--config", "configs/none.py"], "there is no Python file 'configs/none.py'"),
            ([files], "holds no data set (no manifest.json); make one with `python -m pretrain_data build`"),
        ],
        "report": [
            ([local, "--out", "page"], "--out 'page' must name a file that ends in .html"),
            ([local, "--out", "gs://bucket/page.html"], "gs://bucket/page.html is in an object store"),
        ],
        "tfrecords": [
            ([local, "--out", "x-*"], "Google's format holds one example a record"),
            ([local, "--out", "gs://bucket/x-*"], "gs://bucket/x-* is in an object store"),
            ([local, "--config", "configs/base.py:parity", "--out", "x"], "must have one * in the file name"),
            (
                [local, "--config", "configs/base.py:parity", "--out", "x-*", "--epochs", 0],
                "--epochs 0 and --shards 16",
            ),
        ],
        "repair": [
            (["gs://bucket/data"], "gs://bucket/data is in an object store"),
            ([files], "holds no data set"),
        ],
        "bild": [([], "invalid choice: 'bild'")],
    }


def test_every_mistake_in_a_command_is_one_sentence(commands: Commands, vocabulary, files, local, tmp_path):
    for command, cases in refusals(files, local).items():
        for arguments, words in cases:
            fixed = ["--vocab", vocabulary] + ["--out", tmp_path / "out"] * ("--out" not in arguments)
            own = fixed if command == "build" else []
            finished = commands.run("pretrain_data", command, *own, *arguments)
            assert words in refused(finished), finished
            assert finished.err.count("\n") == 1, finished.err
    assert not list(tmp_path.iterdir()) and not (ROOT / "gs:").exists()


def test_what_is_written_on_this_machine_is_not_written_to_a_folder_called_gs(commands: Commands):
    told = refused(commands.run("scripts/export.py", "--workdir=w", "--out=gs://bucket/hf"))
    assert "gs://bucket/hf is in an object store" in told and not (ROOT / "gs:").exists()


# --- the other side ---------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Forks a process for each command; JAX is imported here but not started, so that it may be."""
    for name in (
        "gcsfs",
        "albert_jax.training.loop",
        "pretrain_data.__main__",
        "pretrain_data.report",
        "scripts.export",
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        command, cache, out, err = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                for path, descriptor in ((out, 1), (err, 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ[staging.CACHE] = cache
                status = exit_status(functools.partial(_run, command))
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # nothing of what was imported has to be put away


def _run(command: list[str]) -> None:
    """Runs a script or a module as a program of its own."""
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        sys.modules.pop(f"{command[0]}.__main__")  # it is a program now
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _serve()
