# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates are found, other documents stay, and neither order nor division into parts changes the result."""

import itertools
import pathlib
import pickle
import pydoc_data.topics
import random
import re
import time
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from pretrain_data.duplicates import SHINGLE_WORDS, SIGNATURE_SIZE, Duplicates, find_duplicates, signatures
from pretrain_data.holdout import content_hash
from pretrain_data.sources.base import Document

# Words of several languages; of those written without spaces, characters.
WORDS = {
    "en": sorted(set(re.findall(r"[a-z]+", " ".join(pydoc_data.topics.topics.values()).lower()))),
    "hi": [a + b for a in "कखगघचछजटडतदनपबमयरलवसह" for b in ("ा", "ि", "ी", "ु", "े", "ो", "म", "न")],
    "ar": [a + b + c for a in "بتجحدرزسشصطعفقكلمنهوي" for b in "ابتدر" for c in "لمنه"],
    "zh": [chr(c) for c in range(0x4E00, 0x5000)],
    "th": [chr(c) for c in range(0x0E01, 0x0E2F)],
}
NO_SPACES = ("zh", "th")


def document(words: Sequence[str], language: str = "en") -> Document:
    """A document of twelve words a line."""
    space = "" if language in NO_SPACES else " "
    lines = [space.join(words[i : i + 12]) for i in range(0, len(words), 12)]
    return Document("x", lines)


def random_words(chance: random.Random, count: int, language: str = "en") -> list[str]:
    return [chance.choice(WORDS[language]) for _ in range(count)]


def with_another_passage(words: list[str], share: float, chance: random.Random, language: str = "en") -> list[str]:
    """The same words but for a passage that is `share` of them."""
    length = int(len(words) * share)
    start = chance.randrange(len(words) - length)
    return [*words[:start], *random_words(chance, length, language), *words[start + length :]]


def with_other_words(words: list[str], count: int, chance: random.Random, language: str = "en") -> list[str]:
    """The same words but for `count` here and there."""
    changed = list(words)
    for place in chance.sample(range(len(words)), count):
        changed[place] = chance.choice(WORDS[language])
    return changed


def found_in(parts: Iterable[Sequence[Document]]) -> Duplicates:
    return find_duplicates(signatures(part) for part in parts)


def kept(duplicates: Duplicates, parts: Iterable[Sequence[Document]]) -> list[tuple[int, int]]:
    """(part, ordinal) of the documents that stay."""
    return [
        (number, ordinal)
        for number, part in enumerate(parts)
        for ordinal, one in enumerate(part)
        if duplicates.keep(content_hash(one.lines), number, ordinal)
    ]


def corpus(seed: int = 0, language: str = "en") -> tuple[list[Document], list[Document]]:
    """Documents of 200 to 600 words that have nothing to do with each other, and a near-duplicate of each."""
    chance = random.Random(seed)
    originals, others = [], []
    for number in range(120):
        words = random_words(chance, chance.randint(200, 600), language)
        originals.append(document(words, language))
        if number % 2:
            changed = with_another_passage(words, chance.uniform(0.02, 0.04), chance, language)
        else:
            changed = with_other_words(words, len(words) // 100, chance, language)
        others.append(document(changed, language))
    return originals, others


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", WORDS)
def test_one_of_each_pair_of_near_duplicates_stays_and_every_other_document(language: str) -> None:
    originals, others = corpus(language=language)
    assert kept(found_in([originals]), [originals]) == [(0, i) for i in range(120)]
    stay = kept(found_in([originals, others]), [originals, others])
    assert sorted(ordinal for _, ordinal in stay) == list(range(120))
    assert {part for part, _ in stay} == {0, 1}  # chance decides which, by content


def test_scattered_changes_of_a_tenth_of_the_words_make_another_document() -> None:
    chance = random.Random(1)
    words = random_words(chance, 400)
    assert len(found_in([[document(words), document(with_other_words(words, 40, chance))]]).near) == 0


def runs_of_words(one: Document) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9_]+", " ".join(one.lines).lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def without_lower(keys: list[int], pairs: Iterable[tuple[int, int]]) -> set[int]:
    """The keys of all groups linked by pairs of places, but for each group's lowest."""
    group = {i: i for i in range(len(keys))}
    for a, b in pairs:
        old, new = sorted((group[a], group[b]), key=lambda i: keys[i], reverse=True)
        group = {i: new if g == old else g for i, g in group.items()}
    return {keys[i] for i, g in group.items() if i != g}


