# SPDX-License-Identifier: Apache-2.0
"""Google's ALBERT checkpoints (TensorFlow 1: albert_config.json and model.ckpt-*) <-> our parameters.

A kernel is [in, out] in both. Only the `output_weights` of heads are [classes, H] there and [H, classes] here. The
names are those of github.com/google-research/albert, modeling.py and the run_*.py that add heads. NumPy only:
TensorFlow is not needed.
"""

import dataclasses
import json
import logging
import pathlib
import re
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from albert_jax.config import AlbertConfig
from albert_jax.convert.tensor_bundle import TensorBundle, write_tensor_bundle
from albert_jax.errors import UserError

_log = logging.getLogger(__name__)

Tensors = dict[str, np.ndarray]
Variables = dict[str, "Variable"]

CONFIG_FILE = "albert_config.json"
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_FILE_SUFFIX = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")

# --- the names --------------------------------------------------------------------------------------------------------

_HEADS = ("predictions", "sop_classifier", "classifier", "qa_outputs")
_MAPPING = "albert/encoder/embedding_hidden_mapping_in"
_GROUPS = "bert/encoder/transformer/"
# A layer's modules here and there.
_LAYER = {
    "attention/query": "attention_1/self/query",
    "attention/key": "attention_1/self/key",
    "attention/value": "attention_1/self/value",
    "attention/dense": "attention_1/output/dense",
    "attention/LayerNorm": "LayerNorm",
    "ffn": "ffn_1/intermediate/dense",
    "ffn_output": "ffn_1/intermediate/output/dense",
    "full_layer_layer_norm": "LayerNorm_1",
}
# Last parts of names that hold an optimizer's state: Google's LAMB and AdamW, forks of it, and TensorFlow's own Adam.
_STATE = (
    *("adam_m", "adam_v", "lamb_m", "lamb_v", "AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1"),
    *("Adam", "Adam_1", "beta1_power", "beta2_power", "global_step"),
)
# What Keras calls layer norms: numbered through the model, or through those of a layer.
_KERAS_LAYER_NORM = re.compile(
    rf"(?:(?P<outside>bert/embeddings|cls/predictions/transform)|(?P<layer>{_GROUPS}group_\d+(_\d+)?/layer_\d+/inner_group_\d+))"
    r"/layer_normalization(?:_(?P<number>\d+))?/(?P<leaf>beta|gamma)$"
)
# Names by which checkpoints of other programs are known, and what to say of them.
_OTHERS = {
    r"bert/encoder/layer_shared/": (
        "is of brightmart's albert_zh, which adds positions after the embeddings have been widened to hidden_size, as "
        "no other ALBERT does"
    ),
    r"bert/encoder/layer_\d+/": "is a BERT, whose layers share nothing",
    r"(.*/)?\.ATTRIBUTES/|_CHECKPOINTABLE_OBJECT_GRAPH": (
        "is a checkpoint of TensorFlow 2's objects, whose names are not those of the model's variables"
    ),
}


class Variable(NamedTuple):
    """A parameter as the original has it.

    Attributes:
      name: such as "bert/pooler/dense/kernel".
      shape: the original's, which for output_weights is the transpose of ours.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape of ours."""
        return self.shape[::-1] if self.name.endswith("output_weights") else self.shape

    def turned(self, array: np.ndarray) -> np.ndarray:
        """Between the original's form and ours: its own inverse."""
        return np.ascontiguousarray(array.T) if self.name.endswith("output_weights") else array


