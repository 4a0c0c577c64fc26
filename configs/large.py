# SPDX-License-Identifier: Apache-2.0
"""ALBERT-large: 24 layers of 1024, 17.8 M parameters. configs/base.py says what the four sizes share.

    python train.py --config=configs/large.py --workdir=runs/large --config.data.path=DATA

Cost:   125,000 steps of 4,096 rows: 5.16e+20 FLOPs; chip-hours: 2,100 v4, 2,800 v5e, 1,200 v5p, 980 v6e
Expect: version 1 at this length (paper, table 2): SQuAD 1.1 90.6/83.9, SQuAD 2.0 82.3/79.4, MNLI 83.5, SST-2 91.7,
        RACE 68.5, average 82.4.
        Google's released v2, 3 M steps: 91.8/85.2, 84.9/81.8, 86.5, 94.9, 75.2, average 85.7.
"""

import ml_collections

from configs.base import published


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """See the module's docstring; `variant` is empty or from 'v2', 'v1', '3m', 'parity', joined by commas."""
    return published("large", variant, long=("3m", 3_000_000))
