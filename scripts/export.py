#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint as a directory that transformers loads.

    python scripts/export.py --workdir=runs/base --out=runs/base-hf

writes config.json, model.safetensors, spiece.model, tokenizer.json, tokenizer_config.json and README.md, the model
card. The directory appears whole or not at all.
"""

import argparse
import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import absl.logging

from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import save_pretrained
from albert_jax.convert.model_card import model_card
from albert_jax.errors import UserError
from albert_jax.tokenization import AlbertTokenizer


def export(workdir: pathlib.Path, out: pathlib.Path, step: int | None = None, overwrite: bool = False) -> int:
    """Exports one checkpoint.

    Args:
      workdir: of a training run.
      out: the directory to make.
      step: which checkpoint; the newest where None.
      overwrite: whether an earlier export there may be replaced.

    Returns:
      The step exported.

    Raises:
      UserError: where there is no such checkpoint, its vocabulary is not the one it was trained with, or `out` is taken
        or cannot be written.
    """
    _check_out(out, workdir, overwrite)
    # Imported here because Orbax takes seconds to load, and a misspelt path should not have to wait for it.
    from albert_jax.training.checkpoint import load_parameters
    from albert_jax.training.telemetry import read_metrics

    params, meta = load_parameters(workdir, step)
    config = AlbertConfig.from_dict(meta["model"])
    tokenizer = _tokenizer(workdir / "spiece.model", meta)
    card = model_card(
        out.resolve().name, meta, _last_evaluation(read_metrics(workdir), meta["step"]), meta["versions"]["albert_jax"]
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            directory = pathlib.Path(temporary) / "new"
            save_pretrained(directory, params, config)
            tokenizer.save_pretrained(directory, model_max_length=config.max_position_embeddings)
            (directory / "README.md").write_text(card, encoding="utf-8")
            if out.exists():
                out.rename(pathlib.Path(temporary) / "old")  # deleted with the temporary directory
            directory.rename(out)
    except OSError as e:
        raise UserError(f"{out} cannot be written ({e.strerror}); make room or choose another --out.") from e
    return int(meta["step"])


def _check_out(out: pathlib.Path, workdir: pathlib.Path, overwrite: bool) -> None:
    """Lets nothing be replaced but an empty directory and, on demand, an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{out} exists and is not an empty directory; choose another --out or give --overwrite.")
    if not (out / "model.safetensors").is_file() or workdir.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} is not an earlier export, and --overwrite replaces nothing else; choose another --out.")


def _tokenizer(file: pathlib.Path, meta: dict[str, Any]) -> AlbertTokenizer:
    """The run's tokenizer, checked to be the one whose ids the model was trained on."""
    flags = meta["data"]["vocabulary"]
    tokenizer = AlbertTokenizer(file, do_lower_case=flags["do_lower_case"], keep_accents=flags["keep_accents"])
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != meta["vocabulary_sha256"]:
        raise UserError(
            f"{file} has SHA-256 {found[:12]}, but the run was trained with {meta['vocabulary_sha256'][:12]}; copy the "
            "spiece.model of its data set there."
        )
    if tokenizer.vocab_size > meta["model"]["vocab_size"]:
        raise UserError(
            f"{file} has {tokenizer.vocab_size} pieces, more than the model's {meta['model']['vocab_size']}."
        )
    return tokenizer


def _last_evaluation(records: list[dict[str, Any]], step: int) -> dict[str, Any] | None:
    """The newest evaluation at or before `step`."""
    found = [record for record in records if record["kind"] == "eval" and record["step"] <= step]
    return found[-1] if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the training run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
    args = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells how it opens what it opens
    try:
        step = export(args.workdir, args.out, args.step, args.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in sorted(args.out.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")
    print(f"exported step {step:,} of {args.workdir} to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