def google_variables(config: AlbertConfig) -> dict[str, Variable]:
    """Our path of every parameter of the encoder, of the pretraining heads, and of two fine-tuned heads -> theirs.

    The classifier (GLUE, RACE) has `config.num_labels` classes.
    """
    v, e, h, f = config.vocab_size, config.embedding_size, config.hidden_size, config.intermediate_size
    variables = {}
    for table, rows in (
        ("word", v),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ):
        path = f"albert/embeddings/{table}_embeddings/embedding"
        variables[path] = Variable(f"bert/embeddings/{table}_embeddings", (rows, e))
    variables |= _layer_norm("albert/embeddings/LayerNorm", "bert/embeddings/LayerNorm", e)
    variables |= _dense(_MAPPING, "bert/encoder/embedding_hidden_mapping_in", e, h)
    for g in range(config.num_hidden_groups):
        for j in range(config.inner_group_num):
            layer = f"albert/encoder/albert_layer_groups/{g}/albert_layers/{j}"
            for module, scope in _LAYER.items():
                names = f"{layer}/{module}", f"{_GROUPS}group_{g}/inner_group_{j}/{scope}"
                if scope.startswith("LayerNorm"):
                    variables |= _layer_norm(*names, h)
                else:
                    variables |= _dense(*names, f if module == "ffn_output" else h, f if module == "ffn" else h)
    variables |= _dense("albert/pooler", "bert/pooler/dense", h, h)
    variables |= _dense("predictions/dense", "cls/predictions/transform/dense", h, e)
    variables |= _layer_norm("predictions/LayerNorm", "cls/predictions/transform/LayerNorm", e)
    variables["predictions/bias"] = Variable("cls/predictions/output_bias", (v,))
    variables |= _output("sop_classifier/classifier", "cls/seq_relationship/", 2, h)
    variables |= _output("classifier", "", config.num_labels, h)
    return variables | _output("qa_outputs", "cls/squad/", 2, h)


def _dense(path: str, scope: str, inputs: int, outputs: int) -> dict[str, Variable]:
    return {
        f"{path}/kernel": Variable(f"{scope}/kernel", (inputs, outputs)),
        f"{path}/bias": Variable(f"{scope}/bias", (outputs,)),
    }


def _layer_norm(path: str, scope: str, size: int) -> dict[str, Variable]:
    return {
        f"{path}/scale": Variable(f"{scope}/gamma", (size,)),
        f"{path}/bias": Variable(f"{scope}/beta", (size,)),
    }


def _output(path: str, scope: str, classes: int, inputs: int) -> dict[str, Variable]:
    return {
        f"{path}/kernel": Variable(f"{scope}output_weights", (classes, inputs)),
        f"{path}/bias": Variable(f"{scope}output_bias", (classes,)),
    }


def _of_heads(variables: Variables, paths: Iterable[str]) -> Variables:
    """Those of the encoder, and those of the heads of which `paths` has a part."""
    absent = set(_HEADS) - {path.split("/")[0] for path in paths}
    return {path: variable for path, variable in variables.items() if path.split("/")[0] not in absent}


def _without_mapping(variables: Variables) -> Variables:
    """As the original is where E = H."""
    return {path: variable for path, variable in variables.items() if not path.startswith(_MAPPING)}


def _check_groups(config: AlbertConfig) -> None:
    """Refuses the few architectures in which the original's rounding puts a layer into another group than ours."""
    layers, groups = config.num_hidden_layers, config.num_hidden_groups
    for layer in range(layers):
        theirs, ours = int(layer / layers * groups), config.group_of_layer(layer)
        if theirs != ours:
            raise UserError(
                f"with {layers} layers in {groups} groups Google's code rounds layer {layer} into group {theirs} and "
                f"this one into group {ours}; only models with another num_hidden_groups can be converted."
            )


# --- reading ----------------------------------------------------------------------------------------------------------


class GoogleCheckpoint(NamedTuple):
    """What `load_google_checkpoint` found.

    Attributes:
      config: the architecture; fields of albert_config.json that mean nothing here are kept in it.
      tensors: path ("/"-joined, such as "albert/pooler/kernel") -> float32 array.
      unused: names of variables that are neither parameters of a model here nor an optimizer's state, sorted.
      source: the checkpoint that was read.
      vocabulary: the SentencePiece model that lay beside it, if any.
      word_pieces: name of a BERT vocabulary that lay beside it, if any, as with Google's Chinese models.
    """

    config: AlbertConfig
    tensors: Tensors
    unused: list[str]
    source: str
    vocabulary: bytes | None
    word_pieces: str | None


