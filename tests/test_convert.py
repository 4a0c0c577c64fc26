# SPDX-License-Identifier: Apache-2.0
"""scripts/convert.py: Google's checkpoints to Hugging Face and back, compared; bad inputs leave nothing behind."""

import json
import pathlib
import re
import shutil
import tarfile
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

import albert_jax
from albert_jax.convert.google import save_google_checkpoint
from albert_jax.convert.tensor_bundle import TensorBundle, write_tensor_bundle
from albert_jax.tokenization import AlbertTokenizer
from scripts import convert
from tests.architectures import config, model, torch_class
from tests.tokenizer_samples import spiece

PIECES = 1500  # of the vocabulary of the samples


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A spiece.model."""
    file = spiece(tmp_path_factory.mktemp("vocabulary"))
    assert AlbertTokenizer(file).vocab_size == PIECES
    return file


def google(
    directory: pathlib.Path, vocabulary: pathlib.Path, head: str = "FlaxAlbertForPreTraining", **shape: Any
) -> Any:
    """A directory as Google released them, and its parameters by path."""
    ours, params = model(head, config("three groups", **({"vocab_size": PIECES} | shape)))
    flat = traverse_util.flatten_dict(params, sep="/")
    h = ours.config.hidden_size  # Google's code has a pooler under every head
    flat = {"albert/pooler/kernel": np.eye(h, dtype=np.float32), "albert/pooler/bias": np.ones(h, np.float32)} | flat
    save_google_checkpoint(directory, flat, ours.config)
    shutil.copy(vocabulary, directory / "30k-clean.model")
    return flat


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command."""
    status = convert.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def differences(out: str) -> dict[str, float]:
    """What the command says that it compared."""
    lines = [line.removeprefix("largest difference of ") for line in out.splitlines() if line.startswith("largest")]
    return {line.split(":")[0]: float(line.split(":")[1].split()[0]) for line in lines}


