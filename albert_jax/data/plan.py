# SPDX-License-Identifier: Apache-2.0
"""The packing plan: which sentences form an example, and which examples share a row, for one sequence length.

A plan is a pure function of a split and of `PlanSettings`. It is computed once, vectorised over the split's sentence
lengths, kept beside the data set and checked by digest when it is read again. What changes from epoch to epoch (order,
splits, swaps, masks) is no part of it, and neither are the weights of sources: a row holds text of one source.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.masking import mask_budget
from albert_jax.data.store import TextStore, bounds, map_array
from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

VERSION = 3  # raise it when a change here changes plans
MOST_SLOTS = 65_535  # lengths of examples are uint16
_SHORT, _TARGET, _ORDER = range(200, 203)
# A document longer than about this many rows is taken as several runs of records. All runs advance together, so that a
# plan takes as many turns as the longest has examples; and the short example at the end of a run helps to fill rows.
_RUN_ROWS = 6
_BLOCK_SENTENCES = 2**22  # planned at a time: what bounds the memory


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """The form of rows, and what decides which examples there are.

    Attributes:
      slots: S, slots in a row.
      examples: P, most examples in a row; 1 packs nothing.
      mask_slots: M, mask slots in a row.
      mask_rate: share of an example's tokens that are predicted; with M it limits which examples fit together.
      short_fraction: share of examples that aim at a random shorter length.
      mask_count: most tokens that are predicted in an example; 0 sets no such limit.
      pair_singles: whether an example of one sentence gets room for text of another document, up to the length that it
        aims at.
    """

    slots: int
    examples: int
    mask_slots: int
    mask_rate: float
    short_fraction: float
    mask_count: int = 0
    pair_singles: bool = False

    def __post_init__(self) -> None:
        if not 8 <= self.slots <= MOST_SLOTS or self.examples < 1:
            raise UserError(
                f"sequence_length {self.slots} must lie between 8 and {MOST_SLOTS:,}, and examples_per_row "
                f"{self.examples} be at least 1."
            )
        if not 0 < self.mask_rate <= 1:
            raise UserError(f"masking.rate must be a share above 0, and at most 1, not {self.mask_rate}.")
        if not 0 <= self.short_fraction <= 1:
            raise UserError(f"data.short_fraction must be a share, from 0 to 1, not {self.short_fraction}.")
        needed = int(self.mask_budget(np.array(self.slots)))
        if self.mask_slots < needed:
            limit = f" and masking.count {self.mask_count}" if self.mask_count else ""
            raise UserError(
                f"masking.slots {self.mask_slots} is less than the {needed} that an example of {self.slots} slots "
                f"needs at masking.rate {self.mask_rate}{limit}; pass --config.masking.slots={needed}, or more, so "
                "that short examples can share a row."
            )

    @property
    def budget(self) -> int:
        """Most tokens of text in an example: [CLS] A [SEP] B [SEP] must fit."""
        return self.slots - 3

    def mask_budget(self, lengths: np.ndarray) -> np.ndarray:
        """How many tokens are predicted in examples of some lengths, int64."""
        return mask_budget(lengths, self.mask_rate, self.mask_count)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Examples and rows. U units (sentences, or parts of a sentence longer than a row), X examples, R rows.

    Units follow each other through the split, and so do examples: nothing is left out between them.

    Attributes:
      unit_lengths: uint16 [U], tokens.
      example_units: int64 [X + 1], the unit with which each example begins; with one it has no sentence order.
      example_begins: int64 [X + 1], the token of the split with which it begins.
      example_slots: uint16 [X], the slots that a row keeps for it, special tokens and room for borrowed text included.
      row_examples: int32 [R, P], the examples of each row, then -1.
      source_rows: int64 [sources + 1], where the rows of each source begin, then R.
      cut_sentences: int64 [1], how many sentences were longer than a row and had to be cut.
      digest: sha256 of all of these.
    """

    unit_lengths: np.ndarray
    example_units: np.ndarray
    example_begins: np.ndarray
    example_slots: np.ndarray
    row_examples: np.ndarray
    source_rows: np.ndarray
    cut_sentences: np.ndarray
    digest: str

    @property
    def rows(self) -> int:
        return len(self.row_examples)

    @property
    def example_sizes(self) -> np.ndarray:
        """int64 [X], the units of each example."""
        return np.diff(self.example_units)

    @property
    def examples_per_row(self) -> float:
        """Mean number of examples in a row."""
        return len(self.example_slots) / max(1, self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, which is what the plan takes on the disk."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def describe(self, settings: PlanSettings) -> str:
        """One line for the log: sizes, share of padding, examples of one sentence, sentences that were cut."""
        single = float(np.mean(self.example_sizes == 1))
        padding = 1 - int(self.example_slots.sum(dtype=np.int64)) / (self.rows * settings.slots)
        singles = "of one sentence" if settings.pair_singles else "of one sentence, without sentence order"
        cut = int(self.cut_sentences[0])
        return (
            f"{len(self.example_slots):,} examples ({single:.1%} {singles}) in {self.rows:,} rows of {settings.slots} "
            f"slots, {self.examples_per_row:.2f} examples a row, {padding:.1%} padding"
            + (f"; {cut:,} sentences longer than {settings.budget} tokens are cut at word starts" if cut else "")
        )


_ARRAYS = [field.name for field in dataclasses.fields(Plan) if field.name != "digest"]


# --- units and examples -----------------------------------------------------------------------------------------------


def _runs(store: TextStore, slots: int) -> np.ndarray:
    """int64 [N + 1], the records with which runs begin, then the number of records: documents, or parts of long ones.

    A part ends with the record in which `_RUN_ROWS` rows of text are full.
    """
    before = store.record_begins[:-1] - np.repeat(store.document_begins[:-1], store.records_per_document)
    begins = np.diff(before // (_RUN_ROWS * slots), prepend=0) > 0
    begins[store.document_records[:-1]] = True
    return np.append(np.flatnonzero(begins), len(begins))


def _blocks(store: TextStore, runs: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive runs, as in `runs`, with about `_BLOCK_SENTENCES` sentences at most in each block."""
    sentences, first = store.record_sentences[runs], 0
    while first < len(runs) - 1:
        end = int(np.searchsorted(sentences, sentences[first] + _BLOCK_SENTENCES, side="right")) - 1
        end = max(end, first + 1)
        yield runs[first : end + 1]
        first = end


def _cut_points(starts: np.ndarray, length: int, budget: int) -> list[int]:
    """Greedy cuts of one long sentence at word starts, or anywhere within a word longer than the budget."""
    cuts = [0]
    while length - cuts[-1] > budget:
        inside = np.flatnonzero(starts[cuts[-1] + 1 : cuts[-1] + budget + 1])
        cuts.append(cuts[-1] + (int(inside[-1]) + 1 if inside.size else budget))
    return cuts


def _parts(store: TextStore, starts_word: np.ndarray, budget: int, sentences: np.ndarray) -> list[np.ndarray]:
    """The lengths of the parts of at most `budget` tokens into which long sentences, int64 [K] ordinals, are cut."""
    parts = []
    for some in np.array_split(sentences, max(1, len(sentences) // 1000)):
        records = np.searchsorted(store.record_sentences, some, side="right") - 1
        touched, place = np.unique(records, return_inverse=True)
        tokens, offsets = store.read(touched)
        begins = offsets[place] + store.sentence_begins(some) - store.record_begins[records]
        for begin, length in zip(begins.tolist(), store.sentence_lengths[some].tolist(), strict=True):
            cuts = _cut_points(starts_word[tokens[begin : begin + length]], length, budget)
            parts.append(np.diff([*cuts, length]))
    return parts


def _units(
    store: TextStore, starts_word: np.ndarray, budget: int, block: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The units of a block of runs, with sentences longer than `budget` cut at word starts.

    Returns:
      int64 [U] lengths; int64 [N + 1], the units with which runs begin, then U, where the parts of a long sentence are
      runs of their own, as they are not to be paired; and how many sentences were cut.
    """
    first, end = store.record_sentences[block[[0, -1]]]
    lengths = store.sentence_lengths[first:end].astype(np.int64)
    runs = store.record_sentences[block] - first
    long = np.flatnonzero(lengths > budget)
    # What the builder had to cut because it was longer than a record are parts of one sentence too.
    cut = np.concatenate([store.continued_sentences - 1, store.continued_sentences]) - first
    cut = cut[(cut >= 0) & (cut < len(lengths))]
    if not long.size and not cut.size:
        return lengths, runs, 0
    parts = _parts(store, starts_word, budget, first + long)
    counts = np.ones(len(lengths), np.int64)
    counts[long] = [len(p) for p in parts]
    single = lengths > budget
    single[cut] = True
    alone = np.repeat(single, counts)
    places = np.repeat(lengths > budget, counts)
    lengths = np.repeat(lengths, counts)
    lengths[places] = np.concatenate([np.zeros(0, np.int64), *parts])
    begins = np.append(True, alone[1:] | alone[:-1])
    begins[bounds(counts)[runs[:-1]]] = True
    return lengths, np.append(np.flatnonzero(begins), len(lengths)), long.size


def _chunk(
    lengths: np.ndarray, runs: np.ndarray, begin: int, settings: PlanSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts runs of consecutive units into examples: units are appended until the target length is reached.

    All runs advance together, one example a turn, so the number of turns is that of the longest run.

    Args:
      lengths: int64 [U], units' tokens, none above the budget.
      runs: int64 [N + 1], where each run of units begins; examples do not cross runs.
      begin: the token of the split with which the first unit begins; a run is keyed by its first token.
      settings: S and the share of short examples.

    Returns:
      int64 number of units, of tokens and of tokens aimed at of each example, in order of the units.
    """
    ends = bounds(lengths)
    start, stop, run = runs[:-1].copy(), runs[1:], begin + ends[runs[:-1]]
    first, aims, turn = [], [], 0
    while start.size:
        short = counter_rng.uniform(run, turn, _SHORT) < settings.short_fraction
        target = np.where(short, 2 + counter_rng.below(settings.budget - 1, run, turn, _TARGET), settings.budget)
        most = np.searchsorted(ends, ends[start] + settings.budget, side="right") - 1
        wanted = np.searchsorted(ends, ends[start] + target, side="left")
        # At least two sentences where they fit, so that there is an order to predict.
        stop_here = np.minimum(np.minimum(np.maximum(wanted, start + 2), most), stop)
        # A last sentence must not be left alone if this example can spare one of three or more and they fit together.
        orphan = (stop_here == stop - 1) & (stop_here - start >= 3)
        orphan &= ends[stop] - ends[np.maximum(stop - 2, 0)] <= settings.budget
        stop_here = np.where(orphan, stop_here - 1, stop_here)
        first.append(start)
        aims.append(target)
        more = stop_here < stop
        start, stop, run, turn = stop_here[more], stop[more], run[more], turn + 1
    starts, aim = np.concatenate(first), np.concatenate(aims)
    order = np.argsort(starts)
    units = np.append(starts[order], len(lengths))
    return np.diff(units), np.diff(ends[units]), aim[order]


def _slots(sizes: np.ndarray, tokens: np.ndarray, aims: np.ndarray, settings: PlanSettings) -> np.ndarray:
    """The slots that a row keeps for each example."""
    single = sizes == 1
    if not settings.pair_singles:
        return tokens + np.where(single, 2, 3)
    paired = single & (tokens < settings.budget)
    return np.where(paired, np.maximum(tokens + 1, aims) + 3, tokens + np.where(single, 2, 3))


# --- packing ----------------------------------------------------------------------------------------------------------

Pattern = tuple[int, ...]  # lengths of the examples in a row, longest first


def pack_lengths(counts: np.ndarray, settings: PlanSettings) -> list[tuple[Pattern, int]]:
    """Packs a histogram of example lengths into rows: best fit, longest first, all examples of a length at once.

    This is shortest-pack-first histogram packing (Krell et al. 2021, arXiv 2107.02027) with two more limits, on the
    examples and on the mask slots of a row. Its time does not depend on the number of examples.

    Args:
      counts: int64 [S + 1], how many examples have each length.
      settings: S, P, M and the mask rate.

    Returns:
      Patterns and how many rows have each.
    """
    masks = settings.mask_budget(np.arange(settings.slots + 1))
    by_space: dict[int, list[tuple[Pattern, int, int]]] = {}  # space left -> (pattern, masks used, rows)
    done: list[tuple[Pattern, int]] = []

    def put(pattern: Pattern, used: int, rows: int) -> None:
        space = settings.slots - sum(pattern)
        if len(pattern) == settings.examples or space == 0:
            done.append((pattern, rows))
        else:
            by_space.setdefault(space, []).append((pattern, used, rows))

    for length in range(settings.slots, 0, -1):
        left, need = int(counts[length]), int(masks[length])
        for space in sorted(s for s in by_space if s >= length):
            group = by_space.pop(space)
            for pattern, used, rows in group:
                most = min(space // length, settings.examples - len(pattern), (settings.mask_slots - used) // need)
                while rows and (fit := min(most, left)) > 0:  # twice at most: full rows, then one with what is left
                    full = min(rows, left // fit)
                    put(pattern + (length,) * fit, used + need * fit, full)
                    left, rows = left - full * fit, rows - full
                if rows:
                    by_space.setdefault(space, []).append((pattern, used, rows))
        fit = min(settings.slots // length, settings.examples, settings.mask_slots // need)
        if left // fit:
            put((length,) * fit, need * fit, left // fit)
        if left % fit:
            put((length,) * (left % fit), need * (left % fit), 1)
    return done + [(pattern, rows) for group in by_space.values() for pattern, _, rows in group]


def _rows(example_slots: np.ndarray, settings: PlanSettings) -> np.ndarray:
    """int32 [R, P]: gives each slot of the packed patterns an example of its length, at random within a length."""
    counts = np.bincount(example_slots, minlength=settings.slots + 1)
    patterns = pack_lengths(counts, settings)
    random = counter_rng.bits(np.arange(len(example_slots)), _ORDER) >> np.uint64(16)
    by_length = np.argsort((example_slots.astype(np.uint64) << np.uint64(48)) | random, kind="stable").astype(np.int32)
    following = bounds(counts)  # where the examples of each length that have no place yet begin
    rows = np.full((sum(count for _, count in patterns), settings.examples), -1, np.int32)
    top = 0
    for pattern, count in patterns:
        for slot, length in enumerate(pattern):
            rows[top : top + count, slot] = by_length[following[length] : following[length] + count]
            following[length] += count
        top += count
    return rows


# --- the whole plan, and its cache ------------------------------------------------------------------------------------


def make_plan(store: TextStore, starts_word: np.ndarray, settings: PlanSettings) -> Plan:
    """Computes the plan of a split.

    Args:
      store: the split.
      starts_word: bool [V], pieces at which a long sentence may be cut.
      settings: see `PlanSettings`.

    Raises:
      UserError: where the split holds no text.
    """
    if not len(store.sentence_lengths):
        raise UserError(f"the {store.split} split of {store.path} is empty; build the data set from more text.")
    blocks, cut = [], 0
    for block in _blocks(store, _runs(store, settings.slots)):
        lengths, runs, long = _units(store, starts_word, settings.budget, block)
        sizes, tokens, aims = _chunk(lengths, runs, int(store.record_begins[block[0]]), settings)
        slots = _slots(sizes, tokens, aims, settings)
        blocks.append([array.astype(np.uint16) for array in (lengths, sizes, tokens, slots)])
        cut += long
    lengths, sizes, tokens, slots = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    begins = bounds(tokens)
    sources = np.searchsorted(begins, store.record_begins[bounds(list(store.sources.values()))])
    rows = [_rows(slots[a:b], settings) for a, b in itertools.pairwise(sources.tolist())]
    for first, part in zip(sources.tolist(), rows, strict=False):
        part[part >= 0] += first
    arrays = {
        "unit_lengths": lengths,
        "example_units": bounds(sizes),
        "example_begins": begins,
        "example_slots": slots,
        "row_examples": np.concatenate(rows),
        "source_rows": bounds([len(part) for part in rows]),
        "cut_sentences": np.array([cut]),
    }
    return Plan(**arrays, digest=_digest(arrays))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def cached_plan(store: TextStore, starts_word: np.ndarray, settings: PlanSettings) -> Plan:
    """The plan of a split, from the data set's `plans/` directory if it is there, or computed and put there.

    A cached plan whose digest is wrong is computed anew; where the directory cannot be written, the plan is computed at
    every start, and both are said in the log.
    """
    key = json.dumps([VERSION, store.fingerprint, dataclasses.asdict(settings)], sort_keys=True)
    place = store.path / "plans" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if place.is_dir():
        plan = _load(place)
        if plan is not None:
            return plan
        _log.warning("the cached plan %s is damaged; it is computed anew.", place)
        shutil.rmtree(place, ignore_errors=True)
    plan = make_plan(store, starts_word, settings)
    try:
        _save(plan, place)
    except OSError as e:
        _log.warning("the plan cannot be kept in %s (%s); it is computed at every start.", place, e)
    return plan


def _load(place: pathlib.Path) -> Plan | None:
    try:
        arrays = {name: map_array(place / f"{name}.npy") for name in _ARRAYS}
        digest = (place / "digest").read_text()
    except (OSError, ValueError):
        return None
    return Plan(**arrays, digest=digest) if _digest(arrays) == digest else None


def _save(plan: Plan, place: pathlib.Path) -> None:
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as private:
        temporary = pathlib.Path(private, "new")  # `private` is so whatever the umask
        temporary.mkdir()
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(plan, name))
        (temporary / "digest").write_text(plan.digest)
        try:
            os.rename(temporary, place)
        except OSError:
            if not place.is_dir():  # another process may have put the same plan there meanwhile
                raise
