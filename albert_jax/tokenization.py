# SPDX-License-Identifier: Apache-2.0
"""ALBERT's tokenizers: `AlbertTokenizer`, SentencePiece with ALBERT's rules, and `AlbertTokenizerFast`, in Rust.

The rules, in order (those of transformers 4's slow tokenizer; Google's code differs only in leaving quotes alone):

1. lower-case character by character, unless `do_lower_case=False`;
2. a special token spelled out in the text, such as `[MASK]`, is that token (`encode` only; see `encode_sentences`);
3. runs of white space become one space, two back quotes or two apostrophes become a double quote;
4. NFKD, then characters with a combining class are dropped, unless `keep_accents=True`; lower-case again;
5. SentencePiece: its own normalizer (nmt_nfkc), then the unigram model;
6. a piece that ends in a comma after a digit is split before the comma: `▁2000,` is `▁2000` and `,`.

The one known difference between the two is in ties, and only in vocabularies that did not go through `settle_scores`:
SentencePiece adds up scores in float32 along the whole text, the Rust library in float64 word by word, so of two
segmentations whose scores are within about 1e-4 of each other they may take different ones (with the published English
vocabulary 2 of 52,000 paragraphs, none of 17,000 sentences).
"""

import abc
import base64
import functools
import json
import logging
import pathlib
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from albert_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL_TOKENS = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
WORD_START = "▁"

_ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]

_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
_log = logging.getLogger(__name__)
# A score that no path through a word can afford, whatever the vocabulary.
_NEVER = -100.0


def clean(text: str, do_lower_case: bool = True, keep_accents: bool = False) -> str:
    """Rules 1, 3 and 4 of the module: what ALBERT does to a text before SentencePiece sees it."""
    if do_lower_case:
        text = text.replace(
            "Σ", "σ"
        ).lower()  # capital sigma is the one letter whose lower case depends on its neighbors
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    if not keep_accents and not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.lower() if do_lower_case else text


