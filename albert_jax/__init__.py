# SPDX-License-Identifier: Apache-2.0
"""ALBERT from raw text to a Hugging Face checkpoint, in JAX and Flax NNX."""

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError

__version__ = "0.1.0"
__all__ = ["AlbertConfig", "UserError", "__version__"]