def load_google_checkpoint(path: str | pathlib.Path, config_file: str | pathlib.Path | None = None) -> GoogleCheckpoint:
    """Reads a checkpoint of the original ALBERT, of its fine-tuning scripts, or of TF-Hub.

    Args:
      path: a released .tar.gz or what is in it; a training directory, of which the checkpoint is taken that its file
        `checkpoint` names, else model.ckpt-best, else the last; a TF-Hub module or SavedModel; a checkpoint's prefix.
      config_file: Google's albert_config.json, where none lies beside the checkpoint, in assets/, or one directory up.

    Returns:
      See `GoogleCheckpoint`. Heads that the checkpoint lacks are absent: TF-Hub's has no sentence-order head. SQuAD 2's
      head has no counterpart here and is in `unused`. Where E = H the original has no mapping between them; here it is
      the identity, which is exact.

    Raises:
      UserError: where files are missing or damaged, or do not fit each other.
    """
    path = pathlib.Path(path)
    if not (path.is_file() and path.name.endswith(_ARCHIVES)):
        return _load(_find_prefix(path), config_file)
    with tempfile.TemporaryDirectory() as directory:
        try:
            found = _load(_find_prefix(_unpack(path, pathlib.Path(directory))), config_file)
        except UserError as e:  # say it of the archive: the directory is gone when it is read
            raise UserError(str(e).replace(directory, str(path))) from e
    return found._replace(source=found.source.replace(directory, str(path)))


def _load(prefix: pathlib.Path, config_file: str | pathlib.Path | None) -> GoogleCheckpoint:
    bundle = TensorBundle(prefix)
    # A SavedModel's checkpoint is variables/variables, and its other files are in assets/ beside variables/.
    near, above = prefix.parent, prefix.absolute().parent.parent
    places = [near, near / "assets", above, above / "assets"]
    config = _read_config(config_file, places, prefix)
    # TF-Hub's names start with "module/".
    hub = "" if any(name.startswith("bert/") for name in bundle.names) else "module/"
    names = {name.removeprefix(hub): name for name in bundle.names}
    _check_kind(names, prefix)
    names = _keras_layer_norms(names, bundle, prefix)
    if "output_weights" in names:
        config = _with_labels(config, bundle, names["output_weights"])
    variables = _expected(names, config)
    for variable in variables.values():
        _check_stored(bundle, names, variable)
    unused = _unused(names, variables, config, prefix)
    tensors = {
        path: variable.turned(bundle.read(names[variable.name]).astype(np.float32, copy=False))
        for path, variable in variables.items()
    }
    if f"{_MAPPING}/kernel" not in tensors:
        tensors |= _identity(config)
    places = [near, near / "assets", above / "assets"]
    word_pieces = next((file.name for place in places for file in sorted(place.glob("vocab*.txt"))), None)
    return GoogleCheckpoint(config, tensors, unused, str(prefix), _read_vocabulary(places), word_pieces)


def _check_kind(names: Collection[str], prefix: pathlib.Path) -> None:
    """Refuses by name what is known and is no ALBERT of Google's."""
    for pattern, what in _OTHERS.items():
        if any(re.match(pattern, name) for name in names):
            raise UserError(f"{prefix} {what}; it cannot be converted, only checkpoints of Google's ALBERT code can.")
    if not any(name.startswith("bert/") for name in names):
        raise UserError(f"{prefix} has no variables under bert/; only checkpoints of Google's ALBERT code can be read.")


