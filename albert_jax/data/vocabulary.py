# SPDX-License-Identifier: Apache-2.0
"""What the stream must know of a vocabulary: its special ids, and which pieces begin a word."""

import dataclasses
import hashlib
import pathlib
import unicodedata

import numpy as np
import sentencepiece

from albert_jax.errors import UserError

SPECIAL_IDS = {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
PAD, UNK, CLS, SEP, MASK = SPECIAL_IDS.values()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tables over the V pieces.

    Attributes:
      size: V.
      sha256: of the SentencePiece model file.
      pieces: the V pieces as text.
      starts_word: bool [V], pieces at which a word begins: those that start with "▁", and bare punctuation.
      replacements: int32, the ids that may replace a masked word at random: all but the special and control pieces.
    """

    size: int
    sha256: str
    pieces: tuple[str, ...]
    starts_word: np.ndarray
    replacements: np.ndarray

    @classmethod
    def load(cls, model_file: str | pathlib.Path) -> "Vocabulary":
        """Reads a SentencePiece model.

        Raises:
          UserError: where the file is missing or not a model, or its special ids are not ALBERT's.
        """
        path = pathlib.Path(model_file)
        if not path.is_file():
            raise UserError(f"the vocabulary {path} does not exist; make one with `python -m pretrain_data vocab`.")
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as e:
            raise UserError(f"{path} is not a SentencePiece model ({str(e).splitlines()[0]}); give another.") from e
        check_special_ids(processor, path)
        pieces = [processor.id_to_piece(i) for i in range(len(processor))]
        special = {*SPECIAL_IDS.values()}  # some vocabularies have them as user-defined symbols
        ordinary = [i for i in range(len(pieces)) if not (i in special or processor.is_control(i))]
        return cls(
            size=len(pieces),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            pieces=tuple(pieces),
            starts_word=np.array([piece.startswith("▁") or is_punctuation(piece) for piece in pieces]),
            replacements=np.array(ordinary, np.int32),
        )


def check_special_ids(processor: sentencepiece.SentencePieceProcessor, path: pathlib.Path) -> None:
    """Raises UserError unless the special pieces have ALBERT's ids."""
    found = {piece: processor.piece_to_id(piece) for piece in SPECIAL_IDS}
    wrong = {piece: i for piece, i in found.items() if i != SPECIAL_IDS[piece] or processor.id_to_piece(i) != piece}
    if wrong:
        raise UserError(
            f"the vocabulary {path} has {wrong} where ALBERT needs {SPECIAL_IDS}; train one with "
            "`python -m pretrain_data vocab`."
        )


def is_punctuation(piece: str) -> bool:
    """Whether every character is punctuation or a symbol in Unicode's categories."""
    return all(unicodedata.category(char)[0] in "PS" for char in piece)
