# SPDX-License-Identifier: Apache-2.0
"""From text to ids: cleaning, SentencePiece, numbers before commas, and where in the text each token came from."""

import itertools
import multiprocessing
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from albert_jax.tokenization.batches import EncodedText
from albert_jax.tokenization.cleaning import Cleaning, Span
from albert_jax.tokenization.vocabulary import MASK, SPECIAL_TOKENS, UNK, WORD_START, is_number_comma

Piece = tuple[int, str]  # an id and the text it stands for, which for <unk> is not the piece's name

_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
# Texts for which one more thread pays.
_TEXTS_PER_THREAD = 32


class Segmenter:
    """A vocabulary and the rules of the package.

    Attributes:
      starts_word: for each id 1 if its piece starts a word, else 0.
    """

    def __init__(self, proto: Any, cleaning: Cleaning) -> None:
        """For SentencePiece's ModelProto of an ALBERT vocabulary."""
        pieces = [piece.piece for piece in proto.pieces]
        self.starts_word = bytes(piece.startswith(WORD_START) for piece in pieces)
        self._cleaning = cleaning
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        number_commas = [(i, piece) for i, piece in enumerate(pieces) if is_number_comma(piece)]
        self._number_commas = {i: [part for part, _ in self._split_number_comma(piece)] for i, piece in number_commas}
        self._number_comma_ids = np.array(list(self._number_commas), np.int32)

    def text(self, pieces: list[str]) -> str:
        """The text of pieces, none of which is a special token."""
        return self._sentencepiece.decode(pieces)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens; a text of nothing but white space gives an empty list.

        A special token spelled out in the text is ordinary text here, so that no document can smuggle in a [MASK].
        """
        cleaned = self._cleaning.many(texts)
        if "," not in self._ids:  # then rule 6 may concern an unknown piece, whose text ids do not tell
            return [[i for i, _ in pieces] for pieces in self._pieces_of(cleaned)]
        encoded: list[list[int]] = self._sentencepiece.encode(
            cleaned, return_type=int, num_threads=_threads(len(cleaned))
        )
        apart = self._number_commas.keys().isdisjoint
        return [ids if apart(ids) else self._split_number_commas(ids) for ids in encoded]

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same as `ids`, as int32 [T], one text's after the other's, and int64 [N], how many each text has."""
        if "," not in self._ids:
            found = [np.array(ids, np.int32) for ids in self.ids(texts)]
        else:
            cleaned = self._cleaning.many(texts)
            found = self._sentencepiece.encode(cleaned, return_type="numpy", num_threads=_threads(len(cleaned)))
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        tokens = np.concatenate([np.zeros(0, np.int32), *found])
        return self._split_in_array(tokens, lengths)

    def _split_in_array(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rule 6: puts the parts of each piece that it concerns in the piece's place."""
        places = np.flatnonzero(np.isin(tokens, self._number_comma_ids))
        if not places.size:
            return tokens, lengths
        parts = [self._number_commas[int(i)] for i in tokens[places]]
        sizes = np.array([len(part) for part in parts])
        counts = np.ones(len(tokens), np.int64)
        counts[places] = sizes
        split = np.repeat(tokens, counts)
        begins = np.cumsum(counts) - counts
        at = np.repeat(begins[places], sizes) + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        split[at] = list(itertools.chain.from_iterable(parts))
        text = np.searchsorted(np.cumsum(lengths), places, side="right")
        np.add.at(lengths, text, sizes - 1)
        return split, lengths

    def _split_number_commas(self, ids: list[int]) -> list[int]:
        """Rule 6 for known pieces."""
        return list(itertools.chain.from_iterable(self._number_commas.get(i, (i,)) for i in ids))

    def _pieces_of(self, cleaned: list[str]) -> list[list[Piece]]:
        """The pieces of clean texts, rule 6 included; together they are the text that SentencePiece normalized."""
        encoded = self._sentencepiece.encode(cleaned, return_type="offset_mapping", num_threads=_threads(len(cleaned)))
        return [self._split_pieces(zip(text["ids"], text["pieces"], strict=True)) for text in encoded]

    def _split_pieces(self, pieces: Iterable[Piece]) -> list[Piece]:
        out: list[Piece] = []
        for i, piece in pieces:
            out += self._split_number_comma(piece) if is_number_comma(piece) else [(i, piece)]
        return out

    def _split_number_comma(self, piece: str) -> list[Piece]:
        """Rule 6: the digits are segmented anew, without the word start that SentencePiece puts before them."""
        encoded = self._sentencepiece.encode(piece[:-1].replace(WORD_START, ""), return_type="offset_mapping")
        parts: list[Piece] = list(zip(encoded["ids"], encoded["pieces"], strict=True))
        if not piece.startswith(WORD_START) and parts and parts[0][1].startswith(WORD_START):
            rest = parts[0][1].removeprefix(WORD_START)
            parts[:1] = [(self._ids.get(rest, UNK), rest)] if rest else []
        return [*parts, (self._ids.get(",", UNK), ",")]

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Texts in which special tokens count as such."""
        split = [_parts(text) for text in texts]
        encoded = iter(self.ids([part for parts in split for part in parts[::2]]))
        result = []
        for parts in split:
            segments = [next(encoded)]
            for special in parts[1::2]:
                segments += [[SPECIAL_TOKENS.index(special)], next(encoded)]
            result.append(EncodedText(segments))
        return result

    def encode_words(self, texts: Sequence[Sequence[str]]) -> list[EncodedText]:
        """Texts that the caller took apart to words."""
        encoded = iter(self.encode([word for words in texts for word in words]))
        result = []
        for words in texts:
            segments = [next(encoded).ids for _ in words]
            numbers = [number for number, ids in enumerate(segments) for _ in ids]
            result.append(EncodedText(segments or [[]], words=numbers))
        return result

    def spans(self, text: str) -> list[Span]:
        """Each token's characters in a text in which special tokens count as such."""
        spans: list[Span] = []
        start = 0
        for number, (part, whole) in enumerate(zip(_parts(text), _SPECIAL_PATTERN.split(text), strict=True)):
            found = [(0, len(part))] if number % 2 else self._spans_between_specials(part)
            spans += [(start + a, start + b) for a, b in found]
            start += len(whole)
        return spans

    def _spans_between_specials(self, text: str) -> list[Span]:
        """Each token's characters: those that its own were made from, without the space before a word."""
        cleaned, sources = self._cleaning.with_spans(text)
        normalized, origins = self._sentencepiece.normalize(cleaned, with_offsets=True)
        # A character that the normalizer expanded is the origin of several, a ligature of all its letters.
        ends = [len(cleaned)] * len(origins)
        for i in range(len(origins) - 2, -1, -1):
            ends[i] = origins[i + 1] if origins[i + 1] > origins[i] else ends[i + 1]
        spans: list[Span] = []
        start = 0
        for _, piece in self._pieces_of([cleaned])[0]:
            first, last = start + piece.startswith(WORD_START), start + len(piece) - 1
            if first > last:  # a word start alone: transformers gives it the character that it stands before
                first = last = min(first, len(normalized) - 1)
            spans.append((sources[origins[first]][0], sources[ends[last] - 1][1]))
            start += len(piece)
        return spans

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text in which special tokens count as such; where there is none the unknown text itself."""
        parts = _parts(text)
        pieces = self._pieces_of([self._cleaning(part) for part in parts[::2]])
        tokens = [piece for _, piece in pieces[0]]
        for special, found in zip(parts[1::2], pieces[1:], strict=True):
            tokens += [special, *(piece for _, piece in found)]
        return tokens


def _threads(texts: int) -> int:
    """Threads for so many texts; a worker process leaves the other cores to its siblings."""
    if multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, texts // _TEXTS_PER_THREAD))


def _parts(text: str) -> list[str]:
    """Text, special, text, special, ..., text; [MASK] takes the white space before it along."""
    parts = _SPECIAL_PATTERN.split(text)
    for place in range(1, len(parts), 2):
        if parts[place] == SPECIAL_TOKENS[MASK]:
            parts[place - 1] = parts[place - 1].rstrip()
    return parts
