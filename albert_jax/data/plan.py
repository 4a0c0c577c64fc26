# SPDX-License-Identifier: Apache-2.0
"""The packing plan: which sentences form an example, and which examples share a row, for one sequence length.

A plan is a pure function of a split and of `PlanSettings`. It is computed once, vectorised over the split's sentence
lengths, kept beside the data set and checked by digest when it is read again. What changes from epoch to epoch (order,
splits, swaps, masks) is no part of it.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.masking import mask_budget
from albert_jax.data.store import TextStore, map_array
from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

VERSION = 2  # raise it when a change here changes plans
_SHORT, _TARGET, _ORDER = range(200, 203)


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What a plan depends on besides the data.

    Attributes:
      slots: S, slots in a row.
      examples: P, most examples in a row; 1 packs nothing.
      mask_slots: M, mask slots in a row.
      mask_rate: share of an example's tokens that are predicted; with M it limits which examples fit together.
      short_fraction: share of examples that aim at a random shorter length.
    """

    slots: int
    examples: int
    mask_slots: int
    mask_rate: float
    short_fraction: float

    def __post_init__(self) -> None:
        if self.slots < 8 or self.examples < 1:
            raise UserError(f"sequence_length {self.slots} must be at least 8 and examples_per_row {self.examples} 1.")
        if not (0 < self.mask_rate < 1 and 0 <= self.short_fraction <= 1):
            raise UserError(f"masking.rate {self.mask_rate} and data.short_fraction {self.short_fraction} are shares.")
        needed = int(mask_budget(np.array(self.slots), self.mask_rate))
        if self.mask_slots < needed:
            raise UserError(
                f"masking.slots {self.mask_slots} is less than the {needed} that an example of {self.slots} slots "
                f"needs at masking.rate {self.mask_rate}."
            )

    @property
    def budget(self) -> int:
        """Most tokens of text in an example: [CLS] A [SEP] B [SEP] must fit."""
        return self.slots - 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """Examples and rows. U units (sentences, or parts of a sentence longer than a row), X examples, R rows.

    Attributes:
      unit_begins: uint16 [U], where a unit begins within its record, in tokens.
      unit_lengths: uint16 [U].
      example_records: int32 [X], the record of each example.
      example_units: int64 [X], its first unit; its units are consecutive.
      example_sizes: uint16 [X], how many units it has; with one it has no sentence order to predict.
      row_examples: int32 [R, P], the examples of each row, then -1.
      digest: sha256 of all of these.
    """

    unit_begins: np.ndarray
    unit_lengths: np.ndarray
    example_records: np.ndarray
    example_units: np.ndarray
    example_sizes: np.ndarray
    row_examples: np.ndarray
    digest: str

    @property
    def rows(self) -> int:
        return len(self.row_examples)

    @property
    def examples_per_row(self) -> float:
        """Mean number of examples in a row."""
        return len(self.example_records) / max(1, self.rows)

    def describe(self, settings: PlanSettings) -> str:
        """One line for the log: sizes, share of padding, share of examples without sentence order."""
        text = int(self.unit_lengths.sum(dtype=np.int64))
        single = float(np.mean(self.example_sizes == 1))
        slots = text + int(np.sum(np.where(self.example_sizes == 1, 2, 3)))
        return (
            f"{len(self.example_records):,} examples ({single:.1%} of one sentence, without sentence order) in "
            f"{self.rows:,} rows of {settings.slots} slots, {self.examples_per_row:.2f} examples a row, "
            f"{1 - slots / (self.rows * settings.slots):.1%} padding"
        )


# --- units and examples -----------------------------------------------------------------------------------------------


def _cut_points(starts: np.ndarray, length: int, budget: int) -> list[int]:
    """Greedy cuts of one long sentence at word starts, or anywhere within a word longer than the budget."""
    cuts = [0]
    while length - cuts[-1] > budget:
        inside = np.flatnonzero(starts[cuts[-1] + 1 : cuts[-1] + budget + 1])
        cuts.append(cuts[-1] + (int(inside[-1]) + 1 if inside.size else budget))
    return cuts


