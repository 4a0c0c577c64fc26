# SPDX-License-Identifier: Apache-2.0
"""Prints the examples that a step trains on, as a person reads them."""

import dataclasses
import pathlib
import unicodedata
from collections.abc import Iterator
from itertools import groupby

import ml_collections
import numpy as np
import sentencepiece
from rich.console import Console
from rich.text import Text

from albert_jax.data.masking import mask_budget
from albert_jax.data.rows import IGNORED, Batch
from albert_jax.data.store import read_manifest
from albert_jax.data.stream import LABEL_ONE
from albert_jax.data.vocabulary import MASK
from albert_jax.errors import UserError
from albert_jax.training.data import Data, open_data, rows_of_step, rows_per_step

_MASKED, _KEPT, _REPLACED = _STYLES = "bold green", "bold magenta", "bold red"
_INDENT = 4
# Isolates of Unicode's bidirectional algorithm (UAX 9), invisible, and without effect where a terminal has no such.
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT, _POP = "\u2066", "\u2067", "\u2069"
# What a vocabulary must not do to a terminal.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def with_data(
    config: ml_collections.ConfigDict, data: str | pathlib.Path, split: str = "train"
) -> ml_collections.ConfigDict:
    """A copy of a recipe that reads the data set `data`.

    The model's vocabulary becomes as large as the data set's, which changes no example: the recipe may well be the
    default one. Where the data set has no validation, nothing is evaluated.

    Raises:
      UserError: where `data` holds no data set, or this one has no such split.
    """
    copy, manifest = ml_collections.ConfigDict(config.to_dict()), read_manifest(data)
    if split not in manifest["splits"]:
        raise UserError(f"{data} was built without a {split} split; name another by --split.")
    if "validation" not in manifest["splits"]:
        copy.eval.every = 0
    copy.model.vocab_size = manifest["vocabulary"]["size"]
    copy.data.path = str(data)
    return copy.lock()


def show(
    data: str | pathlib.Path,
    config: ml_collections.ConfigDict,
    *,
    step: int,
    rows: int,
    split: str,
    console: Console,
) -> None:
    """Prints the first rows of the batch that a step trains on.

    Args:
      data: the data set's directory.
      config: the recipe, see `albert_jax.training.recipe`; its data.path is not read.
      step: counted from 1, as in a run's log; for the validation split, which of an evaluation's batches.
      rows: how many rows are printed, fewer where the batch has fewer.
      split: 'train' or 'validation'.
      console: is written to.

    Raises:
      UserError: where training would refuse the data set with this recipe, or there is no such step.
    """
    if rows < 1:
        raise UserError(f"--rows {rows} must be at least 1.")
    if split not in ("train", "validation"):
        raise UserError(f"--split {split!r} must be train or validation.")
    config = with_data(config, data, split)
    opened = open_data(config)
    stream = opened.train if split == "train" else opened.validation
    start, size = _batch_of_step(config, opened, split, step, console)
    if rows > size:
        console.print(Text(f"note: this batch has {size:,} rows, fewer than --rows {rows:,}."))
    batch = (stream.batch if split == "train" else stream.fixed_rows)(start, min(rows, size))
    reader = Reader(pathlib.Path(data) / "spiece.model")
    console.print(_legend())
    for r in range(len(batch.input_ids)):
        examples = read_row(batch, r)
        where = f"step {step:,}" if split == "train" else f"evaluation batch {step:,}"
        epoch = f" · epoch {stream.epoch(start + r):.4f}" if split == "train" else ""
        console.print()
        console.print(Text(f"{where} · row {start + r:,} of {stream.rows:,} an epoch{epoch}", style="bold"))
        console.print(Text(_row_counts(batch, r, examples, config.masking)))
        for number, example in enumerate(examples, 1):
            print_example(number, example, config.data.sentence_order, reader, console)


def _batch_of_step(
    config: ml_collections.ConfigDict, data: Data, split: str, step: int, console: Console
) -> tuple[int, int]:
    """The batch's first row in its stream and its number of rows."""
    if step < 1 or (split == "train" and step > config.steps):
        raise UserError(f"--step {step} must be from 1 to the recipe's {config.steps} steps (--set steps=...).")
    try:
        size = rows_per_step(config, data.train)
    except UserError as refusal:
        if step > 1:
            raise
        # The first rows are the same whatever the batch, and people look at them before they choose one.
        console.print(Text(f"note: training would refuse this recipe: {refusal}"))
        size = (data.train if split == "train" else data.validation).rows
    if split == "train":
        growing = min(step - 1, config.batch.warmup_steps)
        before = sum(rows_of_step(config, size, k) for k in range(growing)) + (step - 1 - growing) * size
        return before, rows_of_step(config, size, step - 1)
    size = config.batch.rows_per_device or size
    total = min(config.eval.rows or data.validation.rows, data.validation.rows)
    if (step - 1) * size >= total:
        raise UserError(f"--step {step} must be from 1 to {-(-total // size)}, the batches of an evaluation.")
    return (step - 1) * size, min(size, total - (step - 1) * size)


