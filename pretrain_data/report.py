# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a data set: what it holds, and what training makes of it under a recipe.

Numbers first, as plain arrays; then their pictures; then the page. Time and memory are bounded: documents and sentences
are counted from the index, everything else is measured on a sample, and the page says how large it was.
"""

import dataclasses
import html
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import sentencepiece

from albert_jax.data.google_words import google_starts_word
from albert_jax.data.masking import mask_budget, ngram_probabilities
from albert_jax.data.plan import PlanSettings, make_plan
from albert_jax.data.rows import IGNORED, Batch
from albert_jax.data.store import TextStore, bounds, ranges, read_manifest
from albert_jax.data.stream import BORROWING, Stream
from albert_jax.data.vocabulary import MASK, UNK, Vocabulary
from albert_jax.errors import UserError
from albert_jax.training.data import open_data
from albert_jax.training.evaluation import wilson_interval
from albert_jax.training.recipe import RESUMABLE_FIELDS
from pretrain_data.show import LABEL_ONE, with_data

SAMPLE_SLOTS = 2**20  # of the training stream that are read, at least one row
SAMPLE_RECORDS = 4096  # of the training split in which unknown tokens are counted
PLAN_TOKENS = 2**25  # of the training split, about, that are packed at lengths other than the recipe's
LENGTHS = (128, 256, 512)
RARE = 100  # occurrences; a piece seen less often hardly learns an embedding
_BATCH_ROWS = 256
_COUNTED_AT_ONCE = 2**20


def report(data: str | pathlib.Path, config: ml_collections.ConfigDict, out: str | pathlib.Path) -> None:
    """Writes the page.

    Args:
      data: the data set's directory.
      config: the recipe, see `albert_jax.training.recipe`; its data.path is not read.
      out: the file, whose name ends in .html; it is replaced.

    Raises:
      UserError: where matplotlib is missing, `out` is no such name, or data set and recipe do not fit together.
    """
    out = pathlib.Path(out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out {str(out)!r} must name a file that ends in .html.")
    require_matplotlib()
    config = with_data(config, data)
    numbers = measure(config)
    page = render(read_manifest(data), config, numbers, pathlib.Path(data) / "spiece.model")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def require_matplotlib() -> None:
    """Raises UserError where matplotlib is missing: now, and not when everything is counted."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as e:
        raise UserError(f"the report's plots need matplotlib ({e}); pip install 'albert_jax[plots]'.") from e


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """R rows of the stream as training sees them. X examples.

    Attributes:
      slots: S.
      examples_per_row: int64 [R].
      lengths: int64 [X], tokens with the special ones.
      first: int64 [X], tokens of text in A.
      second: int64 [X], tokens of text in B, 0 where there is none.
      masked: int64 [X], tokens to predict.
      labels: int64 [X], of the sentence order: 0, 1 or IGNORED.
      corruption: int64 [3], tokens to predict in whose place stand [MASK], themselves, another piece.
      spans: int64, words in each run of neighbouring tokens to predict.
    """

    slots: int
    examples_per_row: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    second: np.ndarray
    masked: np.ndarray
    labels: np.ndarray
    corruption: np.ndarray
    spans: np.ndarray

    @property
    def padding(self) -> float:
        """Share of slots that hold nothing."""
        return 1 - float(self.lengths.sum()) / (len(self.examples_per_row) * self.slots)

    @property
    def padding_unpacked(self) -> float:
        """The same if every example had a row of its own."""
        return 1 - float(self.lengths.sum()) / (len(self.lengths) * self.slots)


def read_sample(stream: Stream, rows: int, starts_word: np.ndarray) -> Sample:
    """Measures the first rows of a stream.

    Args:
      stream: anything with its `batch`.
      rows: how many are read.
      starts_word: bool [V], pieces at which a word begins.
    """
    starts = range(0, rows, _BATCH_ROWS)
    parts = [measure_batch(stream.batch(start, min(_BATCH_ROWS, rows - start)), starts_word) for start in starts]
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Sample)
        if field.name not in ("slots", "corruption")
    }
    return Sample(slots=parts[0].slots, corruption=np.sum([part.corruption for part in parts], axis=0), **arrays)