def _units(store: TextStore, starts_word: np.ndarray, budget: int) -> tuple[np.ndarray, ...]:
    """Sentences, with those longer than `budget` cut at word starts.

    Returns:
      record, begin within the record, length and `alone` (part of a long sentence: not to be paired) of each unit.
    """
    lengths = store.sentence_lengths[:].astype(np.int64)
    records = np.repeat(np.arange(len(store.sentences_per_record)), store.sentences_per_record)
    ends = np.cumsum(lengths)
    record_first = np.concatenate([[0], np.cumsum(store.sentences_per_record)])[:-1]
    begins = (ends - lengths) - (ends - lengths)[record_first[records]]
    long = np.flatnonzero(lengths > budget)
    if not long.size:
        return records, begins, lengths, np.zeros(len(lengths), bool)
    _log.info("%s sentences are longer than %s tokens and are cut at word starts.", f"{long.size:,}", budget)
    pieces: list[np.ndarray] = []
    for part in np.array_split(long, max(1, long.size // 1000)):
        touched, place = np.unique(records[part], return_inverse=True)
        tokens, offsets = store.read(touched)
        for sentence, at in zip(part, offsets[place] + begins[part], strict=True):
            starts = starts_word[tokens[at : at + lengths[sentence]]]
            pieces.append(np.array(_cut_points(starts, int(lengths[sentence]), budget)))
    counts = np.ones(len(lengths), np.int64)
    counts[long] = [len(p) for p in pieces]
    source = np.repeat(np.arange(len(lengths)), counts)
    offset = np.zeros(len(source), np.int64)
    alone = counts[source] > 1
    offset[alone] = np.concatenate(pieces)
    last = np.append(source[1:] != source[:-1], True)
    until = np.where(last, lengths[source], np.append(offset[1:], 0))
    return records[source], begins[source] + offset, until - offset, alone


def _chunk(lengths: np.ndarray, runs: np.ndarray, settings: PlanSettings) -> tuple[np.ndarray, np.ndarray]:
    """Cuts runs of consecutive units into examples: units are appended until the target length is reached.

    All runs advance together, one example a turn, so the number of turns is that of the longest run.

    Args:
      lengths: int64 [U], units' tokens, none above the budget.
      runs: int64 [N + 1], where each run of units begins; examples do not cross runs.
      settings: S and the share of short examples.

    Returns:
      int64 first unit and int64 number of units of each example, in order of the units.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    start, stop, run = runs[:-1].copy(), runs[1:], np.arange(len(runs) - 1)
    first, size, turn = [], [], 0
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
        size.append(stop_here - start)
        more = stop_here < stop
        start, stop, run, turn = stop_here[more], stop[more], run[more], turn + 1
    all_first, all_size = np.concatenate(first), np.concatenate(size)
    order = np.argsort(all_first)
    return all_first[order], all_size[order]


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
    masks = mask_budget(np.arange(settings.slots + 1), settings.mask_rate)
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


def _rows(example_lengths: np.ndarray, settings: PlanSettings) -> np.ndarray:
    """int32 [R, P]: gives each slot of the packed patterns an example of its length, at random within a length."""
    patterns = pack_lengths(np.bincount(example_lengths, minlength=settings.slots + 1), settings)
    table = np.zeros((len(patterns), settings.examples), np.int64)
    for i, (pattern, _) in enumerate(patterns):
        table[i, : len(pattern)] = pattern
    lengths = np.repeat(table, [rows for _, rows in patterns], axis=0)
    slots = np.argsort(lengths, axis=None, kind="stable")[lengths.size - len(example_lengths) :]
    shuffled = np.argsort(counter_rng.bits(np.arange(len(example_lengths)), _ORDER), kind="stable")
    by_length = shuffled[np.argsort(example_lengths[shuffled], kind="stable")]
    rows = np.full(lengths.shape, -1, np.int32)
    rows.flat[slots] = by_length
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
    records, begins, lengths, alone = _units(store, starts_word, settings.budget)
    if not len(lengths):
        raise UserError(f"the {store.split} split of {store.path} is empty; build the data set from more text.")
    # A run ends with its record, and at parts of a long sentence, which stand alone.
    breaks = np.append(True, (records[1:] != records[:-1]) | alone[1:] | alone[:-1])
    first, size = _chunk(lengths, np.append(np.flatnonzero(breaks), len(lengths)), settings)
    tokens = np.add.reduceat(lengths, first)
    rows = _rows(tokens + np.where(size == 1, 2, 3), settings)
    arrays = {
        "unit_begins": begins.astype(np.uint16),
        "unit_lengths": lengths.astype(np.uint16),
        "example_records": records[first].astype(np.int32),
        "example_units": first,
        "example_sizes": size.astype(np.uint16),
        "row_examples": rows,
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
        names = [f.name for f in dataclasses.fields(Plan) if f.name != "digest"]
        arrays = {name: map_array(place / f"{name}.npy") for name in names}
        digest = (place / "digest").read_text()
    except (OSError, ValueError):
        return None
    return Plan(**arrays, digest=digest) if _digest(arrays) == digest else None


def _save(plan: Plan, place: pathlib.Path) -> None:
    place.parent.mkdir(exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
    try:
        for field in dataclasses.fields(Plan):
            if field.name != "digest":
                np.save(temporary / f"{field.name}.npy", getattr(plan, field.name))
        (temporary / "digest").write_text(plan.digest)
        temporary.chmod(0o755)
        os.rename(temporary, place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.is_dir():  # another process may have put the same plan there meanwhile
            raise
