# SPDX-License-Identifier: Apache-2.0
"""Mixtures of sources: which row of which source stands at a position of the endless stream, in closed form."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from albert_jax.data import counter_rng
from albert_jax.data.latest import Latest
from albert_jax.errors import UserError

_ROW_ORDER, _RANK = 300, 310
_FINEST, _LARGEST = 1000, 1000  # of weights: their denominator, and the weights themselves


def source_weights(text: str, given: Mapping[str, float], setting: str = "data.weights") -> dict[str, Fraction]:
    """The weights of a data set's sources, exactly; as floats in a manifest they stay what they are.

    Args:
      text: 'wiki=1,books=2.5' overrides those that it names; empty overrides none.
      given: name -> weight, as the data set was built.
      setting: what the person knows `text` by.

    Raises:
      UserError: where a source or a weight is not one.
    """
    weights = {name: str(weight) for name, weight in given.items()}
    for part in filter(None, text.split(",")):
        name, equals, weight = part.partition("=")
        if not equals:
            raise UserError(f"{setting} {text!r} has {part!r} where NAME=WEIGHT is needed, as in wiki=1,books=2.5.")
        if name.strip() not in given:
            raise UserError(f"{setting} names the source {name.strip()!r}; the data set has {', '.join(given)}.")
        weights[name.strip()] = weight.strip()
    exact = {name: _weight(name, weight) for name, weight in weights.items()}
    if not any(exact.values()):
        raise UserError(f"all sources ({', '.join(exact)}) have weight 0; give one of them more in {setting}.")
    return exact


def _weight(name: str, text: str) -> Fraction:
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError) as e:
        raise UserError(f"the weight {text!r} of the source {name} is not a number, such as 2 or 0.5.") from e
    if not 0 <= weight <= _LARGEST or _FINEST % weight.denominator:
        raise UserError(
            f"the weight {text} of the source {name} must lie between 0 and {_LARGEST} and have at most three decimals."
        )
    return weight


class Mixture:
    """The order of rows: an epoch holds each row of a source as often as its weight says, in an order of its own.

    A source of weight w and R rows, k = 0..R-1 their ranks in a random order that stays, has its row of rank k in epoch
    e floor((e + 1) w + u) - floor(e w + u) times, u = (k + 1/2) / R. So each row is used w times an epoch on average,
    at any time to within once, and epochs 0..e-1 hold floor(R e w + 1/2) rows of the source (Hermite's identity for
    the sum over k): a position's epoch needs no counting. The arithmetic is exact.

    Args:
      source_rows: int64 [sources + 1], where each source's rows begin, then the number of rows.
      weights: name -> weight, in the order of the sources.
      seed: keys the orders and the ranks.
      shuffle: False keeps the order of the rows.

    Raises:
      UserError: where the sources with a weight have no rows.
    """

    def __init__(self, source_rows: np.ndarray, weights: Mapping[str, Fraction], *, seed: int, shuffle: bool):
        self._begins, self._counts = [int(b) for b in source_rows[:-1]], [int(n) for n in np.diff(source_rows)]
        self._names, self._weights = list(weights), list(weights.values())
        self._seed, self._shuffle = seed, shuffle
        self._mean = sum((n * w for n, w in zip(self._counts, self._weights, strict=True)), Fraction(0))
        self._epoch = Latest(self._make_epoch)
        self._ranks = [self._rank(s) for s in range(len(self._counts))]

    @property
    def rows(self) -> int:
        """Rows in an epoch, rounded; epochs differ from it by at most half a row for each source."""
        return max(1, round(self._mean))

    def _rank(self, source: int) -> np.ndarray:
        """int64 [R]; empty where the weight is whole, as all rows are then used equally often in every epoch."""
        if self._weights[source].denominator == 1:
            return np.zeros(0, np.int64)
        random = counter_rng.bits(self._seed, _RANK, source, np.arange(self._counts[source]))
        rank = np.empty(len(random), np.int64)
        rank[np.argsort(random, kind="stable")] = np.arange(len(random))
        return rank

    def _rows_before(self, source: int, epoch: int) -> int:
        """How many rows of a source stand in the epochs before one."""
        return int(self._counts[source] * epoch * self._weights[source] + Fraction(1, 2))

    def _begin(self, epoch: int) -> int:
        """The position at which an epoch begins."""
        return sum(self._rows_before(s, epoch) for s in range(len(self._counts)))

    def _place(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and where in it the position is."""
        epoch = int(position / self._mean)
        while self._begin(epoch) > position:
            epoch -= 1
        while self._begin(epoch + 1) <= position:
            epoch += 1
        return epoch, position - self._begin(epoch)

    def epoch(self, position: int) -> float:
        """How many epochs `position` rows are."""
        epoch, offset = self._place(position)
        return epoch + offset / (self._begin(epoch + 1) - self._begin(epoch))

    def source_epochs(self, position: int) -> dict[str, float]:
        """How many times each source has been gone through after `position` rows, on average over all orders."""
        epoch, offset = self._place(position)
        share = Fraction(offset, self._begin(epoch + 1) - self._begin(epoch))
        found = {}
        for source, name in enumerate(self._names):
            before, after = self._rows_before(source, epoch), self._rows_before(source, epoch + 1)
            found[name] = float((before + share * (after - before)) / self._counts[source])
        return found

    def at(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What stands at positions `start` to `start + count`.

        Returns:
          int64 [count], rows of the plan, and int64 [count], how many times each stood anywhere before.
        """
        rows, visits = np.zeros(count, np.int64), np.zeros(count, np.int64)
        epoch, offset = self._place(start)
        filled = 0
        while filled < count:
            here, seen = self._epoch(epoch)
            some = slice(offset, offset + count - filled)
            end = filled + len(here[some])
            rows[filled:end], visits[filled:end] = here[some], seen[some]
            filled, epoch, offset = end, epoch + 1, 0
        return rows, visits

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an epoch in their order, and how many times each was there before."""
        sources = [self._uses(s, epoch) for s in range(len(self._counts))]
        rows, visits = (np.concatenate(arrays) for arrays in zip(*sources, strict=True))
        if self._shuffle:
            order = np.argsort(counter_rng.bits(self._seed, _ROW_ORDER, epoch, np.arange(len(rows))), kind="stable")
            rows, visits = rows[order], visits[order]
        return rows, visits

    def _uses(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a source that an epoch holds, each as often as it does, and their visits."""
        before, after = self._visits(source, epoch), self._visits(source, epoch + 1)
        uses = after - before
        row = np.repeat(np.arange(self._counts[source]), uses)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(uses) - uses, uses)
        return self._begins[source] + row, before[row] + nth

    def _visits(self, source: int, epoch: int) -> np.ndarray:
        """int64 [R], floor(epoch * w + u) of each row of a source."""
        count, weight = self._counts[source], self._weights[source]
        whole, rest = divmod(epoch * weight.numerator, weight.denominator)
        if weight.denominator == 1:
            return np.full(count, whole)
        # (rest / q + (2 k + 1) / (2 R)), over a common denominator that an int64 holds for 10**12 rows.
        above = 2 * count * rest + weight.denominator * (2 * self._ranks[source] + 1)
        return whole + above // (2 * count * weight.denominator)
