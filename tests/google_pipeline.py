# SPDX-License-Identifier: Apache-2.0
"""Google's ALBERT examples, one at a time: its published algorithm in plain Python lists and `random.Random`.

Written from a description of what create_pretraining_data.py draws, with none of the code that it is compared with.
"""

import dataclasses
import random

from albert_jax.data.vocabulary import CLS, MASK, SEP

Sentence = list[int]
Document = list[Sentence]


@dataclasses.dataclass
class Example:
    """One example, with what a comparison asks of it.

    Attributes:
      tokens: ids, masked, from [CLS] to the last [SEP].
      segments: 0 or 1 for each token.
      positions: of the masked tokens, ascending.
      labels: the ids that stood there.
      order: 1 where the second segment does not follow the first.
      sentences: how many the chunk had.
      spans: tokens of each masked span, in words and in tokens, in the order in which they were chosen.
    """

    tokens: list[int]
    segments: list[int]
    positions: list[int]
    labels: list[int]
    order: int
    sentences: int
    spans: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The original's flags, with its defaults, and what it asks of the vocabulary.

    Attributes:
      starts_word: for each id, whether a word starts there.
    """

    starts_word: list[bool]
    max_seq_length: int = 512
    short_seq_prob: float = 0.1
    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    ngram: int = 3
    random_next_sentence: bool = False

    def one_pass(self, documents: list[Document], rng: random.Random) -> list[Example]:
        """The examples of all documents, in their order."""
        examples = []
        for index in range(len(documents)):
            examples += self._of_document(documents, index, rng)
        return examples

    def _of_document(self, documents: list[Document], index: int, rng: random.Random) -> list[Example]:
        document = documents[index]
        budget = self.max_seq_length - 3
        target = rng.randint(2, budget) if rng.random() < self.short_seq_prob else budget
        examples = []
        chunk: list[Sentence] = []
        length = i = 0
        while i < len(document):
            chunk.append(document[i])
            length += len(document[i])
            if i == len(document) - 1 or length >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                first = [token for sentence in chunk[:a_end] for token in sentence]
                if len(chunk) == 1 or (self.random_next_sentence and rng.random() < 0.5):
                    second = self._other_text(documents, index, target - len(first), rng)
                    order = 1
                    i -= len(chunk) - a_end  # the sentences that were not used come again
                else:
                    second = [token for sentence in chunk[a_end:] for token in sentence]
                    order = 0
                    if not self.random_next_sentence and rng.random() < 0.5:
                        first, second, order = second, first, 1
                self._truncate(first, second, budget, rng)
                tokens = [CLS, *first, SEP, *second, SEP]
                segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
                positions, labels, spans = self._mask(tokens, rng)
                examples.append(Example(tokens, segments, positions, labels, order, len(chunk), spans))
                chunk, length = [], 0
            i += 1
        return examples

    def _other_text(self, documents: list[Document], index: int, wanted: int, rng: random.Random) -> list[int]:
        for _ in range(10):
            other = rng.randrange(len(documents))
            if other != index:
                break
        text: list[int] = []
        start = rng.randrange(len(documents[other]))
        for sentence in documents[other][start:]:
            text += sentence
            if len(text) >= wanted:
                break
        return text

    def _truncate(self, first: list[int], second: list[int], budget: int, rng: random.Random) -> None:
        while len(first) + len(second) > budget:
            longer = first if len(first) > len(second) else second
            if rng.random() < 0.5:
                del longer[0]
            else:
                longer.pop()

    def _mask(self, tokens: list[int], rng: random.Random) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """Masks the tokens in place."""
        words: list[list[int]] = []
        for i, token in enumerate(tokens):
            if token in (CLS, SEP):
                continue
            if words and not self.starts_word[token]:
                words[-1].append(i)
            else:
                words.append([i])
        most = min(self.max_predictions_per_seq, max(1, round(len(tokens) * self.masked_lm_prob)))
        shares = [1 / n for n in range(1, self.ngram + 1)]
        order = list(range(len(words)))
        rng.shuffle(order)
        masked: dict[int, int] = {}
        spans = []
        for start in order:
            if len(masked) >= most:
                break
            (n,) = rng.choices(range(1, self.ngram + 1), shares)
            span = [i for word in words[start : start + n] for i in word]
            while n > 1 and len(masked) + len(span) > most:
                n -= 1
                span = [i for word in words[start : start + n] for i in word]
            if len(masked) + len(span) > most or any(i in masked for i in span):
                continue
            spans.append((min(n, len(words) - start), len(span)))
            for i in span:
                masked[i] = tokens[i]
                draw = rng.random()
                if draw < 0.8:
                    tokens[i] = MASK
                elif draw >= 0.9:
                    tokens[i] = rng.randrange(len(self.starts_word))
        positions = sorted(masked)
        return positions, [masked[i] for i in positions], spans
