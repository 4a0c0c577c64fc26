# SPDX-License-Identifier: Apache-2.0
"""N-gram masking, compared with a slow sequential writing of the procedure and with the paper's distributions."""

import fractions
import itertools
import pathlib
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import sentencepiece

from albert_jax.data import counter_rng, masking
from albert_jax.data.masking import MaskRule, choose_words, mask_budget, ngram_probabilities
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.store import TextStore
from albert_jax.data.stream import PretrainingStream
from albert_jax.data.vocabulary import MASK, UNK, Vocabulary
from albert_jax.errors import UserError
from tests.text_store import Example, Words, draws_of, made_up_vocabulary, read_batch, slow_choice, topics_data


def chi_square_limit(freedom: int) -> float:
    """About the 1 - 1e-5 quantile of chi-square (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.265 * (2 / (9 * freedom)) ** 0.5) ** 3


def choose(examples: list[Words], budgets: list[int], keys: np.ndarray, longest: int) -> list[list[bool]]:
    """`choose_words` over examples given as lists."""
    words = [[n for half in halves for n in half] for halves in examples]
    left = [[len(half) - i for half in halves for i in range(len(half))] for halves in examples]
    bounds = np.cumsum([0, *(len(w) for w in words)])
    flat_words, flat_left = (np.array(list(itertools.chain(*lists)), np.int64) for lists in (words, left))
    chosen = choose_words(bounds, flat_words, flat_left, np.array(budgets), keys, longest)
    return [(chosen[a:b] >= 0).tolist() for a, b in itertools.pairwise(bounds)]


def made_up_examples(seed: int, count: int) -> tuple[list[Words], list[int]]:
    rng = random.Random(seed)
    examples = [
        [[rng.choice([1, 1, 1, 2, 3, 9]) for _ in range(rng.randint(0, 25))] for _ in range(rng.randint(1, 2))]
        for _ in range(count)
    ]
    return examples, [rng.randint(0, 12) for _ in examples]


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_words_are_chosen_as_by_visiting_them_one_by_one_with_the_same_draws(longest: int) -> None:
    examples, budgets = made_up_examples(longest, 400)
    keys = counter_rng.bits(77, np.arange(len(examples)))
    found = choose(examples, budgets, keys, longest)
    for halves, budget, key, chosen in zip(examples, budgets, keys, found, strict=True):
        assert chosen == slow_choice(halves, budget, *draws_of(int(key), sum(map(len, halves)), longest))


def test_choices_are_distributed_as_those_of_the_slow_procedure_with_other_random_numbers() -> None:
    halves, budget, n = [[1, 2, 1, 1], [1, 3, 1]], 3, 6000
    keys = counter_rng.bits(5, np.arange(n))
    found = Counter(tuple(c) for c in choose([halves] * n, [budget] * n, keys, 3))
    rng = random.Random(6)
    expected: Counter[tuple[bool, ...]] = Counter()
    for _ in range(n):
        visits = rng.sample(range(7), 7)
        drawn = rng.choices([1, 2, 3], [6, 3, 2], k=7)
        expected[tuple(slow_choice(halves, budget, visits, drawn))] += 1
    both = sorted(found.keys() | expected.keys())
    assert len(both) > 10
    statistic = sum((found[c] - expected[c]) ** 2 / (found[c] + expected[c]) for c in both)
    assert statistic < chi_square_limit(len(both) - 1)


def test_ngram_lengths_before_trimming_are_6_3_and_2_elevenths() -> None:
    assert [fractions.Fraction(p).limit_denominator(100) for p in ngram_probabilities(3)] == [
        fractions.Fraction(n, 11) for n in (6, 3, 2)
    ]
    # With three tokens to choose among very many words of one token, n-grams do not meet, and the runs of chosen words
    # tell what was drawn: (3) came first as 3; (2, 1) as 2 and anything, or as 1 and then at least 2; else 1 and 1.
    n, words = 2000, 1500
    keys = counter_rng.bits(8, np.arange(n))
    runs: Counter[tuple[int, ...]] = Counter()
    for chosen in choose([[[1] * words]] * n, [3] * n, keys, 3):
        runs[tuple(sorted(len(list(g)) for is_chosen, g in itertools.groupby(chosen) if is_chosen))] += 1
    expected = {(3,): 22 / 121, (1, 2): (33 + 30) / 121, (1, 1, 1): 36 / 121}
    assert runs.keys() == expected.keys()
    statistic = sum((runs[r] - n * p) ** 2 / (n * p) for r, p in expected.items())
    assert statistic < chi_square_limit(2)


def test_every_word_is_as_likely_to_be_chosen_as_any_other_when_single_words_are() -> None:
    n = 20_000
    chosen = choose([[[1] * 5, [1] * 5]] * n, [2] * n, counter_rng.bits(9, np.arange(n)), 1)
    counts = np.sum(chosen, axis=0)
    assert counts.sum() == 2 * n
    assert float(np.sum((counts - n / 5) ** 2 / (n / 5))) < chi_square_limit(9)


def test_the_budget_is_spent_to_the_last_token_where_words_are_single_tokens_and_never_exceeded() -> None:
    keys = counter_rng.bits(10, np.arange(300))
    single = [[[1] * n] for n in range(1, 301)]
    budgets = [max(1, round(0.15 * (n + 2))) for n in range(1, 301)]
    for chosen, budget in zip(choose(single, budgets, keys, 3), budgets, strict=True):
        assert sum(chosen) == budget
    examples, budgets = made_up_examples(11, 300)
    for halves, budget, chosen in zip(examples, budgets, choose(examples, budgets, keys, 3), strict=True):
        lengths = [n for half in halves for n in half]
        spent = sum(n for n, c in zip(lengths, chosen, strict=True) if c)
        assert spent <= budget
        # Nothing is chosen only where no word fits.
        assert spent > 0 or all(n > budget for n in lengths)


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.4, 0.8])
def test_the_budget_is_the_rounded_share_and_at_least_one(rate: float) -> None:
    assert mask_budget(np.arange(1, 600), rate).tolist() == [max(1, round(n * rate)) for n in range(1, 600)]


def test_a_count_is_the_most_that_is_masked_however_long_the_example() -> None:
    lengths = np.arange(1, 600)
    assert mask_budget(lengths, 0.15, 20).tolist() == [min(20, max(1, round(n * 0.15))) for n in range(1, 600)]
    assert mask_budget(lengths, 1.0, 7).tolist() == [min(7, n) for n in range(1, 600)]


def test_a_chosen_word_names_the_word_at_which_its_ngram_begins() -> None:
    # One n-gram of each example is visited first and kept as drawn, where the budget allows it: the words left over by
    # several n-grams of three cannot be told apart from the chosen words alone.
    n, words = 3000, 30
    bounds = np.arange(n + 1) * words
    left = np.tile(np.arange(words, 0, -1), n)
    keys = counter_rng.bits(21, np.arange(n))
    spans = choose_words(bounds, np.ones(n * words, np.int64), left, np.full(n, 6), keys, 3)
    at = np.flatnonzero(spans >= 0)
    assert len(at) == 6 * n and (spans[spans[at]] == spans[at]).all()
    lengths = Counter(Counter(spans[at].tolist()).values())
    assert lengths.keys() == {1, 2, 3} and (at - spans[at]).min() >= 0 and (at - spans[at]).max() == 2
    assert all(spans[i] == spans[i - 1] for i in at[at != spans[at]])
    assert lengths[1] > lengths[2] > lengths[3]


def test_one_example_is_masked_alike_alone_and_among_others() -> None:
    examples, budgets = made_up_examples(12, 60)
    keys = counter_rng.bits(13, np.arange(60))
    together = choose(examples, budgets, keys, 3)
    for i, expected in enumerate(together):
        assert choose(examples[i : i + 1], budgets[i : i + 1], keys[i : i + 1], 3) == [expected]


def test_80_10_10_and_replacements_uniform_over_all_pieces_but_the_special_ones() -> None:
    n, size = 200_000, 105
    vocabulary = made_up_vocabulary(size)
    labels = np.full(n, 50, np.int32)
    positions = np.arange(n) % 20
    rule = MaskRule.paper(vocabulary)
    inputs = rule.corrupt(labels, counter_rng.bits(14, np.arange(n) // 20), positions, positions)
    assert inputs.dtype == np.int32
    expected = np.full(size, 0.1 / (size - 5))
    expected[:5] = 0
    expected[MASK] = 0.8
    expected[50] += 0.1
    counts = np.bincount(inputs, minlength=size)
    assert counts[:4].sum() == 0
    some = expected > 0
    assert float(np.sum((counts - n * expected)[some] ** 2 / (n * expected[some]))) < chi_square_limit(size - 5)


def test_drawn_by_span_the_tokens_of_a_span_share_one_fate_and_have_replacements_of_their_own() -> None:
    n, size = 200_000, 105
    rule = MaskRule.paper(made_up_vocabulary(size), corrupt_by="span")
    positions, spans = np.arange(n) % 20, np.arange(n) % 20 // 4 * 4  # spans of four tokens
    inputs = rule.corrupt(np.full(n, 50, np.int32), counter_rng.bits(15, np.arange(n) // 20), positions, spans)
    groups = inputs.reshape(-1, 4)
    whole, kept = (groups == MASK).all(1), (groups == 50).all(1)
    random = ~whole & ~kept
    assert not (groups[random] == MASK).any() and groups[random].min() >= 5
    for count, share in ((whole.sum(), 0.8), (kept.sum(), 0.1), (random.sum(), 0.1)):
        assert abs(count - 50_000 * share) < 4.5 * (50_000 * share * (1 - share)) ** 0.5
    assert np.mean(groups[random][:, 0] == groups[random][:, 1]) < 0.02


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"longest_ngram": 0}, "masking.max_ngram must be at least 1, not 0"),
        ({"rate": 0.0}, "masking.rate 0.0 must be a share"),
        ({"rate": 1.2}, "masking.rate 1.2 must be a share"),
        ({"count": -1}, "masking.count -1"),
        ({"corrupt_by": "word"}, "masking.corrupt_by must be 'token' or 'span', not 'word'"),
    ],
)
def test_rules_that_cannot_be_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        MaskRule.paper(made_up_vocabulary(9), **fields)


# --- in rows of real text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return topics_data(tmp_path_factory)


def masked_examples(topics: pathlib.Path, **fields: Any) -> list[Example]:
    """Examples of real text, masked by a rule with these fields."""
    settings = PlanSettings(96, 4, 20, 0.15, 0.3)
    vocabulary = Vocabulary.load(topics / "spiece.model")
    store = TextStore(topics, "train")
    plan = make_plan(store, vocabulary.starts_word, settings)
    stream = PretrainingStream(store, plan, settings, MaskRule.paper(vocabulary, **fields), seed=3)
    return [example for row in read_batch(stream.batch(0, 700)) for example in row]


@pytest.fixture(scope="module")
def examples(topics: pathlib.Path) -> list[Example]:
    return masked_examples(topics)


def words_of(example: Example, pieces: list[str]) -> list[list[int]]:
    """Positions of each word of an example: a word begins with a half, at "▁" and at a piece of punctuation alone."""
    words: list[list[int]] = []
    for begin, ids in ((1, example.first), (len(example.first) + 2, example.second or [])):
        for i, token in enumerate(ids):
            piece = pieces[token]
            bare = not any(c.isalnum() or c == "▁" for c in piece) and piece != "<unk>"
            if i == 0 or piece.startswith("▁") or bare:
                words.append([])
            words[-1].append(begin + i)
    return words


def test_only_whole_words_are_masked_and_never_a_special_token(topics: pathlib.Path, examples: list[Example]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(topics / "spiece.model"))
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    partly = 0
    for example in examples:
        masked = {position for position, _, _ in example.targets}
        specials = {0, len(example.first) + 1, example.length - 1}
        assert not masked & specials
        words = words_of(example, pieces)
        assert masked <= {p for word in words for p in word}
        assert all(set(word) <= masked or not set(word) & masked for word in words)
        partly += any(len(word) > 1 and set(word) <= masked for word in words)
    assert partly > 100


def test_rows_spend_the_budget_and_leave_out_only_what_words_do_not_permit(
    topics: pathlib.Path, examples: list[Example]
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(topics / "spiece.model"))
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    exact = 0
    for example in examples:
        budget = max(1, round(0.15 * example.length))
        assert len(example.targets) <= budget
        exact += len(example.targets) == budget
        assert example.targets or all(len(word) > budget for word in words_of(example, pieces))
    assert len(examples) > 500 and exact > 0.9 * len(examples)


def test_in_rows_too_80_10_10_hold_within_sampling_error(examples: list[Example]) -> None:
    targets = [target for example in examples for target in example.targets]
    n = len(targets)
    assert n > 5000
    masked = sum(seen == MASK for _, _, seen in targets)
    kept = sum(seen == label for _, label, seen in targets)
    for count, share in ((masked, 0.8), (kept, 0.1 + 0.1 / 1495)):
        assert abs(count - n * share) < 4.5 * (n * share * (1 - share)) ** 0.5
    assert all(seen == label or seen >= MASK for _, label, seen in targets)
    assert min(label for _, label, _ in targets) >= UNK  # <unk> is text, as it is in the original


def test_pieces_are_masked_by_themselves_where_words_are_not_to_be_whole(topics: pathlib.Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(topics / "spiece.model"))
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    partly = 0
    examples = masked_examples(topics, whole_word=False, count=9)
    for example in examples:
        masked = {position for position, _, _ in example.targets}
        assert len(masked) == min(9, max(1, round(0.15 * example.length)))  # a piece always fits
        assert not masked & {0, len(example.first) + 1, example.length - 1}
        partly += any(set(word) & masked and not set(word) <= masked for word in words_of(example, pieces))
    assert partly > 0.5 * len(examples)


def test_words_with_equal_random_numbers_keep_their_order() -> None:
    for keys in (np.random.default_rng(0).integers(0, 50, 400, np.uint64), np.arange(300, 0, -1).astype(np.uint64)):
        assert masking._order(keys).tolist() == sorted(range(len(keys)), key=keys.tolist().__getitem__)