def test_what_is_found_in_prose_is_what_comparing_all_pairs_finds_but_for_the_threshold_itself() -> None:
    chance = random.Random(2)
    documents = []
    for text in sorted(pydoc_data.topics.topics.values(), key=len)[-60:]:
        words = text.encode("ascii", "ignore").decode().split()[:300]
        documents.append(document(words))
        documents += [document(with_another_passage(words, chance.uniform(0.01, 0.25), chance)) for _ in range(4)]
    keys, found = signatures(documents)
    pairs = itertools.combinations(enumerate(map(runs_of_words, documents)), 2)
    exact = {(i, j): len(a & b) / len(a | b) for (i, a), (j, b) in pairs}  # Jaccard similarities
    estimates = {(a, b): float(np.mean(found[a] == found[b])) for (a, b), s in exact.items() if s > 0.3}
    errors = np.array([estimates[pair] - exact[pair] for pair in estimates])
    assert len(errors) > 400 and abs(errors.mean()) < 0.01 and errors.std() < 0.045

    near = set(find_duplicates([(keys, found)]).near.tolist())

    def linked_from(least: float) -> set[int]:
        return without_lower(keys.tolist(), (pair for pair, similarity in exact.items() if similarity >= least))

    assert linked_from(0.88) <= near <= linked_from(0.72)
    assert len(near ^ linked_from(0.8)) < 0.2 * len(near)  # they are spread evenly around the threshold
    assert len(near) > 60


def test_words_count_and_neither_case_punctuation_nor_lines() -> None:
    a, b = Document("a", ["One two, three.", "Four five six!"]), Document("b", ["one two three four (FIVE) six"])
    keys, found = signatures([a, b])
    assert keys[0] != keys[1]
    np.testing.assert_array_equal(found[0], found[1])
    assert len(find_duplicates([(keys, found)]).near) == 1


def test_a_document_shorter_than_a_run_of_words_is_one_run() -> None:
    short, same, longer = (Document("x", [text]) for text in ("one two", "One two.", "one two three"))
    assert len(found_in([[short, longer]]).near) == 0
    assert len(found_in([[short, same]]).near) == 1


def test_documents_without_words_are_near_to_none_and_equal_ones_are_copies() -> None:
    part = [Document(str(i), [text]) for i, text in enumerate(["***", "---", "* * *", "***", "a word"])]
    duplicates = found_in([part])
    assert len(duplicates.near) == 0
    assert kept(duplicates, [part]) == [(0, 0), (0, 1), (0, 2), (0, 4)]


# --- independence of order and division -------------------------------------------------------------------------------


def test_the_result_is_the_same_in_any_order_and_any_division_into_parts() -> None:
    originals, others = corpus()
    documents = [*originals, *others, *originals[:20], *others[:20]]
    wanted = found_in([documents])
    contents = {content_hash(documents[i].lines) for _, i in kept(wanted, [documents])}
    assert len(contents) == len(originals)
    for seed in range(5):
        chance = random.Random(seed)
        chance.shuffle(documents)
        cuts = sorted(chance.choices(range(len(documents) + 1), k=seed * 3))  # some parts are empty
        parts = [documents[a:b] for a, b in itertools.pairwise([0, *cuts, len(documents)])]
        duplicates = found_in(parts)
        np.testing.assert_array_equal(duplicates.near, wanted.near)
        np.testing.assert_array_equal(duplicates.repeated, wanted.repeated)
        stay = [content_hash(parts[number][ordinal].lines) for number, ordinal in kept(duplicates, parts)]
        assert len(stay) == len(contents) and set(stay) == contents


