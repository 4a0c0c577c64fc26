# SPDX-License-Identifier: Apache-2.0
"""Building a data set and reading it: speed beside Google's algorithm, memory, bytes, padding, start, plan, feed.

    python scripts/bench/data.py --text 'corpus/*.txt' --vocab spiece.model --work /tmp/bench
    python scripts/bench/data.py --text 'corpus/*.txt' --vocab spiece.model --work /tmp/bench --grow 2 4

The text is UTF-8 with a blank line between documents and a paragraph a line. `--grow` also builds from so many GB,
which are the same text again and again, and prints the memory of each build; that takes minutes for each GB.

Google's algorithm is tests/google_pipeline.py, plain Python written from a description of the original, with its
tokenization before it and its record format behind it. Both programs get the same sentences, one a line, and the same
vocabulary. SentencePiece is the same library in both and its own time is given apart. Speeds are per CPU second, of a
program that runs in one process.
"""

import argparse
import contextlib
import glob
import itertools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import sentencepiece
from goals import print_goal, print_header

from albert_jax.data.google_words import google_starts_word
from albert_jax.data.loader import Loader
from albert_jax.data.plan import make_plan
from albert_jax.data.rows import Batch
from albert_jax.data.store import TextStore, read_manifest
from albert_jax.data.tfrecords import write_record
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.training.data import open_data, plan_settings
from albert_jax.training.legs import made_rows, make_legs
from albert_jax.training.sharding import Rows, make_mesh, split_rows
from pretrain_data.recipes import load_recipe
from pretrain_data.sentences import SentenceSplitter
from pretrain_data.show import with_data

sys.path.append(str(pathlib.Path(__file__).parents[2]))
from tests.google_pipeline import Example, Pipeline

PACKAGES = ("sentencepiece", "pyicu-wheels", "array_record", "tensorflow-datasets")
SLOTS, PREDICTIONS = 512, 20  # the original's
STREAM_SECONDS = 5.0
DEVICES = 8  # H100: they train ALBERT-base at 5.5 M real tokens a second
ROWS_PER_DEVICE = 64  # that one takes at a time
Documents = list[list[str]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a quoted glob of text files, a paragraph a line")
    parser.add_argument("--vocab", required=True, help="spiece.model")
    parser.add_argument(
        "--work", type=pathlib.Path, required=True, help="a folder for data sets; may be filled already"
    )
    parser.add_argument("--google-mb", type=float, default=16.0, help="MB of text that both algorithms are timed on")
    parser.add_argument("--grow", type=float, nargs="*", default=[], metavar="GB", help="also build from so much text")
    return parser.parse_args()


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the CPU seconds that this process spent on it."""
    began = time.process_time()
    value = call()
    return value, time.process_time() - began


# --- Google's algorithm -----------------------------------------------------------------------------------------------


def clean(line: str) -> str:
    """The original's preprocess_text."""
    line = unicodedata.normalize("NFKD", " ".join(line.strip().split()))
    return "".join(c for c in line if not unicodedata.combining(c)).lower()


def encode_pieces(model: sentencepiece.SentencePieceProcessor, line: str) -> list[str]:
    """The original's pieces of a clean line, with its rule for a comma behind digits."""
    pieces: list[str] = []
    for piece in model.encode(line, out_type=str):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            parts = model.encode(piece[:-1].replace("▁", ""), out_type=str)
            if piece[0] != "▁" and parts[0][0] == "▁":
                parts = parts[1:] if len(parts[0]) == 1 else [parts[0][1:], *parts[1:]]
            pieces += [*parts, ","]
        else:
            pieces.append(piece)
    return pieces


def write_examples(path: pathlib.Path, examples: list[Example], starts_word: list[bool]) -> None:
    """The original's TFRecord file."""
    from tensorflow_datasets.proto import tf_example_pb2

    with path.open("wb") as file:
        for example in examples:
            record = tf_example_pb2.Example()
            size, masks = len(example.tokens), len(example.positions)
            padding, unused = [0] * (SLOTS - size), [0] * (PREDICTIONS - masks)
            columns = {
                "input_ids": example.tokens + padding,
                "input_mask": [1] * size + padding,
                "segment_ids": example.segments + padding,
                "token_boundary": [int(starts_word[token]) for token in example.tokens] + padding,
                "masked_lm_positions": example.positions + unused,
                "masked_lm_ids": example.labels + unused,
                "next_sentence_labels": [example.order],
            }
            for name, values in columns.items():
                record.features.feature[name].int64_list.value.extend(values)
            weights = [1.0] * masks + [0.0] * len(unused)
            record.features.feature["masked_lm_weights"].float_list.value.extend(weights)
            write_record(file, record.SerializeToString())


def google(documents: Documents, vocab: str, out: pathlib.Path) -> dict[str, float]:
    """CPU seconds of each stage of one pass over the documents (dupe_factor 1)."""
    model = sentencepiece.SentencePieceProcessor(model_file=vocab)
    starts_word = google_starts_word([model.id_to_piece(i) for i in range(len(model))]).tolist()
    cleaned, cleaning = cpu(lambda: [[clean(line) for line in lines] for lines in documents])
    pieces, encoding = cpu(lambda: [[encode_pieces(model, line) for line in lines] for lines in cleaned])
    _, alone = cpu(lambda: [[model.encode(line, out_type=str) for line in lines] for lines in cleaned])
    ids, converting = cpu(
        lambda: [[[model.piece_to_id(piece) for piece in line] for line in lines if line] for lines in pieces]
    )
    ids = [lines for lines in ids if lines]
    examples, making = cpu(lambda: Pipeline(starts_word).one_pass(ids, random.Random(0)))
    _, writing = cpu(lambda: write_examples(out, examples, starts_word))
    return {
        "SentencePiece": alone,
        "cleaning and pieces": cleaning + encoding - alone + converting,
        "examples": making,
        "records": writing,
    }


# --- ours -------------------------------------------------------------------------------------------------------------


def build(*arguments: str) -> tuple[float, float, str]:
    """Runs the builder; CPU seconds, the most memory that all its processes had at once in MB, and what it printed."""
    command = [sys.executable, "-m", "pretrain_data", "build", *arguments]
    before = os.times()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0.0]
    watch = threading.Thread(target=_watch_memory, args=(process, peak), daemon=True)
    watch.start()
    said = process.communicate()[0]
    watch.join()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"the build failed: {' '.join(command)}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, peak[0], said