class _AlbertTokenizerBase(abc.ABC):
    """What both tokenizers share: files, flags, special tokens."""

    def __init__(
        self, vocab_file: str | pathlib.Path, *, do_lower_case: bool = True, keep_accents: bool = False
    ) -> None:
        """Opens a spiece.model, or a tokenizer.json of ALBERT's.

        Args:
          vocab_file: the file; it must stay there for `save_pretrained`.
          do_lower_case: False for a cased vocabulary.
          keep_accents: True for a vocabulary trained on text with accents.

        Raises:
          UserError: if the file is missing or unreadable, or its first five pieces are not ALBERT's special tokens.
        """
        self.vocab_file = pathlib.Path(vocab_file)
        self.do_lower_case, self.keep_accents = do_lower_case, keep_accents
        self._proto = _read_vocabulary(self.vocab_file)
        self._pieces = [piece.piece for piece in self._proto.pieces]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=self._proto.SerializeToString())

    @classmethod
    def from_pretrained(
        cls, path: str | pathlib.Path, *, do_lower_case: bool | None = None, keep_accents: bool | None = None
    ) -> Self:
        """Opens a directory (its spiece.model, else its tokenizer.json) or either file itself.

        Flags left at None come from a tokenizer_config.json beside the vocabulary, else they are True and False.

        Raises:
          UserError: as `__init__`.
        """
        file = pathlib.Path(path)
        if file.is_dir():
            alone = not (file / "spiece.model").exists() and (file / "tokenizer.json").exists()
            file = file / ("tokenizer.json" if alone else "spiece.model")
        settings = _settings_beside(file)
        lower = settings.get("do_lower_case", True) if do_lower_case is None else do_lower_case
        accents = settings.get("keep_accents", False) if keep_accents is None else keep_accents
        return cls(file, do_lower_case=bool(lower), keep_accents=bool(accents))

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return len(self._pieces)

    @abc.abstractmethod
    def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens; a text of nothing but white space gives an empty list.

        A special token spelled out in the text is ordinary text here, so that no document can smuggle in a [MASK].
        """

    def encode(self, text: str, pair: str | None = None) -> dict[str, list[int]]:
        """One text, or a pair, with its special tokens; special tokens spelled out in the text count as such.

        Returns:
          `input_ids` [CLS] text [SEP] (pair [SEP]), `token_type_ids` 0 through the first [SEP] and then 1, and
          `attention_mask`, all 1.
        """
        ids = [CLS, *self._encode_with_specials(text), SEP]
        types = [0] * len(ids)
        if pair is not None:
            second = [*self._encode_with_specials(pair), SEP]
            ids += second
            types += [1] * len(second)
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": [1] * len(ids)}

    def _encode_with_specials(self, text: str) -> list[int]:
        parts = _SPECIAL_PATTERN.split(text)  # text, special, text, special, ..., text
        encoded = iter(self.encode_sentences(parts[::2]))
        ids = list(next(encoded))
        for special in parts[1::2]:
            ids.append(SPECIAL_TOKENS.index(special))
            ids.extend(next(encoded))
        return ids

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces; `▁` marks a word's start."""
        return [self._pieces[i] for i in ids]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of pieces, <unk> where there is no such piece."""
        return [self._ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of the ids, special tokens set off by spaces; what cleaning took away stays away."""
        words: list[str] = []
        for i in ids:
            if i >= len(SPECIAL_TOKENS):
                words.append(self._pieces[i])
            elif not skip_special_tokens:
                words.append(WORD_START + self._pieces[i] + WORD_START)
        return " ".join("".join(words).replace(WORD_START, " ").split())

    def save_pretrained(self, directory: str | pathlib.Path, *, model_max_length: int = 512) -> list[pathlib.Path]:
        """Writes spiece.model, tokenizer.json and tokenizer_config.json, which transformers 4 and 5 both read right.

        Exceptions, where of theirs only transformers 4's slow tokenizer, which reads spiece.model, agrees with ours:

        - about 70 letters younger than Unicode 9, and a special token spelled in full-width letters; with
          `keep_accents`, a mark after a modifier letter and several marks on one letter. The Rust library works by
          grapheme, with older Unicode tables, and knows no pieces that text cannot reach.
        - in vocabularies that did not go through `settle_scores`, ties, and numbers where there are pieces like `1,`,
          of which a warning tells.

        Args:
          directory: made if need be; files of these names are replaced.
          model_max_length: the model's positions, to which transformers truncates where it is asked to.

        Returns:
          The files written.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / name for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json")]
        if self.vocab_file.suffix == ".json":
            files[0].write_bytes(self._proto.SerializeToString())
        elif self.vocab_file.resolve() != files[0].resolve():
            shutil.copyfile(self.vocab_file, files[0])
        _hub_tokenizer(self._proto, self.do_lower_case, self.keep_accents).save(str(files[1]), pretty=False)
        self._warn_of_glued_numbers()
        settings = json.dumps(_hub_settings(self.do_lower_case, self.keep_accents, model_max_length), indent=2)
        files[2].write_text(settings + "\n", encoding="utf-8")
        return files

    def _warn_of_glued_numbers(self) -> None:
        glued = [p.piece for p in self._proto.pieces if _is_number_comma(p.piece) and p.score > _NEVER]
        glued = [piece for piece in glued if not piece.startswith(WORD_START)]
        if glued:
            message = (
                "%s has %d pieces like %r: transformers' fast tokenizers may segment numbers before commas differently."
            )
            _log.warning(message, self.vocab_file, len(glued), glued[0])


class AlbertTokenizer(_AlbertTokenizerBase):
    """SentencePiece with ALBERT's rules, written as they read: the definition that the fast tokenizer is held to.

    On one core it is also the quicker of the two by a factor of about two; it uses one core.
    """

    def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
        """See the base class."""
        cleaned = [clean(s, self.do_lower_case, self.keep_accents) for s in sentences]
        return [self.convert_tokens_to_ids(self._split_number_commas(p)) for p in self._segment(cleaned)]

    def _segment(self, texts: list[str]) -> list[list[str]]:
        return self._sentencepiece.encode(texts, out_type=str)

    def _split_number_commas(self, pieces: list[str]) -> list[str]:
        """Rule 6; the digits are segmented anew, without the word start that SentencePiece puts before them."""
        out: list[str] = []
        for piece in pieces:
            if not _is_number_comma(piece):
                out.append(piece)
                continue
            parts = self._segment([piece[:-1].replace(WORD_START, "")])[0]
            out += parts if piece.startswith(WORD_START) else _without_word_start(parts)
            out.append(",")
        return out


class AlbertTokenizerFast(_AlbertTokenizerBase):
    """The same ids from the `tokenizers` library, whose segmentation runs on all cores."""

    def __init__(
        self, vocab_file: str | pathlib.Path, *, do_lower_case: bool = True, keep_accents: bool = False
    ) -> None:
        """See the base class."""
        super().__init__(vocab_file, do_lower_case=do_lower_case, keep_accents=keep_accents)
        self._rust = _segmenter(self._proto)
        self._number_commas = self._number_comma_table()

    def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
        """See the base class."""
        cleaned = [clean(s, self.do_lower_case, self.keep_accents) for s in sentences]
        encoded = self._segment(cleaned)
        return [
            ids if self._number_commas.keys().isdisjoint(ids) else self._split_number_commas(ids) for ids in encoded
        ]

    def _segment(self, texts: Iterable[str]) -> list[list[int]]:
        # SentencePiece's own normalizer: the Rust library's takes graphemes apart differently.
        normalized = [self._sentencepiece.normalize(text) for text in texts]
        return [encoding.ids for encoding in self._rust.encode_batch_fast(normalized, add_special_tokens=False)]

    def _split_number_commas(self, ids: list[int]) -> list[int]:
        out: list[int] = []
        for i in ids:
            out.extend(self._number_commas.get(i, (i,)))
        return out

    def _number_comma_table(self) -> dict[int, list[int]]:
        """Rule 6 for every piece it can meet: it looks at nothing but the piece."""
        pieces = {i: p for i, p in enumerate(self._pieces) if _is_number_comma(p)}
        table = {}
        digits = self._segment(p[:-1].replace(WORD_START, "") for p in pieces.values())
        for (i, piece), ids in zip(pieces.items(), digits, strict=True):
            parts = self.convert_ids_to_tokens(ids)
            parts = parts if piece.startswith(WORD_START) else _without_word_start(parts)
            table[i] = self.convert_tokens_to_ids([*parts, ","])
        return table


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
    proto = _ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = _NEVER if _is_number_comma(piece.piece) else round(piece.score * 1024) / 1024
    return proto.SerializeToString()


def _is_number_comma(piece: str) -> bool:
    """Whether rule 6 splits this piece."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def _without_word_start(pieces: list[str]) -> list[str]:
    if not pieces or not pieces[0].startswith(WORD_START):
        return pieces
    return pieces[1:] if len(pieces[0]) == 1 else [pieces[0][1:], *pieces[1:]]


