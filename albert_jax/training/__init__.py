# SPDX-License-Identifier: Apache-2.0
"""Pretraining: objective, optimizer, step, checkpoints, telemetry and the loop that joins them."""
