# SPDX-License-Identifier: Apache-2.0
"""Opens what a config names as its data: the streams of a data set, or Google's records, and what comes with them."""

import dataclasses
import itertools
import logging
import math
import pathlib
from typing import Any

import ml_collections
import numpy as np

from albert_jax.data.baked import BakedStream
from albert_jax.data.masking import MaskRule, mask_budget
from albert_jax.data.mixture import Mixture, source_weights
from albert_jax.data.parity import GoogleStream, check_google, google_rule
from albert_jax.data.plan import PlanSettings, cached_plan
from albert_jax.data.staging import staged
from albert_jax.data.store import TextStore, read_manifest
from albert_jax.data.stream import BORROWING, PretrainingStream, Stream
from albert_jax.data.vocabulary import Vocabulary
from albert_jax.errors import UserError
from albert_jax.remote import local_path

_log = logging.getLogger(__name__)
# Shares of tokens: text with spaces has 0.4 and more of the first, and next to none of the second.
LEAST_WORD_STARTS, MOST_UNMASKABLE = 1 / 6, 0.05
_SAMPLED_RECORDS = 200
_FIRST = 8  # a batch that grows begins with this part of its rows: 1 of 8
EVALUATION_SEED = 0  # no part of the config: runs with other seeds are compared on the same masks


@dataclasses.dataclass(frozen=True)
class Data:
    """What a config names as its data.

    Attributes:
      train: the stream that is trained on.
      evaluated: the one of validation; None where `eval.every` is 0.
      vocabulary: of both.
      vocabulary_file: its spiece.model, on this machine.
      manifest: what is known of the data, for the run's identity; ``vocabulary`` in it says how text was cleaned.
      unigrams: int64 [V], token counts of the training text.
      mixture: of the sources, where there are several.
    """

    train: Stream
    evaluated: Stream | None
    vocabulary: Vocabulary
    vocabulary_file: pathlib.Path
    manifest: dict[str, Any]
    unigrams: np.ndarray
    mixture: Mixture | None

    @property
    def validation(self) -> Stream:
        """The stream that is evaluated.

        Raises:
          UserError: where there is none.
        """
        if self.evaluated is None:
            raise UserError("nothing is opened for validation where eval.every is 0; pass another --config.eval.every.")
        return self.evaluated


def open_data(config: ml_collections.ConfigDict) -> Data:
    """Opens the data and makes or reads its packing plans.

    Raises:
      UserError: where it does not fit the config.
    """
    data = _open_records(config) if config.data.recipe == "baked" else _open_data_set(config)
    for split, stream in (("train", data.train), ("validation", data.evaluated)):
        if stream is not None:
            _log.info("%s: %s.", split, stream.describe())
    return data


def vocabulary_file(config: ml_collections.ConfigDict) -> pathlib.Path:
    """The spiece.model of the data that a config names, on this machine."""
    if config.data.recipe == "baked":
        return pathlib.Path(config.data.vocab)
    return staged(config.data.path) / "spiece.model"


def _vocabulary(config: ml_collections.ConfigDict, file: pathlib.Path) -> Vocabulary:
    vocabulary = Vocabulary.load(file)
    if vocabulary.size != config.model.vocab_size:
        raise UserError(
            f"{file} is a vocabulary of {vocabulary.size} pieces and the model has one of {config.model.vocab_size}; "
            f"pass --config.model.vocab_size={vocabulary.size}."
        )
    return vocabulary


# --- a data set -------------------------------------------------------------------------------------------------------


def _open_data_set(config: ml_collections.ConfigDict) -> Data:
    for name in ("vocab", "validation_path"):
        if config.data[name]:
            raise UserError(
                f"data.{name} {config.data[name]!r} is for data.recipe 'baked'; leave it away, a data set has one."
            )
    path = staged(config.data.path)
    vocabulary = _vocabulary(config, path / "spiece.model")
    manifest, splits = read_manifest(path), ("train", "validation") if config.eval.every else ("train",)
    if missing := [split for split in splits if split not in manifest["splits"]]:
        raise UserError(
            f"{path} has no split {missing[0]!r}; build it with one, or train without evaluation by "
            "--config.eval.every=0."
        )
    train, *validation = (_open_stream(config, TextStore(path, split), vocabulary) for split in splits)
    _warn_of_long_words(config, vocabulary, train)
    _warn_of_few_orders(config, [train, *validation])
    mixture = train.mixture if isinstance(train, PretrainingStream) and len(train.store.sources) > 1 else None
    return Data(
        train, next(iter(validation), None), vocabulary, path / "spiece.model", manifest, train.unigrams, mixture
    )


