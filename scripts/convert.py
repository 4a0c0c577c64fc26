#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Converts ALBERT checkpoints, and compares what was written with what was read.

    python scripts/convert.py albert_base_v2.tar.gz albert-base-v2      # Google's TensorFlow 1 -> Hugging Face
    python scripts/convert.py albert-base-v2 google --to google         # and back
    python scripts/convert.py old-model new-model                       # any of transformers' files -> safetensors

SOURCE is a checkpoint of Google's code (a released .tar.gz or its directory, a TF-Hub module, a training directory, a
checkpoint's prefix) or a directory with a config.json and any file of weights that transformers has written. This
project reads what it writes: `from_pretrained`, `config.init_from`. Its own runs are exported by scripts/export.py.
OUT appears whole or not at all. Exit status: 0; 1 where the comparison found a difference; 2 a bad input.
"""

import argparse
import dataclasses
import importlib.util
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from albert_jax.config import AlbertConfig
from albert_jax.convert.google import load_google_checkpoint, save_google_checkpoint
from albert_jax.convert.huggingface import Checkpoint, Flat, fit, read_checkpoint, save_checkpoint
from albert_jax.convert.whole_directory import is_taken, whole_directory
from albert_jax.errors import UserError
from albert_jax.tokenization import RULES, AlbertTokenizer

# A head in a checkpoint -> the class that has it; the first that is there counts.
_CLASSES = {
    "sop_classifier/": "AlbertForPreTraining",
    "predictions/": "AlbertForMaskedLM",
    "qa_outputs/": "AlbertForQuestionAnswering",
    "classifier/": "AlbertForSequenceClassification",
}
_TOLERANCE = 1e-5  # of outputs, float32


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model on its way.

    Attributes:
      config: the architecture.
      params: path -> array.
      architecture: name of transformers' class.
      tokenizer: of the vocabulary that lay beside it, or None.
      word_pieces: name of a BERT vocabulary that lay there, which this project has no tokenizer for, or None.
    """

    config: AlbertConfig
    params: Flat
    architecture: str
    tokenizer: AlbertTokenizer | None
    word_pieces: str | None


# --- in ---------------------------------------------------------------------------------------------------------------


def read(source: pathlib.Path, args: argparse.Namespace, scratch: pathlib.Path) -> Converted:
    """Reads a checkpoint of either kind; `scratch` is where the vocabulary may lie until it is written.

    Raises:
      UserError: where it is nothing that can be read, lacks something of its class, or its vocabulary is not its
        model's.
    """
    if (source / "config.json").is_file():
        config, checkpoint = AlbertConfig.from_pretrained(source), read_checkpoint(source)
        named = config.hub_fields.get("architectures")
        beside = any((source / name).is_file() for name in ("spiece.model", "tokenizer.json"))
        tokenizer = AlbertTokenizer.from_pretrained(source) if beside else None
        word_pieces = "vocab.txt" if (source / "vocab.txt").is_file() else None
    else:
        config, checkpoint, tokenizer, word_pieces = _read_google(source, args, scratch)
        named = None
    architecture = args.architecture or (named[0] if named else _class_of(checkpoint.tensors))
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        config.check_vocabulary(tokenizer.vocab_size, source)
    return Converted(config, _params_of(checkpoint, config, architecture), architecture, tokenizer, word_pieces)


def _read_google(
    source: pathlib.Path, args: argparse.Namespace, scratch: pathlib.Path
) -> tuple[AlbertConfig, Checkpoint, AlbertTokenizer | None, str | None]:
    found = load_google_checkpoint(source, args.config)
    if found.unused:
        print(f"note: no class has a place for {', '.join(found.unused)} of {source}; left out.")
    tokenizer = None
    if found.vocabulary is not None:
        file = pathlib.Path(tempfile.mkdtemp(dir=scratch)) / "spiece.model"
        file.write_bytes(found.vocabulary)
        tokenizer = AlbertTokenizer(file, cleaning=args.cleaning)
    return found.config, Checkpoint(found.tensors, found.source, str), tokenizer, found.word_pieces


