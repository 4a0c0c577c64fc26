# SPDX-License-Identifier: Apache-2.0
"""`AlbertTokenizer`: the vocabulary, the rules and the interface. The package says what the rules are."""

import functools
import itertools
import json
import logging
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, overload

import numpy as np

from albert_jax.convert.hub import HUB_OPTIONS, TOKENIZER_FILES, locate
from albert_jax.errors import UserError
from albert_jax.tokenization import hub
from albert_jax.tokenization.batches import (
    Assembler,
    BatchEncoding,
    EncodedText,
    Padding,
    Truncation,
    as_arrays,
    padded,
    values,
)
from albert_jax.tokenization.cleaning import Cleaning
from albert_jax.tokenization.segmentation import Segmenter
from albert_jax.tokenization.vocabulary import (
    CLS,
    MASK,
    NEVER,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    WORD_START,
    check_added_tokens,
    is_number_comma,
    parse_vocabulary,
    read_vocabulary,
)

Texts = str | Sequence[str] | Sequence[Sequence[str]] | Sequence[Sequence[Sequence[str]]]

# What tokenizer_config.json may say, of the constructor's arguments.
_SETTINGS = (
    "do_lower_case",
    "remove_space",
    "keep_accents",
    "cleaning",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
)
_TRUNCATIONS = {True: "longest_first", False: None, None: None, "do_not_truncate": None} | {
    name: name for name in ("longest_first", "only_first", "only_second")
}
_PADDINGS = {True: "longest", False: None, "do_not_pad": None, "longest": "longest", "max_length": "max_length"}
# transformers writes 10**30 for "no limit".
_NO_LIMIT = 10**20
_log = logging.getLogger(__name__)


