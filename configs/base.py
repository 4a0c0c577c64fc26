# SPDX-License-Identifier: Apache-2.0
"""ALBERT-base: 12 layers of 768, 11.8 M parameters. This page also says what the four published sizes share.

    python train.py --config=configs/base.py --workdir=runs/base --config.data.path=DATA

Cost:   125,000 steps of 4,096 rows: 1.50e+20 FLOPs; chip-hours: 760 v4, 960 v5e, 430 v5p, 350 v6e
Expect: version 1 at this length on Wikipedia and BookCorpus (paper, tables 2 and 5): MLM accuracy 54.0 and SOP accuracy
        86.5 on the paper's development text; SQuAD 1.1 89.3/82.3, SQuAD 2.0 80.0/77.1, MNLI 81.6, SST-2 90.3,
        RACE 64.0, average 80.1.
        Google's released v2, 10 M steps: 90.2/83.2, 82.1/79.3, 84.6, 92.9, 66.8, average 82.3.

What the four sizes share
-------------------------
Variants, joined by commas: `v2` (the default), `v1` (dropout 0.1, save in xxlarge), v2's length, `10m` steps for base
and `3m` for the others, which prints its cost, and `parity`, data as Google's pipeline makes it, one example a row and
20 masks at most; its optimizer is that of the other variants. Any field can be overridden:
`--config.batch.rows_per_device=8`. The fields and their meaning are in docs/config_fields.md.

Length: 125,000 steps, version 1's. Warm-up 3,125 steps to 0.00176, then linear decay to zero. LAMB, decay 0.01.
Batch: 4,096 *examples* (sentence pairs), Google's number. Up to 8 examples share a row of 512 slots, so a step has
fewer than 4,096 rows: 3,392 on 188 MB of books, Wikipedia and speeches, in whole documents. The cost above
is that of 4,096 full rows. It counts 3 x the forward matmuls, at the share of the chip's peak that the TPU compiler
expects of the step (docs/scaling.md; albert_jax/training/costs.py): an estimate, not a measurement. For GPUs there is
none. `python train.py --check=v5e-16` says more for a machine and a data set. A device takes as many rows at a time as
its memory holds; any number of devices will do.
Masking: 15 % of each example's tokens, in n-grams of 1 to 3 words; 80 mask slots a row.
Sharing: all layers share one set of weights. The other strategies of the paper's table 4, for base: none is
`--config.model.num_hidden_groups=12`; attention only, or the feed-forward part only, is that and
`--config.model.shared_across_groups=attention`, or `=ffn`; other numbers of groups share within each.
Clipping: the global norm of the whole batch's gradient, at 1. Compute: bfloat16 over float32 parameters.

What differs from Google's runs, by our choice or by need:
- v2's data and its 3 to 10 million steps are not to be had: the text was not published and the compute is as printed.
- Google's code masks at most 20 tokens of 512, which is 3.9 %; ours masks the 15 % that the paper states. (*)
- Google's sentence-order labels include pairs from two documents wherever a chunk has one sentence; ours never do. (*)
- Google clips on each core before averaging; ours clips the average.
- Google's MLM loss is a mean on each core, then over cores; ours is one mean over the whole batch's masked tokens.
- Google's LAMB corrects no bias in its moments; ours is optax's, which does.
- Google's learning rate falls by 2.5 % in one step where the warm-up ends; ours is continuous.
- Google's rows hold one example each; ours are packed, and attention stays within an example. (*)
(*) unless the variant is `parity`.
"""

import sys

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.costs import cost
from albert_jax.training.recipe import pretraining


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """See the module's docstring; `variant` is empty or from 'v2', 'v1', '10m', 'parity', joined by commas."""
    return published("base", variant, long=("10m", 10_000_000))


def published(size: str, variant: str, long: tuple[str, int]) -> ml_collections.ConfigDict:
    """The recipe of a published size.

    Args:
      size: as `AlbertConfig.published` takes it.
      variant: what stands after the colon on the command line.
      long: name and steps of the variant that trains as long as version 2 did.

    Raises:
      UserError: where the variant is unknown or contradicts itself.
    """
    known = ("v2", "v1", long[0], "parity")
    chosen = [name.strip() for name in variant.split(",")] if variant else []
    for name in chosen:
        if name not in known:
            raise UserError(
                f"configs/{size}.py has no variant {name!r}; there are {', '.join(known)}, joined by commas."
            )
    if {"v1", "v2"} <= set(chosen):
        raise UserError(f"the variant {variant!r} names both v1 and v2; choose one.")
    config = pretraining(AlbertConfig.published(size, 1 if "v1" in chosen else 2))
    config.dtype = "bfloat16"
    if "parity" in chosen:
        googles_data(config)
    if long[0] in chosen:
        config.steps = long[1]
        print(f"note: the variant {long[0]} means {cost(config)}", file=sys.stderr)
    return config


def googles_data(config: ml_collections.ConfigDict) -> None:
    """Makes the data of a recipe what Google's pipeline makes: see albert_jax/data/parity.py, quirk by quirk.

    The data only: the optimizer stays as it is, with the differences from Google's that the page above names.
    """
    config.data.recipe = "google"
    config.data.sentence_order = "sop_parity"
    config.data.examples_per_row = 1
    config.data.short_fraction = 0.1
    config.masking.rate = 0.15
    config.masking.count = 20
    config.masking.slots = 20
    config.masking.max_ngram = 3