def _keras_layer_norms(names: dict[str, str], bundle: TensorBundle, prefix: pathlib.Path) -> dict[str, str]:
    """Google's names of layer norms that Keras has named: TensorFlow 2 made one for each layer where the code shares.

    github.com/huggingface/transformers/issues/10774 has such names.
    """
    stored: dict[str, list[str]] = {}
    of_layer: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        if match := _KERAS_LAYER_NORM.match(name):
            number, leaf = int(match["number"] or 0), match["leaf"]
            if match["outside"]:
                stored.setdefault(f"{match['outside']}/LayerNorm/{leaf}", []).append(name)
            else:
                of_layer.setdefault((match["layer"], leaf), []).append((number, name))
    for (layer, leaf), found in of_layer.items():
        group, inner = re.findall(r"group_\d+", layer)[0], layer.rsplit("/", 1)[-1]
        for scope, (_, name) in zip(("LayerNorm", "LayerNorm_1"), sorted(found), strict=False):
            stored.setdefault(f"{_GROUPS}{group}/{inner}/{scope}/{leaf}", []).append(name)
    for ours, theirs in stored.items():
        first, *others = (bundle.read(names[name]) for name in theirs)
        if any(not np.array_equal(first, other) for other in others):
            raise UserError(
                f"{prefix} has layer norms of its own for each layer ({theirs[0]} differs from {theirs[1]}), which "
                "ALBERT shares: it was trained under TensorFlow 2, whose Keras shares none; it cannot be converted."
            )
        names = {name: place for name, place in names.items() if name not in theirs} | {ours: names[theirs[0]]}
    return names


