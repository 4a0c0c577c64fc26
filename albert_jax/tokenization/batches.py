# SPDX-License-Identifier: Apache-2.0
"""From ids to model inputs: pairs, special tokens, truncation, padding, and what a tokenizer's call returns."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from albert_jax.errors import UserError
from albert_jax.tokenization.cleaning import Span
from albert_jax.tokenization.vocabulary import CLS, PAD, SEP, SPECIAL_TOKENS


@dataclasses.dataclass(frozen=True)
class Truncation:
    """How too long inputs are cut.

    Attributes:
      strategy: "longest_first", "only_first" or "only_second".
      max_length: tokens that are left at most, the special ones included.
      stride: tokens that each overflowing part repeats from the one before.
      side: the end at which tokens are cut off, "right" or "left".
    """

    strategy: str
    max_length: int
    stride: int
    side: str


@dataclasses.dataclass(frozen=True)
class Padding:
    """How short inputs are filled up.

    Attributes:
      length: to so many tokens, or None for the longest of the batch.
      multiple: to the next multiple of it, or None.
      side: the end at which padding is put, "right" or "left".
    """

    length: int | None
    multiple: int | None
    side: str


@dataclasses.dataclass
class EncodedText:
    """One text's tokens, before anything is put around them.

    Attributes:
      segments: ids [s, n], split where a special token stands in the text or, where the caller gave words, by word.
      words: the number of each token's word [t], where the caller gave words.
      spans: each token's characters in the text as it was given, or in its word [t]; empty where nobody asked.
    """

    segments: list[list[int]]
    words: list[int] | None = None
    spans: list[Span] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def ids(self) -> list[int]:
        """All ids [t]."""
        return self.segments[0] if len(self.segments) == 1 else [i for segment in self.segments for i in segment]

    def word_numbers(self, starts_word: bytes) -> list[int]:
        """The number of each token's word [t]: the caller's, else counted from the word starts among the ids.

        Args:
          starts_word: for each id 1 if its piece starts a word, else 0.
        """
        if self.words is not None:
            return self.words
        numbers: list[int] = []
        word = -1
        for segment in self.segments:
            for place, i in enumerate(segment):
                word += 1 if place == 0 else starts_word[i]
                numbers.append(word)
        return numbers


class Assembler:
    """Puts tokenized texts together, by the `tokenizers` library.

    The library gets ids as words of digits, so that its word numbers are our token numbers and nothing about pairs,
    truncation or padding has to be written anew. Threads may share an assembler; processes may pickle it.
    """

    def __init__(self, vocab_size: int) -> None:
        """For ids below `vocab_size`."""
        self._names = [str(i) for i in range(vocab_size)]
        self._library = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(self._names)}))
        self._library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self._library.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
        self._lock = threading.Lock()  # truncation and padding are settings of the library's object

    def __reduce__(self) -> Any:
        """A lock cannot be pickled; everything else follows from the size."""
        return type(self), (len(self._names),)

    def __call__(
        self,
        texts: Sequence[tuple[EncodedText, ...]],
        *,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
        overflowing: bool = False,
    ) -> list["Row"]:
        """The rows of a batch.

        Args:
          texts: B texts alone or B pairs.
          add_special_tokens: [CLS] text [SEP] (pair [SEP]).
          truncation, padding: or None for neither.
          overflowing: what truncation cuts off follows as rows of its own.

        Raises:
          UserError: where `truncation` cannot be done.
        """
        if truncation:
            _check_truncation(texts, add_special_tokens, truncation)
        inputs: list[Any] = [tuple(map(self._digits, text)) if len(text) > 1 else self._digits(*text) for text in texts]
        with self._lock:
            self._set(truncation, padding)
            encodings = self._library.encode_batch(inputs, add_special_tokens=add_special_tokens)
        return [
            Row(number, encoding, texts[number])
            for number, whole in enumerate(encodings)
            for encoding in [whole, *(whole.overflowing if overflowing else ())]
        ]

    def _digits(self, text: EncodedText) -> str:
        return " ".join([self._names[i] for i in text.ids])

    def _set(self, truncation: Truncation | None, padding: Padding | None) -> None:
        self._library.no_truncation()
        self._library.no_padding()
        if truncation:
            self._library.enable_truncation(
                max_length=truncation.max_length,
                stride=truncation.stride,
                strategy=truncation.strategy,
                direction=truncation.side,
            )
        if padding:
            self._library.enable_padding(
                length=padding.length,
                pad_to_multiple_of=padding.multiple,
                direction=padding.side,
                pad_id=PAD,
                pad_token=SPECIAL_TOKENS[PAD],
            )


def _check_truncation(texts: Sequence[tuple[EncodedText, ...]], special: bool, truncation: Truncation) -> None:
    """Refuses what the library would refuse without a reason, or leave undone without a word."""
    for number, text in enumerate(texts):
        added = len(text) + 1 if special else 0
        room = truncation.max_length - added
        if room < 0:
            raise UserError(
                f"max_length={truncation.max_length} has no room for the {added} special tokens; give at least {added}."
            )
        if truncation.stride and truncation.stride >= room:
            raise UserError(
                f"stride={truncation.stride} must be less than the {room} tokens that "
                f"max_length={truncation.max_length} leaves for the text; give a smaller one or a larger max_length."
            )
        lengths = [len(side.ids) for side in text]
        place = int(truncation.strategy == "only_second")
        cut, remove = lengths[place] if place < len(lengths) else 0, sum(lengths) - room
        if truncation.strategy != "longest_first" and 0 < remove >= cut:
            raise UserError(
                f"truncation={truncation.strategy!r} cannot make text {number} fit max_length={truncation.max_length}: "
                f"{remove} tokens must go, and that side has {cut}; use 'longest_first' or a larger max_length."
            )


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
      number: of its text in the batch.
      encoding: the row's tokens [s]; its `word_ids` are token numbers within the text that `sequence_ids` names.
      texts: the one text or two that the tokens are from.
    """

    number: int
    encoding: tokenizers.Encoding
    texts: tuple[EncodedText, ...]

    def word_ids(self, starts_word: bytes) -> list[int | None]:
        """Word numbers [s], see `BatchEncoding.word_ids`; for the argument see `EncodedText.word_numbers`."""
        numbers = [text.word_numbers(starts_word) for text in self.texts]
        return [None if place is None else numbers[place[0]][place[1]] for place in self._places()]

    def offsets(self) -> list[Span]:
        """Characters of each token [s], (0, 0) for special and padding tokens."""
        return [(0, 0) if place is None else self.texts[place[0]].spans[place[1]] for place in self._places()]

    def _places(self) -> list[tuple[int, int] | None]:
        """For each token the text and the token in it [s], None for special and padding tokens."""
        both = zip(self.encoding.sequence_ids, self.encoding.word_ids, strict=True)
        return [None if side is None or token is None else (side, token) for side, token in both]