# --- reading rows -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Segment:
    """T tokens of one segment, special tokens left out.

    Attributes:
      originals: int [T], the text's ids.
      inputs: int [T], the ids that the model is given.
      masked: bool [T], whether the token is predicted.
    """

    originals: np.ndarray
    inputs: np.ndarray
    masked: np.ndarray


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: segment A, segment B where there is one, and the label of their order (0, 1, or IGNORED).

    `length` counts all its tokens, special ones too.
    """

    first: Segment
    second: Segment | None
    label: int
    length: int


def read_row(batch: Batch, row: int) -> list[Example]:
    """The examples of one row of a batch, from left to right."""
    inputs, types, owners = batch.input_ids[row], batch.token_type_ids[row], batch.example_ids[row]
    used = batch.mlm_labels[row] != IGNORED
    places = batch.mlm_positions[row][used]
    originals, masked = inputs.copy(), np.zeros(len(inputs), bool)
    originals[places], masked[places] = batch.mlm_labels[row][used], True

    def segment(at: np.ndarray) -> Segment:
        return Segment(originals[at], inputs[at], masked[at])

    examples = []
    for slot in range(batch.sop_labels.shape[1]):
        here = np.flatnonzero(owners == slot + 1)
        if here.size:
            first, second = here[types[here] == 0], here[types[here] == 1]
            # [CLS] A [SEP] B [SEP]
            b = segment(second[:-1]) if second.size else None
            examples.append(Example(segment(first[1:-1]), b, int(batch.sop_labels[row, slot]), len(here)))
    return examples


class Reader:
    """Text of ids.

    Args:
      model_file: the SentencePiece model.
    """

    def __init__(self, model_file: pathlib.Path):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model_file.read_bytes())

    def text(self, ids: np.ndarray) -> str:
        """The text of ids, beginning with a space where its first piece begins a word; unknown pieces read ⁇."""
        space = " " if self._processor.id_to_piece(int(ids[0])).startswith("▁") else ""
        text: str = self._processor.decode(ids.tolist()).replace(" ⁇ ", "⁇")  # SentencePiece spaces them, text may not
        return space + text.translate(_CONTROLS)

    def named(self, ids: np.ndarray) -> str:
        """The text of ids without spaces at its ends, or the pieces themselves where they hold nothing else."""
        return self.text(ids).strip() or "".join(self._processor.id_to_piece(int(i)) for i in ids).translate(_CONTROLS)


# --- printing ---------------------------------------------------------------------------------------------------------


def _legend() -> Text:
    parts = (
        ("[MASK→text]", _MASKED),
        " masked, ×2: two tokens · ",
        ("[kept:text]", _KEPT),
        " kept · ",
        ("[other→text]", _REPLACED),
        " replaced",
    )
    return Text.assemble(*parts)


def _row_counts(batch: Batch, row: int, examples: list[Example], masking: ml_collections.ConfigDict) -> str:
    """How full a row is."""
    lengths = np.array([example.length for example in examples], np.int64)
    masked, slots = int(np.sum(batch.mlm_labels[row] != IGNORED)), batch.mlm_labels.shape[1]
    budget = int(mask_budget(lengths, masking.rate, masking.count).sum())
    return (
        f"{_counted(len(examples), 'example')} · {lengths.sum()} of {batch.input_ids.shape[1]} slots filled · "
        f"{masked} of a budget of {budget} tokens masked · {slots} mask slots"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _order(example: Example, sentence_order: str) -> str:
    if example.label == IGNORED:
        return f"{'two segments' if example.second else 'one segment'}, no order label"
    return LABEL_ONE[sentence_order] if example.label else "in order"


def print_example(number: int, example: Example, sentence_order: str, reader: Reader, console: Console) -> None:
    """Prints a line about an example, then its segments, wrapped to the console's width and never cut."""
    segments = [("A", example.first)] + ([("B", example.second)] if example.second else [])
    lengths = ", ".join(f"{name} {_counted(len(segment.originals), 'token')}" for name, segment in segments)
    masked = sum(int(segment.masked.sum()) for _, segment in segments)
    console.print(Text(f"  {number}. {_order(example, sentence_order)} · {lengths}, {masked} masked"))
    for name, segment in segments:
        text, right_to_left = segment_text(segment, reader)
        margin = f"{name:>{_INDENT}}  "
        for line in text.wrap(console, max(8, console.width - len(margin)), overflow="fold"):
            line.rstrip()
            if right_to_left:  # each line is a paragraph of its own to the terminal
                line = Text.assemble(_RIGHT_TO_LEFT, line, _POP)
            console.print(Text.assemble(margin, line), no_wrap=True, crop=False, overflow="ignore")
            margin = " " * len(margin)


def segment_text(segment: Segment, reader: Reader) -> tuple[Text, bool]:
    """A segment's text with its masked tokens in brackets and in colour, and whether it is read from the right."""
    right_to_left = _is_right_to_left(reader.text(segment.originals)) if len(segment.originals) else False
    text = Text()
    for kind, at in _runs(segment):
        original = reader.text(segment.originals[at])
        if kind is None:
            text.append(original if text else original.lstrip(" "))
            continue
        token = f"[{_stands(kind, segment.inputs[at], reader)}{reader.named(segment.originals[at])}]"
        text.append(" " if original.startswith(" ") and text else "")
        text.append(f"{_LEFT_TO_RIGHT}{token}{_POP}" if right_to_left else token, style=kind)
    return text, right_to_left


def _runs(segment: Segment) -> Iterator[tuple[str | None, np.ndarray]]:
    """Runs of tokens of one kind, None where they are not predicted, else a style, and their places."""
    masked = np.where(segment.inputs == segment.originals, 1, np.where(segment.inputs == MASK, 0, 2))
    kinds = np.where(segment.masked, masked, -1)
    for kind, places in groupby(range(len(kinds)), key=kinds.__getitem__):
        yield None if kind < 0 else _STYLES[kind], np.array([*places])


def _stands(kind: str, inputs: np.ndarray, reader: Reader) -> str:
    """What stands in the input for a run of predicted tokens."""
    if kind == _KEPT:
        return "kept:"
    return (reader.named(inputs) if kind == _REPLACED else f"MASK×{len(inputs)}".removesuffix("×1")) + "→"


def _is_right_to_left(text: str) -> bool:
    directions = [unicodedata.bidirectional(character) for character in text]
    return sum(d in ("R", "AL") for d in directions) > directions.count("L")