def _read_config(file: str | pathlib.Path | None, places: list[pathlib.Path], prefix: pathlib.Path) -> AlbertConfig:
    """Google's configuration as ours; `file`, or the first that is in one of `places`."""
    files = [place / CONFIG_FILE for place in places if (place / CONFIG_FILE).is_file()]
    if file is None and not files:
        raise UserError(
            f"there is no {CONFIG_FILE} with {prefix}; put its own there, or give its path to "
            "scripts/convert.py by --config."
        )
    path = pathlib.Path(files[0] if file is None else file)
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e}); give the path of Google's {CONFIG_FILE}.") from e
    except (ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON, or no object ({e}); copy or download it again.") from e
    activation = values.get("hidden_act", "gelu")
    if activation not in ("gelu", "gelu_new", "relu"):
        raise UserError(f"{path} has hidden_act {activation!r}; only gelu and relu can be converted.")
    # Google's "gelu" is always the tanh approximation, and its LayerNorm has no other epsilon.
    values |= {"hidden_act": "relu" if activation == "relu" else "gelu_new", "layer_norm_eps": 1e-12}
    try:
        config = AlbertConfig.from_hub_dict(values)
        _check_groups(config)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    return config


def _with_labels(config: AlbertConfig, bundle: TensorBundle, name: str) -> AlbertConfig:
    """The configuration with as many classes as the fine-tuned head has; Google's does not say it."""
    shape = bundle.read(name).shape  # read, because an index alone may claim any number of classes
    if len(shape) != 2 or shape[1] != config.hidden_size:
        raise UserError(
            f"{name} has shape {shape}, but its configuration asks for (classes, {config.hidden_size}); give the "
            f"{CONFIG_FILE} that belongs to it."
        )
    return config.updated(num_labels=shape[0])


def _expected(names: Collection[str], config: AlbertConfig) -> Variables:
    """What the checkpoint must hold: the encoder, and all of every head that it has a part of."""
    variables = google_variables(config)
    expected = _of_heads(variables, [path for path, variable in variables.items() if variable.name in names])
    mapped = any(variables[f"{_MAPPING}/{leaf}"].name in names for leaf in ("kernel", "bias"))
    return expected if mapped or config.embedding_size != config.hidden_size else _without_mapping(expected)


def _check_stored(bundle: TensorBundle, names: dict[str, str], variable: Variable) -> None:
    """A variable is there, in a floating type and with the shape that the configuration asks for."""
    name, shape = variable
    remedy = f"give the {CONFIG_FILE} that belongs to the checkpoint"
    if name not in names:
        raise UserError(f"the checkpoint lacks {name}, for which its configuration asks in shape {shape}; {remedy}.")
    found = bundle.shape(names[name])
    if found != shape:
        raise UserError(f"{name} has shape {found}, but its configuration asks for {shape}; {remedy}.")
    if "float" not in bundle.dtype(names[name]):
        raise UserError(f"{name} has type {bundle.dtype(names[name])}, but a parameter is a float; save it as float32.")


def _unused(names: Collection[str], variables: Variables, config: AlbertConfig, prefix: pathlib.Path) -> list[str]:
    """Variables that nothing here has a place for; more of the encoder than the configuration says is refused."""
    placed = {variable.name for variable in variables.values()}
    rest = sorted(name for name in names if name not in placed and name.rsplit("/", 1)[-1] not in _STATE)
    for name in rest:
        if name.startswith(_GROUPS):
            raise UserError(
                f"{prefix} holds {name}, which a model with num_hidden_groups {config.num_hidden_groups} and "
                f"inner_group_num {config.inner_group_num} does not have; give the {CONFIG_FILE} that belongs to it."
            )
    return rest


def _identity(config: AlbertConfig) -> Tensors:
    """The mapping from E to H that changes nothing."""
    h = config.hidden_size
    return {f"{_MAPPING}/kernel": np.eye(h, dtype=np.float32), f"{_MAPPING}/bias": np.zeros(h, np.float32)}


def _read_vocabulary(places: list[pathlib.Path]) -> bytes | None:
    """The released vocabulary's file, or the only SentencePiece model that there is."""
    for place in places:
        files = sorted(place.glob("*.model"), key=lambda file: file.name != "30k-clean.model")
        if len(files) == 1 or (files and files[0].name == "30k-clean.model"):
            return files[0].read_bytes()
    return None


# --- which checkpoint -------------------------------------------------------------------------------------------------


def _find_prefix(path: pathlib.Path) -> pathlib.Path:
    """The path of a checkpoint without .index, from itself, one of its files, or the directory that it is in."""
    if not path.is_dir():
        prefix = path.with_name(_FILE_SUFFIX.sub("", path.name))
        if not prefix.with_name(f"{prefix.name}.index").is_file():
            raise UserError(
                f"{path} is neither a directory nor {', '.join(_ARCHIVES)} nor a TensorFlow checkpoint's prefix: there "
                f"is no {prefix}.index; check the path."
            )
        return prefix
    if (path / "variables" / "variables.index").is_file():
        return path / "variables" / "variables"
    found = sorted(file.name.removesuffix(".index") for file in path.glob("*.index"))
    if not found:
        raise UserError(f"there is no TensorFlow checkpoint (no *.index) in {path}; give the directory that holds one.")
    name = _named(path / "checkpoint", found) if (path / "checkpoint").is_file() else _newest(path, found)
    if len(found) > 1:
        _log.info("%s holds %d checkpoints; reading %s", path, len(found), name)
    return path / name


def _named(file: pathlib.Path, found: list[str]) -> str:
    """The checkpoint that TensorFlow's text file names, wherever the directory was when it was written."""
    text = file.read_text(encoding="utf-8", errors="replace")
    match = re.search(r'^model_checkpoint_path:\s*"(.+)"', text, re.MULTILINE)
    name = pathlib.PurePosixPath(match[1]).name if match else ""
    if name not in found:
        raise UserError(f"{file} names the checkpoint {name!r}, which is not there; give the path of one of {found}.")
    return name


def _newest(directory: pathlib.Path, found: list[str]) -> str:
    """Without that file: the only one, the one that Google's code calls the best, or the one of the last step."""
    if len(found) == 1 or "model.ckpt-best" in found:
        return found[0] if len(found) == 1 else "model.ckpt-best"
    steps = {int(match[1]): name for name in found if (match := re.search(r"-(\d+)$", name))}
    if not steps:
        raise UserError(f"{directory} holds the checkpoints {', '.join(found)}; give the path of one of them.")
    return steps[max(steps)]


def _unpack(archive: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Unpacks what is needed; returns the directory in which the checkpoint is."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                needed = (
                    name.endswith((".index", ".json", ".model", ".txt")) or name == "checkpoint" or ".data-" in name
                )
                if member.isfile() and needed:
                    tar.extract(member, directory, filter="data")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as e:
        raise UserError(f"{archive} cannot be unpacked ({e}); download it again, or make room for it.") from e
    holders = sorted({file.parent for file in directory.rglob("*.index")})
    if len(holders) != 1:
        raise UserError(
            f"{archive} holds TensorFlow checkpoints in {len(holders)} directories; unpack it and give one."
        )
    return holders[0]


# --- writing ----------------------------------------------------------------------------------------------------------

# What Google's albert_config.json says beside `_OUR_FIELDS`; its code does nothing with it, but asks for the first.
_DEAD_FIELDS = {"net_structure_type": 0, "gap_size": 0, "num_memory_blocks": 0, "down_scale_factor": 1}
_OUR_FIELDS = (
    *("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_hidden_groups", "num_attention_heads"),
    *("intermediate_size", "inner_group_num", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "initializer_range"),
)


# What a Hugging Face config.json says of the files beside it.
_ABOUT_FILES = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version"}


def save_google_checkpoint(directory: str | pathlib.Path, tensors: Tensors, config: AlbertConfig) -> list[pathlib.Path]:
    """Writes albert_config.json and model.ckpt-best, which Google's code restores by the variables' names.

    Args:
      directory: made if need be; files of these names are replaced.
      tensors: path ("/"-joined) -> array; the encoder, and any of the heads that the original has. Stored as float32.
      config: their architecture.

    Returns:
      The files written.

    Raises:
      UserError: where Google's code has no form for the model, parameters and config do not fit, or the directory
        cannot be written.
    """
    directory = pathlib.Path(directory)
    values, named = _google_values(config), _google_tensors(tensors, config)
    file = directory / CONFIG_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"{directory} cannot be written ({e}); make room or choose another directory.") from e
    return [file, *write_tensor_bundle(directory / "model.ckpt-best", named)]