class AlbertTokenizer:
    """SentencePiece with ALBERT's rules, as transformers 4.57's tokenizers, but for these differences:

    - `__call__` assembles as their fast tokenizer does, and has its alignments: where two truncated texts share an odd
      number of tokens, the longer one keeps one more, or the second if they were equal, where their slow tokenizer
      leaves it to the first; `return_overflowing_tokens` gives more rows and `overflow_to_sample_mapping`; without
      special tokens a pair's `token_type_ids` are 0 and 1. An empty pair counts as a pair, as in their slow tokenizer.
    - what theirs leave undone with a log message or pad with object arrays, such as a truncation that cannot be done or
      arrays of unequal rows, is a `UserError`.
    - an unknown piece id is a `UserError`, and tokens cannot be added to the vocabulary.

    Attributes:
      vocab_file: the vocabulary.
      model_max_length: the model's positions, to which is truncated where no other length is named.
      padding_side, truncation_side: "right" or "left".
      clean_up_tokenization_spaces: what `decode` does where it is not told.
      model_input_names: what `__call__` returns where it is not told.
    """

    is_fast: ClassVar[bool] = True  # in transformers' sense: there are offsets, word_ids and sequence_ids
    unk_token, pad_token, mask_token = (SPECIAL_TOKENS[i] for i in (UNK, PAD, MASK))
    unk_token_id, pad_token_id, mask_token_id, pad_token_type_id = UNK, PAD, MASK, 0
    cls_token = bos_token = SPECIAL_TOKENS[CLS]
    sep_token = eos_token = SPECIAL_TOKENS[SEP]
    cls_token_id = bos_token_id = CLS
    sep_token_id = eos_token_id = SEP
    all_special_tokens: ClassVar[list[str]] = [SPECIAL_TOKENS[i] for i in (CLS, SEP, UNK, PAD, MASK)]
    all_special_ids: ClassVar[list[int]] = [CLS, SEP, UNK, PAD, MASK]
    special_tokens_map: ClassVar[dict[str, str]] = {name: SPECIAL_TOKENS[i] for name, i in hub.SPECIAL_NAMES.items()}

    def __init__(
        self,
        vocab_file: str | pathlib.Path,
        do_lower_case: bool | None = None,
        remove_space: bool = True,
        keep_accents: bool | None = None,
        *,
        cleaning: str = "huggingface",
        model_max_length: int = 512,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask"),
    ) -> None:
        """Opens a spiece.model, or a tokenizer.json of ALBERT's.

        Args:
          vocab_file: the file; it must stay there for `save_pretrained` and `save_vocabulary`.
          do_lower_case: False for a cased vocabulary; None is True, but False with cleaning="unicode".
          remove_space: False leaves white space to SentencePiece, which collapses spaces too, but drops some control
            characters that otherwise part words.
          keep_accents: True for a vocabulary trained on text with accents; None is False, but True with
            cleaning="unicode".
          cleaning: "huggingface" for transformers' rules, "google" for those of Google's own code: quotes are left as
            they are and a word's final sigma is one. "unicode", for other languages, leaves quotes, case and accents as
            they are, and writes each letter in one way, by Unicode's normal form C.
          model_max_length, padding_side, truncation_side, clean_up_tokenization_spaces, model_input_names: see the
            class.

        Raises:
          UserError: if the file is missing or unreadable, its first five pieces are not ALBERT's special tokens, or a
            setting is none or contradicts another.
        """
        self.vocab_file = pathlib.Path(vocab_file)
        self._cleaning = Cleaning.named(cleaning, do_lower_case, keep_accents, remove_space)
        if not isinstance(model_max_length, int) or model_max_length < 1:
            raise UserError(f"model_max_length={model_max_length!r} must be a number of tokens, 1 or more.")
        self.model_max_length = model_max_length
        self.padding_side = _side("padding_side", padding_side)
        self.truncation_side = _side("truncation_side", truncation_side)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.model_input_names = list(model_input_names)
        proto = read_vocabulary(self.vocab_file)
        self._model: bytes = proto.SerializeToString()  # the parsed one cannot be pickled
        self._pieces = [piece.piece for piece in proto.pieces]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._segmenter = Segmenter(proto, self._cleaning)
        self._warned: set[str] = set()

    @classmethod
    def from_pretrained(cls, path: str | pathlib.Path, **overrides: Any) -> Self:
        """Opens a directory (its spiece.model, else its tokenizer.json) or either file itself.

        Args:
          path: a local path, or a repository of the hub, see `albert_jax.convert.hub.locate`.
          **overrides: keyword arguments of the constructor; where they say nothing, a tokenizer_config.json beside the
            vocabulary does, and else the constructor's defaults hold. And options of the hub.

        Raises:
          UserError: as the constructor, and where tokenizer_config.json is no JSON object or names other special tokens
            than ALBERT's or additional ones.
        """
        options = {name: overrides.pop(name) for name in HUB_OPTIONS if name in overrides}
        file = pathlib.Path(path)
        if not file.is_file():
            file = locate(path, TOKENIZER_FILES, **options)
            alone = not (file / "spiece.model").exists() and (file / "tokenizer.json").exists()
            file = file / ("tokenizer.json" if alone else "spiece.model")
        recorded = _settings_beside(file)
        tokenizer = cls(file, **{n: recorded[n] for n in _SETTINGS if recorded.get(n) is not None} | overrides)
        config = file.parent / "tokenizer_config.json"
        check_added_tokens(_named_tokens(recorded, config), set(tokenizer._pieces), config)
        return tokenizer

    @property
    def do_lower_case(self) -> bool:
        """Whether texts are lower-cased."""
        return self._cleaning.do_lower_case

    @property
    def remove_space(self) -> bool:
        """Whether white space is collapsed before SentencePiece sees it."""
        return self._cleaning.remove_space

    @property
    def keep_accents(self) -> bool:
        """Whether accents stay."""
        return self._cleaning.keep_accents

    @property
    def cleaning(self) -> str:
        """The name of the cleaning rule."""
        return self._cleaning.rule

    # --- the vocabulary -----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return len(self._pieces)

    def __len__(self) -> int:
        """V, the number of ids."""
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        """Pieces and their ids."""
        return dict(self._ids)

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The piece of an id, or the pieces of several; `▁` marks a word's start.

        Raises:
          UserError: where there is no such id.
        """
        if isinstance(ids, int | np.integer):
            return self._piece(int(ids))
        skipped = len(SPECIAL_TOKENS) if skip_special_tokens else 0
        return [self._piece(i) for i in map(int, ids) if not 0 <= i < skipped]

    def _piece(self, i: int) -> str:
        if not 0 <= i < len(self._pieces):
            raise UserError(f"{i} is no id of {self.vocab_file}, whose ids are 0 to {len(self._pieces) - 1}.")
        return self._pieces[i]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...  # type: ignore[overload-overlap]  # a str is iterable
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """The id of a piece, or those of several; that of <unk> where there is no such piece."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, UNK)
        return [self._ids.get(token, UNK) for token in tokens]

    # --- segmentation -------------------------------------------------------------------------------------------------

    def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens; a text of nothing but white space gives an empty list.

        A special token spelled out in the text is ordinary text here, so that no document can smuggle in a [MASK].
        """
        return self._segmenter.ids(sentences)

    def encode_sentences_flat(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same as `encode_sentences` in two arrays, for who has many.

        Returns:
          int32 [T], the token ids of one text after the other; int64 [N], how many each text has.
        """
        return self._segmenter.arrays(sentences)

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The pieces of a text, or of a pair one after the other; where there is none the unknown text itself."""
        given = [one for one in (text, pair) if one is not None]
        for one in given:
            _check_text(one)
        tokens = [self._segmenter.tokens(one) for one in given]
        if not add_special_tokens:
            return list(itertools.chain.from_iterable(tokens))
        return [self.cls_token, *(token for one in tokens for token in [*one, self.sep_token])]

    # --- model inputs -------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Model inputs of a text, a pair, or a batch of either; special tokens spelled out in a text count as such.

        Args:
          text: a text, a list of B texts, or a list of B pairs; with `is_split_into_words` lists of words for texts.
          text_pair: the second text, or B of them.
          add_special_tokens: [CLS] text [SEP] (pair [SEP]).
          padding: True or "longest", "max_length", False or "do_not_pad".
          truncation: True or "longest_first", "only_first", "only_second", False or "do_not_truncate". None is False,
            or, if `max_length` is given without padding, "longest_first", as in transformers, with a warning.
          max_length: of truncation and of padding "max_length", special tokens included; else `model_max_length`.
          stride: tokens that an overflowing row repeats from the one before.
          is_split_into_words: texts are lists of words.
          pad_to_multiple_of: where there is padding, up to a multiple of it.
          padding_side: "right" or "left", else the attribute.
          return_tensors: "np", "jax" or "pt" arrays instead of lists; one text is then a batch of one.
          return_token_type_ids, return_attention_mask: True or False where `model_input_names` does not say it right.
          return_overflowing_tokens: what truncation takes away comes as further rows; `overflow_to_sample_mapping` [R]
            names the text of each row.
          return_special_tokens_mask: 1 for tokens added around the text and for padding.
          return_offsets_mapping: (start, end) of each token's characters in the text as given, or in its word; (0, 0)
            for tokens that were added.
          return_length: the number of tokens of each row.

        Returns:
          A dict of `input_ids` [B, S], `token_type_ids` [B, S] (0 through the first [SEP], 1 after it),
          `attention_mask` [B, S] (0 for padding) and what was asked for; without B for one text.

        Raises:
          UserError: where the inputs are no texts, an option is none, or `truncation` cannot be done.
        """
        first, second, batched = _inputs(text, text_pair, is_split_into_words)
        cut = self._truncation(truncation, padding, max_length, stride)
        fill = self._padding(padding, cut, max_length, pad_to_multiple_of, padding_side)
        sides = [self._encoded(side, is_split_into_words, return_offsets_mapping) for side in (first, second) if side]
        rows = self._assembler(
            list(zip(*sides, strict=True)),
            add_special_tokens=add_special_tokens,
            truncation=cut,
            padding=fill,
            overflowing=return_overflowing_tokens,
        )
        asked = {
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
            "overflow_to_sample_mapping": return_overflowing_tokens,
        }
        data = values(rows, [name for name, told in asked.items() if self._wants(name, told)])
        if max_length is None:
            self._warn_of_length(data["input_ids"])
        if return_tensors is not None:
            data = as_arrays(data, return_tensors)
        elif not batched and not return_overflowing_tokens:
            # All that is one list per row; `length` stays a list, as in transformers.
            data = {name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}
        return BatchEncoding(data, rows, self._segmenter.starts_word)

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """The ids of one text or pair [S], special tokens included; the options are those of `__call__`.

        Raises:
          UserError: as `__call__`, and where `text` is a batch.
        """
        if not options.get("is_split_into_words"):
            _check_text(text)
        return self(text, text_pair, add_special_tokens, **options)["input_ids"]

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fills up what was encoded before, as transformers' data collators ask for it; `verbose` changes nothing.

        Args:
          encoded_inputs: a dict of lists or arrays with `input_ids`, of one row or of B, or B dicts of one row each;
            what is neither ids, types nor a mask is left as it is.
          padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as for `__call__`.
          return_attention_mask: True or False where `model_input_names` does not say it right.

        Raises:
          UserError: where there are no `input_ids`, rows have different names, or as `__call__`.
        """
        data = _joined(encoded_inputs)
        single = not isinstance(next(iter(data["input_ids"]), []), list)
        if single:
            data = {name: [value] for name, value in data.items()}
        if self._wants("attention_mask", return_attention_mask):
            data.setdefault("attention_mask", [[1] * len(row) for row in data["input_ids"]])
        fill = self._padding(padding, None, max_length, pad_to_multiple_of, padding_side)
        data = padded(data, fill) if fill else data
        if return_tensors is not None:
            return BatchEncoding(as_arrays(data, return_tensors))
        return BatchEncoding({name: value[0] for name, value in data.items()} if single else data)

    def _encoded(self, texts: list[Any], split: bool, offsets: bool) -> list[EncodedText]:
        """One side of a batch."""
        encoded = self._segmenter.encode_words(texts) if split else self._segmenter.encode(texts)
        if offsets:
            for one, text in zip(encoded, texts, strict=True):
                one.spans = [span for word in (text if split else [text]) for span in self._segmenter.spans(word)]
        return encoded

    def _wants(self, name: str, told: bool | None) -> bool:
        return name in self.model_input_names if told is None else told

    def _truncation(
        self, truncation: bool | str | None, padding: bool | str, max_length: int | None, stride: int
    ) -> Truncation | None:
        strategy = _choice("truncation", truncation, _TRUNCATIONS)
        if max_length is not None and (isinstance(max_length, bool) or max_length < 1):
            raise UserError(f"max_length={max_length!r} must be a number of tokens, 1 or more.")
        if truncation is None and max_length is not None and padding is False:
            self._warn_once(
                "max_length=%d is given without truncation: texts are truncated, the longest first; say so by "
                "truncation=True.",
                max_length,
            )
            strategy = "longest_first"
        if strategy is None:
            return None
        if stride < 0:
            raise UserError(f"stride={stride} must be 0 or more.")
        return Truncation(
            strategy, self._limit("truncation", max_length), stride, _side("truncation_side", self.truncation_side)
        )

    def _padding(
        self,
        padding: bool | str,
        truncation: Truncation | None,
        max_length: int | None,
        multiple: int | None,
        side: str | None,
    ) -> Padding | None:
        strategy = _choice("padding", padding, _PADDINGS)
        if strategy is None:
            return None
        if multiple is not None and multiple < 1:
            raise UserError(f"pad_to_multiple_of={multiple} must be 1 or more.")
        if truncation and multiple and truncation.max_length % multiple:
            raise UserError(
                f"max_length={truncation.max_length} is not a multiple of pad_to_multiple_of={multiple}, so padding "
                "would exceed it; make it one."
            )
        if strategy == "longest" and max_length is not None and not truncation:
            self._warn_once("max_length=%d is ignored: padding is to the longest, and nothing truncates.", max_length)
        length = self._limit("padding", max_length) if strategy == "max_length" else None
        return Padding(length, multiple, _side("padding_side", self.padding_side if side is None else side))

    def _limit(self, purpose: str, max_length: int | None) -> int:
        if max_length is None and self.model_max_length > _NO_LIMIT:
            raise UserError(f"{purpose} needs a max_length, as this tokenizer has no model_max_length; give one.")
        return self.model_max_length if max_length is None else max_length

    def _warn_of_length(self, rows: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, rows), default=0)
        if longest > self.model_max_length:
            self._warn_once(
                "a text has %d tokens, more than the model's %d positions; the model cannot take it without "
                "truncation=True.",
                longest,
                self.model_max_length,
            )

    def _warn_once(self, message: str, *values: int) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message, *values)

    @functools.cached_property
    def _assembler(self) -> Assembler:
        return Assembler(self.vocab_size)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text, or a pair, gets."""
        return 3 if pair else 2

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""
        return [CLS, *token_ids_0, SEP, *([*token_ids_1, SEP] if token_ids_1 is not None else [])]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """What `build_inputs_with_special_tokens` gives has type 0 through the first [SEP], and 1 after it."""
        return [0] * (len(token_ids_0) + 2) + [1] * (len(token_ids_1) + 1 if token_ids_1 is not None else 0)

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where a token of `build_inputs_with_special_tokens` is one of those it adds, else 0.

        Args:
          token_ids_0, token_ids_1: one text's ids, or two.
          already_has_special_tokens: the first is complete; then 1 is for every special token in it, <pad>, <unk> and
            [MASK] included.

        Raises:
          UserError: where ids are said to be complete and there are others.
        """
        if not already_has_special_tokens:
            second = [] if token_ids_1 is None else [*[0] * len(token_ids_1), 1]
            return [1, *[0] * len(token_ids_0), 1, *second]
        if token_ids_1 is not None:
            raise UserError("already_has_special_tokens=True is for one complete list of ids; give no second one.")
        return [int(i in self.all_special_ids) for i in token_ids_0]

    # --- back to text -------------------------------------------------------------------------------------------------

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of pieces, spaced as transformers 4's slow tokenizer does around special tokens."""
        text, ordinary = "", list[str]()
        after_special = False
        for token in tokens:
            if token in SPECIAL_TOKENS:
                text += ("" if after_special else " ") + self._segmenter.text(ordinary) + token
                ordinary = []
            else:
                ordinary.append(token)
            after_special = token in SPECIAL_TOKENS
        return (text + self._segmenter.text(ordinary)).strip()

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids; what cleaning took away stays away.

        Args:
          token_ids: an id, or ids [S] as a list or an array.
          skip_special_tokens: leave the special tokens out.
          clean_up_tokenization_spaces: take away spaces before punctuation and English contractions; None is the
            attribute.

        Raises:
          UserError: where there is no such id.
        """
        ids = np.asarray(token_ids).reshape(-1).tolist() if not isinstance(token_ids, list | tuple) else token_ids
        text = self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens))
        told = clean_up_tokenization_spaces
        return _tidied(text) if (self.clean_up_tokenization_spaces if told is None else told) else text

    def batch_decode(self, sequences: Iterable[Any], **options: Any) -> list[str]:
        """`decode` of each of the id sequences [B, S]."""
        return [self.decode(ids, **options) for ids in sequences]

    # --- files --------------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str | pathlib.Path, filename_prefix: str | None = None) -> tuple[str]:
        """Writes spiece.model into a directory.

        Args:
          save_directory: must exist.
          filename_prefix: and a hyphen go before the name.

        Returns:
          The file.

        Raises:
          UserError: where there is no such directory.
        """
        directory = pathlib.Path(save_directory)
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory; make it first.")
        file = directory / ((f"{filename_prefix}-" if filename_prefix else "") + "spiece.model")
        if self.vocab_file.suffix == ".json":
            file.write_bytes(self._model)
        elif self.vocab_file.resolve() != file.resolve():
            shutil.copyfile(self.vocab_file, file)
        return (str(file),)

    def save_pretrained(
        self, directory: str | pathlib.Path, *, model_max_length: int | None = None
    ) -> list[pathlib.Path]:
        """Writes spiece.model, tokenizer.json and tokenizer_config.json, which transformers 4 and 5 both read right.

        So do `tokenizers` from 0.13.3 on and, in JavaScript, transformers.js 3 and 4 (3.8.1 and 4.3.2 were tried).
        Exceptions, where of theirs only transformers 4's slow tokenizer, which reads spiece.model, agrees with ours:

        - about 70 letters younger than Unicode 9, and a special token spelled in full-width letters; with
          `keep_accents`, a mark after a modifier letter and several marks on one letter, or, with cleaning="unicode",
          younger marks and a mark after an accent that stands by itself, such as ¨. The Rust library works by grapheme,
          with older Unicode tables, and knows no pieces that text cannot reach.
        - in vocabularies that did not go through `settle_scores`, numbers where there are pieces like `1,`, of which a
          warning tells, and ties: SentencePiece adds up scores in float32 along the whole text, the Rust library in
          float64 word by word, so of two segmentations whose scores are within about 1e-4 of each other they may take
          different ones (with the published English vocabulary 2 of 52,000 paragraphs).
        - in vocabularies without a piece for the comma, a comma beside another unknown character.
        - with cleaning="google", a final sigma that more than three apostrophes or the like keep from its letter.
        - in JavaScript: with `keep_accents` but not cleaning="unicode", marks in another order than that of normal
          forms; with `remove_space=False`, the control character U+0085 before a [MASK].

        And one where only tokenizer.json agrees: with cleaning="google" their slow tokenizer still replaces quotes and
        knows no final sigma, with "unicode" it replaces them too and leaves marks in the order they are in.

        Args:
          directory: made if need be; files of these names are replaced.
          model_max_length: recorded instead of the attribute.

        Returns:
          The files written.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = [pathlib.Path(self.save_vocabulary(directory)[0])]
        files += [directory / name for name in ("tokenizer.json", "tokenizer_config.json")]
        proto = parse_vocabulary(self._model)
        files[1].write_text(hub.hub_file(proto, self._cleaning), encoding="utf-8")
        self._warn_of_glued_numbers(proto)
        settings = hub.hub_settings(
            self._cleaning,
            model_max_length=self.model_max_length if model_max_length is None else model_max_length,
            padding_side=self.padding_side,
            truncation_side=self.truncation_side,
            clean_up_tokenization_spaces=self.clean_up_tokenization_spaces,
            model_input_names=self.model_input_names,
        )
        files[2].write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return files

    def _warn_of_glued_numbers(self, proto: Any) -> None:
        glued = [p.piece for p in proto.pieces if is_number_comma(p.piece) and p.score > NEVER]
        glued = [piece for piece in glued if not piece.startswith(WORD_START)]
        if glued:
            message = (
                "%s has %d pieces like %r: transformers' fast tokenizers may segment numbers before commas differently."
            )
            _log.warning(message, self.vocab_file, len(glued), glued[0])


