# SPDX-License-Identifier: Apache-2.0
"""Small models of every shape that the code tells apart, and random parameters and rows for them."""

from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.config import AlbertConfig

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "embedding_size": 24,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # With 0.1 its gradients are rounding noise: those of torch in float32 are then 4e-4 from those in float64.
    "like base": {
        "hidden_size": 192,
        "embedding_size": 128,
        "intermediate_size": 768,
        "num_hidden_layers": 12,
        "initializer_range": 0.05,
    },
    "three groups": {"num_hidden_layers": 6, "num_hidden_groups": 3},
    "five layers over two groups": {"num_hidden_layers": 5, "num_hidden_groups": 2},
    "two layers in a group": {"inner_group_num": 2},
    "embedding as wide as hidden": {"embedding_size": 48},
    "relu": {"hidden_act": "relu"},
    "exact gelu": {"hidden_act": "gelu"},
    "odd vocabulary": {"vocab_size": 1009, "type_vocab_size": 3},
}
HEADS = (
    "FlaxAlbertModel",
    "FlaxAlbertForPreTraining",
    "FlaxAlbertForMaskedLM",
    "FlaxAlbertForSequenceClassification",
    "FlaxAlbertForMultipleChoice",
    "FlaxAlbertForTokenClassification",
    "FlaxAlbertForQuestionAnswering",
)


def config(name: str = "three groups", **changes: Any) -> AlbertConfig:
    """One of the architectures above."""
    return AlbertConfig(**(SMALL | ARCHITECTURES[name] | changes))


def model(head: str, config: AlbertConfig, seed: int = 0) -> tuple[Any, Any]:
    """A model and parameters, all random, biases and LayerNorm too, so that none can be mistaken for another."""
    rng = np.random.default_rng(seed)
    made = getattr(albert_jax, head)(config, _do_init=False)

    def draw(path: Any, like: Any) -> np.ndarray:
        return (config.initializer_range * rng.standard_normal(like.shape) + (path[-1].key == "scale")).astype(
            np.float32
        )

    return made, jax.tree_util.tree_map_with_path(draw, made.params_shape_tree)


def rows(config: AlbertConfig, choices: int = 0) -> dict[str, np.ndarray]:
    """Four rows of 20 slots (each of `choices` choices): full, padded at the right, at the left, at both ends.

    Token types vary, and positions are explicit and out of order in the last row.
    """
    rng = np.random.default_rng(1)
    mask = np.ones((4, 20), np.int64)
    mask[1, 13:] = mask[2, :6] = mask[3, :3] = mask[3, 17:] = 0
    positions = np.tile(np.arange(20), (4, 1))
    positions[3] = rng.permutation(config.max_position_embeddings)[:20]
    inputs = {
        "input_ids": np.where(mask == 1, rng.integers(5, config.vocab_size, mask.shape), config.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": (np.arange(20) > 9) * mask,
        "position_ids": positions,
    }
    if not choices:
        return inputs
    several = {name: np.stack([value] * choices, axis=1) for name, value in inputs.items()}
    several["input_ids"] = np.where(
        several["attention_mask"] == 1, rng.integers(5, config.vocab_size, (4, choices, 20)), config.pad_token_id
    )
    return several


def inputs_and_labels(head: str, config: AlbertConfig) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rows for a head, and labels of its kinds, some of them ignored."""
    rng = np.random.default_rng(2)
    inputs = rows(config, choices=3 if head.endswith("MultipleChoice") else 0)
    real = inputs["attention_mask"] == 1
    words = np.where((rng.random(real.shape) < 0.3) & real, rng.integers(5, config.vocab_size, real.shape), -100)
    labels: dict[str, dict[str, np.ndarray]] = {
        "FlaxAlbertModel": {},
        "FlaxAlbertForPreTraining": {"labels": words, "sentence_order_label": np.array([0, 1, -100, 1])},
        "FlaxAlbertForMaskedLM": {"labels": words},
        "FlaxAlbertForSequenceClassification": {"labels": np.array([0, 2, -100, 1])},
        "FlaxAlbertForMultipleChoice": {"labels": np.array([0, 2, 1, 1])},
        "FlaxAlbertForTokenClassification": {"labels": np.where(real, words % 3, -100)},
        "FlaxAlbertForQuestionAnswering": {
            "start_positions": np.array([1, 5, 99, 4]),
            "end_positions": np.array([2, 8, 99, 20]),
        },
    }
    return inputs, labels[head]


def torch_class(name: str) -> Any:
    """A class of transformers, or a skip."""
    pytest.importorskip("torch", reason="torch is not installed: no comparison with transformers' models")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return getattr(transformers, name)
