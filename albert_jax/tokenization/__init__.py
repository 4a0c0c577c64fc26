# SPDX-License-Identifier: Apache-2.0
"""ALBERT's tokenizer: SentencePiece with ALBERT's rules, behind the interface of transformers 4.57's tokenizers.

The rules, in order (those of transformers 4's slow tokenizer; `cleaning` names others: "google" has neither 1 nor the
quotes of 3, "unicode", for languages other than English, has normal form C in place of 1, 4 and the quotes of 3):

1. lower-case character by character, unless `do_lower_case=False`;
2. a special token spelled out in the text, such as `[MASK]`, is that token (not in `encode_sentences`, see there);
3. runs of white space become one space, unless `remove_space=False`; two back quotes or two apostrophes become a
   double quote;
4. NFKD, then characters with a combining class are dropped, unless `keep_accents=True`; lower-case again;
5. SentencePiece: its own normalizer (nmt_nfkc), then the unigram model;
6. a piece that ends in a comma after a digit is split before the comma: `▁2000,` is `▁2000` and `,`.

There is one implementation under both of transformers' names, as in transformers 5: segmentation is SentencePiece
itself, on all cores, and pairs, truncation and padding are the `tokenizers` library's.
"""

from albert_jax.tokenization.batches import BatchEncoding
from albert_jax.tokenization.cleaning import RULES, clean
from albert_jax.tokenization.tokenizer import AlbertTokenizer, AlbertTokenizerFast
from albert_jax.tokenization.vocabulary import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    WORD_START,
    settle_scores,
)

__all__ = [
    "CLS",
    "MASK",
    "PAD",
    "RULES",
    "SEP",
    "SPECIAL_TOKENS",
    "UNK",
    "WORD_START",
    "AlbertTokenizer",
    "AlbertTokenizerFast",
    "BatchEncoding",
    "clean",
    "settle_scores",
]
