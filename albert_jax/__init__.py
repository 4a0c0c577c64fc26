# SPDX-License-Identifier: Apache-2.0
"""ALBERT from raw text to a Hugging Face checkpoint, in JAX and Flax NNX."""

import importlib
from typing import TYPE_CHECKING, Any

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError

if TYPE_CHECKING:
    from albert_jax.model import (
        FlaxAlbertForMaskedLM,
        FlaxAlbertForMultipleChoice,
        FlaxAlbertForPreTraining,
        FlaxAlbertForQuestionAnswering,
        FlaxAlbertForSequenceClassification,
        FlaxAlbertForTokenClassification,
        FlaxAlbertModel,
        FlaxAlbertPreTrainedModel,
    )
    from albert_jax.tokenization import AlbertTokenizer, AlbertTokenizerFast

__version__ = "0.2.0"
__all__ = [
    "AlbertConfig",
    "AlbertTokenizer",
    "AlbertTokenizerFast",
    "FlaxAlbertForMaskedLM",
    "FlaxAlbertForMultipleChoice",
    "FlaxAlbertForPreTraining",
    "FlaxAlbertForQuestionAnswering",
    "FlaxAlbertForSequenceClassification",
    "FlaxAlbertForTokenClassification",
    "FlaxAlbertModel",
    "FlaxAlbertPreTrainedModel",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Imports a model or tokenizer at its first use: JAX takes seconds to load, and a config or a flag needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("albert_jax." + ("model" if "Flax" in name else "tokenization")), name)