def measure_batch(batch: Batch, starts_word: np.ndarray) -> Sample:
    """Measures one batch; see `Sample`."""
    rows, most = batch.sop_labels.shape
    real = batch.example_ids > 0
    owner = np.arange(rows)[:, None] * most + batch.example_ids - 1  # of each slot, where it is real
    used = batch.mlm_labels != IGNORED
    row = np.nonzero(used)[0]
    place, label = batch.mlm_positions[used], batch.mlm_labels[used]
    lengths = np.bincount(owner[real], minlength=rows * most)
    second = np.bincount(owner[real & (batch.token_type_ids == 1)], minlength=rows * most)
    masked = np.bincount(owner[row, place], minlength=rows * most)
    there = lengths > 0
    stands = batch.input_ids[row, place]
    kinds = np.where(stands == label, 1, np.where(stands == MASK, 0, 2))
    return Sample(
        slots=batch.input_ids.shape[1],
        examples_per_row=there.reshape(rows, most).sum(axis=1),
        lengths=lengths[there],
        first=(lengths - second - 2)[there],
        second=np.maximum(0, second - 1)[there],
        masked=masked[there],
        labels=batch.sop_labels.reshape(-1)[there].astype(np.int64),
        corruption=np.bincount(kinds, minlength=3),
        spans=_span_words(row, place, starts_word[label]),
    )


