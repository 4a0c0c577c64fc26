# SPDX-License-Identifier: Apache-2.0
"""`AlbertConfig`: the architecture, under Hugging Face's field names, with exact parameter and FLOP counts.

Shape letters used in every docstring of this project: B rows, S slots in a row, E embedding, H hidden, N heads, D head
size, F feed-forward, L layers, V vocabulary, M mask slots in a row, P examples packed in a row.
"""

import dataclasses
import difflib
import json
import pathlib
from typing import Any, Self

from albert_jax.errors import UserError

# Published sizes (Lan et al. 2019, table 1; xlarge has 16 heads in the released configuration, not H/64 = 32).
# All use the tanh approximation of gelu: Google's code computes nothing else, whatever a config file calls it.
_SIZES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "xxlarge": {"hidden_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 64, "intermediate_size": 16384},
}
ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclasses.dataclass(frozen=True)
class AlbertConfig:
    """Architecture of an ALBERT model; the fields, their names and defaults are those of `transformers.AlbertConfig`.

    As there, the bare defaults are xxlarge; use `AlbertConfig.published("base")` for the others.

    Raises:
      UserError: where a value is out of range or the values contradict each other.
    """

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout_prob: float = 0.1
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 3
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind: Any = type(field.default)
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (
                kind is bool
            ):
                raise UserError(f"{field.name} must be of type {kind.__name__}, not {value!r}.")
            if field.type is int and not field.name.endswith("token_id") and value < 1:
                raise UserError(f"{field.name} must be at least 1, not {value}.")
            if field.name.endswith("dropout_prob") and not 0 <= value < 1:
                raise UserError(f"{field.name} must lie in [0, 1), not {value}.")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if self.num_hidden_groups > self.num_hidden_layers:
            raise UserError(
                f"num_hidden_groups {self.num_hidden_groups} must not exceed num_hidden_layers "
                f"{self.num_hidden_layers}."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {self.hidden_act!r}.")
        if not self.tie_word_embeddings:
            raise UserError("tie_word_embeddings=False is not ALBERT: its output table is the input table.")

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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds a config from exactly our own fields.

        Raises:
          UserError: naming an unknown field and its nearest match.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise UserError(f"the model has no field {name!r}; the nearest is {near!r}.")
        return cls(**values)

    @classmethod
    def from_pretrained(cls, directory: str | pathlib.Path) -> Self:
        """Reads a Hugging Face `config.json`; fields that say nothing about the architecture are passed over.

        Raises:
          UserError: where the file is missing or unreadable, or describes another kind of model.
        """
        path = pathlib.Path(directory) / "config.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a directory that holds a Hugging Face config.json.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(f"{path} is not valid JSON ({e}).") from e
        if values.get("model_type", "albert") != "albert":
            raise UserError(f"{path} describes a model of type {values['model_type']!r}, not 'albert'.")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"{path} asks for {values['position_embedding_type']!r} positions; only 'absolute' is supported."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        return cls.from_dict({name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Our fields and values, as `from_dict` takes them."""
        return dataclasses.asdict(self)

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
        blocks = self.num_hidden_groups * self.inner_group_num * (attention + feed_forward)
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