# The same class, as in transformers 5: there is no slower one.
AlbertTokenizerFast = AlbertTokenizer


# --- what the class's methods share -----------------------------------------------------------------------------------


def _joined(encoded: Any) -> dict[str, Any]:
    """What `pad` is given, as one dict of lists."""
    rows = [encoded] if isinstance(encoded, Mapping) else list(encoded)
    names = list(rows[0]) if rows and all(isinstance(row, Mapping) for row in rows) else []
    if "input_ids" not in names or any(row.keys() != rows[0].keys() for row in rows):
        raise UserError(
            f"pad needs dicts that have the same names, input_ids among them, and not {sorted(map(str, names))}; give "
            "what the tokenizer returned."
        )
    lists = [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()} for row in rows
    ]
    return lists[0] if isinstance(encoded, Mapping) else {name: [row[name] for row in lists] for name in names}


def _inputs(text: Any, pair: Any, split: bool) -> tuple[list[Any], list[Any] | None, bool]:
    """The texts, their seconds if they are pairs, and whether they are a batch."""
    batched = isinstance(text, list | tuple) and (not split or not text or isinstance(text[0], list | tuple))
    if split and batched and not text:
        batched = False  # one text of no words, as in transformers
    if not batched:
        first, second = [text], None if pair is None else [pair]
    elif pair is None and text and all(_is_pair(item, split) for item in text):
        first, second = [list(side) for side in zip(*text, strict=True)]
    else:
        if pair is not None and (not isinstance(pair, list | tuple) or len(pair) != len(text)):
            found = f"{len(pair)} texts" if isinstance(pair, list | tuple) else f"one {type(pair).__name__}"
            raise UserError(f"text is a batch of {len(text)}, and text_pair {found}; give a second text for each.")
        first, second = list(text), None if pair is None else list(pair)
    for one in [*first, *(second or ())]:
        if split and not isinstance(one, list | tuple):
            raise UserError(f"{one!r} is not a list of words; give one, or leave is_split_into_words=True away.")
        for word in one if split else [one]:
            _check_text(word)
    return first, second, batched