def values(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Any]]:
    """`input_ids` and the other values of those names, one of each per row, in transformers' order."""
    read: dict[str, Callable[[Row], Any]] = {
        "input_ids": lambda row: row.encoding.ids,
        "token_type_ids": lambda row: row.encoding.type_ids,
        "attention_mask": lambda row: row.encoding.attention_mask,
        "special_tokens_mask": lambda row: row.encoding.special_tokens_mask,
        "offset_mapping": Row.offsets,
        "length": lambda row: len(row.encoding.ids),
        "overflow_to_sample_mapping": lambda row: row.number,
    }
    return {name: [get(row) for row in rows] for name, get in read.items() if name == "input_ids" or name in names}


class BatchEncoding(collections.UserDict[str, Any]):
    """What a tokenizer's call returns: a dict of the model's inputs, with attribute access and token alignments."""

    def __init__(self, data: dict[str, Any], rows: Sequence[Row] = (), starts_word: bytes = b"") -> None:
        """Holds values and alignments.

        Args:
          data: the values, in order.
          rows: what they are from.
          starts_word: for each id 1 if its piece starts a word, else 0.
        """
        super().__init__(data)
        self._rows, self._starts_word = list(rows), starts_word

    def __getattr__(self, name: str) -> Any:
        """`batch.input_ids` is `batch["input_ids"]`."""
        if name != "data" and name in self.data:  # without "data", as in a copy half made, there is nothing to look in
            return self.data[name]
        raise AttributeError(f"there is no {name!r} in this batch; it has {', '.join(self.__dict__.get('data', ()))}")

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The number of each token's word in its text, None for special and padding tokens."""
        return self._rows[batch_index].word_ids(self._starts_word)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the text, 1 for those of its pair, None for special and padding tokens."""
        return self._rows[batch_index].encoding.sequence_ids


# What stands where a row is filled up; other values are left as they are.
_FILLS = {"input_ids": PAD, "token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}


def padded(data: dict[str, list[Any]], padding: Padding) -> dict[str, list[Any]]:
    """Rows that were made before, filled up to one length; those that are longer stay, as in transformers."""
    length = padding.length or max(map(len, data["input_ids"]), default=0)
    if padding.multiple:
        length = -(-length // padding.multiple) * padding.multiple
    filled = dict(data)
    for name in _FILLS.keys() & data.keys():
        fills = ([_FILLS[name]] * (length - len(row)) for row in data[name])
        left = padding.side == "left"
        filled[name] = [fill + row if left else row + fill for fill, row in zip(fills, data[name], strict=True)]
    return filled


def as_arrays(data: dict[str, list[Any]], kind: str) -> dict[str, Any]:
    """The values as arrays.

    Args:
      data: lists of numbers, or of equally long lists.
      kind: "np" for NumPy (int64, as transformers has it), "jax" (int32) or "pt" for PyTorch (int64); values that are
        no whole numbers are float32 in each.

    Raises:
      UserError: where lengths differ, `kind` is another, or its package is not installed.
    """
    if kind not in ("np", "jax", "pt"):
        raise UserError(f"return_tensors={kind!r} is none of 'np', 'jax' and 'pt'; leave it away for lists.")
    arrays: dict[str, Any] = {}
    for name, values in data.items():
        try:
            array = np.asarray(values)
            arrays[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        except ValueError as e:
            raise UserError(
                f"return_tensors={kind!r} needs rows of one length, and those of {name} differ; give padding=True, and "
                "truncation=True where texts may be too long."
            ) from e
    if kind == "jax":
        import jax.numpy as jnp  # here because it takes seconds, and most callers want lists

        whole = {name: array.astype(np.int32) if array.dtype.kind == "i" else array for name, array in arrays.items()}
        return {name: jnp.asarray(array) for name, array in whole.items()}
    if kind == "pt":
        try:
            import torch
        except ImportError as e:
            raise UserError("return_tensors='pt' needs PyTorch, which is not installed; use 'np' or 'jax'.") from e
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return arrays
