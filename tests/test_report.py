# SPDX-License-Identifier: Apache-2.0
"""The report's numbers against slow counts, and its page: whole, escaped, and in need of nothing else."""

import itertools
import pathlib
import re
import sys
from html.parser import HTMLParser
from typing import Any

import ml_collections
import numpy as np
import pytest

from albert_jax.config import AlbertConfig
from albert_jax.data.google_words import google_starts_word
from albert_jax.data.masking import ngram_probabilities
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.rows import Batch
from albert_jax.data.store import TextStore, read_manifest
from albert_jax.data.stream import BORROWING, LABEL_ONE, SENTENCE_ORDERS
from albert_jax.data.vocabulary import MASK, UNK
from albert_jax.errors import UserError
from albert_jax.training.data import Data, open_data
from albert_jax.training.recipe import pretraining
from pretrain_data.report import numbers as counting
from pretrain_data.report import page as pages
from pretrain_data.report import pictures, report
from pretrain_data.show import with_data
from tests import text_store

SLOTS = 96


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return text_store.topics_data(tmp_path_factory)


@pytest.fixture(scope="module")
def config(data: pathlib.Path) -> ml_collections.ConfigDict:
    recipe = pretraining(AlbertConfig())
    recipe.data.sequence_length, recipe.data.examples_per_row, recipe.masking.slots = SLOTS, 4, 30
    return with_data(recipe, data)


@pytest.fixture(scope="module")
def opened(config: ml_collections.ConfigDict) -> Data:
    return open_data(config)


@pytest.fixture(scope="module")
def numbers(config: ml_collections.ConfigDict) -> counting.Numbers:
    return counting.measure(config)


@pytest.fixture(scope="module")
def store(data: pathlib.Path) -> TextStore:
    return TextStore(data, "train")


def records(store: TextStore) -> list[list[int]]:
    """Tokens of each sentence of each record."""
    lengths = iter(store.sentence_lengths.tolist())
    return [[next(lengths) for _ in range(count)] for count in store.sentences_per_record.tolist()]


# --- numbers ----------------------------------------------------------------------------------------------------------


def slow_spans(example: text_store.Example, starts_word: np.ndarray) -> list[int]:
    """Words in each run of predicted tokens of an example, token by token."""
    spans: list[int] = []
    last = -2
    for place, label, _ in example.targets:
        if place != last + 1:
            spans.append(1)
        elif starts_word[label]:
            spans[-1] += 1
        last = place
    return spans


def test_a_sample_is_what_a_slow_reading_of_its_batches_counts(opened: Data) -> None:
    starts_word = opened.vocabulary.starts_word
    sample = counting.read_sample(opened.train, 700, starts_word)
    rows = text_store.read_batch(opened.train.batch(0, 700))
    examples = [example for row in rows for example in row]
    pairs = [(label, stands) for example in examples for _, label, stands in example.targets]
    expected = {
        "examples_per_row": [len(row) for row in rows],
        "lengths": [example.length for example in examples],
        "first": [len(example.first) for example in examples],
        "second": [len(example.second or []) for example in examples],
        "masked": [len(example.targets) for example in examples],
        "labels": [example.label for example in examples],
        "corruption": [
            sum(stands == MASK for _, stands in pairs),
            sum(stands == label for label, stands in pairs),
            sum(stands not in (MASK, label) for label, stands in pairs),
        ],
        "spans": [words for example in examples for words in slow_spans(example, starts_word)],
    }
    for name, values in expected.items():
        assert getattr(sample, name).tolist() == values, name
    filled = sum(example.length for example in examples)
    assert sample.padding == pytest.approx(1 - filled / (700 * SLOTS))
    assert sample.padding_unpacked == pytest.approx(1 - filled / (len(examples) * SLOTS))


