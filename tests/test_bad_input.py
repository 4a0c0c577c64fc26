# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a training command ends with one sentence on standard error and exit status 2."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from albert_jax.errors import UserError
from albert_jax.training.compatibility import flat
from tests.in_process import run, tiny
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
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.batch.size=2.5"],
            ["batch.size=2.5 is not a whole"],
        ),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.steps=1e400"], ["steps=1e400 is not a whole"]),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.seed=nan"], ["seed=nan is not a whole"]),
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

# Every field with a value that it cannot have, and what the refusal says beside the field's name.
WRONG: dict[str, tuple[Any, str]] = {
    "attention": ("flash", "auto, xla, cudnn"),
    "batch.rows_per_device": (-1, "at least 0"),
    "batch.size": (0, "at least 1"),
    "batch.unit": ("tokens", "'examples', 'rows'"),
    "batch.warmup_steps": (-1, "at least 0"),
    "checkpoint.every": (0, "at least 1, not 0; a number beyond the run's 12 steps leaves it to the last one"),
    "checkpoint.keep": (1, "at least 2"),
    "checkpoint.keep_period": (-1, "at least 0"),
    "checkpoint.minutes": (-1.0, "at least 0"),
    "data.examples_per_row": (0, "at least 1"),
    "data.phases": ("24", "SLOTS:UNTIL_STEP"),
    "data.prefetch": (0, "at least 1"),
    "data.recipe": ("bert", "'clean', 'google', 'baked'"),
    "data.sentence_order": ("nps", "'sop', 'sop_parity', 'nsp', 'none'"),
    "data.sequence_length": (64, "pass --config.model.max_position_embeddings=64, or a smaller"),
    "data.short_fraction": (1.5, "from 0 to 1"),
    "data.validation_path": ("x", "leave it away"),
    "data.vocab": ("x", "leave it away"),
    "dtype": ("float16", "float32, bfloat16"),
    "eval.every": (-1, "at least 0"),
    "eval.rows": (-1, "at least 0"),
    "guard.norm_factor": (0.5, "more than 1, or 0"),
    "guard.patience": (-1, "0"),
    "init_positions": ("repeat", "pass --config.init_from too"),
    "init_vocabulary": ("piece", "'by_piece'"),
    "log.every": (0, "at least 1, not 0; a number beyond the run's 12 steps leaves it to the last one"),
    "masking.corrupt_by": ("word", "'token', 'span'"),
    "masking.count": (-1, "at least 0"),
    "masking.max_ngram": (0, "at least 1"),
    "masking.rate": (1.5, "at most 1"),
    "masking.slots": (2, "pass --config.masking.slots=7"),
    "mesh.data": (0, "at least 1"),
    "mesh.fsdp": (-2, "at least 1"),
    "mesh.rules": ("heads:x", "LOGICAL:AXIS"),
    "mesh.tensor": (3, "does not divide model.num_attention_heads=2"),
    "model.attention_probs_dropout_prob": (1.0, "in [0, 1)"),
    "model.classifier_dropout_prob": (1.0, "in [0, 1)"),
    "model.embedding_size": (0, "at least 1"),
    "model.hidden_act": ("swish", "gelu, gelu_new, relu"),
    "model.hidden_dropout_prob": (1.5, "in [0, 1)"),
    "model.hidden_size": (33, "multiple of num_attention_heads"),
    "model.initializer_range": (-1.0, "at least 0"),
    "model.inner_group_num": (0, "at least 1"),
    "model.intermediate_size": (0, "at least 1"),
    "model.layer_norm_eps": (-1.0, "at least 0"),
    "model.max_position_embeddings": (0, "at least 1"),
    "model.num_attention_heads": (0, "at least 1"),
    "model.num_hidden_groups": (3, "must not exceed num_hidden_layers"),
    "model.num_hidden_layers": (0, "at least 1"),
    "model.shared_across_groups": ("all", "nothing, attention, ffn"),
    "model.tie_word_embeddings": (False, "tie_word_embeddings=False is not ALBERT"),
    "model.type_vocab_size": (1, "at least 2"),
    "model.vocab_size": (0, "at least 1"),
    "optimizer.b1": (1.0, "[0, 1)"),
    "optimizer.b2": (-0.1, "[0, 1)"),
    "optimizer.clip_norm": (0.0, "positive"),
    "optimizer.decay_power": (0.0, "positive"),
    "optimizer.eps": (0.0, "positive"),
    "optimizer.learning_rate": (float("nan"), "positive"),
    "optimizer.name": ("sgd", "'lamb' or 'adamw'"),
    "optimizer.warmup_steps": (12, "less than the run's 12 steps"),
    "optimizer.weight_decay": (float("inf"), "finite"),
    "profile.at": (-1, "at least 0"),
    "profile.steps": (0, "at least 1"),
    "remat": ("some", "dots_saveable"),
    "steps": (0, "at least 1"),
    "watchdog.seconds": (-1.0, "at least 0"),
}
# What may have any value, and what only the data, or what is named, can tell to be wrong.
ANYTHING = {
    *("seed", "masking.whole_word", "mesh.shard_optimizer", "watchdog.exit"),
    *("model.pad_token_id", "model.bos_token_id", "model.eos_token_id"),
    *("data.path", "data.weights", "branch_from", "init_from"),
}


def test_every_field_is_tried():
    assert WRONG.keys() | ANYTHING == flat(tiny(pathlib.Path("x")).to_dict()).keys() and not WRONG.keys() & ANYTHING


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_before_anything_is_opened_or_printed(name, tmp_path, capsys):
    value, remedy = WRONG[name]
    config = tiny(tmp_path / "no data", **{name: value})  # which would be refused too
    with pytest.raises(UserError) as refused:
        run(config, tmp_path / "w")
    sentence = str(refused.value)
    assert name.rpartition(".")[2] in sentence and remedy in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert capsys.readouterr().out == ""


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"data.path": ""}, ["--config.data.path"]),
    ({"data.path": "no/such/data"}, ["no/such/data", "pretrain_data build"]),
    ({"batch.size": 100_000}, ["rows", "100000", "batch.size"]),
    ({"attention": "cudnn"}, ["cudnn needs an NVIDIA GPU, not cpu"]),
    ({"model.vocab_size": 30000}, ["30000", f"--config.model.vocab_size={VOCABULARY}"]),
    ({"data.sequence_length": 4}, ["4", "8"]),
    ({"optimizer.warmup_steps": -1}, ["-1", "warmup_steps"]),
    ({"init_from": "no/such/run"}, ["init_from", "no/such/run"]),
    ({"init_from": "tests"}, ["init_from", "tests"]),
    ({"data.weights": "wiki=1"}, ["data.weights", "wiki"]),
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
