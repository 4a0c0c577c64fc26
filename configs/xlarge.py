# SPDX-License-Identifier: Apache-2.0
"""ALBERT-xlarge: 24 layers of 2048 with 16 heads of 128, 59.0 M parameters. configs/base.py: what all sizes share.

    python train.py --config=configs/xlarge.py --workdir=runs/xlarge --config.data.path=DATA

Cost:   125,000 steps of 4,096 rows: 1.98e+21 FLOPs; chip-hours: 4,300 v4, 5,600 v5e, 2,600 v5p, 2,100 v6e
Expect: version 1 at this length (paper, table 2): SQuAD 1.1 92.5/86.1, SQuAD 2.0 86.1/83.1, MNLI 86.4, SST-2 92.4,
        RACE 74.8, average 85.5.
        Google's released v2, 3 M steps: 92.9/86.4, 87.9/84.1, 87.9, 95.4, 80.7, average 87.9.

The paper's rule of heads, one per 64 of the width, would give 32; the released model has 16, and so has this one.
"""

import ml_collections

from configs.base import published


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """See the module's docstring; `variant` is empty or from 'v2', 'v1', '3m', 'parity', joined by commas."""
    return published("xlarge", variant, long=("3m", 3_000_000))