def _class_of(tensors: Flat) -> str:
    """The class whose head a checkpoint has."""
    return next((name for head, name in _CLASSES.items() if any(p.startswith(head) for p in tensors)), "AlbertModel")


def _network(config: AlbertConfig, architecture: str) -> Any:
    """Our model of a class of transformers, without parameters."""
    import albert_jax  # here, because JAX takes seconds to load, and a misspelt path should not have to wait for it

    try:
        return getattr(albert_jax, f"Flax{architecture}")(config, _do_init=False)
    except AttributeError as e:
        raise UserError(
            f"there is no class {architecture!r} here; give another of transformers' by --architecture."
        ) from e


def _params_of(checkpoint: Checkpoint, config: AlbertConfig, architecture: str) -> Flat:
    """The parameters of a class, and a pooler where there is one: classifiers start from it."""
    shapes = _shapes(_network(config, architecture))
    if architecture != "AlbertModel" and any(path.endswith("pooler/kernel") for path in checkpoint.tensors):
        h = config.hidden_size
        shapes = {"albert/pooler/kernel": (h, h), "albert/pooler/bias": (h,)} | shapes
    fitted = fit(checkpoint, shapes)
    if fitted.missing:
        raise UserError(
            f"{checkpoint.source} lacks {len(fitted.missing)} parameters of {architecture}, such as "
            f"{checkpoint.spell(min(fitted.missing))}; name the class that it is of by --architecture."
        )
    if fitted.unexpected:
        print(f"note: {architecture} has no place for {', '.join(fitted.unexpected)} of {checkpoint.source}; left out.")
    return fitted.params


def _shapes(network: Any) -> dict[str, tuple[int, ...]]:
    from flax import traverse_util

    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(network.params_shape_tree, sep="/").items()}


# --- out --------------------------------------------------------------------------------------------------------------


def write(model: Converted, out: pathlib.Path, to: str) -> None:
    """Writes the model's files into the directory `out`, its vocabulary among them.

    Raises:
      UserError: where the target has no form for the model, or cannot be written.
    """
    if to == "google":
        save_google_checkpoint(out, model.params, model.config)
        if model.tokenizer is not None:
            model.tokenizer.save_vocabulary(out)
        return
    save_checkpoint(out, model.params, model.config, model.architecture)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(out, model_max_length=model.config.max_position_embeddings)


# --- the comparison ---------------------------------------------------------------------------------------------------


def differences(model: Converted, again: Converted, directory: pathlib.Path) -> dict[str, tuple[float, float]]:
    """What was read against what was written.

    Args:
      model: as it was read.
      again: as it was read from what was written.
      directory: the Hugging Face directory for transformers to read, if that is what was written.

    Returns:
      What was compared -> largest difference, and the largest that is none.
    """
    if model.params.keys() != again.params.keys():
        raise UserError(
            f"what was written lacks {sorted(model.params.keys() - again.params.keys())[:3]}; keep SOURCE, and report "
            "it as a defect."
        )
    far = [np.abs(np.float32(value) - np.float32(again.params[path])).max() for path, value in model.params.items()]
    found = {f"{len(far)} parameters": (float(max(far)), 0.0)}
    inputs = _random_inputs(model)
    first = _outputs(model, inputs)
    found |= _compared("albert_jax", first, _outputs(again, inputs))
    if not (directory / "config.json").is_file():
        return found
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        print(f"note: {' and '.join(absent)} not installed here, so transformers is not asked.")
        return found
    return found | _compared("transformers", first, _outputs_of_transformers(model, inputs, directory))


