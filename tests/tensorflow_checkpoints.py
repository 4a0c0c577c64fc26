# SPDX-License-Identifier: Apache-2.0
"""What real TensorFlow makes of ALBERT checkpoints; run by an interpreter that has it, never imported by a test.

  python tensorflow_checkpoints.py write DIRECTORY       # a checkpoint of every kind, and its arrays in KIND.npz
  python tensorflow_checkpoints.py read PREFIX...        # the arrays of others' checkpoints, in PREFIX.npz
  python tensorflow_checkpoints.py transformers PREFIX   # what transformers' own converter makes of one, likewise

The names and shapes are written out here as the original's modeling.py makes them, not taken from albert_jax.
"""

import json
import pathlib
import shutil
import sys
import zlib
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

SMALL: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "embedding_size": 24,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 80,
    "max_position_embeddings": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 7,
    "num_hidden_groups": 1,
    "net_structure_type": 0,
    "gap_size": 0,
    "num_memory_blocks": 0,
    "inner_group_num": 1,
    "down_scale_factor": 1,
    "type_vocab_size": 2,
    "vocab_size": 99,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "one": {},
    "groups": {"num_hidden_groups": 3},
    "inner": {"inner_group_num": 2, "num_hidden_layers": 3, "hidden_act": "relu"},
    "equal": {"embedding_size": 48, "num_hidden_groups": 2, "layers_to_keep": []},
    "groups-adam": {"num_hidden_groups": 3},
}
STATE = {"one": ("adam_m", "adam_v"), "groups": ("lamb_m", "lamb_v"), "inner": ("Adam", "Adam_1"), "equal": ()}
STATE["groups-adam"] = STATE["one"]  # transformers' converter knows no other


def encoder(config: dict[str, Any]) -> dict[str, list[int]]:
    """Name -> shape of the variables under bert/."""
    e, h, f = config["embedding_size"], config["hidden_size"], config["intermediate_size"]
    shapes = {
        "bert/embeddings/word_embeddings": [config["vocab_size"], e],
        "bert/embeddings/token_type_embeddings": [config["type_vocab_size"], e],
        "bert/embeddings/position_embeddings": [config["max_position_embeddings"], e],
        "bert/embeddings/LayerNorm/beta": [e],
        "bert/embeddings/LayerNorm/gamma": [e],
        "bert/pooler/dense/kernel": [h, h],
        "bert/pooler/dense/bias": [h],
    }
    if e != h:
        shapes["bert/encoder/embedding_hidden_mapping_in/kernel"] = [e, h]
        shapes["bert/encoder/embedding_hidden_mapping_in/bias"] = [h]
    for group in range(config["num_hidden_groups"]):
        for inner in range(config["inner_group_num"]):
            scope = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
            for dense in ("self/query", "self/key", "self/value", "output/dense"):
                shapes[f"{scope}/attention_1/{dense}/kernel"] = [h, h]
                shapes[f"{scope}/attention_1/{dense}/bias"] = [h]
            shapes[f"{scope}/LayerNorm/beta"] = [h]
            shapes[f"{scope}/LayerNorm/gamma"] = [h]
            shapes[f"{scope}/ffn_1/intermediate/dense/kernel"] = [h, f]
            shapes[f"{scope}/ffn_1/intermediate/dense/bias"] = [f]
            shapes[f"{scope}/ffn_1/intermediate/output/dense/kernel"] = [f, h]
            shapes[f"{scope}/ffn_1/intermediate/output/dense/bias"] = [h]
            shapes[f"{scope}/LayerNorm_1/beta"] = [h]
            shapes[f"{scope}/LayerNorm_1/gamma"] = [h]
    return shapes


def masked_lm(config: dict[str, Any]) -> dict[str, list[int]]:
    """The masked-language-model head."""
    e, h = config["embedding_size"], config["hidden_size"]
    return {
        "cls/predictions/transform/dense/kernel": [h, e],
        "cls/predictions/transform/dense/bias": [e],
        "cls/predictions/transform/LayerNorm/beta": [e],
        "cls/predictions/transform/LayerNorm/gamma": [e],
        "cls/predictions/output_bias": [config["vocab_size"]],
    }


def output(scope: str, classes: int, config: dict[str, Any]) -> dict[str, list[int]]:
    """One of the heads that are a matrix and a bias."""
    return {f"{scope}output_weights": [classes, config["hidden_size"]], f"{scope}output_bias": [classes]}


def squad2(config: dict[str, Any]) -> dict[str, list[int]]:
    """The head for SQuAD 2."""
    h = config["hidden_size"]
    return {
        "start_logits/dense/kernel": [h, 1],
        "start_logits/dense/bias": [1],
        "end_logits/dense_0/kernel": [2 * h, h],
        "end_logits/LayerNorm/gamma": [h],
        "end_logits/dense_1/kernel": [h, 1],
        "answer_class/dense_0/kernel": [2 * h, h],
        "answer_class/dense_1/kernel": [h, 1],
    }