def _is_pair(item: Any, split: bool) -> bool:
    """Whether an item of a batch is a pair of texts, or, with `split`, a pair of lists of words."""
    if not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return all(isinstance(side, (list, tuple) if split else str) for side in item)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise UserError(
            f"{text!r} is a {type(text).__name__}, not a text; give strings, or lists of strings with "
            "is_split_into_words=True."
        )


def _choice(option: str, value: Any, choices: dict[Any, str | None]) -> str | None:
    """What an option's value means."""
    if not isinstance(value, bool | str | None) or value not in choices:
        raise UserError(f"{option}={value!r} is none of {', '.join(map(repr, choices))}; give one of them.")
    return choices[value]


def _side(option: str, value: str) -> str:
    if value not in ("right", "left"):
        raise UserError(f"{option}={value!r} must be 'right' or 'left'.")
    return value


def _tidied(text: str) -> str:
    """English text without the spaces that tokenizers leave before punctuation and contractions."""
    for old in (" .", " ?", " !", " ,"):
        text = text.replace(old, old[1:])
    text = text.replace(" ' ", "'")
    for old in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(old, old[1:])
    return text


def _settings_beside(file: pathlib.Path) -> dict[str, Any]:
    """What tokenizer_config.json in the vocabulary's directory says."""
    path = file.parent / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is not a JSON object ({e}); remove it or write it anew.") from e


def _named_tokens(settings: dict[str, Any], path: pathlib.Path) -> set[str]:
    """The tokens that a tokenizer_config.json names.

    Raises:
      UserError: where it gives a special token another name than ALBERT's.
    """

    def content(token: Any) -> str:
        return str(token["content"] if isinstance(token, dict) else token)

    for name, i in hub.SPECIAL_NAMES.items():
        named = settings.get(name)
        if named is not None and content(named) != SPECIAL_TOKENS[i]:
            raise UserError(f"{path} says that {name} is {content(named)!r}; ALBERT's is {SPECIAL_TOKENS[i]!r}.")
    added = [*(settings.get("additional_special_tokens") or ()), *(settings.get("extra_special_tokens") or ())]
    return {content(token) for token in [*added, *(settings.get("added_tokens_decoder") or {}).values()]}