# --- files ------------------------------------------------------------------------------------------------------------


def _read_vocabulary(path: pathlib.Path) -> Any:
    """The vocabulary as SentencePiece's ModelProto, from either kind of file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a spiece.model or a directory that holds one.")
    return _read_tokenizer_json(path) if path.suffix == ".json" else _read_spiece(path)


def _settings_beside(file: pathlib.Path) -> dict[str, Any]:
    """What tokenizer_config.json in the vocabulary's directory says."""
    path = file.parent / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is not a JSON object ({e}); remove it or write it anew.") from e


def _read_spiece(path: pathlib.Path) -> Any:
    """Parses and checks a spiece.model."""
    proto = _ModelProto()
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
            f"{path} uses byte fallback, white-space suffixes or unused pieces, which ALBERT does not have."
        )
    return proto


def _read_tokenizer_json(path: pathlib.Path) -> Any:
    """Builds a SentencePiece model from a tokenizer.json's pieces, scores and character map.

    Its pipeline is left aside: what transformers derives from a spiece.model of ALBERT is damaged, the pieces are not.
    Pieces that it made into added tokens of their own, such as the full stop, are user-defined symbols again.
    """
    proto = _ModelProto()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        pieces = [(str(piece), float(score)) for piece, score in values["model"]["vocab"]]
        charsmap = next(_charsmaps(values["normalizer"]), b"")
        added = {token["content"] for token in values["added_tokens"]}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not a unigram tokenizer.json ({e!r}); give the one of an ALBERT vocabulary.") from e
    _check_specials([piece for piece, _ in pieces[:5]], path)
    for i, (piece, score) in enumerate(pieces):
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


def _check_specials(first: Sequence[str], path: pathlib.Path) -> None:
    if tuple(first) != SPECIAL_TOKENS:
        pairs = enumerate(zip(first, SPECIAL_TOKENS, strict=False))
        wrong = ", ".join(f"{i} is {found!r}, not {wanted!r}" for i, (found, wanted) in pairs if found != wanted)
        raise UserError(
            f"{path} is not an ALBERT vocabulary: special id {wrong or 'list is too short'}; "
            "train one with `python -m pretrain_data vocab`."
        )


