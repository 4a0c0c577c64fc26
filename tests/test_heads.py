# SPDX-License-Identifier: Apache-2.0
"""Every head computes, on every architecture, what transformers' torch class computes from the files that we save."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import tensor_name, turned
from albert_jax.errors import UserError
from tests.architectures import ARCHITECTURES, HEADS, config, inputs_and_labels, model, torch_class

# What moves all scores of a softmax alike has the gradient zero but for rounding, which is held to that of a neighbour.
ZERO_GRADIENTS = {"attention/key/bias": "attention/query/bias", "qa_outputs/bias": "qa_outputs/kernel"}
HALVES = (slice(0, 1), slice(1, 4))


def classes(head: str) -> dict[str, int]:
    """Three classes for the classifiers."""
    return {"num_labels": 3} if head.endswith(("SequenceClassification", "TokenClassification")) else {}


def in_torch(head: str, ours: Any, params: Any, directory: pathlib.Path) -> Any:
    """transformers' model, loaded from what ours saves; it must find all that it looks for and nothing else."""
    ours.save_pretrained(directory, params)
    theirs = torch_class(head.removeprefix("Flax"))
    loaded, info = theirs.from_pretrained(directory, attn_implementation="eager", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return loaded.eval()


def scalar(output: Any) -> Any:
    """The loss, or for the bare encoder a number that depends on all of its output."""
    if "loss" in output:
        return output["loss"]
    last = output["last_hidden_state"]
    return last[:, ::2, ::3].sum() - last[:, 1:, 1::5].sum() + (output["pooler_output"] ** 3).sum()


# Encoders do not know their heads: the default suite tries all of them under two, `-m ''` under each. The exact gelu is
# transformers' for version 1's models; one head that has it twice stands for all.
PAIRS = [
    pytest.param(
        head, name, marks=[] if name == "like base" or head.endswith(("MaskedLM", "PreTraining")) else pytest.mark.slow
    )
    for head in HEADS
    for name in ARCHITECTURES
    if name != "exact gelu" or head.endswith("MaskedLM")
]


@pytest.mark.parametrize(("head", "name"), PAIRS)
def test_outputs_losses_and_gradients_are_those_of_torch(head: str, name: str, tmp_path: pathlib.Path) -> None:
    shape = config(name, **classes(head))
    ours, params = model(head, shape)
    theirs = in_torch(head, ours, params, tmp_path)
    import torch

    inputs, labels = inputs_and_labels(head, shape)
    flags = {"output_hidden_states": True, "output_attentions": True}
    wanted = theirs(**{k: torch.tensor(v) for k, v in (inputs | labels).items()}, **flags)
    scalar(wanted).backward()

    def differentiate(params: Any) -> tuple[jax.Array, Any]:
        output = ours(**inputs, **labels, params=params, **flags)
        return scalar(output), output

    (_, got), gradient = jax.jit(jax.value_and_grad(differentiate, has_aux=True))(params)
    check_outputs(got, wanted, shape)
    check_gradients(gradient, theirs)


def check_outputs(got: Any, wanted: Any, shape: AlbertConfig) -> None:
    """All outputs within 1e-5, under the same names and as many."""
    depth = shape.num_hidden_layers * shape.inner_group_num
    assert got.keys() == list(wanted.keys())
    assert (len(got.hidden_states), len(got.attentions)) == (depth + 1, depth)
    for key in got:
        ours, theirs = (x[key] if isinstance(x[key], tuple) else (x[key],) for x in (got, wanted))
        assert len(ours) == len(theirs)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-5, rtol=0, err_msg=f"{key} {i}")
    assert np.abs(got.to_tuple()[-3]).max() > 0.1  # otherwise a small difference would mean nothing


def check_gradients(gradient: Any, theirs: Any) -> None:
    """Each tensor's gradient within 1e-4 of its largest entry."""
    named = dict(theirs.named_parameters())
    flat = traverse_util.flatten_dict(gradient, sep="/")
    choice = {"classifier/bias": "classifier/kernel"} if flat.get("classifier/bias", np.zeros(2)).size == 1 else {}
    assert {tensor_name(path) for path in flat} == named.keys()
    for path, ours in flat.items():
        wanted = turned(path, named[tensor_name(path)].grad.numpy())
        neighbour = path
        for zero, other in (ZERO_GRADIENTS | choice).items():
            neighbour = path.replace(zero, other) if path.endswith(zero) else neighbour
        largest = np.abs(named[tensor_name(neighbour)].grad.numpy()).max()
        np.testing.assert_allclose(ours, wanted, atol=1e-4 * largest, rtol=0, err_msg=path)