def values(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Every variable random, and none like another."""
    arrays = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        arrays[name] = np.asarray(0.2 * rng.standard_normal(shape) + name.endswith("gamma"), np.float32)
    return arrays


def save(prefix: pathlib.Path, arrays: dict[str, np.ndarray], devices: int = 1, **options: Any) -> str:
    """Saves variables of these names with TensorFlow's Saver, spread over devices; returns the path it gave them."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": devices})) as session:
        for i, (name, array) in enumerate(arrays.items()):
            with tf.device(f"/cpu:{i % devices}"):
                tf.Variable(array, name=name, dtype=array.dtype)
        session.run(tf.global_variables_initializer())
        step = options.pop("global_step", None)
        return tf.train.Saver(max_to_keep=None, **options).save(session, str(prefix), global_step=step)


def release(directory: pathlib.Path, name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A directory as the released archives hold it, with an optimizer's state; returns the arrays of the parameters."""
    config = SMALL | ARCHITECTURES[name]
    arrays = values(encoder(config) | masked_lm(config) | output("cls/seq_relationship/", 2, config), seed)
    state = {f"{key}/{slot}": array * 3 for key, array in arrays.items() for slot in STATE[name]}
    save(directory / "model.ckpt-best", arrays | state | {"global_step": np.array(125000, np.int64)})
    (directory / "checkpoint").unlink()
    (directory / "albert_config.json").write_text(json.dumps(config))
    (directory / "30k-clean.model").write_bytes(b"the vocabulary")
    return arrays


def training(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """A training directory with the checkpoints of steps 5, 10 and 9, whose file `checkpoint` names 9."""
    config = SMALL
    shapes = encoder(config) | masked_lm(config) | output("cls/seq_relationship/", 2, config)
    for step in (5, 10, 9):
        arrays = values(shapes, seed=step)
        save(directory / "model.ckpt", arrays, global_step=step)
    shutil.copy(directory / ".." / "one" / "albert_config.json", directory)
    return arrays


def hub(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """A SavedModel whose variables lie in module/, as TF-Hub's, without the sentence-order head."""
    config = SMALL
    arrays = values(encoder(config) | masked_lm(config))
    with tf.Graph().as_default(), tf.Session() as session:
        for name, array in arrays.items():
            tf.Variable(array, name=f"module/{name}")
        session.run(tf.global_variables_initializer())
        ids = tf.placeholder(tf.int32)
        tf.saved_model.simple_save(session, str(directory), {"ids": ids}, {"ids": tf.identity(ids)})
    (directory / "assets").mkdir(exist_ok=True)
    (directory / "assets" / "30k-clean.model").write_bytes(b"the vocabulary")
    return arrays


def types(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """One variable of every dtype, a scalar and an empty one, and three that cannot be read."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"scalar": np.array(7, np.int32), "empty": np.zeros((3, 0), np.float32)}
    for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8):
        arrays[f"of/{dtype.name}"] = (50 * rng.random((3, 4))).astype(dtype.as_numpy_dtype)
    with tf.Graph().as_default(), tf.Session() as session:
        for name, array in arrays.items():
            tf.Variable(array, name=name, dtype=array.dtype)
        tf.Variable([b"one", b"three"], name="text")
        tf.Variable([True, False], name="truth")
        tf.get_variable("parts", (10, 3), partitioner=tf.fixed_size_partitioner(2))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(directory / "model.ckpt"))
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def dump(path: pathlib.Path | str, arrays: dict[str, Any]) -> None:
    """Writes PATH.npz."""
    np.savez(f"{path}.npz", **arrays)


def write(root: pathlib.Path) -> None:
    """A checkpoint of every kind."""
    arrays = {name: release(root / name, name) for name in ARCHITECTURES}
    arrays["training"] = training(root / "training")
    arrays["hub"] = hub(root / "hub")
    arrays["types"] = types(root / "types")
    arrays["sharded"] = values(encoder(SMALL))
    save(root / "sharded" / "model.ckpt", arrays["sharded"], devices=3, sharded=True)
    heads = {
        "classifier": output("", 3, SMALL),
        "race": output("", 1, SMALL),
        "squad": output("cls/squad/", 2, SMALL),
        "squad2": squad2(SMALL),
    }
    for name, head in heads.items():
        arrays[name] = values(encoder(SMALL) | head)
        save(root / name / "model.ckpt-best", arrays[name])
        shutil.copy(root / "one" / "albert_config.json", root / name)
    for name, value in arrays.items():
        dump(root / name, value)


def read(prefix: str) -> None:
    """A checkpoint's arrays, by its reader and by restoring variables of the same names, which must agree."""
    reader = tf.train.load_checkpoint(prefix)
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {name: tf.Variable(tf.zeros_like(array), name=name) for name, array in arrays.items()}
        tf.train.Saver().restore(session, prefix)
        for name, array in session.run(variables).items():
            assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name]), name
    arrays = {name: array.astype(np.float64) if "bfloat16" in name else array for name, array in arrays.items()}
    dump(prefix, arrays)


def by_transformers(prefix: str) -> None:
    """transformers' own converter from TensorFlow to torch."""
    from transformers import AlbertConfig
    from transformers.models.albert import modeling_albert

    config = json.loads((pathlib.Path(prefix).parent / "albert_config.json").read_text())
    model = modeling_albert.AlbertForPreTraining(AlbertConfig(**config))
    converter: Any = modeling_albert  # transformers 5, which the types are checked with, has none
    converter.load_tf_weights_in_albert(model, model.config, prefix)
    dump(prefix, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def main() -> None:
    """The three commands above."""
    tf.disable_eager_execution()
    command, *paths = sys.argv[1:]
    commands = {"write": lambda path: write(pathlib.Path(path)), "read": read, "transformers": by_transformers}
    for path in paths:
        commands[command](path)


if __name__ == "__main__":
    main()