def _span_words(row: np.ndarray, place: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Words in each run of neighbouring tokens to predict; the run's first token begins one in any case."""
    if not len(row):
        return np.zeros(0, np.int64)
    begins = np.append(True, (np.diff(row) != 0) | (np.diff(place) != 1))
    return np.add.reduceat((starts | begins).astype(np.int64), np.flatnonzero(begins))


def length_counts(lengths: np.ndarray) -> np.ndarray:
    """int64 [longest + 1], how many of the lengths have each value, without a copy of them in memory."""
    counts = np.zeros(int(lengths.max(initial=0)) + 1, np.int64)
    for start in range(0, len(lengths), _COUNTED_AT_ONCE):
        counts += np.bincount(lengths[start : start + _COUNTED_AT_ONCE], minlength=len(counts))
    return counts


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How the vocabulary is used.

    Attributes:
      order: int64 [V], ids from the most frequent to the least.
      counts: int64 [V], occurrences in that order.
    """

    order: np.ndarray
    counts: np.ndarray

    @property
    def cumulative(self) -> np.ndarray:
        """float64 [V], share of all tokens that the first pieces cover, up to each one."""
        return np.cumsum(self.counts) / max(1, self.counts.sum())

    def needed(self, share: float) -> int:
        """How many of the most frequent pieces cover a share of all tokens."""
        return int(np.searchsorted(self.cumulative, share - 1e-12)) + 1


def coverage(unigrams: np.ndarray) -> Coverage:
    """Sorts int64 [V] token counts."""
    order = np.argsort(-unigrams, kind="stable")
    return Coverage(order, unigrams[order])


def evenly(total: int, most: int) -> np.ndarray:
    """int64, at most `most` of the numbers below `total`, ascending and evenly spaced."""
    return np.arange(total) if total <= most else np.arange(most) * total // most


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Unknown tokens in N records, evenly spaced over a split.

    Attributes:
      tokens: int64 [N], tokens of each record, in the order of the sources.
      unknown: int64 [N], unknown ones among them.
      sources: name -> how many of the N records are of each source, in order.
    """

    tokens: np.ndarray
    unknown: np.ndarray
    sources: dict[str, int]

    def stretches(self, most: int) -> np.ndarray:
        """float64 [at most `most`], the rate in stretches of equally many records."""
        firsts = evenly(len(self.tokens), most)
        return np.add.reduceat(self.unknown, firsts) / np.add.reduceat(self.tokens, firsts)

    def by_source(self) -> dict[str, float]:
        """The rate in each source of which a record was read."""
        edges = bounds(list(self.sources.values()))
        found = zip(self.sources, itertools.pairwise(edges.tolist()), strict=True)
        return {name: float(self.unknown[a:b].sum() / self.tokens[a:b].sum()) for name, (a, b) in found if b > a}

    def above(self, rate: float) -> float:
        """Share of the records with a higher rate."""
        return float(np.mean(self.unknown > rate * self.tokens))


def count_unknown(store: TextStore, most: int = SAMPLE_RECORDS) -> Unknown:
    """Reads at most `most` records, some hundreds at a time."""
    lengths, unknown = [], []
    records = evenly(len(store.sentences_per_record), most)
    for some in np.array_split(records, -(-len(records) // 512)):
        tokens, offsets = store.read(some)
        lengths.append(np.diff(offsets))
        unknown.append(np.add.reduceat((tokens == UNK).astype(np.int64), offsets[:-1]))
    return Unknown(np.concatenate(lengths), np.concatenate(unknown), _count_sources(store, records))


def _count_sources(store: TextStore, records: np.ndarray) -> dict[str, int]:
    """How many of some records are of each source of a split."""
    edges = np.searchsorted(records, bounds(list(store.sources.values())))
    return dict(zip(store.sources, np.diff(edges).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Padding:
    """Share of padding in rows of `slots` slots: with an example a row, and packed."""

    slots: int
    unpacked: float
    packed: float


class _Part(TextStore):
    """Some documents of a split, int64 [D] ascending, as a split: what `make_plan` needs of it."""

    def __init__(self, store: TextStore, documents: np.ndarray):
        self.path, self.split, self._whole = store.path, store.split, store
        self.records_per_document = store.records_per_document[documents]
        self._records = ranges(store.document_records[documents], self.records_per_document)
        self.sentences_per_record = store.sentences_per_record[self._records]
        sentences = ranges(store.record_sentences[self._records], self.sentences_per_record)
        self.sentence_lengths = store.sentence_lengths[sentences]
        self.continued_sentences = np.zeros(0, np.int64)  # too few to show in a picture of lengths
        self.sources = _count_sources(store, self._records)

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._whole.read(self._records[records])


def planned_padding(
    store: TextStore, starts_word: np.ndarray, settings: PlanSettings, most: int = PLAN_TOKENS
) -> Padding:
    """Padding of a packing plan, which is made and not kept, over documents of about `most` tokens, evenly spaced.

    Room that the plan keeps for text of other documents counts as filled.
    """
    documents = len(store.records_per_document)
    some = evenly(documents, max(1, documents * most // int(store.document_begins[-1])))
    plan = make_plan(_Part(store, some), starts_word, settings)
    filled = int(plan.example_slots.sum(dtype=np.int64))
    return Padding(
        settings.slots,
        unpacked=1 - filled / (len(plan.example_slots) * settings.slots),
        packed=1 - filled / (plan.rows * settings.slots),
    )


def settings_at(config: ml_collections.ConfigDict, slots: int) -> PlanSettings:
    """The recipe's packing at another length, with mask slots in proportion, if they suffice."""
    data, masking = config.data, config.masking
    needed = int(mask_budget(np.array(slots), masking.rate, masking.count))
    return PlanSettings(
        slots=slots,
        examples=data.examples_per_row,
        mask_slots=max(needed, -(-masking.slots * slots // data.sequence_length)),
        mask_rate=masking.rate,
        short_fraction=data.short_fraction,
        mask_count=masking.count,
        pair_singles=data.sentence_order in BORROWING,
    )


def word_starts(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> np.ndarray:
    """bool [V], the pieces that begin a word where the recipe counts the words of a span."""
    if not config.masking.whole_word:
        return np.ones(vocabulary.size, bool)
    return google_starts_word(vocabulary.pieces) if config.data.recipe == "google" else vocabulary.starts_word


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Everything the page draws, of the training split.

    Attributes:
      documents: int64 [documents], tokens in each.
      sentences: int64 [longest + 1], how many sentences have each length in tokens.
      padding: at the recipe's length, from the sample, and at `LENGTHS`, planned; ascending. Google's pipeline packs
        nothing and has no plan.
      unknown: counted in sampled records.
      coverage: of the vocabulary.
      sample: rows as training sees them.
    """

    documents: np.ndarray
    sentences: np.ndarray
    padding: list[Padding]
    unknown: Unknown
    coverage: Coverage
    sample: Sample


def measure(config: ml_collections.ConfigDict) -> Numbers:
    """Reads and counts.

    Args:
      config: the recipe, with data.path.

    Raises:
      UserError: where data set and recipe do not fit together.
    """
    opened = open_data(config)
    store, length = TextStore(config.data.path, "train"), config.data.sequence_length
    rows = max(1, min(opened.train.rows, SAMPLE_SLOTS // length))
    sample = read_sample(opened.train, rows, word_starts(config, opened.vocabulary))
    padding = [Padding(length, sample.padding_unpacked, sample.padding)]
    for slots in LENGTHS if config.data.recipe == "clean" else ():
        if slots != length:
            padding.append(planned_padding(store, opened.vocabulary.starts_word, settings_at(config, slots)))
    return Numbers(
        documents=np.diff(store.document_begins),
        sentences=length_counts(store.sentence_lengths),
        padding=sorted(padding, key=lambda p: p.slots),
        unknown=count_unknown(store),
        coverage=coverage(store.unigrams[:]),
        sample=sample,
    )


# --- pictures ---------------------------------------------------------------------------------------------------------

_QUIET, _MAIN, _REFERENCE, _SECOND = "#9aa5b1", "#0b6e99", "#c2410c", "#7a5195"
_SPAN_BARS = 8


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture, its title, and a caption that says what a good value is."""

    title: str
    svg: str
    caption: str


def drawn(title: str, draw: Callable[[Any], None]) -> str:
    """The <svg> element that `draw` makes of matplotlib axes: as wide as its place, without any reference."""
    import matplotlib
    from matplotlib.figure import Figure

    # The browser's own font, so that text stays text; a salt, so that the same numbers give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10}):
        figure = Figure(figsize=(4.5, 2.8), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # HTML knows SVG without its namespaces, and nothing in the page then looks like an address.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    return re.sub(r' width="[^"]*pt" height="[^"]*pt"', f' role="img" aria-label="{html.escape(title)}"', svg, count=1)


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _count_axis(axis: Any) -> None:
    """1,000 and not 10 to the third; on a log scale also 2,000 and 5,000 where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        axis.set_minor_formatter(NullFormatter())


def length_bins(longest: int, most: int) -> np.ndarray:
    """Edges of at most `most` bins of equally many lengths each, the last of which ends with `longest`."""
    width = -(-longest // most)
    return longest + 0.5 - width * np.arange(-(-longest // width), -1, -1)


def _bars(axes: Any, names: Sequence[str], groups: Mapping[str, tuple[Sequence[float], str]]) -> None:
    """Groups of bars with their shares written on top; `groups` has values and colour for each name in the legend."""
    width = 0.8 / len(groups)
    top = max((max(values) for values, _ in groups.values()), default=0) or 1
    for nth, (label, (values, colour)) in enumerate(groups.items()):
        places = np.arange(len(names)) + (nth - (len(groups) - 1) / 2) * width
        axes.bar(places, values, width * 0.94, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + top * 0.015, f"{100 * value:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, top * (1.3 if len(groups) > 1 else 1.12))
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    _percent_axis(axes.yaxis)
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(groups))


def _documents(numbers: Numbers, slots: int) -> Panel:
    lengths = numbers.documents
    bins = np.unique(np.geomspace(max(1, lengths.min()), lengths.max() + 1, 41).round())

    def draw(axes: Any) -> None:
        axes.hist(lengths, bins, color=_MAIN)
        axes.axvline(slots, color=_REFERENCE, linestyle="--", linewidth=1, label=f"a row, {slots}")
        axes.set_xscale("log")
        axes.set(xlabel="tokens (log scale)", ylabel="documents")
        _count_axis(axes.xaxis)
        _count_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=9)

    inside = float(lengths[lengths >= slots].sum() / lengths.sum())
    return Panel(
        "Document lengths",
        drawn("Document lengths", draw),
        f"{len(lengths):,} documents, median {_median(lengths):,.0f} tokens, longest {lengths.max():,}. {inside:.1%} "
        f"of the tokens lie in documents that fill a row of {slots}. Good: most of them, for only there the model sees "
        "long contexts; short documents share rows, so they cost no padding.",
    )


def _sentences(numbers: Numbers, slots: int) -> Panel:
    counts = numbers.sentences
    total, lengths = counts.sum(), np.arange(len(counts))
    end = int(np.searchsorted(np.cumsum(counts), 0.995 * total)) + 1

    def draw(axes: Any) -> None:
        axes.hist(lengths[: end + 1], length_bins(end, 64), weights=counts[: end + 1], color=_MAIN)
        axes.set(xlabel="tokens", ylabel="sentences", xlim=(0, end + 1))
        _count_axis(axes.yaxis)

    beyond = float(counts[end + 1 :].sum() / total)
    short, long = float(counts[:4].sum() / total), int(counts[slots - 2 :].sum())
    median = int(np.searchsorted(np.cumsum(counts), total / 2))
    return Panel(
        "Sentence lengths",
        drawn("Sentence lengths", draw),
        f"{total:,} sentences, median {median} tokens, longest {len(counts) - 1:,}; {beyond:.1%} are beyond the "
        f"picture's end. {short:.1%} have at most 3 tokens: many of these are headings, list marks or wrong sentence "
        f"boundaries. Longer than the {slots - 3} tokens that a row holds, and therefore cut: {long:,}. Good: a median "
        "of 15 to 40, few short ones, next to none cut.",
    )


def _examples(numbers: Numbers, short_fraction: float) -> Panel:
    sample = numbers.sample
    weights = np.full(len(sample.lengths), 1 / max(1, len(sample.lengths)))

    def draw(axes: Any) -> None:
        axes.hist(sample.lengths, length_bins(sample.slots, 32), weights=weights, color=_MAIN)
        axes.set(xlabel="tokens, special ones included", ylabel="examples", xlim=(0, sample.slots + 1))
        _percent_axis(axes.yaxis)

    full = float(np.mean(sample.lengths > 0.75 * sample.slots))
    return Panel(
        "Example lengths",
        drawn("Example lengths", draw),
        f"{full:.1%} of the examples are longer than three quarters of a row of {sample.slots}. By recipe "
        f"{short_fraction:.0%} aim at a random shorter length, and the ends of documents are short too. Good: a "
        "tall right end; many short examples mean short documents, from which long contexts cannot be learned.",
    )


def _padding(numbers: Numbers, most: int) -> Panel:
    names = [f"{padding.slots}" for padding in numbers.padding]
    groups = {
        "one example a row": ([padding.unpacked for padding in numbers.padding], _QUIET),
        "packed": ([padding.packed for padding in numbers.padding], _MAIN),
    }

    def draw(axes: Any) -> None:
        _bars(axes, names, groups)
        axes.set(xlabel="slots in a row", ylabel="padding")

    sample, planned = numbers.sample, ""
    if len(names) > 1:
        millions = f"about {PLAN_TOKENS / 1e6:.0f} million tokens"
        planned = f"; other lengths are planned over {millions} at most, with mask slots in proportion"
    saved = 1 - (1 - sample.padding_unpacked) / (1 - sample.padding)
    return Panel(
        "Padding",
        drawn("Padding", draw),
        f"Share of slots that hold nothing, with at most {most} examples in a row. At the recipe's {sample.slots} "
        f"slots, measured on the sample, packing saves {saved:.1%} of the rows{planned}. Good: below 5% packed. What "
        "remains are gaps that no example fits: longer rows have fewer, and where rows reach data.examples_per_row, "
        "raise it.",
    )


def _rows(numbers: Numbers, most: int) -> Panel:
    shares = np.bincount(numbers.sample.examples_per_row, minlength=most + 1)[1:] / len(numbers.sample.examples_per_row)

    def draw(axes: Any) -> None:
        axes.bar(np.arange(1, len(shares) + 1), shares, color=_MAIN)
        axes.set(xlabel="examples in a row", ylabel="rows")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _percent_axis(axes.yaxis)

    if most == 1:
        caption = "Packing is off, as data.examples_per_row is 1. Good only for comparisons: see the padding it costs."
    else:
        mean = numbers.sample.examples_per_row.mean()
        caption = (
            f"{mean:.2f} on average, at most {most} by recipe; {shares[most - 1]:.1%} of the rows have that many. "
            "Good: few do, else data.examples_per_row leaves padding and may be raised."
        )
    return Panel("Examples in a row", drawn("Examples in a row", draw), caption)


def _unknown(numbers: Numbers, manifest: dict[str, Any]) -> Panel:
    unknown = numbers.unknown
    rates, edges = unknown.stretches(60), bounds(list(unknown.sources.values())) / len(unknown.tokens)

    def draw(axes: Any) -> None:
        axes.bar((np.arange(len(rates)) + 0.5) / len(rates), rates, 1 / len(rates), color=_MAIN)
        for edge in edges[1:-1]:
            axes.axvline(edge, color=_REFERENCE, linestyle="--", linewidth=1)
        axes.set(xlabel="place in the training split", ylabel="unknown tokens")
        axes.set(xlim=(0, 1), ylim=(0, max(1.05 * float(rates.max()), 1e-4)))
        _percent_axis(axes.xaxis)
        _percent_axis(axes.yaxis)

    by_split = ", ".join(
        f"{split} {counts['unknown_tokens'] / max(1, counts['tokens']):.3%}"
        for split, counts in manifest["splits"].items()
    )
    by_source = unknown.by_source()
    found = ", ".join(f"{name} {rate:.3%}" for name, rate in by_source.items())
    return Panel(
        "Unknown tokens",
        drawn("Unknown tokens", draw),
        f"Overall: {by_split}. The picture is of {len(unknown.tokens):,} records of at most 2,048 tokens"
        + (f", one source after the other ({found})" if len(by_source) > 1 else "")
        + f"; in {unknown.above(0.01):.1%} of them more than 1% is unknown. Good: below 0.1% overall, for a vocabulary "
        "trained on this text. A stretch that stands out is another language or script, or broken text.",
    )


def _vocabulary(numbers: Numbers) -> Panel:
    used = numbers.coverage

    def draw(axes: Any) -> None:
        axes.plot(np.arange(1, len(used.counts) + 1), used.cumulative, color=_MAIN)
        axes.set_xscale("log")
        axes.set(xlabel="most frequent pieces (log scale)", ylabel="share of all tokens", ylim=(0, 1.03))
        _count_axis(axes.xaxis)
        _percent_axis(axes.yaxis)

    size = len(used.counts)
    unseen, rare = int(np.sum(used.counts == 0)), int(np.sum((used.counts > 0) & (used.counts < RARE)))
    return Panel(
        "Vocabulary coverage",
        drawn("Vocabulary coverage", draw),
        f"{used.needed(0.5):,} pieces make half of the text, {used.needed(0.9):,} make 90%, {used.needed(0.99):,} "
        f"make 99%. Of {size:,} pieces {unseen:,} ({unseen / size:.1%}) never occur and {rare:,} ({rare / size:.1%}) "
        f"fewer than {RARE} times. Good: next to none unseen (13 or so are special) and few rare ones, which hardly "
        "learn an embedding; many mean that the vocabulary is too large for this text, or made for another.",
    )


def _masked(numbers: Numbers, rate: float, count: int) -> Panel:
    sample = numbers.sample
    shares, total = sample.masked / sample.lengths, sample.lengths.sum()
    asked = float(mask_budget(sample.lengths, rate, count).sum() / total)

    def draw(axes: Any) -> None:
        top = max(2 * asked, float(np.quantile(shares, 0.99)))
        axes.hist(shares, np.linspace(0, top, 41), weights=np.full(len(shares), 1 / len(shares)), color=_MAIN)
        axes.axvline(asked, color=_REFERENCE, linestyle="--", linewidth=1, label=f"by recipe {asked:.1%}")
        axes.set(xlabel="tokens to predict, of an example's tokens", ylabel="examples", xlim=(0, top))
        _percent_axis(axes.xaxis)
        _percent_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=9)

    limit = f", at most {count} an example," if count else ""
    return Panel(
        "Masked share",
        drawn("Masked share", draw),
        f"{sample.masked.sum() / total:.2%} of all tokens are predicted, {sample.masked.mean():.1f} an example. Good: "
        f"within half a point of {asked:.2%}, which masking.rate {rate:.0%}{limit} asks for here. Short examples "
        "scatter, as they have a whole number of tokens and at least one. Much less means that words are longer than "
        "what an example may mask, as in text without spaces: then set masking.whole_word to False.",
    )


def _spans(numbers: Numbers, longest: int) -> Panel:
    bars = max(longest, min(_SPAN_BARS, longest + 3))
    target = np.zeros(bars + 1)
    target[:longest] = ngram_probabilities(longest)
    spans = np.minimum(numbers.sample.spans, bars + 1)
    shares = np.bincount(spans, minlength=bars + 2)[1:] / max(1, len(spans))
    names = [*map(str, range(1, bars + 1)), f"{bars + 1}+"]

    def draw(axes: Any) -> None:
        places = np.arange(len(names))
        axes.bar(places, shares, 0.75, color=_MAIN, label="runs in the sample")
        axes.plot(places[:longest], target[:longest], "_", color=_REFERENCE, markersize=26, markeredgewidth=2)
        axes.plot([], [], color=_REFERENCE, linewidth=2, label="p(n) that n-grams are drawn with")
        axes.set_xticks(places, names)
        axes.set(xlabel="words in a run", ylabel="runs")
        axes.grid(axis="x", visible=False)
        _percent_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=9)

    drawn_shares = ", ".join(f"{share:.1%}" for share in shares[:longest])
    return Panel(
        "Span lengths",
        drawn("Span lengths", draw),
        f"Runs of neighbouring words to predict; of 1 to {longest} words: {drawn_shares}, where "
        f"{', '.join(f'{share:.1%}' for share in target[:longest])} are drawn. Runs differ from what is drawn, as "
        "n-grams that touch make one run, and the last of an example is shortened to its budget. Good: within some "
        f"points of p(n), and few runs above {longest}.",
    )


def _corruption(numbers: Numbers, corrupt_by: str) -> Panel:
    counts = numbers.sample.corruption
    shares = counts / max(1, counts.sum())
    groups = {"sample": (shares.tolist(), _MAIN), "target": ([0.8, 0.1, 0.1], _QUIET)}

    def draw(axes: Any) -> None:
        _bars(axes, ["[MASK]", "kept", "another piece"], groups)
        axes.set_ylabel("tokens to predict")

    # Tokens of a span that is drawn as one are no independent draws.
    low, high = wilson_interval(float(counts[0]), float(counts.sum()))
    interval = f" (95% interval {low:.2%} to {high:.2%})" if corrupt_by == "token" else ""
    return Panel(
        "What stands in their place",
        drawn("What stands in their place", draw),
        f"Of {counts.sum():,} tokens to predict {shares[0]:.2%} are [MASK]{interval}, {shares[1]:.2%} stay as they "
        f"are, {shares[2]:.2%} are another piece at random, drawn for each {corrupt_by}. Good: 80, 10 and 10%, within "
        "the chance of the sample.",
    )


def _order(numbers: Numbers, sentence_order: str) -> Panel:
    labels = numbers.sample.labels
    counts = [int(np.sum(labels == label)) for label in (0, 1, IGNORED)]

    def draw(axes: Any) -> None:
        _bars(axes, ["label 0", "label 1", "no label"], {"": ([count / len(labels) for count in counts], _MAIN)})
        axes.set_ylabel("examples")

    pairs = counts[0] + counts[1]
    low, high = wilson_interval(counts[1], pairs)
    caption = (
        f"{counts[1] / max(1, pairs):.1%} of {pairs:,} labels are 1, {LABEL_ONE.get(sentence_order)} (95% interval "
        f"{low:.1%} to {high:.1%}); 0 is in order. "
    )
    if sentence_order == "none":
        caption = "By recipe there are no labels. Good only where the second objective is not wanted."
    elif sentence_order in BORROWING:
        caption += (
            "Good: not far above 50%. Examples of one sentence all have label 1 where there is room for text of "
            "another document, so a constant answer scores more than one half."
        )
    else:
        caption += (
            "Good: 50% lies within the interval, so that a constant answer scores one half; and few without label, "
            "which are examples of one segment."
        )
    return Panel("Sentence-order labels", drawn("Sentence-order labels", draw), caption)


def _halves(numbers: Numbers, sentence_order: str) -> Panel:
    pairs = numbers.sample.second > 0
    first, second = numbers.sample.first[pairs], numbers.sample.second[pairs]

    def draw(axes: Any) -> None:
        bins = length_bins(numbers.sample.slots, 32)
        for lengths, name, colour, dashes in ((first, "A", _MAIN, "-"), (second, "B", _SECOND, "--")):
            weights = np.full(len(lengths), 1 / max(1, len(lengths)))
            axes.hist(lengths, bins, weights=weights, histtype="step", color=colour, linestyle=dashes, label=name)
        axes.set(xlabel="tokens of text", ylabel="pairs", xlim=(0, numbers.sample.slots))
        _percent_axis(axes.yaxis)
        axes.legend(frameon=False, fontsize=9)

    borrowed = " Text of another document fills the room that A left, so B may differ."
    return Panel(
        "Lengths of A and B",
        drawn("Lengths of A and B", draw),
        f"Medians: A {_median(first):,.0f}, B {_median(second):,.0f} tokens. Good: the curves lie on each other, as A "
        "ends at any sentence boundary with equal chance; otherwise a segment's length would tell its place."
        + (borrowed if sentence_order in BORROWING else ""),
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else 0.0


def panels(manifest: dict[str, Any], config: ml_collections.ConfigDict, numbers: Numbers) -> list[Panel]:
    """All pictures, in the page's order."""
    data, masking = config.data, config.masking
    return [
        _documents(numbers, data.sequence_length),
        _sentences(numbers, data.sequence_length),
        _unknown(numbers, manifest),
        _vocabulary(numbers),
        _examples(numbers, data.short_fraction),
        _padding(numbers, data.examples_per_row),
        _rows(numbers, data.examples_per_row),
        _halves(numbers, data.sentence_order),
        _order(numbers, data.sentence_order),
        _masked(numbers, masking.rate, masking.count),
        _spans(numbers, masking.max_ngram),
        _corruption(numbers, masking.corrupt_by),
    ]


# --- the page ---------------------------------------------------------------------------------------------------------

_FREQUENT = 60
_LISTED = 20  # entries of a list in the manifest
_CSS = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: #fff; color: #1f2933;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem }
h3 { font-size: 1rem; margin: 0 0 0.25rem }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figure svg { display: block; width: 100%; height: auto }
figcaption { font-size: 0.875rem; color: #52606d }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.875rem; margin-bottom: 1rem }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #e4e7eb }
th { font-weight: 600 }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 5rem }
.pieces { display: flex; flex-wrap: wrap; gap: 0.4rem; list-style: none; padding: 0; margin: 0.5rem 0 }
.pieces li { border: 1px solid #e4e7eb; border-radius: 0.3rem; padding: 0 0.4rem }
.pieces small { color: #52606d }
"""


def render(
    manifest: dict[str, Any], config: ml_collections.ConfigDict, numbers: Numbers, model_file: pathlib.Path
) -> str:
    """The page as text.

    Args:
      manifest: the data set's.
      config: the recipe.
      numbers: what was measured.
      model_file: the SentencePiece model, for the names of pieces.
    """
    name = pathlib.Path(config.data.path).resolve().name
    sample = numbers.sample
    read = f"{len(sample.examples_per_row):,} rows with {len(sample.lengths):,} examples"
    figures = "".join(_figure(panel) for panel in panels(manifest, config, numbers))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data set {html.escape(name)}</title><style>{_CSS}</style></head><body>"
        f"<h1>Data set {html.escape(name)}</h1>"
        "<p>Numbers are of the training split unless they say otherwise. Examples, rows and masks were measured on "
        f"{read}, the first that a run with this recipe and seed {config.seed} trains on.</p>"
        f"<h2>What it holds</h2>{_table(split_facts(manifest))}"
        f"<h2>Where it comes from</h2>{_table(source_facts(manifest))}{_table(other_facts(manifest))}"
        f"<h2>Pictures</h2><div class=grid>{figures}</div>"
        f"<h2>Most frequent pieces</h2>{_pieces(numbers.coverage, model_file)}"
        f"<h2>Recipe, as far as it shapes examples</h2>{_table(recipe_facts(config))}"
        "</body></html>\n"
    )


Row = Sequence[str]


# Of a split: what `source_facts` lists, and where its records lie.
_NOT_COUNTS = ("sources", "parts", "shard_records")


def split_facts(manifest: dict[str, Any]) -> list[Row]:
    """A heading and a row for each count of the manifest, with a column for each split."""
    columns = []
    for counts in manifest["splits"].values():
        facts = dict(flat({name: value for name, value in counts.items() if name not in _NOT_COUNTS}))
        tokens = max(1, counts["tokens"])
        facts["bytes per token"] = f"{counts['text_bytes'] / tokens:.3f}"
        facts["unknown rate"] = f"{counts['unknown_tokens'] / tokens:.4%}"
        facts["fingerprint"] = facts.pop("fingerprint")[:16]
        columns.append(facts)
    names = dict.fromkeys(name for facts in columns for name in facts)
    return [("", *manifest["splits"]), *((name, *(facts.get(name, "") for facts in columns)) for name in names)]


def source_facts(manifest: dict[str, Any]) -> list[Row]:
    """A row for each fact, with a column for each source; among them what each split has of it."""
    columns = []
    for source in manifest["sources"]:
        facts = dict(flat(source))
        for split, counts in manifest["splits"].items():
            facts |= dict(flat(counts.get("sources", {}).get(source.get("name"), {}), split))
        columns.append(facts)
    names = dict.fromkeys(name for facts in columns for name in facts)
    return [(name, *(facts.get(name, "") for facts in columns)) for name in names]


def other_facts(manifest: dict[str, Any]) -> list[Row]:
    """Everything else in the manifest."""
    return [("", ""), *flat({name: value for name, value in manifest.items() if name not in ("splits", "sources")})]


def recipe_facts(config: ml_collections.ConfigDict) -> list[Row]:
    """The recipe's fields that shape examples."""
    fields = {f"{group}.{name}": value for group in ("data", "masking") for name, value in config[group].items()}
    fields["seed"] = config.seed
    return [("", ""), *((name, _text(value)) for name, value in fields.items() if name not in RESUMABLE_FIELDS)]


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Names and texts of everything in a JSON value; a long list is cut, and says so."""
    if isinstance(value, dict):
        return [fact for key, inner in value.items() for fact in flat(inner, f"{name}, {key}" if name else str(key))]
    name = name.replace("_", " ")
    if isinstance(value, list):
        if any(isinstance(inner, dict | list) for inner in value):
            facts = [fact for nth, inner in enumerate(value[:_LISTED], 1) for fact in flat(inner, f"{name} {nth}")]
        else:
            facts = [(name, ", ".join(_text(inner) for inner in value[:_LISTED]))]
        more = len(value) - _LISTED
        return [*facts, (f"more {name}", f"{more:,}, not listed here")] if more > 0 else facts
    return [(name, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value) or '""'


def _table(rows: list[Row]) -> str:
    """The first row is the heading, unless it is empty."""
    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    lines = [f"<tr>{''.join(f'<th scope=col>{cell}</th>' for cell in head)}</tr>"] if any(head) else []
    for first, *rest in body:
        cells = "".join(f"<td dir=auto>{cell}</td>" for cell in rest)
        lines.append(f"<tr><th scope=row>{first}</th>{cells}</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _figure(panel: Panel) -> str:
    return (
        f"<figure><h3>{html.escape(panel.title)}</h3>{panel.svg}"
        f"<figcaption>{html.escape(panel.caption)}</figcaption></figure>"
    )


def _pieces(used: Coverage, model_file: pathlib.Path) -> str:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_file.read_bytes())
    total = max(1, used.counts.sum())
    items = [
        f"<li><bdi>{html.escape(processor.id_to_piece(int(i)))}</bdi> <small>{count / total:.2%}</small></li>"
        for i, count in zip(used.order[:_FREQUENT], used.counts[:_FREQUENT], strict=True)
        if count
    ]
    return (
        f"<ol class=pieces>{''.join(items)}</ol><p>▁ marks the start of a word. Good: function words and punctuation; "
        "markup, menus or boilerplate here would be learned with everything else.</p>"
    )