@pytest.mark.parametrize("head", HEADS)
def test_masks_types_and_positions_left_out_mean_what_they_mean_in_torch(head: str, tmp_path: pathlib.Path) -> None:
    ours, params = model(head, config())
    theirs = in_torch(head, ours, params, tmp_path)
    import torch

    ids = inputs_and_labels(head, config())[0]["input_ids"]
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids), return_dict=False)
    got = ours(ids, params=params, return_dict=False)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"num_labels": 1}, np.array([0.5, -1.0, 2.0, 0.0], np.float32)),
        ({"num_labels": 1}, np.array([[0.5], [-1.0], [2.0], [0.0]], np.float32)),
        ({"num_labels": 3}, np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.float32)),
        ({"num_labels": 3, "problem_type": "regression"}, np.arange(12, dtype=np.float32).reshape(4, 3) / 6),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, np.array([2, 0, 1, -100])),
    ],
    ids=["one number", "one number in a column", "several labels", "three numbers", "one of three"],
)
def test_the_sequence_classifiers_loss_is_chosen_as_in_torch(
    changes: dict[str, Any], labels: np.ndarray, tmp_path: pathlib.Path
) -> None:
    head = "FlaxAlbertForSequenceClassification"
    ours, params = model(head, config(**changes))
    theirs = in_torch(head, ours, params, tmp_path)
    import torch

    inputs, _ = inputs_and_labels(head, config())
    wanted = theirs(**{k: torch.tensor(v) for k, v in (inputs | {"labels": labels}).items()})
    wanted.loss.backward()
    differentiate = jax.value_and_grad(lambda params: ours(**inputs, labels=labels, params=params).loss)
    loss, gradient = jax.jit(differentiate)(params)
    np.testing.assert_allclose(loss, wanted.loss.detach().numpy(), rtol=1e-5)
    check_gradients(gradient, theirs)


def test_a_loss_without_labels_is_none_and_without_counted_labels_nan_within_jit_as_in_torch() -> None:
    ours, params = model("FlaxAlbertForMaskedLM", config())
    ids = np.full((1, 8), 7)
    assert ours(ids, params=params).loss is None
    loss = jax.jit(lambda labels: ours(ids, params=params, labels=labels).loss)
    assert jnp.isnan(loss(np.full((1, 8), -100)))


ROWS = {"input_ids": [[5, 6, 7], [7, 6, 5]]}


@pytest.mark.parametrize(
    ("head", "changes", "labels", "sentence"),
    [
        ("SequenceClassification", {}, [0, 5], "labels holds 5; the classes are 0 to 1, and -100 where"),
        ("SequenceClassification", {}, jnp.array([0, 5]), "labels holds 5; the classes are 0 to 1"),
        ("SequenceClassification", {}, [-1, 0], "labels holds -1; the classes"),
        (
            "SequenceClassification",
            {},
            [0.0, 1.0],
            r"shape \(2,\); multi label .* shape \(2, 2\): give these, or integers",
        ),
        ("SequenceClassification", {}, ["no", "yes"], "labels holds 'no'; give numbers: config.label2id"),
        ("SequenceClassification", {}, [[0], [1]], r"labels has shape \(2, 1\); give integers of shape \(2,\)"),
        ("SequenceClassification", {}, [0], r"labels has shape \(1,\); give integers of shape \(2,\)"),
        ("SequenceClassification", {}, [-100, -100], "labels is -100 everywhere"),
        ("SequenceClassification", {}, [[0.5, 2.0], [0, 1]], "labels holds 2.0; several classes at once are numbers"),
        ("SequenceClassification", {}, [[0], [0, 1]], "labels has rows of different lengths"),
        ("SequenceClassification", {"num_labels": 1}, [1.0, float("nan")], "labels holds nan; leave out rows"),
        (
            "SequenceClassification",
            {"num_labels": 1},
            [1.0],
            r"regression with num_labels 1 has numbers of .* \(2, 1\)",
        ),
        (
            *("SequenceClassification", {"problem_type": "single_label_classification"}, [0.0, 1.0]),
            r"labels has dtype float64; give integers of shape \(2,\)",
        ),
        ("TokenClassification", {}, [[0, 1, -100], [0, 2, 1]], "labels holds 2; the classes are 0 to 1"),
        ("TokenClassification", {}, [[0, 1], [0, 1]], r"labels has shape \(2, 2\); give integers of shape \(2, 3\)"),
        ("MaskedLM", {}, [[0, 96, -100], [0, 2, 1]], "labels holds 96; the classes are 0 to 95"),
        ("MaskedLM", {}, np.full((2, 3), -100), "labels is -100 everywhere"),
        ("MultipleChoice", {}, [2], "labels holds 2; the classes are 0 to 1"),
        ("QuestionAnswering", {}, {"start_positions": [0, -1], "end_positions": [1, 1]}, "start_positions holds -1"),
        (
            "QuestionAnswering",
            {},
            {"start_positions": [0, 1]},
            "start_positions and end_positions make a loss together",
        ),
        (
            "QuestionAnswering",
            {},
            {"start_positions": [0, 1], "end_positions": [1.0, 1]},
            "end_positions has dtype float",
        ),
        (
            "PreTraining",
            {},
            {"labels": [[1, 2, 3]] * 2, "sentence_order_label": [0, 2]},
            "sentence_order_label holds 2",
        ),
    ],
)
def test_labels_that_have_no_loss_are_refused_with_a_sentence(
    head: str, changes: dict[str, Any], labels: Any, sentence: str
) -> None:
    ours, params = model(f"FlaxAlbertFor{head}", config(**changes))
    rows = ROWS if head != "MultipleChoice" else {"input_ids": [ROWS["input_ids"]]}
    with pytest.raises(UserError, match=sentence):
        ours(**rows, **(labels if isinstance(labels, dict) else {"labels": labels}), params=params)


