# SPDX-License-Identifier: Apache-2.0
"""x"""

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.training.recipe import pretraining


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """x"""
    model = AlbertConfig(
        vocab_size=8000,
        embedding_size=128,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        initializer_range=0.06,
    )
    c = pretraining(model)
    c.steps = 1000
    c.data.sequence_length = 64
    c.data.examples_per_row = 4
    c.masking.slots = 14
    c.batch.size = 128
    c.batch.unit = "rows"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 100
    c.checkpoint.every = 200
    c.checkpoint.keep = 3
    c.eval.every = 200
    c.log.every = 20
    return c
