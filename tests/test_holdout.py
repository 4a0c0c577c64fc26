# SPDX-License-Identifier: Apache-2.0
"""The choice of validation documents and its guard, compared with slow, obvious versions."""

import random
import re

import numpy as np
import pytest

from pretrain_data import holdout
from pretrain_data.holdout import (
    Candidates,
    HeldOut,
    Shingler,
    choose,
    content_hash,
    seen_in_training,
    settle,
    word_hashes,
)
from pretrain_data.sources.base import Document
from tests.corpora import documents

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
TEXTS = [
    "Hello, world's best 3.5 _x_y_ naïve",
    "今天天气很好。abc漢d 東京タワー 𠮷野家",
    "Été 𝔸𝔹c 😀 ภาษาไทย x ໂລກ မြန်မာ ខ្មែរ",
    "हिन्दी में लिखा गया हैं",
    "",
    "a",
    "--",
    "x\ny\u2028z\x00w",
]


def words(text: str) -> list[str]:
    return re.findall(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+", text.lower())


def slow_hash(word: str) -> int:
    value = sum((ord(c) + 1) * pow(0x9E3779B97F4A7C15, i, 2**64) for i, c in enumerate(word)) % 2**64
    value = (value ^ (value >> 31)) * 0xBF58476D1CE4E5B9 % 2**64
    return value ^ (value >> 29)


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_hashed_one_by_one_as_all_at_once(text: str) -> None:
    assert word_hashes(text).tolist() == [slow_hash(word) for word in words(text)]


def test_words_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for text in documents(1, 50) for line in text] + TEXTS
    whole = Shingler().runs(lines).tolist()
    monkeypatch.setattr(holdout, "_BLOCK_CHARACTERS", 10)
    assert Shingler().runs(lines).tolist() == whole
    assert len(whole) == sum(len(words(line)) for line in lines) - 7


def test_a_text_of_fewer_words_is_one_run_and_one_without_words_none() -> None:
    assert len(Shingler()(["Only three words"])) == 1
    assert len(Shingler()(["...", "--"])) == 0
    assert Shingler()(["Only three words"]) == Shingler()(["only, THREE; words!"])


def test_the_lowest_keys_are_chosen_until_the_limit_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.array([50, 10, 30, 10, 40], np.uint64)
    sizes = np.array([5, 10, 20, 10, 30])
    monkeypatch.setattr(holdout, "MAX_VALIDATION_BYTES", 30)
    assert choose(keys, sizes).tolist() == [10, 30]
    monkeypatch.setattr(holdout, "MAX_VALIDATION_BYTES", 3)
    assert choose(keys, sizes).tolist() == [10]


@pytest.mark.parametrize("seed", range(5))
def test_parts_may_forget_candidates_and_the_choice_is_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    corpus = [Document(str(i), [str(rng.randrange(999)) * rng.choice((1, 2, 100))]) for i in range(400)]
    monkeypatch.setattr(holdout, "MAX_VALIDATION_BYTES", rng.choice((10, 1000)))

    def found(bounded: bool, parts: int) -> tuple[list[int], int]:
        keys, sizes, most = [], [], 0
        for part in range(parts):
            candidates = Candidates(0.9, bounded)
            for document in corpus[part::parts]:
                candidates.offer(document, content_hash(document.lines), Shingler())
                most = max(most, sum(candidates.sizes))
            assert len(candidates.keys) == len(candidates.sizes) == len(candidates.shingles)
            keys += candidates.keys
            sizes += candidates.sizes
        return choose(np.array(keys, np.uint64), np.array(sizes)).tolist(), most

    everything, size = found(bounded=False, parts=1)
    for parts in (1, 3, 20):
        chosen, most = found(bounded=True, parts=parts)
        assert chosen == everything and most < 2000 + 301 < size


def slow_guard(chosen: dict[int, set[int]], training: list[set[int]], most: float) -> set[int]:
    """Keys that stay: goes through everything again and again until nothing changes."""
    chosen = dict(chosen)
    while True:
        seen = set().union(*training)
        leaking = [key for key, own in chosen.items() if own and len(own & seen) / len(own) > most]
        if not leaking:
            return set(chosen)
        training = training + [chosen.pop(key) for key in leaking]


@pytest.mark.parametrize(("seed", "most"), [(0, 0.2), (1, 0.2), (2, 0.2), (3, 0.35), (4, 0.0), (5, 1.0)])
def test_the_guard_is_that_of_going_through_everything_until_nothing_changes(seed: int, most: float) -> None:
    rng = random.Random(seed)
    pool = [line for text in documents(seed, 30) for line in text]
    corpus = [Document(str(i), rng.sample(pool, 6)) for i in range(120)]
    shingler = Shingler()
    keys = {content_hash(document.lines): shingler(document.lines) for document in corpus}
    chosen = np.array(sorted(rng.sample(sorted(keys), 40)), np.uint64)
    offsets = np.cumsum([0, *(len(value) for value in keys.values())])
    part = (np.array(list(keys), np.uint64), offsets, np.concatenate(list(keys.values())))
    held_out = HeldOut.of(chosen, [part])
    half = len(corpus) // 2
    seen = [
        seen_in_training(held_out.vocabulary, part, lambda d: not holdout.contains(chosen, content_hash(d.lines)))
        for part in (corpus[:half], corpus[half:])
    ]
    staying = settle(held_out, seen[0] | seen[1], most)
    expected = slow_guard(
        {key: set(value.tolist()) for key, value in keys.items() if key in set(chosen.tolist())},
        [set(value.tolist()) for key, value in keys.items() if key not in set(chosen.tolist())],
        most,
    )
    assert set(staying.tolist()) == expected
    assert (len(staying) < len(chosen)) == (most < 1)