def _random_inputs(model: Converted) -> dict[str, np.ndarray]:
    """Four rows (of two choices each, for multiple choice), padded at either end, of both token types."""
    config, rng = model.config, np.random.default_rng(0)
    slots = min(64, config.max_position_embeddings)
    mask = np.ones((4, 2, slots) if model.architecture == "AlbertForMultipleChoice" else (4, slots), np.int64)
    mask[1, ..., slots // 2 :] = mask[2, ..., : slots // 3] = 0
    ids = np.where(mask == 1, rng.integers(0, config.vocab_size, mask.shape), config.pad_token_id)
    types = (np.arange(slots) > slots // 3) * mask if config.type_vocab_size > 1 else 0 * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _outputs(model: Converted, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from flax import traverse_util

    network = _network(model.config, model.architecture)
    params = {path: np.float32(model.params[path]) for path in _shapes(network)}
    out = network(**inputs, params=traverse_util.unflatten_dict(params, sep="/"), output_hidden_states=True)
    return _named(out)


def _outputs_of_transformers(
    model: Converted, inputs: dict[str, np.ndarray], directory: pathlib.Path
) -> dict[str, np.ndarray]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    network = getattr(transformers, model.architecture).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return _named(network(**{k: torch.tensor(v) for k, v in inputs.items()}, output_hidden_states=True))


def _named(out: Any) -> dict[str, np.ndarray]:
    """Outputs by name, the hidden states as one array."""
    return {name: np.stack(v) if isinstance(v, tuple) else np.asarray(v) for name, v in out.items()}


def _compared(who: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    # Of 1 where an output is smaller, of itself where it is larger: float32 has seven digits.
    return {
        f"{name} in {who}": (float(np.abs(a - second[name]).max() / max(1.0, np.abs(a).max())), _TOLERANCE)
        for name, a in first.items()
    }


# --- the command ------------------------------------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> bool:
    """Converts, compares and prints; returns whether the comparison found no difference."""
    if is_taken(args.out):
        raise UserError(f"{args.out} exists and is not an empty directory; choose another OUT.")
    with tempfile.TemporaryDirectory() as scratch:
        model = read(args.source, args, pathlib.Path(scratch))
        with whole_directory(args.out) as directory:
            write(model, directory, args.to)
            found = differences(model, read(directory, args, pathlib.Path(scratch)), directory)
    print(f"{args.source} -> {args.out}: {model.architecture}")
    for file in sorted(args.out.iterdir()):
        print(f"  {file.name}  {file.stat().st_size:,} bytes")
    if model.tokenizer is not None and (padding := model.config.vocab_size - model.tokenizer.vocab_size):
        print(
            f"note: the embedding has {padding} rows beyond the vocabulary's {model.tokenizer.vocab_size} pieces; they "
            "are kept, and config.init_from leaves them out."
        )
    if model.tokenizer is None and model.word_pieces is not None:
        print(
            f"note: {model.word_pieces} is a BERT vocabulary of word pieces, which no tokenizer of this project reads: "
            f"copy it to {args.out / 'vocab.txt'} for transformers' BertTokenizer."
        )
    elif model.tokenizer is None:
        print(f"note: no vocabulary lies in {args.source}; put its spiece.model beside the weights.")
    for what, (difference, bound) in found.items():
        print(f"largest difference of {what}: {difference:.1e} ({'same' if difference <= bound else 'NOT THE SAME'})")
    return all(difference <= bound for difference, bound in found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE", help="what is converted")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="directory to make")
    parser.add_argument("--to", choices=("huggingface", "google"), default="huggingface", help="format of OUT")
    parser.add_argument("--architecture", help="transformers' class, where the checkpoint's heads do not tell it")
    parser.add_argument("--config", type=pathlib.Path, help="Google's albert_config.json, where none lies with SOURCE")
    parser.add_argument(
        "--cleaning", choices=sorted(RULES), default="huggingface", help="the tokenizer's rules, see docs/languages.md"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    try:
        return 0 if convert(args) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