# --- the Rust pipelines -----------------------------------------------------------------------------------------------


def _scores(proto: Any) -> list[float]:
    """Scores with which the Rust library finds SentencePiece's paths.

    SentencePiece scores a user-defined symbol not by what the file says but by -0.1 plus, for each byte, the best score
    of the vocabulary where that is above zero, which in a trained vocabulary it is not.
    """
    best = max((p.score for p in proto.pieces if p.type == p.NORMAL), default=0.0)
    return [len(p.piece.encode()) * max(best, 0.0) - 0.1 if p.type == p.USER_DEFINED else p.score for p in proto.pieces]


def _segmenter(proto: Any) -> tokenizers.Tokenizer:
    """For our own use, on clean, normalized text: without added tokens, so that a special token in the text is text."""
    # The names of special pieces must not match text: a NUL never survives SentencePiece's normalizer.
    names = [f"\0{p.piece}" if i < len(SPECIAL_TOKENS) else p.piece for i, p in enumerate(proto.pieces)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(list(zip(names, _scores(proto), strict=True)), unk_id=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(WORD_START, "merged_with_next")
    return tokenizer


def _hub_tokenizer(proto: Any, do_lower_case: bool, keep_accents: bool) -> tokenizers.Tokenizer:
    """For tokenizer.json: everything in Rust, five added tokens and no more, and number-comma pieces out of reach."""
    names = [p.piece for p in proto.pieces]
    vocabulary = [
        (name, _NEVER if _is_number_comma(name) else score) for name, score in zip(names, _scores(proto), strict=True)
    ]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=UNK))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(_hub_normalizers(charsmap, do_lower_case, keep_accents))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, lstrip=t == "[MASK]", normalized=False, special=True) for t in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.Metaspace(WORD_START, prepend_scheme="always")
    return tokenizer


def _hub_normalizers(charsmap: bytes, do_lower_case: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
    """Rules 1, 3, 4 and SentencePiece's normalizer, in the library's terms."""
    lower = [normalizers.Lowercase()] if do_lower_case else []
    steps = [
        *lower,
        _replace_characters(str.isspace, " "),
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
    ]
    if not keep_accents:
        # The library's StripAccents drops every mark, Python's rule only those with a combining class; Hindi shows it.
        # Precompiled does not put Hangul together again, so NFC does it.
        steps += [normalizers.NFKD(), _replace_characters(unicodedata.combining, ""), *lower, normalizers.NFC()]
    if charsmap:
        steps += [*_invisible_characters(charsmap), normalizers.Precompiled(charsmap)]
    # Metaspace puts no second word start before one that stands in the text; SentencePiece does.
    steps.append(normalizers.Replace(tokenizers.Regex(rf"(?<![^ ]){WORD_START}"), WORD_START * 2))
    return steps


def _invisible_characters(charsmap: bytes) -> list[normalizers.Normalizer]:
    """Control and zero-width characters, as the character map has them.

    It would find them by itself, but applied to a grapheme the Rust library drops what follows them in it.
    """
    normalizer = normalizers.Precompiled(charsmap)
    targets: dict[str, set[str]] = {"": set(), " ": set()}
    for c in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp"):
            targets.get(normalizer.normalize_str(c), set()).add(c)
    return [_replace_characters(frozenset(old).__contains__, new) for new, old in targets.items() if old]


def _replace_characters(belongs: Callable[[str], Any], content: str) -> normalizers.Normalizer:
    """Replaces every character of which `belongs` is true."""
    return normalizers.Replace(tokenizers.Regex(_character_class(belongs)), content)


@functools.lru_cache(maxsize=16)
def _character_class(belongs: Callable[[str], Any]) -> str:
    """A regular expression for the characters of which `belongs` is true, as ranges."""
    ranges: list[list[int]] = []
    for code in filter(lambda c: belongs(chr(c)), range(sys.maxunicode + 1)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in ranges) + "]"


def _hub_settings(do_lower_case: bool, keep_accents: bool, model_max_length: int) -> dict[str, Any]:
    """tokenizer_config.json.

    The class is the one that keeps tokenizer.json's pipeline; transformers 5's own AlbertTokenizer rebuilds it, with
    other rules for marks and white space.
    """
    names = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK, "bos": CLS, "eos": SEP}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "do_lower_case": do_lower_case,
        "keep_accents": keep_accents,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": SPECIAL_TOKENS[i] for name, i in names.items()},
    }