@pytest.mark.parametrize(
    ("head", "changes", "labels"),
    [
        ("SequenceClassification", {"num_labels": 1}, [3, -2]),  # whole numbers are numbers
        ("SequenceClassification", {"problem_type": "multi_label_classification"}, [[0, 1], [1, 1]]),
        ("SequenceClassification", {}, jnp.array([[0, 1], [1, 0.5]], jnp.bfloat16)),
        ("QuestionAnswering", {}, {"start_positions": [0, 3], "end_positions": [2, 99]}),  # the last ones do not count
    ],
)
def test_labels_that_have_one_are_taken(head: str, changes: dict[str, Any], labels: Any) -> None:
    ours, params = model(f"FlaxAlbertFor{head}", config(**changes))
    found = ours(**ROWS, **(labels if isinstance(labels, dict) else {"labels": labels}), params=params)
    assert jnp.isfinite(found.loss)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"input_ids": [[5, 96]]}, "input_ids holds 96, but its table has the rows 0 to 95"),
        ({"input_ids": np.array([[-1, 5]])}, "input_ids holds -1, but"),
        (
            {"input_ids": [[5, 6]], "token_type_ids": [[0, 2]]},
            "token_type_ids holds 2, but its table has the rows 0 to 1",
        ),
        (
            {"input_ids": [[5, 6]], "position_ids": [[0, 32]]},
            "position_ids holds 32, but its table has the rows 0 to 31",
        ),
        ({"input_ids": [5, 6]}, r"input_ids has shape \(2,\), but FlaxAlbertForMaskedLM takes \[B, S\]"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\), but .* \(1, 2\)"),
        ({"input_ids": [[5.5, 6.0]]}, "input_ids has dtype float64, but ids are integers"),
        ({"input_ids": np.ones((1, 33), int)}, "a row of 33 slots exceeds max_position_embeddings 32"),
        ({"input_ids": [[5]], "train": True}, "train=True needs dropout_rng"),
        ({"input_ids": [[5]], "sentence_order_label": [0]}, "no argument 'sentence_order_label'; it takes labels"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    ours, params = model("FlaxAlbertForMaskedLM", config())
    with pytest.raises(UserError, match=sentence):
        ours(**arguments, params=params)


def test_positions_of_one_row_serve_all_rows() -> None:
    ours, params = model("FlaxAlbertForMultipleChoice", config())
    inputs, _ = inputs_and_labels("FlaxAlbertForMultipleChoice", config())
    ids, positions = inputs["input_ids"], np.arange(20)[::-1]
    wanted = ours(ids, position_ids=np.broadcast_to(positions, ids.shape), params=params).logits
    for one in (positions, positions[None], positions[None, None]):
        assert np.array_equal(ours(ids, position_ids=one, params=params).logits, wanted)


@pytest.mark.parametrize("head", [head for head in HEADS if "Classification" in head or "Choice" in head])
def test_a_classifiers_dropout_is_on_in_training_alone_and_belongs_to_a_row(head: str) -> None:
    ours, params = model(head, config(classifier_dropout_prob=0.5))
    inputs, _ = inputs_and_labels(head, config())
    keys = jax.random.split(jax.random.key(0), int(np.prod(inputs["input_ids"].shape[:-1])))

    def logits(rows: Any = slice(None), **options: Any) -> np.ndarray:
        return np.asarray(ours(**{k: v[rows] for k, v in inputs.items()}, params=params, **options).logits)

    calm = logits()
    assert np.array_equal(logits(dropout_rng=jax.random.key(0)), calm)  # a key without `train` changes nothing
    noisy = logits(dropout_rng=keys, train=True)
    assert not np.allclose(noisy, calm, atol=1e-3)
    per_row = len(keys) // 4
    halves = [logits(part, dropout_rng=keys[part.start * per_row : part.stop * per_row], train=True) for part in HALVES]
    np.testing.assert_allclose(np.concatenate(halves), noisy, atol=1e-5)
    assert not np.allclose(logits(dropout_rng=jax.random.key(1), train=True), noisy, atol=1e-3)


def test_no_dropout_probability_for_classifiers_means_the_encoders() -> None:
    without = config(classifier_dropout_prob=None)
    ours, params = model("FlaxAlbertForTokenClassification", without)
    ids = inputs_and_labels("FlaxAlbertForTokenClassification", without)[0]["input_ids"]
    noisy = ours(ids, params=params, dropout_rng=jax.random.key(0), train=True).logits
    assert np.array_equal(noisy, ours(ids, params=params).logits)
