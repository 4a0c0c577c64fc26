#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Says what a quickstart run reached: masked words against unigrams, sentence order against chance, the resumed step.

python scripts/quickstart_report.py --workdir=runs/quickstart/train
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from albert_jax.training.telemetry import read_metrics

MLM_GAIN = 0.3  # nats below the unigram cross-entropy
SOP_PAIRS = 2000  # validation pairs that the interval must rest on
INPUT_WAIT = 0.01  # share of the training time that is spent waiting for rows


def goal(name: str, figure: str, wanted: str, met: bool) -> str:
    """One line that says whether a goal was met."""
    return f"  {name}: {figure} (goal: {wanted}) {'reached' if met else 'NOT REACHED'}"


def report(workdir: pathlib.Path, seconds: float | None) -> str:
    """The closing figures of a run, a line each."""
    records = read_metrics(workdir)
    evaluations = [record for record in records if record["kind"] == "eval"]
    if not evaluations:
        return f"{workdir} holds no evaluation yet."
    last = evaluations[-1]
    resumed = [record["step"] for record in records if record["kind"] == "resume"]
    gain = last["eval_unigram_loss"] - last["eval_mlm_loss"]
    sop = last["eval_sop_low"] > 0.5 and last["eval_sop_count"] >= SOP_PAIRS
    lines = [
        f"Step {last['step']}, resumed at step {', '.join(map(str, resumed)) or 'none'}"
        + (f", trained in {seconds:.0f} s with both starts:" if seconds else ":"),
        f"  validation: {last['eval_mlm_count']:,} masked words, {last['eval_sop_count']:,} sentence pairs",
        f"  MLM loss {last['eval_mlm_loss']:.3f} nats, accuracy {last['eval_mlm_accuracy']:.1%}; "
        f"add-one unigrams of the training text on the same words: {last['eval_unigram_loss']:.3f} nats",
        goal("MLM below unigrams", f"{gain:.3f} nats", f"at least {MLM_GAIN}", gain >= MLM_GAIN),
        goal(
            "SOP accuracy",
            f"{last['eval_sop_accuracy']:.1%}, 95 % interval {last['eval_sop_low']:.1%} to {last['eval_sop_high']:.1%}",
            f"interval above 50 % over at least {SOP_PAIRS:,} pairs",
            sop,
        ),
    ]
    # A line of steps that were over before the host came to look has no figure of it.
    waits = [r["timing"]["input_wait"] for r in records if r["kind"] == "train" and "input_wait" in r["timing"]]
    wait = sum(waits) / max(1, len(waits))
    lines.append(goal("waiting for input", f"{wait:.2%} of the time", f"under {INPUT_WAIT:.0%}", wait < INPUT_WAIT))
    if not sop:
        lines.append(f"  a linear bag-of-words probe on the same data: {probe(workdir):.1%}")
    return "\n".join(lines)


def probe(workdir: pathlib.Path) -> float:
    """Sentence-order accuracy of logistic regression on which words stand in the first and in the second segment."""
    import numpy as np
    import scipy.sparse
    from ml_collections import ConfigDict
    from sklearn.linear_model import LogisticRegression

    from albert_jax.data.stream import IGNORED, Stream
    from albert_jax.training.data import open_data

    data = open_data(ConfigDict(json.loads((workdir / "run.json").read_text(encoding="utf-8"))["config"]))

    def features(stream: Stream) -> tuple[Any, np.ndarray]:
        batch = stream.batch(0, stream.rows)
        ids, pieces = batch.input_ids.copy(), data.vocabulary.size
        row, slot = np.nonzero(batch.mlm_labels != IGNORED)
        ids[row, batch.mlm_positions[row, slot]] = batch.mlm_labels[row, slot]
        real = batch.example_ids > 0
        example = np.arange(len(ids))[:, None] * batch.sop_labels.shape[1] + batch.example_ids - 1
        column = ids + batch.token_type_ids * pieces
        shape = (batch.sop_labels.size, 2 * pieces)
        words = scipy.sparse.csr_matrix((np.ones(real.sum()), (example[real], column[real])), shape=shape)
        labels = batch.sop_labels.ravel()
        return words[labels != IGNORED].sign(), labels[labels != IGNORED]

    return float(LogisticRegression(C=0.1, max_iter=300).fit(*features(data.train)).score(*features(data.validation)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the training run")
    parser.add_argument("--seconds", type=float, help="how long the training took, to be printed")
    chosen = parser.parse_args(arguments)
    print(report(chosen.workdir, chosen.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
