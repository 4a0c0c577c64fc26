# SPDX-License-Identifier: Apache-2.0
"""A small ALBERT on the embedded documentation corpus: the whole main job in minutes on a laptop's two cores.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart/train \\
        --config.data.path=runs/quickstart/data

scripts/quickstart.sh makes the data set and runs this. It reproduces nothing published: it shows that masked words and
sentence order are both being learned, on held-out documents.

Cost:   360 steps of 128 rows x 64 slots, 1.9e+13 FLOPs; README.md says how long it took.
Expect: README.md has the figures and the curves of a run.

Length: 360 steps, warm-up 100 to 0.002, then linear decay to zero. AdamW, decay 0.01.
Batch: 128 *rows*; short rows, because sentence order is learned from examples and not from tokens. Up to 4 examples
share a row, about 210 a step.
Masking: 15 % in n-grams of 1 to 3 words, 14 mask slots a row. Clipping: global norm 1. Compute: float32.
Initial weights: standard deviation 0.1, about 1 / sqrt(128), where the published 0.02 suits widths of 768 and more.
With 0.06 masked words are learned faster, but in so short a run sentence order stays at chance.
"""

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.recipe import pretraining


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """See the module's docstring; there are no variants."""
    if variant:
        raise UserError(f"configs/quickstart.py has no variant {variant!r}; it has none.")
    model = AlbertConfig(
        vocab_size=8000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    c = pretraining(model)
    c.steps = 360
    c.data.sequence_length = 64
    c.data.examples_per_row = 4
    c.masking.slots = 14
    c.batch.size = 128
    c.batch.unit = "rows"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100
    c.checkpoint.every = 120
    c.checkpoint.keep = 3
    c.eval.every = 120
    c.log.every = 20
    return c
