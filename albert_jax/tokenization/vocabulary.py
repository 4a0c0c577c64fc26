# SPDX-License-Identifier: Apache-2.0
"""ALBERT's vocabularies: reading them from a spiece.model or a tokenizer.json, and settling a new one's scores."""

import base64
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from albert_jax.errors import UserError
from albert_jax.tokenization.model_proto import ModelProto

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL_TOKENS = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
WORD_START = "▁"
# A score that no path through a word can afford, whatever the vocabulary.
NEVER = -100.0
# How far below its score tokenizer.json has a number-comma piece: out of reach, and the score can be had back.
HUB_DISTANCE = 1000.0


def is_number_comma(piece: str) -> bool:
    """Whether rule 6 of the package splits this piece."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def settle_scores(model: bytes) -> bytes:
    """Rounds a new vocabulary's scores so that every program that reads it finds the same segmentations.

    Scores become multiples of 2**-10: their sums are then exact in float32 and in float64 alike, and order decides
    ties, not rounding. Pieces like `1,` are put out of reach, for rule 6 would split them anyway: with them in reach
    SentencePiece may choose `▁`, `1,` for a number where a pipeline without rule 6, as transformers' fast tokenizers
    have, finds `▁1` and `,`.

    Args:
      model: a spiece.model's bytes.

    Returns:
      The same with other scores; pieces and ids do not change.
    """
    proto = parse_vocabulary(model)
    for piece in proto.pieces:
        piece.score = NEVER if is_number_comma(piece.piece) else round(piece.score * 1024) / 1024
    return proto.SerializeToString()


def parse_vocabulary(model: bytes) -> Any:
    """The ModelProto of a spiece.model's bytes."""
    return ModelProto.FromString(model)


def read_vocabulary(path: pathlib.Path) -> Any:
    """The vocabulary as SentencePiece's ModelProto, from either kind of file.

    Raises:
      UserError: where the file is missing or unreadable, is no unigram model of ALBERT's kind, or its first five pieces
        are not ALBERT's special tokens.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a spiece.model or a directory that holds one.")
    return _read_tokenizer_json(path) if path.suffix == ".json" else _read_spiece(path)


def _read_spiece(path: pathlib.Path) -> Any:
    """Parses and checks a spiece.model."""
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as e:  # protobuf's DecodeError has no stable home across its implementations
        raise UserError(
            f"{path} is not a SentencePiece model ({e}); give the spiece.model of an ALBERT vocabulary."
        ) from e
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    _check_specials([p.piece for p in proto.pieces[:5]], path)
    if trainer.model_type != trainer.UNIGRAM:
        raise UserError(
            f"{path} is not a unigram model, which ALBERT's vocabularies are; train one with --model_type=unigram."
        )
    if not (normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces and normalizer.escape_whitespaces):
        raise UserError(f"{path} was trained with unusual white-space rules; train it with SentencePiece's defaults.")
    if trainer.treat_whitespace_as_suffix or trainer.byte_fallback or any(p.type == p.UNUSED for p in proto.pieces):
        raise UserError(
            f"{path} uses byte fallback, white-space suffixes or unused pieces, which ALBERT does not have; train "
            "one with `python -m pretrain_data vocab`."
        )
    return proto


def _read_tokenizer_json(path: pathlib.Path) -> Any:
    """Builds a SentencePiece model from a tokenizer.json's pieces, scores and character map.

    Its pipeline is left aside: what transformers derives from a spiece.model of ALBERT is damaged, the pieces are not.
    Pieces that it made into added tokens of their own, such as the full stop, are user-defined symbols again. The score
    of a piece like `1,` is lost in transformers' files, so that a number before a comma may be segmented otherwise than
    from the spiece.model (with the published English vocabulary 1 of 44,467 lines); ours keep it.
    """
    proto = ModelProto()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        pieces = [(str(piece), float(score)) for piece, score in values["model"]["vocab"]]
        charsmap = next(_charsmaps(values["normalizer"]), b"")
        added = {str(token["content"]) for token in values["added_tokens"]}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not a unigram tokenizer.json ({e!r}); give the one of an ALBERT vocabulary.") from e
    _check_specials([piece for piece, _ in pieces[:5]], path)
    check_added_tokens(added, {piece for piece, _ in pieces}, path)
    for i, (piece, score) in enumerate(pieces):
        if is_number_comma(piece) and score < -HUB_DISTANCE / 2:
            score += HUB_DISTANCE
        kind = proto.SentencePiece.CONTROL if i < len(SPECIAL_TOKENS) else proto.SentencePiece.NORMAL
        kind = proto.SentencePiece.USER_DEFINED if i >= len(SPECIAL_TOKENS) and piece in added else kind
        proto.pieces.add(piece=piece, score=score, type=proto.SentencePiece.UNKNOWN if i == UNK else kind)
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.normalizer_spec.precompiled_charsmap = charsmap
    return proto


def _charsmaps(normalizer: Any) -> Iterator[bytes]:
    for step in (normalizer or {}).get("normalizers", [normalizer or {}]):
        if step.get("type") == "Precompiled":
            yield base64.b64decode(step["precompiled_charsmap"])


def check_added_tokens(added: set[str], pieces: set[str], path: pathlib.Path) -> None:
    """Refuses tokens that were added to a vocabulary after its training.

    Raises:
      UserError: where there is one.
    """
    new = sorted(added - pieces)
    if new:
        raise UserError(
            f"{path} adds {new[0]!r} to the vocabulary's own pieces, which this tokenizer does not do; train a "
            "vocabulary with it."
        )


def _check_specials(first: Sequence[str], path: pathlib.Path) -> None:
    if tuple(first) != SPECIAL_TOKENS:
        pairs = enumerate(zip(first, SPECIAL_TOKENS, strict=False))
        wrong = ", ".join(f"{i} is {found!r}, not {wanted!r}" for i, (found, wanted) in pairs if found != wanted)
        raise UserError(
            f"{path} is not an ALBERT vocabulary: special id {wrong or 'list is too short'}; "
            "train one with `python -m pretrain_data vocab`."
        )