def plan_settings(config: ml_collections.ConfigDict) -> PlanSettings:
    """What of a config decides how its data are planned."""
    return PlanSettings(
        slots=config.data.sequence_length,
        examples=config.data.examples_per_row,
        mask_slots=config.masking.slots,
        mask_rate=config.masking.rate,
        short_fraction=config.data.short_fraction,
        mask_count=config.masking.count,
        pair_singles=config.data.sentence_order in BORROWING,
    )


def _open_stream(config: ml_collections.ConfigDict, store: TextStore, vocabulary: Vocabulary) -> Stream:
    """The stream of a split: shuffled and weighted for training, fixed and each row once for validation."""
    training = store.split == "train"
    seed = config.seed if training else EVALUATION_SEED
    weights = source_weights(config.data.weights, store.weights) if training else None
    settings = plan_settings(config)
    masking = {
        "rate": config.masking.rate,
        "count": config.masking.count,
        "longest_ngram": config.masking.max_ngram,
        "whole_word": config.masking.whole_word,
    }
    if config.data.recipe == "google":
        check_google(config.data.sentence_order, config.masking.corrupt_by, weights)
        return GoogleStream(
            store,
            settings,
            google_rule(vocabulary, **masking),
            seed=seed,
            next_sentence=config.data.sentence_order == "nsp",
            shuffle=training,
        )
    if config.data.recipe != "clean":
        raise UserError(f"data.recipe must be 'clean', 'google' or 'baked', not {config.data.recipe!r}.")
    return PretrainingStream(
        store,
        cached_plan(store, vocabulary.starts_word, settings),
        settings,
        MaskRule.paper(vocabulary, **masking, corrupt_by=config.masking.corrupt_by),
        seed=seed,
        sentence_order=config.data.sentence_order,
        weights=weights,
        shuffle=training,
    )


def _warn_of_long_words(config: ml_collections.ConfigDict, vocabulary: Vocabulary, stream: Stream) -> None:
    """Says so where words are so long that masking whole ones is senseless, as in text without spaces."""
    if not config.masking.whole_word or not isinstance(stream, PretrainingStream):
        return
    starts = stream.unigrams[vocabulary.starts_word].sum() / max(1, stream.unigrams.sum())
    never = _unmaskable(config, vocabulary, stream.store)
    if starts < LEAST_WORD_STARTS or never > MOST_UNMASKABLE:
        _log.warning(
            "%.1f %% of the tokens begin a word, and %.0f %% stand in words longer than the mask budget of a row of %d "
            "slots, which are never masked, as in text without spaces; pass --config.masking.whole_word=False to mask "
            "n-grams of pieces.",
            *(100 * starts, 100 * never, config.data.sequence_length),
        )


def _unmaskable(config: ml_collections.ConfigDict, vocabulary: Vocabulary, store: TextStore) -> float:
    """Share of tokens in words longer than an example's mask budget, at the beginnings of records all over a split."""
    records = np.unique(np.linspace(0, len(store.sentences_per_record) - 1, _SAMPLED_RECORDS).astype(np.int64))
    tokens, begins = store.read(records)
    long = total = 0
    for begin, end in itertools.pairwise(begins):
        text = tokens[begin : min(end, begin + config.data.sequence_length - 3)]
        words = np.flatnonzero(np.append(True, vocabulary.starts_word[text[1:]]))
        lengths = np.diff(np.append(words, len(text)))
        budget = mask_budget(np.array(len(text) + 3), config.masking.rate, config.masking.count)
        long, total = long + int(lengths[lengths > budget].sum()), total + len(text)
    return long / max(1, total)


