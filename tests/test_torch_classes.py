# SPDX-License-Identifier: Apache-2.0
"""transformers 4.57's and 5's torch classes and pipelines load what we save and answer what we answer."""

import json
import os
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

import albert_jax
from tests.architectures import HEADS, config, inputs_and_labels, model
from tests.peers import transformers4
from tests.tokenizer_samples import spiece, transformers5

TEXT = "The [MASK] of a class, in 2,000 words."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory for each class, with a tokenizer."""
    directory = tmp_path_factory.mktemp("saved")
    tokenizer = albert_jax.AlbertTokenizer(spiece(directory))
    for head in HEADS:
        few = {"num_labels": 3} if head.endswith(("SequenceClassification", "TokenClassification")) else {}
        network, params = model(head, config("three groups", vocab_size=tokenizer.vocab_size, **few))
        network.save_pretrained(directory / head.removeprefix("Flax"), params)
        tokenizer.save_pretrained(directory / head.removeprefix("Flax"))
    return directory


@pytest.fixture(scope="module", params=[4, 5], ids=["transformers 4", "transformers 5"])
def theirs(request: pytest.FixtureRequest, saved: pathlib.Path) -> dict[str, Any]:
    """What a version of transformers answers; see torch_peers.py."""
    pytest.importorskip("torch", reason="torch is not installed: no comparison with transformers' models")
    python = transformers4("torch") if request.param == 4 else transformers5()
    inputs = {}
    for head in HEADS:
        arguments, _ = inputs_and_labels(head, config("three groups"))
        inputs[head.removeprefix("Flax")] = {name: value.tolist() for name, value in arguments.items()}
    script = pathlib.Path(__file__).with_name("torch_peers.py")
    done = subprocess.run(
        [python, str(script), str(saved)],
        input=json.dumps({"inputs": inputs, "text": TEXT}),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_class_finds_exactly_its_tensors_and_computes_what_ours_does(
    theirs: dict[str, Any], saved: pathlib.Path
) -> None:
    assert theirs["missing"] == {head.removeprefix("Flax"): [] for head in HEADS}
    for head in HEADS:
        name = head.removeprefix("Flax")
        ours = getattr(albert_jax, head).from_pretrained(saved / name)
        out = ours(**inputs_and_labels(head, config("three groups"))[0])
        assert out.keys() == list(theirs["outputs"][name])
        for key, value in theirs["outputs"][name].items():
            scale = max(1.0, np.abs(value).max())
            np.testing.assert_allclose(out[key], np.array(value), atol=1e-5 * scale, err_msg=f"{name} {key}")


def test_pipelines_answer_what_we_answer(theirs: dict[str, Any], saved: pathlib.Path) -> None:
    tokenizer = albert_jax.AlbertTokenizer.from_pretrained(saved / "AlbertModel")
    inputs = tokenizer(TEXT, return_tensors="np")

    def ours(head: str) -> Any:
        return getattr(albert_jax, head).from_pretrained(saved / head.removeprefix("Flax"))(**inputs)

    def softmax(scores: Any) -> np.ndarray:
        e = np.exp(np.asarray(scores, np.float64) - np.max(scores))
        return e / e.sum()

    words = softmax(
        ours("FlaxAlbertForMaskedLM").logits[0][inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)]
    )
    answers = theirs["pipelines"]["fill-mask"]
    assert [answer["token"] for answer in answers] == np.argsort(-words)[: len(answers)].tolist()
    np.testing.assert_allclose([answer["score"] for answer in answers], np.sort(words)[::-1][: len(answers)], atol=1e-6)

    classes = softmax(ours("FlaxAlbertForSequenceClassification").logits[0])
    best = theirs["pipelines"]["text-classification"][0]
    assert best["label"] == f"LABEL_{classes.argmax()}"
    np.testing.assert_allclose(best["score"], classes.max(), atol=1e-6)

    tags = np.asarray(ours("FlaxAlbertForTokenClassification").logits[0]).argmax(-1)
    found = theirs["pipelines"]["token-classification"]
    assert {answer["index"]: answer["entity"] for answer in found} == {
        i: f"LABEL_{tags[i]}" for i, token in enumerate(inputs.input_ids[0]) if token > 3 or token == 1
    }
    features = np.array(theirs["pipelines"]["feature-extraction"])
    np.testing.assert_allclose(ours("FlaxAlbertModel").last_hidden_state, features, atol=1e-5)