def test_signatures_do_not_depend_on_what_else_is_in_the_part() -> None:
    originals, _ = corpus()
    together = signatures(originals)
    alone = [signatures([one]) for one in originals]
    np.testing.assert_array_equal(together[0], np.concatenate([keys for keys, _ in alone]))
    np.testing.assert_array_equal(together[1], np.concatenate([values for _, values in alone]))


def test_of_equal_documents_the_first_stays_and_of_copies_of_a_near_duplicate_none() -> None:
    originals, others = corpus()
    a, b = originals[0], originals[1]
    parts: list[list[Document]] = [[b], [], [a, b, a], [b, a]]
    assert kept(found_in(parts), parts) == [(0, 0), (2, 0)]
    near = found_in([originals, others]).near.tolist()
    pair = sorted((originals[0], others[0]), key=lambda one: content_hash(one.lines) in near)
    parts = [[pair[1], pair[1]], [pair[0], pair[1], pair[0]]]
    assert kept(found_in(parts), parts) == [(1, 0)]


def test_a_chain_of_near_duplicates_is_one_group_of_which_the_lowest_key_stays() -> None:
    chance = np.random.default_rng(0)
    chain = np.repeat(chance.integers(0, 2**31, (1, SIGNATURE_SIZE), dtype=np.uint32), 6, axis=0)
    for link in range(1, 6):  # each differs from the one before in 12 entries, and from the first in ever more
        chain[link:, 12 * (link - 1) : 12 * link] += np.uint32(1)
    for order in itertools.permutations(range(6)):
        keys = np.array(order, np.uint64) + np.uint64(10)
        assert find_duplicates([(keys, chain)]).near.tolist() == [11, 12, 13, 14, 15]


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", ["contents", "signatures", "bands"])
def test_two_hundred_thousand_alike_documents_take_seconds(same: str) -> None:
    count, chance = 200_000, np.random.default_rng(0)
    keys = np.arange(count, dtype=np.uint64)[::-1].copy()
    found = np.repeat(chance.integers(0, 2**31, (1, SIGNATURE_SIZE), dtype=np.uint32), count, axis=0)
    if same == "contents":
        keys[:] = 7
    if same == "bands":  # a quarter of the entries: as candidates all are alike, in truth none
        found[:, SIGNATURE_SIZE // 4 :] = chance.integers(0, 2**31, (count, SIGNATURE_SIZE * 3 // 4), dtype=np.uint32)
    started = time.monotonic()
    duplicates = find_duplicates([(keys, found)])
    assert time.monotonic() - started < 60  # all pairs would be 20 billion
    assert len(duplicates.near) == (count - 1 if same == "signatures" else 0)
    assert duplicates.contents == (1 if same == "contents" else count)
    if same == "contents":
        assert duplicates.first.tolist() == [[0, 0]]


# --- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_pickled_it_decides_the_same(tmp_path: pathlib.Path) -> None:
    originals, others = corpus()
    parts = [originals, others, originals[:5]]
    first = found_in(parts)
    first.save(tmp_path / "duplicates.npz")
    for again in (Duplicates.load(tmp_path / "duplicates.npz"), pickle.loads(pickle.dumps(first))):
        assert kept(again, parts) == kept(first, parts)
        assert again.describe() == first.describe()
    assert "of 245 documents 5 are copies, 120 more nearly repeat another" in first.describe()


def test_dropped_tells_contents_of_which_no_copy_stays() -> None:
    originals, others = corpus()
    parts = [originals, others, originals]
    duplicates = found_in(parts)
    keys, _ = signatures(originals + others)
    staying = {content_hash(parts[number][ordinal].lines) for number, ordinal in kept(duplicates, parts)}
    np.testing.assert_array_equal(duplicates.dropped(keys), [int(key) not in staying for key in keys])


def test_nothing_gives_nothing() -> None:
    for count in range(3):
        duplicates = found_in([[]] * count)
        assert (duplicates.documents, duplicates.contents, len(duplicates.near)) == (0, 0, 0)
        assert duplicates.keep(5, 0, 0)