def _warn_of_few_orders(config: ml_collections.ConfigDict, streams: list[Stream]) -> None:
    """Says so where most examples have no sentence order, and why."""
    plans = [(stream.plan, stream.store) for stream in streams if isinstance(stream, PretrainingStream)]
    if config.data.sentence_order != "sop" or not plans:
        return
    (plan, store), rest = plans[0], plans[1:]
    single = int(np.count_nonzero(plan.example_sizes == 1))
    if 2 * single <= len(plan.example_sizes):
        return
    short = min(single, int(np.count_nonzero(np.diff(store.document_sentences) == 1)))
    pairs = [int(np.count_nonzero(other.example_sizes > 1)) for other, _ in rest]
    _log.warning(
        "%.1f %% of the %s training examples have no sentence order%s: %s are documents of one sentence, %s are "
        "sentences, or parts of one, too long to share %d slots with another; %s, or train masked words alone by "
        "--config.data.sentence_order=none.",
        *(100 * single / len(plan.example_sizes), f"{len(plan.example_sizes):,}"),
        f" (in validation {pairs[0]:,} have one)" if pairs else "",
        *(f"{short:,}", f"{single - short:,}", config.data.sequence_length),
        "build with longer documents (--documents file where a file is one text)"
        if 2 * short > single
        else "raise --config.data.sequence_length",
    )


# --- Google's records ------------------------------------------------------------------------------------------------


def _open_records(config: ml_collections.ConfigDict) -> Data:
    """Google's TFRecords: their lengths, pairs and masks are baked, so the config must agree with them."""
    c = config.data
    splits = {"train": (c.path, config.seed), "validation": (c.validation_path, EVALUATION_SEED)}
    needed = {"path": "TFRecord files", "validation_path": "held-out files", "vocab": "spiece.model"}
    if not config.eval.every:
        del splits["validation"], needed["validation_path"]
    for name, what in needed.items():
        if not c[name]:
            raise UserError(f"data.recipe 'baked' needs {what}; pass --config.data.{name}=...")
        local_path(c[name])
    file = pathlib.Path(c.vocab)
    vocabulary = _vocabulary(config, file)
    streams = {
        split: BakedStream(path, vocab_size=vocabulary.size, seed=seed) for split, (path, seed) in splits.items()
    }
    for split, stream in streams.items():
        path = splits[split][0]
        wanted = {
            "data.sequence_length": (c.sequence_length, stream.slots),
            "masking.slots": (config.masking.slots, stream.mask_slots),
            "data.examples_per_row": (c.examples_per_row, 1),
        }
        for name, (asked, found) in wanted.items():
            if asked != found:
                raise UserError(
                    f"{name} is {asked}, but the records of {path} have {found}; pass --config.{name}={found}."
                )
    manifest = {
        "vocabulary": {
            "sha256": vocabulary.sha256,
            "size": vocabulary.size,
            "do_lower_case": True,  # what Google's code does; the records do not say
            "remove_space": True,
            "keep_accents": False,
            "cleaning": "google",
        },
        "records": {split: stream.describe() for split, stream in streams.items()},
    }
    train = streams["train"]
    return Data(train, streams.get("validation"), vocabulary, file, manifest, train.unigrams, None)


def rows_per_step(config: ml_collections.ConfigDict, stream: Stream) -> int:
    """How many rows one optimizer step consumes.

    A batch that is given in examples is turned into rows by the plan's mean, rounded to a power of two or a small
    multiple of one (by less than 2 % from 32 rows on), whatever the devices, so that the same run goes on elsewhere.

    Raises:
      UserError: where the corpus is smaller than the batch.
    """
    size, unit = config.batch.size, config.batch.unit
    rows = size
    if unit == "examples":
        exact = max(1.0, size / stream.examples_per_row)
        grain = 2 ** max(0, int(math.log2(exact)) - 5)
        rows = max(1, round(exact / grain)) * grain
        _log.info("a batch of %s examples is %s rows.", f"{size:,}", f"{rows:,}")
    if rows > stream.rows:
        raise UserError(
            f"the training split has {stream.rows} rows of {config.data.sequence_length} slots, fewer than the "
            f"batch's {rows}; lower batch.size or build the data set from more text."
        )
    return rows


def rows_of_step(config: ml_collections.ConfigDict, rows: int, step: int) -> int:
    """How many of a full batch's `rows` the step after `step` consumes: fewer while the batch grows."""
    warmup = config.batch.warmup_steps
    return rows if step >= warmup else max(1, rows * (warmup + (_FIRST - 1) * step) // (_FIRST * warmup))
