# SPDX-License-Identifier: Apache-2.0
"""Recipes: each file has `get_config(variant)` and is named on the command line, `--config=configs/base.py:v1`."""
