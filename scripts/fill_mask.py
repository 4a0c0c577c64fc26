#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Fills in the [MASK] of a text, with this project's loader and, where it is installed, with transformers beside it.

    python scripts/fill_mask.py runs/base-hf "The sum of two [MASK] is returned."

Exit status: 0; 1 where the two put different tokens first; 2 a bad input.
"""

import argparse
import importlib.util
import itertools
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from albert_jax.errors import UserError
from albert_jax.tokenization import MASK, AlbertTokenizer

Answers = list[list[tuple[str, float]]]  # for each [MASK]: (token, probability), the likeliest first


def ours(directory: pathlib.Path, text: str, top: int) -> Answers:
    """The answers of FlaxAlbertForMaskedLM, loaded from a Hugging Face directory.

    Raises:
      UserError: where the directory does not hold an ALBERT, or the text has no [MASK] or is too long.
    """
    tokenizer = AlbertTokenizer.from_pretrained(directory)
    ids = tokenizer.encode(text)
    if MASK not in ids:
        raise UserError(f"the text {text!r} has no [MASK]; write [MASK] where a word is to be filled in.")
    # Imported here because JAX takes seconds to load, and a bad input should not have to wait for it.
    from albert_jax.model import FlaxAlbertForMaskedLM

    model, info = FlaxAlbertForMaskedLM.from_pretrained(directory, output_loading_info=True)
    if info["missing_keys"]:
        lacking = ", ".join(info["missing_keys"])
        raise UserError(f"{directory} lacks {lacking}; give a checkpoint with a masked-LM head.")
    scores = np.asarray(model(np.asarray([ids])).logits[0], dtype=np.float64)
    pieces = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    return [_top(scores[slot], pieces, top) for slot in _masks(ids)]


def theirs(directory: pathlib.Path, text: str, top: int) -> Answers:
    """The answers of transformers' AutoModelForMaskedLM and AutoTokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForMaskedLM.from_pretrained(directory).eval()
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        scores = model(**encoded).logits[0].double().numpy()
    pieces = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    return [_top(scores[slot], pieces, top) for slot in _masks(encoded["input_ids"][0].tolist())]


def _masks(ids: list[int]) -> list[int]:
    return [slot for slot, token in enumerate(ids) if token == MASK]


def _top(scores: np.ndarray, pieces: list[str], top: int) -> list[tuple[str, float]]:
    """The `top` likeliest pieces from scores [V]."""
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    # The model may have more rows than the vocabulary has pieces.
    return [(pieces[i] if i < len(pieces) else f"<{i}>", float(probabilities[i])) for i in order]


def _missing_packages() -> list[str]:
    return [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]


def _print_side_by_side(columns: dict[str, list[tuple[str, float]]]) -> None:
    print("  ".join(f"{name:<30}" for name in columns).rstrip())
    for row in itertools.zip_longest(*columns.values()):
        print("  ".join(f"{probability:8.4f}  {token:<20}" for token, probability in row).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, help="a Hugging Face directory, e.g. one made by export.py")
    parser.add_argument("text", help="a text with one [MASK] or several")
    parser.add_argument("--top", type=int, default=5, help="answers to print (default: 5)")
    args = parser.parse_args(arguments)
    absent = _missing_packages()
    try:
        if args.top < 1:
            raise UserError(f"--top must be at least 1, not {args.top}.")
        columns = {"albert_jax": ours(args.directory, args.text, args.top)}
        if not absent:
            columns["transformers"] = theirs(args.directory, args.text, args.top)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number, answers in enumerate(zip(*columns.values(), strict=True), start=1):
        print(f"\n[MASK] {number} of {args.text!r}:")
        _print_side_by_side(dict(zip(columns, answers, strict=True)))
    if absent:
        print(f"\nnote: {' and '.join(absent)} not installed here, so there is no second opinion.")
        return 0
    first = {name: [answers[0][0] for answers in column] for name, column in columns.items()}
    if first["albert_jax"] != first["transformers"]:
        print(f"\nthe two disagree: albert_jax says {first['albert_jax']}, transformers {first['transformers']}.")
        return 1
    print("\nboth put the same tokens first.")
    return 0


if __name__ == "__main__":
    logging.getLogger("albert_jax").setLevel(logging.ERROR)  # that a pretraining model has more heads needs no warning
    sys.exit(main())
