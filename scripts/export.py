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
import re
import sys
from collections.abc import Sequence
from typing import Any

import absl.logging

from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import save_checkpoint, unshared
from albert_jax.convert.whole_directory import is_taken, whole_directory
from albert_jax.errors import UserError
from albert_jax.remote import Spool, directory, is_remote, local_path
from albert_jax.tokenization import AlbertTokenizer


def export(
    workdir: pathlib.Path,
    out: pathlib.Path,
    step: int | None = None,
    overwrite: bool = False,
    unshare: bool = False,
    languages: Sequence[str] = (),
    licence: str | None = None,
) -> int:
    """Exports one checkpoint.

    Args:
      workdir: of a training run.
      out: the directory to make.
      step: which checkpoint; the newest where None.
      overwrite: whether an earlier export there may be replaced.
      unshare: whether weights that groups share are written as a copy for each, see `unshared`.
      languages: of the text, for the card.
      licence: of the model, for the card; None: it says that none is known.

    Returns:
      The step exported.

    Raises:
      UserError: where there is no such checkpoint, its vocabulary is not the one it was trained with, or `out` is taken
        or cannot be written.
    """
    _check_out(out, workdir, overwrite)
    # Imported here because Orbax takes seconds to load, and a misspelt path should not have to wait for it.
    from flax import traverse_util

    from albert_jax.convert.example_sentence import example_sentence
    from albert_jax.convert.model_card import Told, model_card
    from albert_jax.training.restoring import load_parameters
    from albert_jax.training.telemetry import read_metrics

    params, meta = load_parameters(workdir, step)
    flat, config = traverse_util.flatten_dict(params, sep="/"), AlbertConfig.from_dict(meta["model"])
    if unshare:
        flat, config = unshared(flat, config)
    files = Spool(workdir)  # the workdir itself, unless it is in an object store
    files.fetch("spiece.model")
    tokenizer = _tokenizer(files.local / "spiece.model", meta)
    told = Told(languages, licence, example_sentence(meta, files.local / "spiece.model", tokenizer))
    if told.example:
        print(f"the card's example is a sentence of the data set: {told.example}")
    card = model_card(out.resolve().name, meta, read_metrics(workdir), meta["versions"]["albert_jax"], told)
    with whole_directory(out) as directory:
        save_checkpoint(directory, flat, config, "AlbertForPreTraining")
        tokenizer.save_pretrained(directory, model_max_length=config.max_position_embeddings)
        (directory / "README.md").write_text(card, encoding="utf-8")
    return int(meta["step"])


def _check_out(out: pathlib.Path, workdir: pathlib.Path, overwrite: bool) -> None:
    """Lets nothing be replaced but an empty directory and, on demand, an earlier export."""
    if not is_taken(out):
        return
    if not overwrite:
        raise UserError(f"{out} exists and is not an empty directory; choose another --out or give --overwrite.")
    if not (out / "model.safetensors").is_file() or _is_within(workdir, out):
        raise UserError(f"{out} is not an earlier export, and --overwrite replaces nothing else; choose another --out.")


def _is_within(workdir: pathlib.Path, out: pathlib.Path) -> bool:
    return not is_remote(workdir) and workdir.resolve().is_relative_to(out.resolve())


def _tokenizer(file: pathlib.Path, meta: dict[str, Any]) -> AlbertTokenizer:
    """The run's tokenizer, checked to be the one whose ids the model was trained on."""
    recorded = meta["data"]["vocabulary"]
    # Data sets built by earlier versions record the first two alone; the others were at their defaults then.
    flags = ("do_lower_case", "keep_accents", "remove_space", "cleaning")
    tokenizer = AlbertTokenizer(file, **{flag: recorded[flag] for flag in flags if flag in recorded})
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != meta["vocabulary_sha256"]:
        raise UserError(
            f"{file} has SHA-256 {found[:12]}, but the run was trained with {meta['vocabulary_sha256'][:12]}; copy the "
            "spiece.model of its data set there."
        )
    AlbertConfig.from_dict(meta["model"]).check_vocabulary(tokenizer.vocab_size, file)
    return tokenizer


def _check_facts(languages: Sequence[str], licence: str | None) -> None:
    """Refuses what the hub would refuse in the card."""
    for language in languages:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", language):
            raise UserError(
                f"--language {language!r} is no language to the hub; give an ISO 639 code such as tr, or multilingual."
            )
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(
            f"--licence {licence!r} is not spelt as the hub's licences are; give one such as apache-2.0, "
            "cc-by-sa-4.0 or other."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of the training run")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
    parser.add_argument(
        "--unshare", action="store_true", help="copy what groups share, which Hugging Face's format cannot express"
    )
    parser.add_argument(
        "--language", action="append", default=[], help="of the text, for the card, an ISO 639 code; repeatable"
    )
    parser.add_argument("--licence", help="of the model, for the card, by the hub's name, such as apache-2.0")
    args = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells how it opens what it opens
    try:
        _check_facts(args.language, args.licence)
        args.workdir, args.out = directory(args.workdir), local_path(args.out)
        step = export(
            args.workdir,
            args.out,
            args.step,
            args.overwrite,
            args.unshare,
            languages=args.language,
            licence=args.licence,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in sorted(args.out.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")
    print(f"exported step {step:,} of {args.workdir} to {args.out}")
    if not args.language or not args.licence:
        print("note: the card says 'unknown' where --language or --licence is not given.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