def _google_values(config: AlbertConfig) -> dict[str, Any]:
    """What albert_config.json says of this model; refuses what Google's code does not compute."""
    if config.hidden_act == "gelu":
        raise UserError(
            'hidden_act "gelu" is the exact one, and Google\'s code has only its tanh approximation; convert a model '
            'that was trained with "gelu_new" or "relu".'
        )
    if config.layer_norm_eps != 1e-12:
        raise UserError(
            f"layer_norm_eps is {config.layer_norm_eps}, but Google's code has 1e-12 only; keep Hugging Face's files."
        )
    if config.shared_across_groups != "nothing":
        raise UserError(
            f"Google's code cannot share the {config.shared_across_groups} weights across groups; export it by "
            "scripts/export.py --unshare first, which gives each group a copy of its own."
        )
    _check_groups(config)
    known = {field.name for field in dataclasses.fields(config)} | _ABOUT_FILES
    kept = {name: value for name, value in config.hub_fields.items() if name not in known}
    own = {name: getattr(config, name) for name in _OUR_FIELDS}
    return _DEAD_FIELDS | kept | own | {"hidden_act": "gelu" if config.hidden_act == "gelu_new" else "relu"}


def _google_tensors(tensors: Tensors, config: AlbertConfig) -> Tensors:
    """The original's variables; refuses parameters that it has no name for, or that do not fit."""
    # A head for RACE has one class, whatever num_labels says.
    labels = np.shape(tensors["classifier/bias"])[:1] if "classifier/bias" in tensors else ()
    variables = _of_heads(google_variables(config.updated(num_labels=labels[0]) if labels else config), tensors)
    missing, unknown = sorted(variables.keys() - tensors.keys()), sorted(tensors.keys() - variables.keys())
    if missing or unknown:
        raise UserError(
            f"these parameters are not those of a model of Google's: missing {missing[:3]}, without a name there "
            f"{unknown[:3]}; give the encoder and whole heads."
        )
    for path, variable in variables.items():
        array = np.asarray(tensors[path], np.float32)
        if array.shape != variable.our_shape:
            raise UserError(
                f"{path} has shape {array.shape}, but the configuration asks for {variable.our_shape}; give the "
                "configuration of these parameters."
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path} holds values that are not finite; take an earlier checkpoint.")
    if config.embedding_size == config.hidden_size:
        if any(not np.array_equal(tensors[path], value) for path, value in _identity(config).items()):
            raise UserError(
                f"{_MAPPING} is not the identity, and where embedding_size and hidden_size are both "
                f"{config.hidden_size} Google's code has no mapping; it cannot be converted."
            )
        variables = _without_mapping(variables)
    return {
        variable.name: variable.turned(np.asarray(tensors[path], np.float32)) for path, variable in variables.items()
    }