def test_a_batch_without_any_target_is_counted_too() -> None:
    ids = np.zeros((2, 8), np.int32)
    ids[0, :3] = 2, 9, 3
    owners = (ids > 0).astype(np.int32)
    unused, one = np.full((2, 3), -100, np.int32), np.zeros((2, 3), np.int32)
    batch = Batch(ids, np.zeros_like(ids), np.zeros_like(ids), owners, one, unused, one, unused, np.arange(2))
    sample = counting.measure_batch(batch, np.ones(10, bool))
    assert sample.examples_per_row.tolist() == [1, 0] and sample.lengths.tolist() == [3]
    assert (sample.first.tolist(), sample.second.tolist(), sample.labels.tolist()) == ([1], [0], [-100])
    assert sample.spans.tolist() == [] and sample.corruption.tolist() == [0, 0, 0]


def test_runs_end_with_their_row_and_begin_a_word_whatever_their_first_piece() -> None:
    row, place = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 2, 3, 7, 8, 9])
    starts = np.array([False, True, False, False, False, True])
    assert counting._span_words(row, place, starts).tolist() == [2, 1, 2]


def test_lengths_of_documents_and_sentences_are_counted(
    numbers: counting.Numbers, store: TextStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = iter([sum(record) for record in records(store)])
    documents = [sum(itertools.islice(sums, count)) for count in store.records_per_document.tolist()]
    assert numbers.documents.tolist() == documents
    monkeypatch.setattr(counting, "_COUNTED_AT_ONCE", 1000)
    sentences = [length for record in records(store) for length in record]
    expected = [sentences.count(length) for length in range(max(sentences) + 1)]
    assert counting.length_counts(store.sentence_lengths).tolist() == numbers.sentences.tolist() == expected


def test_unknown_tokens_are_counted_in_evenly_spaced_records(data: pathlib.Path, store: TextStore) -> None:
    every = counting.count_unknown(store)
    split = read_manifest(data)["splits"]["train"]
    assert every.unknown.sum() == split["unknown_tokens"] and every.tokens.sum() == split["tokens"]
    some = counting.count_unknown(store, 10)
    chosen = [i * len(every.tokens) // 10 for i in range(10)]
    assert some.tokens.tolist() == every.tokens[chosen].tolist()
    tokens, offsets = store.read(np.array(chosen))
    counts = [int(np.sum(tokens[a:b] == UNK)) for a, b in itertools.pairwise(offsets)]
    assert some.unknown.tolist() == counts


def test_stretches_hold_every_record_once() -> None:
    sources = {"a": 2, "none": 0, "b": 3}
    unknown = counting.Unknown(np.array([10, 10, 20, 40, 100]), np.array([1, 0, 0, 4, 50]), sources)
    assert unknown.by_source() == {"a": pytest.approx(1 / 20), "b": pytest.approx(54 / 160)}
    np.testing.assert_allclose(unknown.stretches(2), [1 / 20, 54 / 160])
    np.testing.assert_allclose(unknown.stretches(9), [0.1, 0, 0, 0.1, 0.5])
    assert unknown.above(0.1) == pytest.approx(1 / 5) and unknown.above(0.0) == pytest.approx(3 / 5)


def test_coverage_counts_the_most_frequent_pieces_first() -> None:
    used = counting.coverage(np.array([0, 5, 60, 5, 30, 0]))
    assert used.order.tolist() == [2, 4, 1, 3, 0, 5] and used.counts.tolist() == [60, 30, 5, 5, 0, 0]
    np.testing.assert_allclose(used.cumulative, [0.6, 0.9, 0.95, 1, 1, 1])
    assert [used.needed(share) for share in (0.5, 0.6, 0.61, 0.9, 0.99, 1.0)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("total", [1, 7, 8, 9, 1000])
def test_evenly_spaced_numbers_are_distinct_and_reach_over_all(total: int) -> None:
    numbers = counting.evenly(total, 8)
    assert len(numbers) == min(total, 8) and numbers[0] == 0 and numbers[-1] >= total * 7 // 8
    assert (np.diff(numbers) >= 1).all() and set(np.diff(numbers)) <= {total // 8, total // 8 + 1, 1}


@pytest.mark.parametrize("longest", [1, 7, 32, 33, 128, 500])
def test_length_bins_are_equally_wide_and_hold_every_length(longest: int) -> None:
    edges = pictures.length_bins(longest, 32)
    assert len(edges) <= 33 and len(set(np.diff(edges))) == 1
    assert np.histogram(np.arange(1, longest + 1), edges)[0].sum() == longest


def test_planned_padding_is_that_of_the_rows_that_training_sees(
    opened: Data, store: TextStore, config: ml_collections.ConfigDict
) -> None:
    planned = counting.planned_padding(store, opened.vocabulary.starts_word, counting.settings_at(config, SLOTS))
    whole = counting.read_sample(opened.train, opened.train.rows, opened.vocabulary.starts_word)
    assert planned.slots == SLOTS and 0 < planned.packed < planned.unpacked
    assert planned.packed == pytest.approx(whole.padding)
    assert planned.unpacked == pytest.approx(whole.padding_unpacked)


def test_padding_is_planned_over_whole_documents_of_a_large_split(
    opened: Data, store: TextStore, config: ml_collections.ConfigDict
) -> None:
    documents = len(store.records_per_document)
    most = 20 * int(store.document_begins[-1]) // documents + 1
    chosen = counting.evenly(documents, 20)
    part: list[text_store.Record] = []
    sentences = records(store)
    for document in chosen:
        for record in range(store.document_records[document], store.document_records[document + 1]):
            ends = np.cumsum(sentences[record])
            part.append([run.tolist() for run in np.split(store.read(np.array([record]))[0], ends[:-1])])
    counts = store.records_per_document[chosen].tolist()
    settings = counting.settings_at(config, 24)  # in which sentences are cut, for which records are read
    plan = make_plan(text_store.MemoryStore(part, documents=counts), opened.vocabulary.starts_word, settings)
    filled = sum(map(len, itertools.chain(*part))) + int(np.sum(np.where(plan.example_sizes == 1, 2, 3)))
    padding = counting.planned_padding(store, opened.vocabulary.starts_word, settings, most)
    assert padding.packed == pytest.approx(1 - filled / (plan.rows * 24))
    assert padding.unpacked == pytest.approx(1 - filled / (len(plan.example_sizes) * 24))


def test_a_part_of_a_split_knows_its_sources() -> None:
    whole = text_store.MemoryStore(text_store.numbered([[3, 4]] * 10), sources={"a": (7, 1.0), "b": (3, 1.0)})
    part = counting._Part(whole, np.array([0, 5, 6, 8]))
    assert part.sources == {"a": 3, "b": 1}
    np.testing.assert_array_equal(part.read(np.array([1, 3]))[0], whole.read(np.array([5, 8]))[0])
    without_b = counting._Part(whole, np.array([0, 1]))
    settings = PlanSettings(slots=16, examples=2, mask_slots=4, mask_rate=0.15, short_fraction=0.0)
    plan = make_plan(without_b, text_store.made_up_vocabulary(100).starts_word, settings)
    assert without_b.sources == {"a": 2, "b": 0} and plan.source_rows.tolist() == [0, 2, 2]


@pytest.mark.parametrize("slots", [96, 128, 512])
def test_mask_slots_grow_with_the_length_and_always_suffice(config: ml_collections.ConfigDict, slots: int) -> None:
    scarce = config.copy_and_resolve_references()
    scarce.masking.slots = 14  # the fewest that rows of 96 take
    assert counting.settings_at(scarce, slots).mask_slots == {96: 14, 128: 19, 512: 77}[slots]
    scarce.data.sentence_order, scarce.masking.count = "nsp", 10
    settings = counting.settings_at(scarce, slots)
    assert settings.pair_singles and settings.mask_count == 10 and not counting.settings_at(config, slots).pair_singles
    assert counting.settings_at(config, slots).mask_slots == {96: 30, 128: 40, 512: 160}[slots]


# --- facts ------------------------------------------------------------------------------------------------------------

MANIFEST = {
    "format": 2,
    "splits": {
        "train": {
            "tokens": 1200,
            "text_bytes": 4800,
            "unknown_tokens": 3,
            "fingerprint": "ab" * 32,
            "parts": [0, 1],
            "cut": {"long": 7},
            "sources": {"wiki": {"tokens": 1100}, "books": {"tokens": 100}},
        },
        "validation": {"tokens": 10, "text_bytes": 43, "unknown_tokens": 0, "fingerprint": "cd" * 32},
    },
    "sources": [{"name": "wiki", "bytes": 1234567}, {"name": "books", "bytes": 8, "pattern": "<script>"}],
    "vocabulary": {"size": 1500, "do_lower_case": True, "scale": 0.5, "extra": None},
    "quarantined": list(range(30)),
}


def test_every_fact_of_the_manifest_is_listed() -> None:
    rows = {row[0]: row[1:] for row in pages.split_facts(MANIFEST)}
    assert rows[""] == ("train", "validation")
    assert rows["tokens"] == ("1,200", "10") and rows["cut, long"] == ("7", "")
    assert rows["bytes per token"] == ("4.000", "4.300") and rows["unknown rate"] == ("0.2500%", "0.0000%")
    assert rows["fingerprint"] == ("ab" * 8, "cd" * 8)
    assert not {"parts", "sources"} & set(rows)
    assert [list(row) for row in pages.source_facts(MANIFEST)] == [
        ["name", "wiki", "books"],
        ["bytes", "1,234,567", "8"],
        ["train, tokens", "1,100", "100"],
        ["pattern", "", "<script>"],
    ]
    assert {name: value for name, value in pages.other_facts(MANIFEST)[1:]} == {
        "format": "2",
        "vocabulary, size": "1,500",
        "vocabulary, do lower case": "yes",
        "vocabulary, scale": "0.5",
        "vocabulary, extra": "none",
        "quarantined": ", ".join(map(str, range(20))),
        "more quarantined": "10, not listed here",
    }


def test_the_recipe_is_listed_as_far_as_it_shapes_examples(config: ml_collections.ConfigDict) -> None:
    fields = {name: value for name, value in pages.recipe_facts(config)[1:]}
    assert fields["data.sequence_length"] == "96" and fields["data.weights"] == '""'
    assert fields["masking.whole_word"] == "yes" and fields["masking.rate"] == "0.15" and fields["seed"] == "0"
    assert not {"data.path", "data.prefetch"} & set(fields)


# --- the page ---------------------------------------------------------------------------------------------------------


class Reading(HTMLParser):
    """Tags with their attributes, and the text of captions."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.captions: list[str] = []
        self._caption = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "figcaption":
            self.captions.append("")
            self._caption = True

    def handle_endtag(self, tag: str) -> None:
        self._caption = self._caption and tag != "figcaption"

    def handle_data(self, data: str) -> None:
        if self._caption:
            self.captions[-1] += data

    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]


@pytest.fixture(scope="module")
def page(data: pathlib.Path, config: ml_collections.ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "new" / "page.html"
    report(data, config, out)
    return out.read_text(encoding="utf-8")


def test_the_page_loads_nothing(page: str) -> None:
    reading = Reading(page)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "audio", "video"} & set(reading.names())
    for tag, attributes in reading.tags:
        for name, value in attributes.items():
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "background", "poster"):
                assert value is not None and value.startswith("#"), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?(.)", page))
    assert "@import" not in page and "http:" not in page and "https:" not in page
    meta = [attributes for tag, attributes in reading.tags if tag == "meta"]
    assert {"charset": "utf-8"} in meta and any(attributes.get("name") == "viewport" for attributes in meta)


def test_every_picture_has_a_caption_that_says_what_is_good(page: str) -> None:
    reading = Reading(page)
    assert reading.names().count("svg") == reading.names().count("figure") == len(reading.captions) == 12
    for caption in reading.captions:
        assert "Good" in caption
    assert not re.search(r"\bnan\b", page)
    labels = [attributes["aria-label"] for tag, attributes in reading.tags if tag == "svg"]
    assert labels == re.findall("<figure><h3>(.*?)</h3>", page)


@pytest.mark.parametrize("order", SENTENCE_ORDERS)
def test_label_one_is_explained(numbers: counting.Numbers, order: str) -> None:
    caption = pictures._order(numbers, order).caption
    assert LABEL_ONE.get(order, "no labels") in caption and "Good" in caption
    assert ("not far above 50%" in caption) == (order in BORROWING)


def test_googles_pipeline_is_measured_too(config: ml_collections.ConfigDict) -> None:
    google = config.copy_and_resolve_references()
    google.data.recipe, google.data.sentence_order = "google", "sop_parity"
    google.data.examples_per_row, google.masking.count = 1, 5
    measured = counting.measure(google)
    assert [padding.slots for padding in measured.padding] == [SLOTS]
    assert measured.sample.masked.max() == 5
    assert "other lengths" not in pictures._padding(measured, 1).caption
    assert "at most 5 an example" in pictures._masked(measured, google.masking.rate, google.masking.count).caption


def test_words_of_a_span_are_counted_as_the_recipe_counts_them(config: ml_collections.ConfigDict, opened: Data) -> None:
    vocabulary = opened.vocabulary
    recipe = config.copy_and_resolve_references()
    assert counting.word_starts(recipe, vocabulary) is vocabulary.starts_word
    recipe.data.recipe = "google"
    np.testing.assert_array_equal(counting.word_starts(recipe, vocabulary), google_starts_word(vocabulary.pieces))
    recipe.masking.whole_word = False
    assert counting.word_starts(recipe, vocabulary).all()


def test_the_page_has_the_numbers(page: str, data: pathlib.Path, opened: Data) -> None:
    tokens = read_manifest(data)["splits"]["train"]["tokens"]
    assert f"<th scope=row>tokens</th><td dir=auto>{tokens:,}</td>" in page
    assert f"measured on {opened.train.rows:,} rows" in page  # fewer than the sample may have
    spans = ", ".join(f"{share:.1%}" for share in ngram_probabilities(3))
    assert f"where {spans} are drawn" in page


def test_the_same_numbers_give_the_same_picture() -> None:
    first, second = (pictures.drawn("Title & more", lambda axes: axes.plot([1, 2], [3, 4])) for _ in range(2))
    assert first == second and 'aria-label="Title &amp; more"' in first


def test_text_of_the_data_set_is_escaped(config: ml_collections.ConfigDict, data: pathlib.Path) -> None:
    table = pages._table(pages.source_facts(MANIFEST))
    assert "<script>" not in table and "&lt;script&gt;" in table
    counts = np.zeros(1500, np.int64)
    counts[UNK] = 7
    assert "<bdi>&lt;unk&gt;</bdi>" in pages._pieces(counting.coverage(counts), data / "spiece.model")


def test_a_data_set_at_the_edge_is_drawn(opened: Data, store: TextStore, config: ml_collections.ConfigDict) -> None:
    """One document of one sentence, one row, nothing packed."""
    one = np.array([1])
    sample = counting.Sample(96, one, one * 3, one, one * 0, one * 0, one * -100, np.zeros(3, np.int64), one[:0])
    numbers = counting.Numbers(
        documents=one,
        sentences=np.array([0, 1]),
        padding=[counting.Padding(96, 0.0, 0.0)],
        unknown=counting.Unknown(one, one * 0, {"text": 1}),
        coverage=counting.coverage(np.array([0, 0, 1])),
        sample=sample,
    )
    unpacked = config.copy_and_resolve_references()
    unpacked.data.examples_per_row = 1
    drawn = pictures.panels(MANIFEST, unpacked, numbers)
    assert len(drawn) == 12 and all(panel.svg.startswith("<svg") for panel in drawn)
    assert "Packing is off" in "".join(panel.caption for panel in drawn)


@pytest.mark.parametrize("name", ["page.txt", "page", "folder.html"])
def test_what_is_no_name_of_a_page_is_refused(
    data: pathlib.Path, config: ml_collections.ConfigDict, tmp_path: pathlib.Path, name: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=re.escape(f"{name}' must name a file that ends in .html")):
        report(data, config, tmp_path / name)


def test_without_matplotlib_the_remedy_is_said_before_anything_is_counted(
    config: ml_collections.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: dict[str, Any] = {"matplotlib": None, "matplotlib.figure": None}
    for name, module in missing.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[plots]'")):
        report(tmp_path / "no data set", config, tmp_path / "page.html")
    assert not [*tmp_path.iterdir()]
