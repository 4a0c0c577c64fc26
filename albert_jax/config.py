# SPDX-License-Identifier: Apache-2.0
"""`AlbertConfig`: the architecture and its task, under Hugging Face's field names; parameter and FLOP counts.

Shape letters used in every docstring of this project: B rows, S slots in a row, E embedding, H hidden, N heads, D head
size, F feed-forward, L layers, V vocabulary, M mask slots in a row, P examples packed in a row.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Self

from albert_jax.convert.hub import HUB_OPTIONS, locate
from albert_jax.errors import UserError, nearest

# Published sizes (Lan et al. 2019, table 1; xlarge has 16 heads in the released configuration, not H/64 = 32).
# All use the tanh approximation of gelu: Google's code computes nothing else, whatever a config file calls it.
_SIZES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "xxlarge": {"hidden_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 64, "intermediate_size": 16384},
}
ACTIVATIONS = ("gelu", "gelu_new", "relu")
# What blocks of different groups have in common beside nothing; see `AlbertConfig.with_sharing`.
SHARED_ACROSS_GROUPS = ("nothing", "attention", "ffn")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# No machine holds more; past it a config is damaged, and building its model would fill the memory with nothing.
_MOST_BLOCKS, _MOST_PARAMETERS = 4096, 2**40


def _task(default: Any) -> Any:
    """A field that says what is done with the model, not what its encoder is: it is no part of a training recipe."""
    return dataclasses.field(default=default, metadata={"task": True}, hash=False)


@dataclasses.dataclass(frozen=True)
class AlbertConfig:
    """An ALBERT model; the fields, their names and defaults are those of `transformers.AlbertConfig`.

    As there, the bare defaults are xxlarge; use `AlbertConfig.published("base")` for the others.

    Attributes, where they differ from transformers' or need a word:
      classifier_dropout_prob: of the heads; None means `hidden_dropout_prob`.
      shared_across_groups: ours: 'nothing', or 'attention' or 'ffn', which then have one set of weights for all groups.
        Hugging Face's format has no form for the latter two.
      num_labels, id2label, label2id: classes of a classifier. Where the names are not given they are LABEL_0, LABEL_1
        ...; where they are, they say how many there are.
      problem_type: loss of the sequence classifier, one of `PROBLEM_TYPES`; where None, `num_labels` and the labels'
        dtype decide.
      hub_fields: all that the config.json that this was read from holds; what is unknown here is written back.

    Raises:
      UserError: where a value is out of range or the values contradict each other.
    """

    vocab_size: int = 30000  # V, pieces of the vocabulary
    embedding_size: int = 128  # E, width of the embeddings
    hidden_size: int = 4096  # H, width of the layers; a multiple of num_attention_heads
    num_hidden_layers: int = 12  # L, how often a block is applied
    num_hidden_groups: int = 1  # groups of layers, each with weights of its own; 1 shares all
    num_attention_heads: int = 64  # N
    intermediate_size: int = 16384  # F, width of the feed-forward part
    inner_group_num: int = 1  # blocks in a layer, each with weights of its own
    hidden_act: str = "gelu_new"  # 'gelu', 'gelu_new' (its tanh approximation) or 'relu'
    hidden_dropout_prob: float = 0.0  # share of the outputs of each part that dropout leaves out
    attention_probs_dropout_prob: float = 0.0  # share of the attention weights that dropout leaves out
    max_position_embeddings: int = 512  # positions; rows may be shorter, not longer
    type_vocab_size: int = 2  # kinds of segments: A and B
    initializer_range: float = 0.02  # standard deviation of fresh weights
    layer_norm_eps: float = 1e-12  # added to the variance in LayerNorm
    classifier_dropout_prob: float | None = 0.1  # before a classifier; None means hidden_dropout_prob
    pad_token_id: int = 0  # for transformers: <pad>
    bos_token_id: int = 2  # for transformers: [CLS]
    eos_token_id: int = 3  # for transformers: [SEP]
    tie_word_embeddings: bool = True  # only True: the output table is the input table
    shared_across_groups: str = "nothing"  # 'nothing', 'attention' or 'ffn': what groups of layers share all the same
    num_labels: int = _task(2)
    id2label: Mapping[int, str] | None = _task(None)
    label2id: Mapping[str, int] | None = _task(None)
    problem_type: str | None = _task(None)
    output_attentions: bool = _task(False)
    output_hidden_states: bool = _task(False)
    return_dict: bool = _task(True)
    hub_fields: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False, metadata={"task": True}
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_field(field)
        self._check_sizes()
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {self.hidden_act!r}.")
        if not self.tie_word_embeddings:
            raise UserError(
                "tie_word_embeddings=False is not ALBERT: its output table is the input table; leave it at True."
            )
        if self.shared_across_groups not in SHARED_ACROSS_GROUPS:
            raise UserError(
                f"shared_across_groups must be one of {', '.join(SHARED_ACROSS_GROUPS)}, not "
                f"{self.shared_across_groups!r}."
            )
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UserError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {self.problem_type!r}.")
        self._settle_labels()

    def _check_field(self, field: dataclasses.Field) -> None:
        """Type and range of one number, flag or string."""
        value, kind = getattr(self, field.name), type(field.default)
        if kind not in (int, float, str, bool) or (value is None and field.name == "classifier_dropout_prob"):
            return
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise UserError(f"{field.name} must be of type {kind.__name__}, not {value!r}.")
        if kind is int and not field.name.endswith("token_id") and value < 1:
            raise UserError(f"{field.name} must be at least 1, not {value}.")
        if kind is float and not value >= 0:
            raise UserError(f"{field.name} must be at least 0, not {value}.")
        if field.name.endswith("dropout_prob") and not 0 <= value < 1:
            raise UserError(f"{field.name} must lie in [0, 1), not {value}.")

    def _check_sizes(self) -> None:
        """Sizes against each other, and against what can exist."""
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.num_hidden_groups > self.num_hidden_layers:
            raise UserError(
                f"num_hidden_groups {self.num_hidden_groups} must not exceed num_hidden_layers "
                f"{self.num_hidden_layers}."
            )
        if self.num_hidden_layers * self.inner_group_num > _MOST_BLOCKS:
            raise UserError(
                f"num_hidden_layers {self.num_hidden_layers} times inner_group_num {self.inner_group_num} is more than "
                f"{_MOST_BLOCKS} blocks; check the configuration."
            )
        if self.encoder_parameters() > _MOST_PARAMETERS:
            raise UserError(
                f"vocab_size {self.vocab_size}, hidden_size {self.hidden_size} and intermediate_size "
                f"{self.intermediate_size} make {self.encoder_parameters():,} parameters; check the configuration."
            )

    def _settle_labels(self) -> None:
        """Makes `num_labels`, `id2label` and `label2id` say the same."""
        given = self.id2label
        if given is None:
            names = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        else:
            try:
                names = {int(i): str(name) for i, name in given.items()}
            except (ValueError, TypeError, AttributeError) as e:
                raise UserError(f"id2label must map 0, 1, 2 ... to names, not be {given!r}.") from e
            if sorted(names) != list(range(len(names))) or not names:
                raise UserError(f"id2label must map 0, 1, 2 ... to names, not {sorted(names)}.")
            if self.num_labels not in (len(names), 2):  # 2 is what it is when it is not given
                raise UserError(
                    f"id2label names {len(names)} classes, but num_labels is {self.num_labels}; leave it away."
                )
        object.__setattr__(self, "num_labels", len(names))
        object.__setattr__(self, "id2label", names)
        inverse = {name: i for i, name in names.items()}
        if self.label2id is not None and given is not None and dict(self.label2id) != inverse:
            raise UserError(f"label2id {dict(self.label2id)} is not the inverse of id2label {names}; give one of them.")
        object.__setattr__(self, "label2id", inverse)

    # --- construction -------------------------------------------------------------------------------------------------

    @classmethod
    def published(cls, size: str, version: int = 2) -> Self:
        """The configuration of a released model.

        Args:
          size: 'base', 'large', 'xlarge' or 'xxlarge'.
          version: 2, or 1, which differs by dropout 0.1 in all but xxlarge.

        Raises:
          UserError: for another size or version.
        """
        if size not in _SIZES or version not in (1, 2):
            raise UserError(f"there is no ALBERT {size!r} v{version}: sizes are {', '.join(_SIZES)}, versions 1 and 2.")
        dropout = 0.1 if version == 1 and size != "xxlarge" else 0.0
        return cls(**_SIZES[size], hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)

    def with_sharing(self, strategy: str) -> Self:
        """The same network under one of the sharing strategies of the paper's table 4.

        Args:
          strategy: 'all' (ALBERT), 'none' (as BERT), 'attention' or 'ffn' (the other part is each layer's own; each
            takes its LayerNorm with it).

        Raises:
          UserError: for another strategy; layers in groups are `num_hidden_groups`.
        """
        if strategy not in ("all", "none", "attention", "ffn"):
            raise UserError(
                f"sharing {strategy!r} is not one of all, none, attention, ffn; for groups of layers set "
                "num_hidden_groups."
            )
        groups = 1 if strategy == "all" else self.num_hidden_layers
        shared = strategy if strategy in SHARED_ACROSS_GROUPS else "nothing"
        return dataclasses.replace(self, num_hidden_groups=groups, shared_across_groups=shared)

    def updated(self, **changes: Any) -> Self:
        """With other values, as by transformers' `from_pretrained(..., num_labels=3)`; a count replaces class names.

        Raises:
          UserError: naming an unknown field and its nearest match.
        """
        if ("num_labels" in changes and changes["num_labels"] != self.num_labels) or "id2label" in changes:
            names = changes.get("id2label")
            count = changes.get("num_labels", 2 if names is None else len(names))
            changes |= {"id2label": names, "label2id": changes.get("label2id"), "num_labels": count}
        return type(self).from_dict({f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a config from exactly our own fields.

        Raises:
          UserError: naming an unknown field and its nearest match.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"the model has no field {name!r}; {nearest(name, known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The architecture: the fields that weights and arithmetic depend on, as `from_dict` takes them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("task")}

    # --- Hugging Face's config.json -----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Reads a Hugging Face `config.json`.

        Args:
          path: the directory that holds it, or a repository of the hub, see `albert_jax.convert.hub.locate`.
          options: fields to change, and options of the hub.

        Raises:
          UserError: where the file is missing or unreadable, or describes another kind of model.
        """
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        file = locate(path, ("config.json",), **hub) / "config.json"
        if not file.is_file():
            raise UserError(f"{file} does not exist; give a directory that holds a Hugging Face config.json.")
        try:
            values = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as e:
            raise UserError(f"{file} is not valid JSON, or no object ({e}); copy or download it again.") from e
        try:
            return cls.from_hub_dict(values).updated(**options)
        except UserError as e:
            raise UserError(f"{file}: {e}") from e

    @classmethod
    def from_hub_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a config from what a Hugging Face config.json holds, and keeps what is unknown here.

        Raises:
          UserError: where it is another kind of model's, or asks for what is not supported.
        """
        if values.get("model_type", "albert") != "albert":
            raise UserError(f"it describes a model of type {values['model_type']!r}, not 'albert'; give an ALBERT's.")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"it asks for {values['position_embedding_type']!r} positions; give a model with 'absolute' ones."
            )
        known = {field.name for field in dataclasses.fields(cls)} - {"hub_fields", "num_labels", "label2id"}
        fields = {name: value for name, value in values.items() if name in known}
        if "id2label" not in values and "num_labels" in values:
            fields["num_labels"] = values["num_labels"]
        return cls(**fields, hub_fields=dict(values))

    def to_hub_dict(self, architecture: str, dtype: str) -> dict[str, Any]:
        """What config.json holds: a config that was read and not changed is written as it was.

        Args:
          architecture: name of transformers' class, such as 'AlbertForMaskedLM'.
          dtype: of the stored weights.

        Raises:
          UserError: where Hugging Face's format has no form for this model.
        """
        if self.shared_across_groups != "nothing":
            raise UserError(
                f"Hugging Face's format cannot share the {self.shared_across_groups} weights across groups; "
                "`unshared` (export.py --unshare) gives each layer a copy of its own, with the same outputs."
            )
        old, own, defaults = dict(self.hub_fields), self._hub_form(), type(self)()._hub_form()
        if own["id2label"] == old.get("id2label"):
            own["label2id"] = old.get("label2id", own["label2id"])  # names that occur twice have no inverse
        # A fresh config says all of its architecture. One that was read leaves out what its file left to the defaults.
        written = old.keys() if old else self.to_dict().keys()
        kept = {name: value for name, value in own.items() if name in written or value != defaults.get(name)}
        kept |= {"model_type": "albert", "architectures": [architecture]}
        return old | kept | {"torch_dtype" if "torch_dtype" in old else "dtype": dtype}

    def _hub_form(self) -> dict[str, Any]:
        """Our fields as config.json spells them."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["hub_fields"], own["shared_across_groups"]
        own["id2label"] = {str(i): name for i, name in (self.id2label or {}).items()}
        if "num_labels" not in self.hub_fields:  # where the names say it
            del own["num_labels"]
        return own

    def check_vocabulary(self, pieces: int, source: object) -> None:
        """Refuses a vocabulary whose pieces are not the rows of the embedding table, one for one.

        Args:
          pieces: how many there are.
          source: where they come from, for the message.

        Raises:
          UserError: where their number differs from `vocab_size`.
        """
        if pieces != self.vocab_size:
            raise UserError(
                f"the vocabulary of {source} has {pieces} pieces, but the model's embedding has {self.vocab_size} rows;"
                " give the vocabulary that it was trained with."
            )

    # --- arithmetic ---------------------------------------------------------------------------------------------------

    def group_of_layer(self, layer: int) -> int:
        """Which group's weights layer `layer` uses: groups are contiguous, as in the original and in transformers."""
        return int(layer / (self.num_hidden_layers / self.num_hidden_groups))

    def encoder_parameters(self) -> int:
        """Parameters of embeddings, encoder and pooler (what transformers calls `AlbertModel`)."""
        e, h, f = self.embedding_size, self.hidden_size, self.intermediate_size
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size) * e + 2 * e
        attention = 4 * (h * h + h) + 2 * h
        feed_forward = (h * f + f) + (f * h + h) + 2 * h
        own = self.num_hidden_groups
        attentions, feed_forwards = (1 if self.shared_across_groups == part else own for part in ("attention", "ffn"))
        blocks = self.inner_group_num * (attentions * attention + feed_forwards * feed_forward)
        return embeddings + (e * h + h) + blocks + (h * h + h)

    def pretraining_parameters(self) -> int:
        """Parameters of the encoder with both pretraining heads; the output table is tied and counted once."""
        e, h = self.embedding_size, self.hidden_size
        return self.encoder_parameters() + (h * e + e + 2 * e + self.vocab_size) + (2 * h + 2)

    def train_flops_per_row(self, slots: int, mask_slots: int, examples: int = 1) -> float:
        """Matmul FLOPs to train on one row of `slots` positions: forward and backward, so three times the forward pass.

        Two FLOPs a multiply-add; all slots count, padded or not; recomputation does not (the usual definition of MFU).

        Args:
          slots: S, positions in the row.
          mask_slots: M, positions that reach the MLM head.
          examples: P, positions that reach the pooler and the sentence-order head.
        """
        e, h, f = self.embedding_size, self.hidden_size, self.intermediate_size
        layer = 8 * h * h + 4 * h * f + 4 * slots * h
        depth = self.num_hidden_layers * self.inner_group_num
        heads = mask_slots * (2 * h * e + 2 * e * self.vocab_size) + examples * (2 * h * h + 4 * h)
        return 3.0 * (slots * (2 * e * h + depth * layer) + heads)
