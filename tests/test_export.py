# SPDX-License-Identifier: Apache-2.0
"""A checkpoint becomes a directory that transformers loads, whole or not at all, and that answers the same to both."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import pathlib
import pydoc_data.topics
import re
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
import yaml
from flax import traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert.model_card import NOTHING_TOLD, Told, model_card
from albert_jax.model import FlaxAlbertForPreTraining
from albert_jax.tokenization import AlbertTokenizer
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.compatibility import FORMAT
from albert_jax.training.identity import versions
from albert_jax.training.recipe import pretraining
from albert_jax.training.sharding import make_mesh
from albert_jax.training.step import initial_parameters, initial_state
from scripts import export, fill_mask
from tests.runs import progress

FILES = ["README.md", "config.json", "model.safetensors", "spiece.model", "tokenizer.json", "tokenizer_config.json"]


ARCHITECTURE = AlbertConfig(
    vocab_size=600,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=48,
    initializer_range=0.3,
)


def make_workdir(workdir: pathlib.Path, architecture: AlbertConfig) -> pathlib.Path:
    """A training workdir with checkpoints of steps 0 and 7 and evaluations at steps 5 and 9; cased."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in pydoc_data.topics.topics.values() for line in text.splitlines()),
        model_writer=model,
        vocab_size=600,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    (workdir / "spiece.model").write_bytes(model.getvalue())
    config = pretraining(architecture)
    train = {"documents": 12, "sentences": 3456, "tokens": 78901}
    flags = {"size": 600, "do_lower_case": False, "keep_accents": True}
    identity = {
        "format": FORMAT,
        "config": config.to_dict(),
        "model": architecture.to_dict(),
        "data": {"vocabulary": flags, "splits": {"train": train}, "created_by": "albert_jax 9.8.7"},
        "data_fingerprint": "feedbeef" * 8,
        "vocabulary_sha256": hashlib.sha256(model.getvalue()).hexdigest(),
        "versions": versions(make_mesh(1)),
    }
    checkpoints = Checkpoints(workdir, 2, identity)
    state = initial_state(config, initial_parameters(config), make_mesh(1))
    for step in (0, 7):
        state = state._replace(step=jax.numpy.asarray(step), params=jax.tree.map(lambda x: x + 0.01, state.params))
        checkpoints.save(state, progress(step), block=True)
    checkpoints.close()
    lines = [
        {
            "step": step,
            "kind": "eval",
            "eval_mlm_loss": 6 + step / 100,
            "eval_mlm_count": 2048,
            "eval_sop_loss": 0.7,
            "eval_sop_count": 99,
        }
        for step in (5, 9)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "ki')
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """See `make_workdir`."""
    return make_workdir(tmp_path_factory.mktemp("run"), ARCHITECTURE)


@pytest.fixture(scope="module")
def exported(workdir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The newest checkpoint, exported."""
    out = tmp_path_factory.mktemp("out") / "model"
    assert export.main([f"--workdir={workdir}", f"--out={out}"]) == 0
    return out


# --- what is exported -------------------------------------------------------------------------------------------------


def test_the_export_is_complete_and_holds_the_checkpoints_bits_and_flags(
    workdir: pathlib.Path, exported: pathlib.Path
) -> None:
    assert sorted(file.name for file in exported.iterdir()) == FILES
    assert sorted(file.name for file in exported.parent.iterdir()) == ["model"]  # nothing temporary stays behind
    model, info = FlaxAlbertForPreTraining.from_pretrained(exported, output_loading_info=True)
    params, config = model.params, model.config
    assert not any(info.values()) and (config.hidden_size, config.initializer_range) == (32, 0.3)
    start = traverse_util.flatten_dict(initial_parameters(pretraining(config)), sep="/")
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        assert np.array_equal(value, start[path] + np.float32(0.01) + np.float32(0.01)), path
    tokenizer = AlbertTokenizer.from_pretrained(exported)
    assert (tokenizer.do_lower_case, tokenizer.keep_accents) == (False, True)
    assert (exported / "spiece.model").read_bytes() == (workdir / "spiece.model").read_bytes()


def test_what_groups_share_is_exported_as_copies_on_demand_only(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    shared = dataclasses.replace(ARCHITECTURE, num_hidden_groups=2, shared_across_groups="attention")
    arguments = [f"--workdir={make_workdir(tmp_path / 'run', shared)}", f"--out={tmp_path / 'out'}"]
    assert export.main(arguments) == 2
    assert "cannot share the attention weights across groups" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export.main([*arguments, "--unshare"]) == 0
    model = FlaxAlbertForPreTraining.from_pretrained(tmp_path / "out")
    assert (model.config.num_hidden_groups, model.config.shared_across_groups) == (2, "nothing")
    first, second = (g["albert_layers"]["0"] for g in model.params["albert"]["encoder"]["albert_layer_groups"].values())
    for name, same in (("attention", True), ("ffn", False)):
        pairs = zip(jax.tree.leaves(first[name]), jax.tree.leaves(second[name]), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == same


def test_the_card_states_what_the_model_was_trained_on_and_how_well(exported: pathlib.Path) -> None:
    card = (exported / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {
        "library_name": "transformers", "pipeline_tag": "fill-mask", "mask_token": "[MASK]", "tags": ["albert"],
        "license": "unknown",
    }  # fmt: skip
    facts = {
        "parameters": f"{AlbertConfig.from_pretrained(exported).pretraining_parameters():,}",
        "optimizer steps": "7 of 125,000",
        "objective": "masked words and sentence order; label 1: swapped",
        "masking": "15% of the tokens, in spans of 1 to 3 words",
        "optimizer": "lamb, learning rate 0.00176 after 3,125 steps of warm-up, then decay of power 1; weight decay "
        "0.01; seed 0",
        "batch": "4,096 examples of 512 slots",
        "language": "unknown",
        "licence": "unknown",
        "rows of the stream consumed": "56",
        "training text": "12 documents, 3,456 sentences, 78,901 tokens",
        "training text fingerprint": f"`{'feedbeef' * 8}`",
        "vocabulary": "600 pieces, do_lower_case=False, keep_accents=True",
        "vocabulary SHA-256": f"`{hashlib.sha256((exported / 'spiece.model').read_bytes()).hexdigest()}`",
        "data set built by": "albert_jax 9.8.7",
        "mlm loss": "6.0500",  # of step 5: the evaluation at 9 is not of this checkpoint
        "mlm count": "2,048",
        "jax": jax.__version__,
    }
    for name, value in facts.items():
        assert f"| {name} | {value} |" in card
    assert "At step 5." in card
    resolved = json.loads(card.split("```json\n")[1].split("```")[0])
    assert resolved["optimizer"]["name"] == "lamb" and resolved["model"]["hidden_size"] == 32


def card_of(records: list[dict[str, Any]], fields: dict[str, str], told: Told = NOTHING_TOLD) -> str:
    """The card of a run with some fields changed."""
    config = pretraining(ARCHITECTURE)
    config.update_from_flattened_dict(fields)
    train = {"documents": 12, "sentences": 3456, "tokens": 78901}
    meta = {
        "config": config.to_dict(), "model": ARCHITECTURE.to_dict(), "step": 7, "position": 56,
        "versions": {"jax": "1"},
        "data": {"vocabulary": {"size": 600, "do_lower_case": True, "keep_accents": False}, "splits": {"train": train}},
        "data_fingerprint": "f", "vocabulary_sha256": "v",
    }  # fmt: skip
    return model_card("model", meta, records, "1.0", told)


UNCOUNTED = {"eval_sop_loss": 0.0, "eval_sop_accuracy": 0.0, "eval_sop_low": 0.0, "eval_sop_high": 1.0}


@pytest.mark.parametrize("count", [{"eval_sop_count": 0}, {}])
@pytest.mark.parametrize("order", ["sop", "sop_parity", "nsp", "none"])
def test_a_card_says_nothing_of_pairs_where_none_had_a_label(order: str, count: dict[str, int]) -> None:
    trained = {"step": 5, "kind": "train", "mlm_loss": 6.0, "sop_loss": 0.0}
    evaluated = {"step": 5, "kind": "eval", "eval_mlm_loss": 6.5, "eval_mlm_count": 9} | UNCOUNTED | count
    card = card_of([trained, evaluated], {"data.sentence_order": order})
    told = card.split("## Configuration")[0].lower()
    assert not re.search("sop|nsp|sentence order|next sentence|swapped|label 1", told), told
    assert "| mlm loss | 6.5000 |" in card and "were not trained by this run" in card


@pytest.mark.parametrize(
    ("order", "objective", "label"),
    [
        ("sop", "masked words and sentence order", "swapped"),
        ("sop_parity", "masked words and sentence order", "swapped, or B from another document"),
        ("nsp", "masked words and next sentences", "B from another document"),
    ],
)
def test_a_card_names_pairs_as_they_were_trained(order: str, objective: str, label: str) -> None:
    evaluated = {"step": 5, "kind": "eval", "eval_sop_loss": 0.5, "eval_sop_low": 0.25, "eval_sop_count": 9}
    card = card_of([evaluated], {"data.sentence_order": order})
    name = "nsp" if order == "nsp" else "sop"
    assert f"on {objective} with" in card and f"| objective | {objective}; label 1: {label} |" in card
    assert f'class 1 "{label}"' in card and f"| {name} loss | 0.5000 |" in card
    assert ("swapped" in card) == (order != "nsp")


def test_a_card_says_what_whoever_exports_knows_and_where_nothing_lay() -> None:
    places = ["/home/me/data", "/home/me/v.model", "/home/me/old@7", "/home/me/base"]
    fields = dict(zip(["data.path", "data.vocab", "branch_from", "init_from"], places, strict=True))
    card = card_of([], fields, Told(["tr", "en"], "cc-by-4.0", "Bir [MASK] 'var'."))
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["language"] == ["tr", "en"] and facts["license"] == "cc-by-4.0"
    assert facts["widget"] == [{"text": "Bir [MASK] 'var'."}]
    assert "/home" not in card and "| started from | `base` |" in card
    assert "text = \"Bir [MASK] 'var'.\"" in card and "The sum" not in card


def test_transformers_auto_classes_load_the_export_and_truncate_to_its_positions(exported: pathlib.Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, info = transformers.AutoModelForPreTraining.from_pretrained(exported, output_loading_info=True)
    assert type(model).__name__ == "AlbertForPreTraining"
    assert {key: list(value) for key, value in info.items() if value} == {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    encoded = tokenizer("Of many Words and Étés " * 50, truncation=True, return_tensors="pt")
    assert encoded["input_ids"].shape == (1, 48)
    assert model(**encoded).prediction_logits.shape == (1, 48, 600)


def test_an_earlier_step_is_exported_on_demand(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model'}", "--step=0"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| optimizer steps | 0 of 125,000 |" in card
    assert "no evaluation at or before" in card


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which export.py refuses."""
    assert export.main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


@pytest.mark.parametrize("flag", ["--language=Turkish", "--licence=Apache 2"])
def test_what_the_hub_would_refuse_in_a_card_is_refused_before(
    flag: str, workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag.split("=")[1] in refusal([f"--workdir={workdir}", f"--out={tmp_path / 'out'}", flag], capsys)


def test_only_an_earlier_export_is_ever_replaced(
    workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    command = [f"--workdir={workdir}", f"--out={out}"]
    assert export.main(command) == 0  # an empty directory is as good as none
    (out / "stale.txt").write_text("of the export before")
    assert "--overwrite" in refusal(command, capsys)
    assert (out / "stale.txt").exists()
    assert export.main([*command, "--overwrite"]) == 0
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
    for precious in (workdir, workdir.parent):
        assert "not an earlier export" in refusal([f"--workdir={workdir}", f"--out={precious}", "--overwrite"], capsys)
    assert (workdir / "checkpoints").is_dir()
    shutil.copytree(workdir, out / "run")
    assert "not an earlier export" in refusal([f"--workdir={out / 'run'}", f"--out={out}", "--overwrite"], capsys)


def test_a_failing_export_leaves_nothing_behind_and_keeps_what_was_there(
    workdir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    command = [f"--workdir={workdir}", f"--out={out}"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AlbertTokenizer, "save_pretrained", full)
        assert "No space left on device" in refusal(command, capsys)
        assert list(tmp_path.iterdir()) == []
    assert export.main(command) == 0
    before = (out / "README.md").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(AlbertTokenizer, "save_pretrained", full)
        refusal([*command, "--overwrite"], capsys)
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert (out / "README.md").stat().st_mtime_ns == before


def test_a_missing_run_step_or_the_wrong_vocabulary_is_refused(
    workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"--out={tmp_path / 'model'}"
    assert "no-such-run" in refusal([f"--workdir={tmp_path / 'no-such-run'}", out], capsys)
    assert "3" in refusal([f"--workdir={workdir}", out, "--step=3"], capsys)
    file = workdir / "spiece.model"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole + b"\x0a\x05\x0a\x03new")  # one more piece
        assert hashlib.sha256(whole).hexdigest()[:12] in refusal([f"--workdir={workdir}", out], capsys)
    finally:
        file.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []


# --- fill_mask.py -----------------------------------------------------------------------------------------------------

TEXT = "The [MASK] of a class, and [MASK]."


def needs_both() -> None:
    """Skips where transformers' answers cannot be had."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def test_both_loaders_give_every_mask_the_same_answers(exported: pathlib.Path) -> None:
    needs_both()
    ours, theirs = fill_mask.ours(exported, TEXT, 600), fill_mask.theirs(exported, TEXT, 600)
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert [token for token, _ in mine[:5]] == [token for token, _ in other[:5]]
        a, b = dict(mine), dict(other)
        assert a.keys() == b.keys() and abs(sum(a.values()) - 1) < 1e-9
        assert max(abs(a[token] - b[token]) for token in a) < 1e-6


def test_fill_mask_prints_both_side_by_side(exported: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_both()
    assert fill_mask.main([str(exported), TEXT, "--top=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [n for n, line in enumerate(lines) if line.split() == ["albert_jax", "transformers"]]
    assert len(headings) == 2
    for n in headings:
        for line in lines[n + 1 : n + 4]:
            p, token, q, other = line.split()
            assert (p, token) == (q, other)


def test_fill_mask_fails_where_the_two_disagree(
    exported: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fill_mask, "_missing_packages", list)
    monkeypatch.setattr(fill_mask, "theirs", lambda *_: [[("▁nonsense", 1.0)]] * 2)
    assert fill_mask.main([str(exported), TEXT, "--top=1"]) == 1
    assert "disagree" in capsys.readouterr().out


def test_fill_mask_answers_alone_and_says_so_where_transformers_is_missing(
    exported: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fill_mask, "_missing_packages", lambda: ["torch"])
    assert fill_mask.main([str(exported), TEXT]) == 0
    output = capsys.readouterr().out
    assert "torch not installed" in output and output.count("albert_jax") == 2


@pytest.mark.parametrize(
    ("arguments", "says"), [(["no mask here"], r"[MASK]"), ([TEXT * 9], "48"), ([TEXT, "--top=0"], "--top")]
)
def test_fill_mask_refuses_bad_input_with_a_sentence(
    arguments: list[str], says: str, exported: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fill_mask.main([str(exported), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error
