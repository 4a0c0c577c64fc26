# SPDX-License-Identifier: Apache-2.0
"""Embedding tables of trained weights for another number of positions or another vocabulary, as a config asks."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from albert_jax.errors import UserError

_log = logging.getLogger(__name__)


def with_positions(table: np.ndarray, positions: int, how: str, source: str) -> np.ndarray:
    """A table of positions for longer rows.

    Args:
      table: float32 [old positions, E].
      positions: that the model has.
      how: 'repeat' begins with the first again where the table ends; 'interpolate' stretches it, so that its first and
        last positions are the first and last again; empty where there must be as many as before.
      source: of the table, for messages.

    Returns:
      float32 [positions, E].

    Raises:
      UserError: where there are fewer positions than before, or more and nothing says how.
    """
    old = len(table)
    if positions == old:
        if how:
            _log.info("init_positions %r changes nothing: %s has the model's %s positions.", how, source, old)
        return table
    if positions < old:
        raise UserError(
            f"{source} has {old} positions, and the model only {positions}; pass "
            f"--config.model.max_position_embeddings={old}: rows may be shorter all the same."
        )
    if not how:
        raise UserError(
            f"{source} has {old} positions, and the model {positions}; pass --config.init_positions=repeat or "
            "--config.init_positions=interpolate to make the others of these."
        )
    _log.info("positions: %s are made of the %s of %s: %s.", positions, old, source, how)
    if how == "repeat":
        return table[np.arange(positions) % old]
    places = np.linspace(0, old - 1, positions)
    columns = [np.interp(places, np.arange(old), column) for column in table.T]
    return np.stack(columns, axis=1).astype(np.float32)


def with_vocabulary(
    tables: Mapping[str, np.ndarray], old: Sequence[str] | None, new: Sequence[str], how: str, source: str
) -> dict[str, np.ndarray]:
    """Tables with a row for each piece of the data's vocabulary.

    Args:
      tables: of the embeddings [old V or more, E], and of the MLM head's bias [old V or more], by name.
      old: the pieces that the tables were trained with; None where nobody knows. Rows beyond them are padding.
      new: the data's.
      how: 'by_piece' takes the row that a piece had, and the mean of all for a piece that is new; empty where the
        vocabulary must be the same.
      source: of the tables, for messages.

    Raises:
      UserError: where the vocabulary is another and nothing says how to go on, or is not known and would have to be.
    """
    rows = min(map(len, tables.values()))
    if old is None:
        if how or rows != len(new):
            raise UserError(
                f"{source} has {rows} rows of embeddings and the data set {len(new)} pieces, and no vocabulary beside "
                "the weights says which rows are which; put its spiece.model or tokenizer.json there."
            )
        _log.warning("%s has no vocabulary beside it: whether it is the data set's cannot be checked.", source)
        return dict(tables)
    if rows < len(old):
        raise UserError(f"{source} has {rows} rows of embeddings for {len(old)} pieces; give it its own vocabulary.")
    if rows > len(old):
        _log.warning(
            "%s rows of embeddings beyond the %s pieces of %s are left out.", rows - len(old), len(old), source
        )
    tables = {name: table[: len(old)] for name, table in tables.items()}
    places = {piece: row for row, piece in enumerate(old)}
    kept = np.array([places.get(piece, -1) for piece in new])
    if how:
        found = int(np.sum(kept >= 0))
        _log.info(
            "vocabulary: %s of its %s pieces have the rows that they had in %s, %s are new and begin with the mean of "
            "its rows; %s of its %s pieces are left out.",
            *(found, len(new), source, len(new) - found, len(old) - found, len(old)),
        )
    elif tuple(old) != tuple(new):
        raise UserError(
            f"{source} was trained with another vocabulary than the data set's; build the data set with that one, or "
            f"pass --config.init_vocabulary=by_piece to take over the rows of the {int(np.sum(kept >= 0))} pieces of "
            f"{len(new)} that both have."
        )
    return {name: np.concatenate([table, table.mean(0, keepdims=True)])[kept] for name, table in tables.items()}
