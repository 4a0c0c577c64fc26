# SPDX-License-Identifier: Apache-2.0
"""The ALBERT family as transformers 4's Flax users know it: FlaxAlbertModel and its heads, with parameters inside.

The classes hold a network of `albert_jax.model.modules` and its parameters, a nested dict in the layout of transformers
4's Flax classes. Calls are compiled, so they are as quick outside `jax.jit` as inside. docs/from_transformers_flax.md
lists what differs from transformers.
"""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from albert_jax.config import AlbertConfig
from albert_jax.convert import huggingface
from albert_jax.convert.hub import HUB_OPTIONS, MODEL_FILES, locate
from albert_jax.errors import UserError
from albert_jax.model import modules
from albert_jax.model.dropout import row_keys
from albert_jax.model.labels import as_array, check_classes, check_classification
from albert_jax.model.parameters import Parameters, parameter_shapes, parameters, with_parameters

Array = jax.Array | np.ndarray
_log = logging.getLogger(__name__)
_HEADS = ("predictions/", "sop_classifier/", "classifier/", "qa_outputs/", "pooler/", "albert/pooler/")
_NETWORK_OPTIONS = ("add_pooling_layer", "attention", "input_shape", "remat")  # no fields of the configuration


class FlaxAlbertPreTrainedModel:
    """What all classes share.

    Args:
      config: ours, or transformers' `AlbertConfig`.
      input_shape: taken for compatibility; no parameter depends on it.
      seed: of the initial parameters.
      dtype: compute dtype; the initial parameters are float32 whatever it is.
      _do_init: False leaves the model without parameters: `init_weights` makes them and each call is given them.
      options: of the network: `remat` and `attention`, and `add_pooling_layer` for `FlaxAlbertModel`; see
        `albert_jax.model.modules.FlaxAlbertModule`.
    """

    config_class = AlbertConfig
    base_model_prefix = "albert"
    main_input_name = "input_ids"
    framework = "flax"
    module_class: ClassVar[Any] = None
    # Each argument's axes, and how many classes it tells apart: a number, a field of the config, or an axis.
    _labels: ClassVar[dict[str, tuple[str, int | str | None]]] = {}
    _axes: ClassVar[tuple[str, ...]] = ("B", "S")

    def __init__(
        self,
        config: AlbertConfig,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: jnp.dtype = jnp.float32,
        _do_init: bool = True,
        **options: Any,
    ):
        self.config = config if isinstance(config, AlbertConfig) else AlbertConfig.from_hub_dict(config.to_dict())
        self.dtype, self.input_shape, self.key = dtype, input_shape, jax.random.key(seed)
        self._options = options
        self.module = nnx.eval_shape(lambda: self._network(self.key))
        self._forward = jax.jit(self._apply, static_argnames=("output_attentions", "output_hidden_states"))
        self._is_initialized = _do_init
        self._params: Parameters = {}
        if _do_init:
            self.params = self.init_weights(self.key, input_shape)

    def _network(self, key: jax.Array) -> nnx.Module:
        return type(self).module_class(self.config, dtype=self.dtype, rngs=nnx.Rngs(params=key), **self._options)

    # --- parameters ---------------------------------------------------------------------------------------------------

    @property
    def params(self) -> Parameters:
        """The parameters, a nested dict.

        Raises:
          UserError: with `_do_init=False`; on setting also where one is missing, unexpected or of another shape.
        """
        self._check_initialized()
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        self._check_initialized()
        with_parameters(self.module, params)
        self._params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(traverse_util.flatten_dict(params)))

    def _check_initialized(self) -> None:
        if not self._is_initialized:
            raise UserError(
                f"{type(self).__name__} was made with _do_init=False and holds no params; make them with init_weights, "
                "keep them outside and pass params= to each call."
            )

    @property
    def params_shape_tree(self) -> Parameters:
        """A `jax.ShapeDtypeStruct` in the place of each parameter."""
        shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in self._shapes().items()}
        return traverse_util.unflatten_dict(shapes, sep="/")

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """Paths of all parameters."""
        return {tuple(path.split("/")) for path in self._shapes()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.module)

    def init_weights(
        self, rng: jax.Array, input_shape: tuple[int, ...] = (1, 1), params: Mapping[str, Any] | None = None
    ) -> Parameters:
        """Fresh parameters.

        Args:
          rng: a key.
          input_shape: taken for compatibility; no parameter depends on it.
          params: parameters to keep; only what they lack is made.

        Returns:
          A nested dict of float32 arrays, and of what was given.
        """
        given = traverse_util.flatten_dict(params or {})

        def lacking(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
            flat = traverse_util.flatten_dict(parameters(self._network(key)))
            return {path: value for path, value in flat.items() if path not in given}

        return traverse_util.unflatten_dict(jax.jit(lacking)(rng) | given)

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Parameters:
        """A copy of `params` in bfloat16, where `mask`, a tree of bools, is True or None."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Parameters:
        """As `to_bf16`, in float16."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Parameters:
        """As `to_bf16`, in float32."""
        return _cast(params, jnp.float32, mask)

    # --- the call -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **labels: Array | None,
    ) -> Any:
        """Runs the model.

        Args:
          input_ids: int [B, S]; [B, C, S] for multiple choice, and so for the next three.
          attention_mask: 1 at real slots, 0 at padding; all real where None.
          token_type_ids: 0 in sentence A and 1 in B; all 0 where None.
          position_ids: 0, 1, 2 ... where None.
          params: used in the place of the model's own.
          dropout_rng: a key; needed with `train` and used with nothing else.
          train: whether dropout is on.
          output_attentions, output_hidden_states, return_dict: the config's where None; without `return_dict`, a tuple
            of what is not None is returned.
          labels: `labels`, `sentence_order_label`, `start_positions`, `end_positions`, as the class has them; see its
            network for their shapes. With them `loss` is computed.

        Returns:
          One of the dataclasses of `albert_jax.model.outputs`, or a tuple.

        Raises:
          UserError: where a row is longer than the position table, shapes differ, an id is outside its table (arrays of
            JAX are not looked into), labels have another shape or dtype or are no classes (within `jax.jit` their
            values are not known), `train` comes without a key, or the class has no label of that name.
        """
        if train and dropout_rng is None:
            raise UserError("train=True needs dropout_rng=KEY, the key that dropout is drawn from.")
        inputs = self._checked(input_ids, attention_mask, token_type_ids, position_ids)
        flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output = self._forward(
            self.params if params is None else params,
            inputs,
            self._checked_labels(labels, inputs[0].shape),
            dropout_rng if train else None,
            **{name: getattr(self.config, name) if value is None else bool(value) for name, value in flags.items()},
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _apply(
        self,
        params: Parameters,
        inputs: tuple[Any, ...],
        labels: dict[str, jax.Array],
        dropout_rng: jax.Array | None,
        **flags: bool,
    ) -> Any:
        keys = None
        if dropout_rng is not None:
            keys = row_keys(dropout_rng, math.prod(inputs[0].shape[:-1]))
        return with_parameters(self.module, params)(*inputs, keys=keys, **labels, **flags)

    def _checked(self, *inputs: Array | None) -> tuple[Any, ...]:
        """The inputs as int32, all of one shape; those that are on the host are checked against their tables."""
        arrays = [x if x is None or isinstance(x, jax.Array) else np.asarray(x) for x in inputs]
        shape = () if arrays[0] is None else arrays[0].shape
        if len(shape) != len(self._axes):
            raise UserError(f"input_ids has shape {shape}, but {type(self).__name__} takes [{', '.join(self._axes)}].")
        c = self.config
        tables = {"input_ids": c.vocab_size, "attention_mask": None, "token_type_ids": c.type_vocab_size}
        tables |= {"position_ids": c.max_position_embeddings}
        checked: list[jax.Array | None] = []
        for (name, rows), value in zip(tables.items(), arrays, strict=True):
            if value is not None:
                _check_input(name, value, shape, rows)
            checked.append(None if value is None else jnp.broadcast_to(jnp.asarray(value, jnp.int32), shape))
        return tuple(checked)

    def _checked_labels(self, labels: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Those that are given, as arrays; `shape` is that of input_ids."""
        for name in labels:
            if name not in self._labels:
                known = ", ".join(self._labels) or "no labels"
                raise UserError(f"{type(self).__name__} has no argument {name!r}; it takes {known}.")
        given = {name: as_array(name, value) for name, value in labels.items() if value is not None}
        if given and len(given) < len(self._labels):
            raise UserError(f"{' and '.join(self._labels)} make a loss together; give both or none.")
        sizes = dict(zip(self._axes, shape, strict=True))
        for name, value in given.items():
            self._check_label(name, value, sizes)
        return {name: jnp.asarray(value) for name, value in given.items()}

    def _check_label(self, name: str, value: Array, sizes: dict[str, int]) -> None:
        """Refuses labels that are not what `_labels` says; `sizes` has those of input_ids' axes."""
        axes, classes = self._labels[name]
        if isinstance(classes, str):
            classes = sizes[classes] if classes in sizes else int(getattr(self.config, classes))
        check_classes(name, value, tuple(sizes[axis] for axis in axes), classes)

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: jnp.dtype = jnp.float32,
        *,
        config: Any = None,
        _do_init: bool = True,
        seed: int = 0,
        from_pt: bool = False,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Loads a model that transformers or this project saved; see `convert.weight_files` for the files.

        Args:
          pretrained_model_name_or_path: a directory, or a repository of the hub, see `convert.hub.locate`.
          dtype: compute dtype. Parameters keep the dtype that they are stored in.
          config: used in the place of the directory's config.json.
          _do_init: False returns the parameters apart.
          seed: of the parameters that the checkpoint lacks.
          from_pt: take torch's file where a Flax file lies beside it.
          ignore_mismatched_sizes: parameters of another shape are initialised anew, with a warning, not refused.
          output_loading_info: whether what did not fit is returned too.
          options: fields of the config to change (`num_labels=3`), options of the network (`add_pooling_layer=False`)
            and of the hub.

        Returns:
          The model; with `_do_init=False` the pair of model and parameters; with `output_loading_info` also a dict of
          the lists `missing_keys`, `unexpected_keys` and `mismatched_keys`. Parameters of a head that the checkpoint
          lacks are initialised, those that the model lacks are left out, and a warning names both.

        Raises:
          UserError: where a file is missing or damaged, the encoder is not whole or not the configuration's, or a shape
            or the tied table contradicts it.
        """
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        network = {name: options.pop(name) for name in _NETWORK_OPTIONS if name in options}
        directory = locate(pretrained_model_name_or_path, MODEL_FILES, **hub)
        if config is None:
            config = AlbertConfig.from_pretrained(directory)
        elif not isinstance(config, AlbertConfig):
            config = AlbertConfig.from_hub_dict(config.to_dict())
        model = cls(config.updated(**options), seed=seed, dtype=dtype, _do_init=False, **network)
        checkpoint = huggingface.read_checkpoint(directory, from_pt)
        fitted = huggingface.fit(checkpoint, model._shapes(), ignore_mismatched_sizes)
        params = model._completed(fitted, checkpoint)
        results: list[Any] = [model]
        if _do_init:
            model._is_initialized, model.params = True, params
        else:
            results.append(params)
        if output_loading_info:
            results.append(_loading_info(fitted, checkpoint))
        return results[0] if len(results) == 1 else tuple(results)

    def _completed(self, fitted: huggingface.Fitted, checkpoint: huggingface.Checkpoint) -> Parameters:
        """The checkpoint's parameters and fresh ones for what it lacks; says what is new and what was left."""
        name, source = type(self).__name__, checkpoint.source
        torn = [path for path in fitted.missing if not path.startswith(_HEADS)]
        if torn:
            raise UserError(
                f"{source} lacks {len(torn)} parameters of the encoder, such as {checkpoint.spell(torn[0])}; it is not "
                "whole, or config.json is another model's; copy both again."
            )
        foreign = [path for path in fitted.unexpected if "encoder" in path or "embeddings" in path]
        if foreign:
            raise UserError(
                f"{source} holds {len(foreign)} tensors of another encoder than the configuration's, such as "
                f"{foreign[0]}; give the configuration that it was saved with."
            )
        if fitted.unexpected:
            _log.warning("%s has no place for these of %s: %s.", name, source, ", ".join(fitted.unexpected))
        fresh = sorted(checkpoint.spell(path) for path in fitted.missing + fitted.mismatched)
        if fresh:
            _log.warning("%s: initialised anew, as %s lacks them or has others: %s.", name, source, ", ".join(fresh))
        half = sorted({str(array.dtype) for array in fitted.params.values()} - {"float32"})
        if half:
            _log.warning("%s stores %s; use to_fp32 on the parameters before you train them.", source, ", ".join(half))
        given = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(fitted.params, sep="/"))
        return self.init_weights(self.key, params=given) if fresh else given

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Writes config.json and model.safetensors, which transformers' torch and Flax classes load.

        Args:
          save_directory: made if need be.
          params: written in the place of the model's own.
          push_to_hub: not supported; `hf upload` does it.
          max_shard_size: weights beyond it are split over several files.
          safe_serialization: only True: transformers 4's Flax classes read model.safetensors too.

        Raises:
          UserError: where parameters do not fit or are not finite, the format has no form for the model, or the
            directory cannot be written.
        """
        if push_to_hub or not safe_serialization:
            raise UserError("save_pretrained writes model.safetensors to a directory; use `hf upload` to publish it.")
        given = self.params if params is None else params
        with_parameters(self.module, given)
        flat = traverse_util.flatten_dict(given, sep="/")
        architecture = type(self).__name__.removeprefix("Flax")
        huggingface.save_checkpoint(os.fspath(save_directory), flat, self.config, architecture, max_shard_size)


def _check_input(name: str, value: Array, shape: tuple[int, ...], rows: int | None) -> None:
    """Refuses an input of another shape than input_ids', of fractions, or, on the host, of ids outside its table."""
    if value.shape != shape and not (name == "position_ids" and value.shape[-1:] == shape[-1:]):
        raise UserError(f"{name} has shape {value.shape}, but input_ids has shape {shape}; give them the same.")
    if rows is not None and not jnp.issubdtype(value.dtype, jnp.integer):
        raise UserError(f"{name} has dtype {value.dtype}, but ids are integers.")
    if rows is None or isinstance(value, jax.Array) or not value.size:
        return
    least, most = value.min(), value.max()
    if least < 0 or most >= rows:
        raise UserError(f"{name} holds {least if least < 0 else most}, but its table has the rows 0 to {rows - 1}.")


def _loading_info(fitted: huggingface.Fitted, checkpoint: huggingface.Checkpoint) -> dict[str, list[str]]:
    return {
        "missing_keys": [checkpoint.spell(path) for path in fitted.missing],
        "unexpected_keys": fitted.unexpected,
        "mismatched_keys": [checkpoint.spell(path) for path in fitted.mismatched],
    }


def _cast(params: Mapping[str, Any], dtype: jnp.dtype, mask: Any) -> Parameters:
    def cast(array: Any, wanted: bool = True) -> Any:
        return jnp.asarray(array, dtype) if wanted and jnp.issubdtype(array.dtype, jnp.floating) else array

    tree = traverse_util.unflatten_dict(traverse_util.flatten_dict(params))
    return jax.tree.map(cast, tree) if mask is None else jax.tree.map(cast, tree, mask)


class FlaxAlbertModel(FlaxAlbertPreTrainedModel):
    """The encoder; returns `BaseModelOutputWithPooling`."""

    module_class = modules.FlaxAlbertModule


class FlaxAlbertForPreTraining(FlaxAlbertPreTrainedModel):
    """With both pretraining heads; returns `AlbertForPreTrainingOutput`."""

    module_class = modules.FlaxAlbertForPreTrainingModule
    _labels: ClassVar = {"labels": ("BS", "vocab_size"), "sentence_order_label": ("B", 2)}


class FlaxAlbertForMaskedLM(FlaxAlbertPreTrainedModel):
    """With the masked-LM head; returns `MaskedLMOutput`."""

    module_class = modules.FlaxAlbertForMaskedLMModule
    _labels: ClassVar = {"labels": ("BS", "vocab_size")}


class FlaxAlbertForSequenceClassification(FlaxAlbertPreTrainedModel):
    """With a classifier or regression on the pooled output; returns `SequenceClassifierOutput`."""

    module_class = modules.FlaxAlbertForSequenceClassificationModule
    _labels: ClassVar = {"labels": ("B", "num_labels")}

    def _check_label(self, name: str, value: Array, sizes: dict[str, int]) -> None:
        check_classification(value, sizes["B"], self.config)


class FlaxAlbertForMultipleChoice(FlaxAlbertPreTrainedModel):
    """With a score for each choice; returns `MultipleChoiceModelOutput`."""

    module_class = modules.FlaxAlbertForMultipleChoiceModule
    _labels: ClassVar = {"labels": ("B", "C")}
    _axes = ("B", "C", "S")


class FlaxAlbertForTokenClassification(FlaxAlbertPreTrainedModel):
    """With a classifier on every slot; returns `TokenClassifierOutput`."""

    module_class = modules.FlaxAlbertForTokenClassificationModule
    _labels: ClassVar = {"labels": ("BS", "num_labels")}


class FlaxAlbertForQuestionAnswering(FlaxAlbertPreTrainedModel):
    """With a start and an end score for every slot; returns `QuestionAnsweringModelOutput`."""

    module_class = modules.FlaxAlbertForQuestionAnsweringModule
    _labels: ClassVar = {"start_positions": ("B", None), "end_positions": ("B", None)}
