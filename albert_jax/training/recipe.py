# SPDX-License-Identifier: Apache-2.0
"""Every field of a pretraining configuration, with its meaning and default; `configs/*.py` fill it in."""

import decimal

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError, nearest

# Fields that a resumed run may change: they alter neither the stream of examples nor, but for the last bits on another
# mesh, the arithmetic of a step. Every other field belongs to the run: resuming with another value is refused
# (albert_jax/training/compatibility.py).
RESUMABLE_FIELDS = (
    "data.path",  # the data set may have moved; its fingerprint may not have changed
    "data.vocab",  # and so may the vocabulary; its digest may not have changed
    "data.validation_path",
    "data.prefetch",
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep",
    "checkpoint.keep_period",
    "eval.every",
    "eval.rows",
    "log.every",
    "batch.rows_per_device",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.rules",
    "mesh.shard_optimizer",
    "remat",
    "attention",
    "watchdog.seconds",
    "watchdog.exit",
    "profile.at",
    "profile.steps",
    "guard.norm_factor",  # what a run that has met its match needs
    "guard.patience",
    "init_from",  # only read when the run starts, and so the next two
    "init_positions",
    "init_vocabulary",
)


def pretraining(model: AlbertConfig) -> ml_collections.ConfigDict:
    """The defaults that all recipes start from.

    Args:
      model: the architecture; its fields become `config.model.*`.

    Returns:
      A locked `ConfigDict`: a field that does not exist here cannot be set.
    """
    c = ml_collections.ConfigDict()
    c.model = model.to_dict()
    c.dtype = "float32"  # compute dtype, 'float32' or 'bfloat16'; parameters, gradients and losses are always float32
    c.remat = "dots_saveable"  # what a layer keeps for its backward pass: a name of jax.checkpoint_policies
    c.attention = "auto"  # 'xla', 'cudnn' on NVIDIA GPUs, or 'auto': cudnn where device and config allow it, else xla
    c.seed = 0  # keys everything random: initial weights, order, splits, swaps, masks, dropout
    c.steps = 125_000  # optimizer steps of the whole run; the learning rate reaches zero here
    c.init_from = ""  # start from these weights with a fresh optimizer: a workdir, a Hugging Face directory, Google's
    c.init_positions = ""  # for more positions than init_from has: 'repeat' them, or 'interpolate' between them
    c.init_vocabulary = ""  # 'by_piece': pieces that are in init_from's vocabulary too keep their embeddings
    c.branch_from = ""  # go on from another run's whole state with other settings: WORKDIR, or WORKDIR@STEP

    c.data = ml_collections.ConfigDict()
    c.data.path = ""  # a data set made by `python -m pretrain_data build`; with recipe 'baked' Google's TFRecords
    c.data.validation_path = ""  # with recipe 'baked': the TFRecords that are evaluated
    c.data.vocab = ""  # with recipe 'baked': the spiece.model that the TFRecords were made with
    c.data.sequence_length = 512  # S, slots in a row, special tokens included
    c.data.phases = ""  # shorter rows first, SLOTS:UNTIL_STEP: '128:112500' before the last steps of sequence_length
    c.data.examples_per_row = 8  # P, most examples packed into a row; 1 switches packing off
    c.data.short_fraction = 0.1  # share of examples that aim at a random shorter length (paper, section 4.1)
    c.data.recipe = "clean"  # 'clean': what the paper means; 'google': its pipeline quirk for quirk; 'baked': its files
    c.data.sentence_order = "sop"  # 'sop' (paper), 'sop_parity' (Google's), 'nsp' or 'none'; see PretrainingStream
    c.data.weights = ""  # 'wiki=1,books=2.5': how often an epoch has a source; the others as the data set says
    c.data.prefetch = 4  # batches prepared ahead, each by a thread of its own

    c.masking = ml_collections.ConfigDict()
    c.masking.rate = 0.15  # share of an example's tokens that are predicted
    c.masking.count = 0  # most tokens that are predicted in an example (Google's max_predictions_per_seq); 0: no limit
    c.masking.slots = 80  # M, mask slots in a row, at least rate * S; more than that let short examples share it
    c.masking.max_ngram = 3  # longest masked span in words; p(n) is proportional to 1/n (paper, section 3.1)
    c.masking.whole_word = True  # False takes each piece as a word: for text without spaces between words
    c.masking.corrupt_by = "token"  # [MASK] 80 %, itself 10 %, a random piece 10 %: drawn for each 'token' or 'span'

    c.batch = ml_collections.ConfigDict()
    c.batch.size = 4096  # what one optimizer step consumes, in `unit`
    c.batch.unit = "examples"  # 'examples' (packed rows hold several) or 'rows'
    c.batch.rows_per_device = 0  # rows that a device takes at a time; 0: as many as fit its memory
    c.batch.warmup_steps = 0  # steps in which a batch grows evenly from an eighth of its rows to all; 0: full at once

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = "lamb"  # 'lamb' (You et al. 2019) or 'adamw'
    c.optimizer.learning_rate = 0.00176  # peak
    c.optimizer.warmup_steps = 3125  # linear, from zero
    c.optimizer.decay_power = 1.0  # polynomial decay from the peak to zero at `steps`
    c.optimizer.b1 = 0.9  # decay of the mean of the gradients
    c.optimizer.b2 = 0.999  # decay of the mean of their squares
    c.optimizer.eps = 1e-6  # added to the root of that mean
    c.optimizer.weight_decay = 0.01  # not on biases and LayerNorm, which are not adapted by LAMB either
    c.optimizer.clip_norm = 1.0  # global norm of the whole batch's gradient

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices over which rows are split and parameters are whole; -1 takes all that are left
    c.mesh.fsdp = 1  # devices over which rows are split and parameters and moments too
    c.mesh.tensor = 1  # devices over which heads and feed-forward units are split
    # Which dimension goes over which axis, LOGICAL:AXIS; the first rule that divides an array is taken.
    c.mesh.rules = "vocab:fsdp embedding:fsdp hidden:fsdp heads:tensor ffn:tensor"
    c.mesh.shard_optimizer = False  # split the moments over `data` as well (ZeRO stage 1)

    c.guard = ml_collections.ConfigDict()
    c.guard.norm_factor = 10.0  # an update is left out where its gradient norm is this many times the usual; 0: never
    c.guard.patience = 5  # updates left out in a row before the run goes back, to leave out their rows; 0: never

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = 5000  # steps between saves; the last step and an interruption save too
    c.checkpoint.minutes = 15.0  # at most between saves, where steps are long; 0: by steps alone
    c.checkpoint.keep = 5  # newest checkpoints kept
    c.checkpoint.keep_period = 0  # multiples of so many steps are kept for good, unless the guard has just left one out

    c.eval = ml_collections.ConfigDict()
    c.eval.every = 5000  # steps between evaluations; the last step is evaluated too; 0: none, not even that one
    c.eval.rows = 0  # rows of validation that are evaluated, evenly spaced, each time the same; 0 takes all

    c.watchdog = ml_collections.ConfigDict()
    c.watchdog.seconds = 1800.0  # without a step, after which every thread's stack is printed; 0: never
    c.watchdog.exit = False  # then also end, with status 76, for a launcher to start the run again

    c.profile = ml_collections.ConfigDict()
    c.profile.at = 0  # first step of a profile, which goes into the workdir; 0: none; SIGUSR1 asks for one at any time
    c.profile.steps = 5  # steps of a profile

    c.log = ml_collections.ConfigDict()
    # Steps between records of the log, each a mean over the steps since the one before; where that takes long, the
    # progress since the last line is shown and recorded every minute as well.
    c.log.every = 100
    return c.lock()


def read_overrides(arguments: list[str]) -> list[str]:
    """Command-line arguments, with `--config.steps=1e6` as the flag parser takes it: 1000000.

    Raises:
      UserError: where one names no field, giving the nearest, or gives a field of whole numbers another value.
    """
    fields: dict[str, object] = {}
    for name, value in pretraining(AlbertConfig()).to_dict().items():
        fields |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    read = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-").removeprefix("config.")
        if flag.lstrip("-").startswith("config."):
            if name not in fields:
                raise UserError(f"the config has no field {'config.' + name!r}; {nearest(name, [*fields], 'config.')}.")
            if equals and type(fields[name]) is int:
                argument = f"{flag}={_whole(name, value)}"
        read.append(argument)
    return read


def _whole(name: str, text: str) -> int:
    try:
        number = decimal.Decimal(text)
        if number.adjusted() < 20 and number == int(number):
            return int(number)
    except (decimal.InvalidOperation, ValueError, OverflowError):
        pass
    raise UserError(f"--config.{name}={text} is not a whole number; give one like 1000, 1_000 or 1e3.")