def _watch_memory(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Keeps the largest sum of resident memory of a process and its descendants, looked at ten times a second."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_resident(pid) for pid in _tree(process.pid)))
        time.sleep(0.1)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in pathlib.Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from _tree(int(child))
    except OSError:
        return  # it has ended


def _resident(pid: int) -> float:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3


def sentencepiece_seconds(documents: Documents, vocab: str) -> float:
    """CPU seconds of SentencePiece alone in our builder, on the same sentences in calls of the same size."""
    from albert_jax.tokenization import AlbertTokenizer
    from albert_jax.tokenization.cleaning import Cleaning

    tokenizer = AlbertTokenizer(vocab)
    model = sentencepiece.SentencePieceProcessor(model_file=vocab)
    lines = Cleaning.named(tokenizer.cleaning).many([line for lines in documents for line in lines])
    batches = [lines[i : i + 4096] for i in range(0, len(lines), 4096)]
    return cpu(lambda: [model.encode(batch, return_type="numpy", num_threads=1) for batch in batches])[1]


# --- the parts of the benchmark ---------------------------------------------------------------------------------------


def compare_algorithms(files: list[str], arguments: argparse.Namespace) -> None:
    """Our builder and Google's algorithm on the same sentences."""
    documents = list(_documents(files, arguments.google_mb * 1e6))
    splitter = SentenceSplitter("en")
    split, splitting = cpu(lambda: [[s for line in lines for s in splitter.split(line)] for lines in documents])
    source = arguments.work / "sentences.txt"
    source.write_text("\n\n".join("\n".join(lines) for lines in split) + "\n", encoding="utf-8")
    size = source.stat().st_size / 1e6
    print(f"the same {size:.1f} MB for both, a sentence a line; ICU found these at {size / splitting:.0f} MB/s")
    theirs = google(split, arguments.vocab, arguments.work / "google.tfrecord")
    out = arguments.work / "sentences"
    spent, _, _ = build(
        "--source",
        str(source),
        "--vocab",
        arguments.vocab,
        "--out",
        str(out),
        "--overwrite",
        "--lines",
        "sentence",
        "--workers",
        "1",
    )
    ours_alone = sentencepiece_seconds(split, arguments.vocab)
    for stage, seconds in theirs.items():
        print(f"  Google's algorithm, {stage}: {size / seconds:.2f} MB/s")
    total = sum(theirs.values())
    print(
        f"  Google's algorithm in all: {size / total:.2f} MB/s, {size / (total - theirs['SentencePiece']):.2f} apart "
        "from SentencePiece"
    )
    print(
        f"  ours in all: {size / spent:.2f} MB/s, {size / (spent - ours_alone):.2f} apart from SentencePiece, which "
        f"has {size / ours_alone:.2f}"
    )
    print_goal("build, all stages, times Google's MB/s", total / spent, 10)
    apart = (total - theirs["SentencePiece"]) / (spent - ours_alone)
    print_goal("build apart from SentencePiece, times Google's MB/s", apart, 10)


def _documents(files: list[str], size: float) -> Iterator[list[str]]:
    """Whole documents of the files in turn, until there are so many bytes."""
    share = size / len(files)
    for file in files:
        taken = 0
        lines: list[str] = []
        with open(file, encoding="utf-8") as text:
            for line in text:
                taken += len(line.encode())
                if line.strip():
                    lines.append(line.strip())
                elif lines:
                    yield lines
                    lines = []
                    if taken >= share:
                        break
        if lines:
            yield lines


def build_whole(files: list[str], arguments: argparse.Namespace) -> pathlib.Path:
    """Builds from everything with all cores."""
    out = arguments.work / "data"
    began = time.perf_counter()
    spent, memory, _ = build(
        "--source", arguments.text, "--vocab", arguments.vocab, "--out", str(out), "--overwrite", "--lines", "paragraph"
    )
    seconds = time.perf_counter() - began
    size = sum(os.path.getsize(file) for file in files) / 1e6
    print(f"build of {size:.0f} MB: {seconds:.1f} s, {size / seconds:.2f} MB/s, {size / spent:.2f} MB/s per CPU second")
    print_goal("memory of all processes", memory, 1500, "MB", at_least=False)
    return out


def size_on_disk(data: pathlib.Path) -> None:
    """Bytes a token, before and after the packing plans of one length are kept."""
    tokens = sum(TextStore(data, split).sentence_lengths.sum(dtype=np.int64) for split in ("train", "validation"))
    files = {path: path.stat().st_size for path in data.rglob("*") if path.is_file()}
    plans = sum(size for path, size in files.items() if "plans" in path.parts)
    data_set = sum(files.values()) - plans
    print(f"on disk: {data_set / tokens:.3f} bytes a token, and {plans / tokens:.3f} for the plans of a length")
    print_goal("bytes on disk a token, all told", sum(files.values()) / tokens, 2.2, at_least=False)


def grow(files: list[str], arguments: argparse.Namespace) -> None:
    """Builds from more and more text and prints the memory of each build."""
    peaks = []
    for gigabytes in arguments.grow:
        folder = arguments.work / "grown"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        size = number = 0
        while size < gigabytes * 1e9:
            for file in files:
                shutil.copyfile(file, folder / f"{number:04d}.txt")
                size, number = size + os.path.getsize(file), number + 1
        began = time.perf_counter()
        _, memory, _ = build(
            "--source",
            f"{folder}/*.txt",
            "--vocab",
            arguments.vocab,
            "--out",
            str(arguments.work / "grown-data"),
            "--overwrite",
            "--lines",
            "paragraph",
        )
        print(
            f"build of {size / 1e9:.2f} GB: {time.perf_counter() - began:.0f} s, {memory:.0f} MB of memory", flush=True
        )
        print_goal(f"memory of all processes at {size / 1e9:.1f} GB", memory, 1500, "MB", at_least=False)
        peaks.append(memory)
        shutil.rmtree(folder)
        shutil.rmtree(arguments.work / "grown-data")
    if len(peaks) > 1:
        print_goal("memory at the last size, times that at the first", peaks[-1] / peaks[0], 1.1, at_least=False)


def read_stream(data: pathlib.Path) -> None:
    """Speed of the stream at 512 slots, its padding and its start."""
    config = with_data(load_recipe(None, []), data)
    stream = open_data(config).train
    print(
        f"stream: S = {config.data.sequence_length}, P = {config.data.examples_per_row}, M = {config.masking.slots}: "
        f"{stream.describe()}"
    )
    starts = {}
    for step in (0, 1_000_000):
        fresh = open_data(config).train  # the plan is cached, the epoch's order is not
        began = time.perf_counter()
        fresh.batch(step * 256, 256)
        starts[step] = time.perf_counter() - began
    print(f"first batch of 256 rows: {starts[0] * 1e3:.0f} ms at step 0, {starts[1_000_000] * 1e3:.0f} ms at 1,000,000")
    print_goal("start at step 1,000,000, times the start at 0", starts[1_000_000] / starts[0], 1.25, at_least=False)
    for rows in (64, 256, 1024):
        tokens, position, began, wall = 0, 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - wall < STREAM_SECONDS:
            batch = stream.batch(position, rows)
            tokens, position = tokens + int(np.count_nonzero(batch.example_ids)), position + rows
        speed = tokens / (time.process_time() - began) / 1e6
        print_goal(f"stream, batches of {rows} rows, real tokens a CPU second", speed, 3.0, "M")
    whole = [stream.batch(start, 1024) for start in range(0, min(stream.rows, 20480), 1024)]
    used = sum(int(np.count_nonzero(batch.example_ids)) for batch in whole)
    slots = sum(batch.example_ids.size for batch in whole)
    print_goal("padding of 20,480 rows", 100 * (1 - used / slots), 3.0, "%", at_least=False)


def feed(data: pathlib.Path) -> None:
    """What one process that holds eight devices prepares for them: the loader as training uses it, default settings."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = make_mesh(DEVICES)
    (leg,) = make_legs(with_data(load_recipe(None, []), data), mesh)
    count = leg.rows_per_step
    rows = Rows(mesh, split_rows(count, DEVICES, ROWS_PER_DEVICE))

    def make(start: int) -> Batch:
        return made_rows(leg.data.train.batch, rows, start, count)

    starts = itertools.count(0, count)
    with contextlib.closing(Loader(make, starts, ahead=leg.config.data.prefetch)) as loader:
        batches = iter(loader)
        next(batches)  # the epoch's order is computed for it
        tokens, spent, began = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() - began < 3 * STREAM_SECONDS:
            tokens += int(np.count_nonzero(next(batches)[1].example_ids))
        seconds, cores = time.perf_counter() - began, time.process_time() - spent
    print(
        f"one process, batches of {count:,} rows, {leg.config.data.prefetch} threads: {cores / seconds:.2f} "
        f"cores busy, {tokens / cores / 1e6:.2f} M real tokens a CPU second"
    )
    print_goal(f"what one process feeds to {DEVICES} devices, real tokens a second", tokens / seconds / 1e6, 5.5, "M")


def plan(data: pathlib.Path) -> None:
    """Time and size of the packing plan, and what 16 GB of text would take in proportion."""
    store, vocabulary = TextStore(data, "train"), Vocabulary.load(data / "spiece.model")
    began = time.perf_counter()
    made = make_plan(store, vocabulary.starts_word, plan_settings(load_recipe(None, [])))
    seconds = time.perf_counter() - began
    text = int(read_manifest(data)["splits"]["train"]["text_bytes"])
    print(
        f"plan of {text / 1e6:.0f} MB of text: {seconds:.2f} s, {made.nbytes / 1e6:.1f} MB; "
        f"16 GB in proportion: {seconds * 16e9 / text:.0f} s, {made.nbytes * 16e9 / text / 1e6:.0f} MB"
    )


def main() -> None:
    """Runs everything."""
    arguments = parse()
    print_header(("numpy", *PACKAGES))
    files = sorted(glob.glob(arguments.text))
    if not files:
        raise SystemExit(f"error: no file matches --text {arguments.text!r}; quote the pattern and check it with ls.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    compare_algorithms(files, arguments)
    data = build_whole(files, arguments)
    read_stream(data)
    feed(data)
    size_on_disk(data)
    plan(data)
    grow(files, arguments)


if __name__ == "__main__":
    main()
