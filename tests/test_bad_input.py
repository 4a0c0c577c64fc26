# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a training command ends with one sentence on standard error and exit status 2."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from tests.runs import VOCABULARY, Finished, Runs, make_data, write_text

pytest_plugins = ["tests.runs"]


def assert_refused(finished: Finished, *parts: str) -> None:
    assert finished.status == 2, finished.err or finished.out
    assert finished.err.startswith("error: ") and finished.err.count("\n") == 1, finished.err
    assert "Traceback" not in finished.out
    for part in parts:
        assert part in finished.err, finished.err


# --- a fresh Python process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config=configs/quickstart.py"], ["--workdir"]),
        (["--workdir=w"], ["--config"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.batch.sise=3"], ["batch.sise", "batch.size"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.steps=many"], ["steps", "many"]),
        (["--config=configs/absent.py", "--workdir=w"], ["configs/absent.py"]),
    ],
)
def test_a_plain_command_is_refused_before_jax_is_loaded(runs: Runs, arguments, parts):
    assert_refused(runs.finish(runs.start(arguments)), *parts)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config=configs/quickstart.py", "--workdir="], ["--workdir"]),
        (["--config=configs/quickstart.py:v9", "--workdir=w"], ["v9"]),
        (["--config=configs/base.py:v9", "--workdir=w"], ["v9", "v1"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.data=3"], ["data"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.batch.size=2.5"], ["batch.size", "2.5"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--workdri=w"], ["workdri"]),
        (["--config=configs/quickstart.py", "--workdir=w", "more"], ["more"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.modle.hidden_size=3"], ["model.hidden_size"]),
        (["--config=LICENSE", "--workdir=w"], ["--config=LICENSE", "get_config"]),
        (["--config=tests/conftest.py", "--workdir=w"], ["--config=tests/conftest.py", "get_config"]),
    ],
)
def test_a_mistaken_flag_is_named(runs: Runs, arguments, parts):
    assert_refused(runs.train(arguments), *parts)


# --- fields -----------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"data.path": ""}, ["--config.data.path"]),
    ({"data.path": "no/such/data"}, ["no/such/data", "pretrain_data build"]),
    ({"batch.size": 100_000}, ["rows", "100000", "batch.size"]),
    ({"batch.size": 0}, ["0"]),
    ({"batch.unit": "tokens"}, ["'tokens'", "'rows'"]),
    ({"batch.rows_per_device": -1}, ["batch.rows_per_device", "-1"]),
    ({"attention": "flash"}, ["'flash'", "auto, xla, cudnn"]),
    ({"attention": "cudnn"}, ["cudnn needs an NVIDIA GPU, not cpu"]),
    ({"model.vocab_size": 30000}, ["30000", f"--config.model.vocab_size={VOCABULARY}"]),
    ({"data.sequence_length": 64}, ["64", "max_position_embeddings", "48"]),
    ({"data.sequence_length": 4}, ["4", "8"]),
    ({"optimizer.name": "sgd"}, ["'sgd'", "'lamb'"]),
    ({"dtype": "float16"}, ["'float16'", "bfloat16"]),
    ({"optimizer.warmup_steps": 12}, ["12", "warmup_steps"]),
    ({"optimizer.warmup_steps": -1}, ["-1", "warmup_steps"]),
    ({"steps": 0}, ["steps", "0"]),
    ({"model.hidden_size": 33}, ["33", "num_attention_heads"]),
    ({"model.hidden_act": "swish"}, ["'swish'", "gelu"]),
    ({"model.hidden_dropout_prob": 1.5}, ["hidden_dropout_prob", "1.5"]),
    ({"masking.rate": 1.5}, ["1.5"]),
    ({"masking.slots": 2}, ["masking.slots 2"]),
    ({"masking.max_ngram": 0}, ["max_ngram", "0"]),
    ({"mesh.data": 3}, ["mesh.data=3", "1"]),
    ({"mesh.data": 0}, ["mesh.data=0"]),
    ({"checkpoint.keep": 1}, ["checkpoint.keep", "1"]),
    ({"checkpoint.every": 0}, ["checkpoint.every", "0"]),
    ({"eval.every": 0}, ["eval.every", "0"]),
    ({"eval.rows": -1}, ["eval.rows", "-1"]),
    ({"log.every": 0}, ["log.every", "0"]),
    ({"data.prefetch": 0}, ["data.prefetch", "0"]),
    ({"optimizer.learning_rate": -1.0}, ["learning_rate", "-1"]),
    ({"optimizer.clip_norm": 0.0}, ["clip_norm", "0"]),
    ({"optimizer.b1": 1.0}, ["b1", "1.0"]),
    ({"init_from": "no/such/run"}, ["init_from", "no/such/run"]),
    ({"init_from": "tests"}, ["init_from", "tests"]),
]


@pytest.mark.parametrize(("fields", "parts"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_a_value_that_cannot_be_is_refused_by_name(runs: Runs, tmp_path, fields, parts):
    assert_refused(runs.train(runs.arguments(tmp_path / "w", fields)), *parts)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_workdir_that_cannot_be_written_is_named(runs: Runs, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "w", pathlib.Path("/proc/w")):
        assert_refused(runs.train(runs.arguments(workdir)), str(workdir))


def test_a_refused_first_start_leaves_a_workdir_that_the_corrected_command_may_use(runs: Runs, tmp_path):
    for name, value in {"optimizer.name": "sgd", "init_from": "no/such/run", "dtype": "float16"}.items():
        assert_refused(runs.train(runs.arguments(tmp_path / "w", {name: value})), value)
    assert runs.train(runs.arguments(tmp_path / "w")).status == 0


def test_a_damaged_data_set_is_named(runs: Runs, data, tmp_path):
    for file in ("manifest.json", "index/train.unigrams.npy", "spiece.model"):
        damaged = shutil.copytree(data, tmp_path / file.replace("/", "-"))
        (damaged / file).write_bytes(b"\x00 nonsense")
        finished = runs.train(runs.arguments(tmp_path / "w", {"data.path": damaged}))
        assert_refused(finished, str(damaged / file))


def test_a_data_set_without_a_file_is_named(runs: Runs, data, tmp_path):
    for pattern in ("manifest.json", "index/validation.sentence_lengths.npy", "spiece.model", "*train*array_record*"):
        partial = shutil.copytree(data, tmp_path / pattern.replace("/", "-").replace("*", "x"))
        next(partial.glob(pattern)).unlink()
        assert_refused(runs.train(runs.arguments(tmp_path / "w", {"data.path": partial})), str(partial))


def test_a_data_set_of_another_format_is_refused(runs: Runs, data, tmp_path):
    changed = shutil.copytree(data, tmp_path / "d")
    manifest = json.loads((changed / "manifest.json").read_text()) | {"format": 99}
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(runs.train(runs.arguments(tmp_path / "w", {"data.path": changed})), "99")


def test_a_vocabulary_whose_special_ids_differ_is_refused(runs: Runs, data, text, tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(tmp_path / "plain"), vocab_size=VOCABULARY, minloglevel=2
    )
    changed = shutil.copytree(data, tmp_path / "d")
    shutil.copyfile(tmp_path / "plain.model", changed / "spiece.model")
    assert_refused(runs.train(runs.arguments(tmp_path / "w", {"data.path": changed})), "'[MASK]'", "spiece.model")


def test_a_corpus_too_small_for_the_batch_is_refused(runs: Runs, vocabulary, tmp_path):
    small = make_data(write_text(tmp_path / "small.txt", slice(0, 6)), vocabulary, tmp_path / "small")
    finished = runs.train(runs.arguments(tmp_path / "w", {"data.path": small, "batch.size": 512}))
    assert_refused(finished, "fewer than the batch's 512", "lower batch.size")
