# SPDX-License-Identifier: Apache-2.0
"""The pictures of the report, each with a caption that says what a good value is."""

import dataclasses
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from albert_jax.data.masking import mask_budget, ngram_probabilities
from albert_jax.data.rows import IGNORED
from albert_jax.data.store import bounds
from albert_jax.data.stream import BORROWING, LABEL_ONE
from albert_jax.training.evaluation import wilson_interval
from pretrain_data.report.numbers import PLAN_TOKENS, Numbers

RARE = 100  # occurrences; a piece seen less often hardly learns an embedding
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