def test_googles_checkpoint_goes_to_hugging_face_and_back_with_every_bit(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_class("AlbertForPreTraining")
    flat = google(tmp_path / "google", vocabulary)
    status, out, _ = run(capsys, tmp_path / "google", tmp_path / "hub")
    assert status == 0 and "AlbertForPreTraining" in out
    told = differences(out)
    assert told[f"{len(flat)} parameters"] == 0
    for name in ("prediction_logits", "sop_logits", "hidden_states"):
        assert told[f"{name} in albert_jax"] == 0 and told[f"{name} in transformers"] < 1e-5
    files = sorted(file.name for file in (tmp_path / "hub").iterdir())
    assert files == ["config.json", "model.safetensors", "spiece.model", "tokenizer.json", "tokenizer_config.json"]
    loaded = traverse_util.flatten_dict(
        albert_jax.FlaxAlbertForPreTraining.from_pretrained(tmp_path / "hub").params, sep="/"
    )
    assert loaded.keys() == flat.keys() and all(np.array_equal(loaded[path], flat[path]) for path in flat)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["net_structure_type"] == 0  # kept, though dead
    assert (tmp_path / "hub" / "spiece.model").read_bytes() == vocabulary.read_bytes()

    assert run(capsys, tmp_path / "hub", tmp_path / "back", "--to", "google")[0] == 0
    first, second = (TensorBundle(tmp_path / name / "model.ckpt-best") for name in ("google", "back"))
    assert first.names == second.names
    assert all(np.array_equal(first.read(name), second.read(name)) for name in first.names)
    old, new = (json.loads((tmp_path / name / "albert_config.json").read_text()) for name in ("google", "back"))
    assert old == new
    assert run(capsys, tmp_path / "back", tmp_path / "again")[0] == 0
    for name in ("model.safetensors", "config.json", "spiece.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hub" / name).read_bytes(), name


def test_a_release_archive_is_read_as_it_is(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    google(tmp_path / "albert_tiny", vocabulary)
    with tarfile.open(tmp_path / "albert_tiny.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "albert_tiny", "albert_tiny")
    assert run(capsys, tmp_path / "albert_tiny.tar.gz", tmp_path / "a")[0] == 0
    assert run(capsys, tmp_path / "albert_tiny", tmp_path / "b")[0] == 0
    for name in ("model.safetensors", "config.json", "spiece.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_hub_module_becomes_a_masked_lm_that_keeps_its_pooler(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = google(tmp_path / "google", vocabulary)
    bundle = TensorBundle(tmp_path / "google" / "model.ckpt-best")
    module = tmp_path / "module"
    (module / "variables").mkdir(parents=True)
    (module / "assets").mkdir()
    shutil.copy(vocabulary, module / "assets" / "30k-clean.model")
    kept = [name for name in bundle.names if "seq_relationship" not in name]
    write_tensor_bundle(module / "variables" / "variables", {f"module/{name}": bundle.read(name) for name in kept})
    settings = tmp_path / "google" / "albert_config.json"
    status, out, _ = run(capsys, module, tmp_path / "hub", "--config", settings)
    assert status == 0 and "AlbertForMaskedLM" in out
    tensors = load_file(tmp_path / "hub" / "model.safetensors")
    assert np.array_equal(tensors["albert.pooler.weight"].T, flat["albert/pooler/kernel"])
    assert not any("sop_classifier" in name for name in tensors)
    ours = albert_jax.FlaxAlbertForSequenceClassification.from_pretrained(tmp_path / "hub")
    assert np.array_equal(ours.params["albert"]["pooler"]["kernel"], flat["albert/pooler/kernel"])


@pytest.mark.parametrize(
    ("head", "arguments"),
    [
        ("FlaxAlbertForSequenceClassification", []),
        ("FlaxAlbertForMultipleChoice", ["--architecture", "AlbertForMultipleChoice"]),
        ("FlaxAlbertForQuestionAnswering", []),
    ],
)
def test_fine_tuned_heads_find_their_class(
    head: str,
    arguments: list[str],
    vocabulary: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = {"num_labels": 3} if "Sequence" in head else {}
    google(tmp_path / "google", vocabulary, head, **shape)
    status, out, err = run(capsys, tmp_path / "google", tmp_path / "hub", *arguments)
    assert status == 0, err
    assert head.removeprefix("Flax") in out and "NOT THE SAME" not in out
    values = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert values["architectures"] == [head.removeprefix("Flax")]


def test_an_embedding_as_wide_as_hidden_gets_an_exact_mapping_and_loses_it_again(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, params = model("FlaxAlbertForPreTraining", config("embedding as wide as hidden", vocab_size=PIECES))
    flat = traverse_util.flatten_dict(params, sep="/")
    mapping = "albert/encoder/embedding_hidden_mapping_in"
    flat |= {f"{mapping}/kernel": np.eye(48, dtype=np.float32), f"{mapping}/bias": np.zeros(48, np.float32)}
    save_google_checkpoint(tmp_path / "google", flat, ours.config)
    names = TensorBundle(tmp_path / "google" / "model.ckpt-best").names
    assert not any("mapping_in" in name for name in names)
    assert run(capsys, tmp_path / "google", tmp_path / "hub")[0] == 0
    assert run(capsys, tmp_path / "hub", tmp_path / "back", "--to", "google")[0] == 0
    assert TensorBundle(tmp_path / "back" / "model.ckpt-best").names == names


def test_old_files_of_weights_become_safetensors(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = torch_class("AlbertForMaskedLM")
    import torch

    shape = config().to_hub_dict("AlbertForMaskedLM", "float32")
    state = theirs(torch_class("AlbertConfig")(**shape)).state_dict()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(shape))
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    status, out, _ = run(capsys, tmp_path / "old", tmp_path / "new")
    assert status == 0 and "no vocabulary lies in" in out
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert (
        all(np.array_equal(tensors[name], state[name].numpy()) for name in tensors) and len(tensors) == len(state) - 2
    )


def test_a_difference_is_printed_and_is_the_exit_status(
    vocabulary: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    google(tmp_path / "google", vocabulary)
    save = convert.save_checkpoint

    def spoiled(directory: Any, params: Any, *rest: Any) -> Any:
        bias = params["predictions/bias"].copy()
        bias[7] += 0.25
        return save(directory, params | {"predictions/bias": bias}, *rest)

    monkeypatch.setattr(convert, "save_checkpoint", spoiled)
    status, out, _ = run(capsys, tmp_path / "google", tmp_path / "hub")
    assert status == 1 and "parameters: 2.5e-01 (NOT THE SAME)" in out
    assert "prediction_logits in albert_jax" in out and "sop_logits in albert_jax: 0.0e+00 (same)" in out


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("large vocabulary", "has 1500 pieces, but the model's embedding has 1400 rows"),
        ("taken", "exists and is not an empty directory"),
        ("nothing", "there is no TensorFlow checkpoint"),
        ("class", "no class 'AlbertForDinner'"),
        ("head", r"lacks 2 parameters of AlbertForQuestionAnswering, such as qa_outputs"),
        ("cut", "copy or download it again"),
        ("exact gelu", "Google's code has only its tanh approximation"),
    ],
)
def test_a_bad_input_is_refused_with_a_sentence_and_leaves_nothing_behind(
    case: str, sentence: str, vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "google", tmp_path / "out"
    arguments: list[str] = []
    if case == "exact gelu":
        ours, params = model("FlaxAlbertForMaskedLM", config("exact gelu"))
        ours.save_pretrained(source, params)
        arguments = ["--to", "google"]
    elif case != "nothing":
        google(source, vocabulary, vocab_size=1400 if case == "large vocabulary" else PIECES)
    else:
        source.mkdir()
    if case == "taken":
        out.mkdir()
        (out / "mine").write_text("precious")
    if case in ("class", "head"):
        arguments = ["--architecture", "AlbertForDinner" if case == "class" else "AlbertForQuestionAnswering"]
    if case == "cut":
        data = next(source.glob("*.data-*"))
        data.write_bytes(data.read_bytes()[:-1000])
    before = sorted(path.name for path in tmp_path.iterdir())
    status, _, err = run(capsys, source, out, *arguments)
    assert status == 2 and err.startswith("error: ") and len(err.splitlines()) == 1
    assert re.search(sentence, err), err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_table_that_is_padded_beyond_the_vocabulary_keeps_its_rows_which_are_counted(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    google(tmp_path / "google", vocabulary, vocab_size=PIECES + 36)
    status, out, _ = run(capsys, tmp_path / "google", tmp_path / "hub")
    assert status == 0 and "note: the embedding has 36 rows beyond the vocabulary's 1500 pieces; they are kept" in out
    found = albert_jax.FlaxAlbertForPreTraining.from_pretrained(tmp_path / "hub")
    assert found.config.vocab_size == PIECES + 36


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_vocabulary_of_word_pieces_it_is_said_what_reads_it(
    packed: bool, vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    google(tmp_path / "zh", vocabulary)
    (tmp_path / "zh" / "30k-clean.model").unlink()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "的", "一"]
    (tmp_path / "zh" / "vocab_chinese.txt").write_text("\n".join(pieces), encoding="utf-8")
    source = tmp_path / "zh"
    if packed:
        source = tmp_path / "zh.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(tmp_path / "zh", "zh")
    status, out, _ = run(capsys, source, tmp_path / "hub")
    assert status == 0 and "spiece.model" not in out
    assert "note: vocab_chinese.txt is a BERT vocabulary of word pieces" in out
    assert f"copy it to {tmp_path / 'hub' / 'vocab.txt'} for transformers' BertTokenizer." in out
    shutil.copy(tmp_path / "zh" / "vocab_chinese.txt", tmp_path / "hub" / "vocab.txt")
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path / "hub")
    assert theirs("一的").input_ids == [2, 6, 5, 3]


def test_googles_rules_for_text_travel_with_the_vocabulary(
    vocabulary: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    google(tmp_path / "released", vocabulary)
    for rules in ("google", "huggingface"):
        assert run(capsys, tmp_path / "released", tmp_path / rules, "--cleaning", rules)[0] == 0
        assert AlbertTokenizer.from_pretrained(tmp_path / rules).cleaning == rules
    text = "``so'' it is"
    ids = [AlbertTokenizer.from_pretrained(tmp_path / rules).encode(text) for rules in ("google", "huggingface")]
    assert ids[0] != ids[1]
