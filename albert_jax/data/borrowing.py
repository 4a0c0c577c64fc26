# SPDX-License-Identifier: Apache-2.0
"""Text of a random other document, for examples whose second segment does not belong to the first."""

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.store import TextStore
from albert_jax.errors import UserError

_DOCUMENT, _SENTENCE = range(320, 322)


class Borrower:
    """Draws a document other than an example's own, and a sentence in it to begin with, both uniformly.

    Args:
      store: the split.
      sources: names of the sources whose documents may be drawn.

    Raises:
      UserError: where there is no other document.
    """

    def __init__(self, store: TextStore, sources: list[str]):
        self._store = store
        ends = np.searchsorted(store.document_records, np.cumsum(list(store.sources.values())))
        firsts = np.concatenate([[0], ends[:-1]])
        pairs = zip(store.sources, firsts, ends, strict=True)
        self._documents = np.concatenate([np.arange(a, b, dtype=np.int32) for name, a, b in pairs if name in sources])
        if len(self._documents) < 2:
            raise UserError(
                f"the {store.split} split of {store.path} has {len(self._documents)} document and none to take other "
                "text from; pass --config.data.sentence_order=sop, or build the data set from more documents."
            )

    def sentences(self, keys: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where borrowed text begins and its document ends.

        Args:
          keys: uint64 [K], random keys of the examples.
          begins: int64 [K], a token of each example's own text, whose document is left out.

        Returns:
          int64 [K], the first borrowed sentence, and int64 [K], the one after the last of its document.
        """
        own = np.searchsorted(self._store.document_begins, begins, side="right") - 1
        drawn = counter_rng.below(len(self._documents) - 1, keys, _DOCUMENT)
        document = self._documents[drawn + (drawn >= np.searchsorted(self._documents, own))]
        first, end = self._store.document_sentences[document], self._store.document_sentences[document + 1]
        return first + counter_rng.below(end - first, keys, _SENTENCE), end

    def tokens(self, keys: np.ndarray, begins: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sentences until the room is full or their document ends; the last is cut to what fits.

        Args:
          keys, begins: as for `sentences`.
          room: int64 [K], most tokens.

        Returns:
          int64 [K], the first borrowed token, and int64 [K], how many there are.
        """
        sentence, end = self.sentences(keys, begins)
        begin = self._store.sentence_begins(sentence)
        document = np.searchsorted(self._store.document_sentences, end)
        return begin, np.minimum(room, self._store.document_begins[document] - begin)
