# SPDX-License-Identifier: Apache-2.0
"""Draws a run's curves: MLM loss and accuracy, sentence-order accuracy with its 95 % interval, and where it resumed.

python scripts/plot_curves.py runs/quickstart/train --out docs/quickstart.png
"""

import argparse
import pathlib
import sys
from typing import Any

from albert_jax.errors import UserError
from albert_jax.training.telemetry import read_metrics

TRAIN, VALIDATION, REFERENCE = "#9aa5b1", "#0b6e99", "#c2410c"


def curve(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have `name`."""
    points = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in points], [value for _, value in points]


def draw_measure(
    axis: Any, records: list[dict[str, Any]], name: str, train: Any = TRAIN, validation: str = VALIDATION
) -> None:
    """Draws what was measured under `name` in training and in evaluations, and what it is to be compared with.

    Args:
      axis: matplotlib's.
      records: of a run.
      name: of a value; that of evaluations has the prefix `eval_`.
      train, validation: colours.
    """
    steps, values = curve(records, name)
    lone = "o" if len(steps) == 1 else ""  # no line is seen of one point
    axis.plot(steps, values, color=train, linewidth=1, marker=lone, markersize=2, label="training")
    axis.plot(*curve(records, f"eval_{name}"), color=validation, marker="o", markersize=3, label="validation")
    if name == "mlm_loss":
        _, unigram = curve(records, "eval_unigram_loss")
        if unigram:
            axis.axhline(unigram[-1], color=REFERENCE, linestyle="--", linewidth=1, label="validation, unigrams")
    if name == "sop_accuracy":
        (steps, low), (_, high) = curve(records, "eval_sop_low"), curve(records, "eval_sop_high")
        if steps:
            axis.fill_between(steps, low, high, color=validation, alpha=0.2, linewidth=0, label="95 % interval")
        axis.axhline(0.5, color=REFERENCE, linestyle="--", linewidth=1, label="chance")


def mark(axis: Any, records: list[dict[str, Any]], kind: str, label: str, style: str, colour: str = "black") -> None:
    """Draws a vertical line at each step with a record of a kind."""
    for number, step in enumerate(sorted({record["step"] for record in records if record["kind"] == kind})):
        axis.axvline(step, color=colour, linestyle=style, linewidth=1, label=None if number else label)


def draw(records: list[dict[str, Any]], out: pathlib.Path) -> None:
    """Writes the picture; the ending of `out` says whether png or svg."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "albert_jax"  # the same run gives the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = (
        ("mlm_loss", "MLM loss (nats)"),
        ("mlm_accuracy", "MLM accuracy"),
        ("sop_accuracy", "Sentence-order accuracy"),
    )
    for axis, (name, title) in zip(axes, panels, strict=True):
        draw_measure(axis, records, name)
        mark(axis, records, "resume", "resumed", ":")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", help="of a training run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="picture to write, .png or .svg")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix not in (".png", ".svg"):
            raise UserError(f"--out must end in .png or .svg, not {options.out.name!r}.")
        records = read_metrics(options.workdir)
        if not any(record["kind"] == "train" for record in records):
            raise UserError(f"{options.workdir} has no metrics of a training step; give the workdir of a training run.")
        draw(records, options.out)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
