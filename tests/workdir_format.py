# SPDX-License-Identifier: Apache-2.0
"""A workdir as version 0.2.0 leaves it (format 2), and as 0.1.0 did (format 1), written out field by field.

Nothing here uses what the package writes workdirs with: later versions are held to read what this one wrote. So nothing
that stands here may be changed to make a test pass; what a later version writes otherwise is another format.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

STEP, POSITION, ROWS = 6, 48, 8
LEFT_OUT = [[0, 50, 54]]  # phase, begin, end: the step after STEP begins after them
VOCABULARY = 500

CONFIG: dict[str, Any] = {
    "attention": "xla",
    "batch": {"accumulation": 2, "size": ROWS, "unit": "rows", "warmup_steps": 0},
    "branch_from": "",
    "checkpoint": {"every": 4, "keep": 5, "keep_period": 0, "minutes": 15.0},
    "data": {
        "examples_per_row": 3,
        "path": "",  # filled in
        "phases": "",
        "prefetch": 2,
        "recipe": "clean",
        "sentence_order": "sop",
        "sequence_length": 48,
        "short_fraction": 0.1,
        "validation_path": "",
        "vocab": "",
        "weights": "",
    },
    "dtype": "float32",
    "eval": {"every": 5, "rows": 10},
    "guard": {"norm_factor": 10.0, "patience": 5},
    "init_from": "",
    "log": {"every": 4},
    "masking": {"corrupt_by": "token", "count": 0, "max_ngram": 3, "rate": 0.15, "slots": 10, "whole_word": True},
    "mesh": {
        "data": 1,
        "fsdp": 1,
        "rules": "vocab:fsdp embedding:fsdp hidden:fsdp heads:tensor ffn:tensor",
        "shard_optimizer": False,
        "tensor": 1,
    },
    "model": {
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": 2,
        "classifier_dropout_prob": 0.1,
        "embedding_size": 4,
        "eos_token_id": 3,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 8,
        "initializer_range": 0.02,
        "inner_group_num": 1,
        "intermediate_size": 12,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 48,
        "num_attention_heads": 2,
        "num_hidden_groups": 1,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "shared_across_groups": "nothing",
        "tie_word_embeddings": True,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
    },
    "optimizer": {
        "b1": 0.9,
        "b2": 0.999,
        "clip_norm": 1.0,
        "decay_power": 1.0,
        "eps": 1e-06,
        "learning_rate": 0.002,
        "name": "adamw",
        "warmup_steps": 2,
        "weight_decay": 0.01,
    },
    "profile": {"at": 0, "steps": 5},
    "remat": "dots_saveable",
    "seed": 0,
    "steps": 7,
    "watchdog": {"exit": False, "seconds": 1800.0},
}
VERSIONS = {
    "python": "3.11.7",
    "albert_jax": "0.2.0",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax": "0.12.8",
    "numpy": "2.4.6",
    "device": "1 x cpu (cpu)",
    "machine": "x86_64, 2 cores",
    "mesh": "1 devices",
}
SUMS = {
    "loss": 3000.0,
    "mlm_loss": 12.5,
    "mlm_accuracy": 0.25,
    "sop_loss": 1.5,
    "sop_accuracy": 1.0,
    "grad_norm": 4.0,
    "update_norm": 0.25,
    "param_norm": 31.0,
    "real_share": 1.625,
}
# The log interval that is under way: steps 5 and 6, both of which updated the parameters.
INTERVAL = {"steps": 2, "counted": 2, "sums": SUMS, "latest": {"learning_rate": 0.0008, "skipped": 0}}
RECORDS = [
    {"step": 0, "kind": "start", "timing": {"time": 1796098000.0, "wall_s": 0.5}},
    {
        "step": 4,
        "kind": "train",
        "epoch": 0.03,
        "position": 32,
        "loss": 6.9,
        "mlm_loss": 6.2,
        "mlm_accuracy": 0.0,
        "sop_loss": 0.7,
        "sop_accuracy": 0.5,
        "grad_norm": 2.25,
        "update_norm": 0.125,
        "param_norm": 15.5,
        "real_share": 0.875,
        "learning_rate": 0.0012,
        "skipped": 0,
        "timing": {
            "tokens_per_s": 2800.0,
            "input_wait": 0.001,
            "eta_s": 1.5,
            "tflops_per_s": 0.001,
            "goodput": 0.5,
            "seconds": 2.0,
            "time": 1796098004.0,
            "wall_s": 4.5,
        },
    },
    {
        "step": 5,
        "kind": "eval",
        "eval_mlm_loss": 6.125,
        "eval_unigram_loss": 4.95,
        "eval_mlm_accuracy": 0.0,
        "eval_mlm_count": 70,
        "eval_sop_loss": 0.75,
        "eval_sop_accuracy": 0.5,
        "eval_sop_low": 0.25,
        "eval_sop_high": 0.75,
        "eval_sop_count": 10,
        "timing": {"seconds": 0.1, "share": 0.02, "time": 1796098005.0, "wall_s": 5.5},
    },
]

# --- arrays -----------------------------------------------------------------------------------------------------------

_LAYER = "albert/encoder/albert_layer_groups/0/albert_layers/0"
SHAPES: dict[str, tuple[int, ...]] = {
    "albert/embeddings/LayerNorm/bias": (4,),
    "albert/embeddings/LayerNorm/scale": (4,),
    "albert/embeddings/position_embeddings/embedding": (48, 4),
    "albert/embeddings/token_type_embeddings/embedding": (2, 4),
    "albert/embeddings/word_embeddings/embedding": (VOCABULARY, 4),
    f"{_LAYER}/attention/LayerNorm/bias": (8,),
    f"{_LAYER}/attention/LayerNorm/scale": (8,),
    f"{_LAYER}/attention/dense/bias": (8,),
    f"{_LAYER}/attention/dense/kernel": (8, 8),
    f"{_LAYER}/attention/key/bias": (8,),
    f"{_LAYER}/attention/key/kernel": (8, 8),
    f"{_LAYER}/attention/query/bias": (8,),
    f"{_LAYER}/attention/query/kernel": (8, 8),
    f"{_LAYER}/attention/value/bias": (8,),
    f"{_LAYER}/attention/value/kernel": (8, 8),
    f"{_LAYER}/ffn/bias": (12,),
    f"{_LAYER}/ffn/kernel": (8, 12),
    f"{_LAYER}/ffn_output/bias": (8,),
    f"{_LAYER}/ffn_output/kernel": (12, 8),
    f"{_LAYER}/full_layer_layer_norm/bias": (8,),
    f"{_LAYER}/full_layer_layer_norm/scale": (8,),
    "albert/encoder/embedding_hidden_mapping_in/bias": (8,),
    "albert/encoder/embedding_hidden_mapping_in/kernel": (4, 8),
    "albert/pooler/bias": (8,),
    "albert/pooler/kernel": (8, 8),
    "predictions/LayerNorm/bias": (4,),
    "predictions/LayerNorm/scale": (4,),
    "predictions/bias": (VOCABULARY,),
    "predictions/dense/bias": (4,),
    "predictions/dense/kernel": (8, 4),
    "sop_classifier/classifier/bias": (2,),
    "sop_classifier/classifier/kernel": (8, 2),
}


def values(kind: int) -> dict[str, np.ndarray]:
    """By path: the parameters (0), the first moments (1) or the second (2)."""
    found = {}
    for number, (path, shape) in enumerate(SHAPES.items()):
        wave = np.sin(0.37 * np.arange(np.prod(shape)) + number).reshape(shape)
        scale = 1.0 if path.endswith("scale") else 0.0
        found[path] = np.asarray([scale + 0.05 * wave, 1e-3 * wave, 1e-6 * (1.5 + wave)][kind], np.float32)
    return found


def scalars(form: int) -> dict[tuple[str, ...], np.ndarray]:
    """By their keys in the part `rest`."""
    found: dict[tuple[str, ...], Any] = {
        ("guard", ".log_norm"): 0.05,
        ("guard", ".accepted"): STEP,
        ("guard", ".skipped"): 0,
        ("guard", ".in_a_row"): 0,
        ("opt_state", "1", ".count"): STEP,
        ("step",): STEP,
    }
    if form == 1:  # the unfinished log interval was summed by the devices
        found["sums", ".steps"] = 2.0
        for name, value in SUMS.items():
            found["sums", f".{name}"] = value
    return {k: np.asarray(v, np.int32 if isinstance(v, int) else np.float32) for k, v in found.items()}


def _set(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def items(form: int) -> dict[str, Any]:
    """The parts of a checkpoint as Orbax is given them: dicts, lists, and None for what has no arrays."""
    parts: dict[str, Any] = {"params": {}, "rest": {}}
    for path, value in values(0).items():
        _set(parts["params"], tuple(path.split("/")), value)
    for keys, scalar in scalars(form).items():
        _set(parts["rest"], tuple(key.removeprefix(".") for key in keys), scalar)
    for kind, name in ((1, "mu"), (2, "nu")):
        for path, value in values(kind).items():
            _set(parts["rest"], ("opt_state", "1", name, *path.split("/")), value)
    adam = parts["rest"]["opt_state"]["1"]
    parts["rest"]["opt_state"] = [None, adam, {"inner_state": None}]  # clipping, Adam, weight decay
    return parts


# --- digests ----------------------------------------------------------------------------------------------------------


def _finalised(h: int) -> int:
    """MurmurHash3's finaliser, modulo 2**32."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


def digest(array: np.ndarray, form: int) -> str:
    """16 hexadecimal digits of an array of four-byte numbers, element by element."""
    first = second = 0
    for place, bits in enumerate(np.ravel(array).view(np.uint32).tolist()):
        if form == 1:
            words = [_finalised((bits * odd ^ (place * 0x9E3779B1 + odd)) % 2**32) for odd in (0x27D4EB2F, 0x165667B1)]
        else:
            key = (place + 1) * 0x9E3779B1 % 2**32
            words = [mixed := _finalised(bits ^ key), mixed * key]
        first, second = (first + words[0]) % 2**32, (second + words[1]) % 2**32
    return f"{first:08x}{second:08x}"


def digests(form: int) -> dict[str, dict[str, str]]:
    """Those of a checkpoint's parts, by names such as ``['opt_state'][1].mu['albert']['pooler']['bias']``."""

    def named(path: str) -> str:
        return "".join(f"['{key}']" for key in path.split("/"))

    def spelt(key: str) -> str:
        return key if key.startswith(".") else f"[{key}]" if key.isdigit() else f"['{key}']"

    rest = {"".join(map(spelt, keys)): digest(value, form) for keys, value in scalars(form).items()}
    for kind, name in ((1, "mu"), (2, "nu")):
        rest |= {f"['opt_state'][1].{name}{named(path)}": digest(v, form) for path, v in values(kind).items()}
    return {"params": {named(path): digest(value, form) for path, value in values(0).items()}, "rest": rest}


# --- the workdir ------------------------------------------------------------------------------------------------------


def identity(data: pathlib.Path, form: int = 2) -> dict[str, Any]:
    """What `run.json` says of a run on a data set of one source."""
    from albert_jax.data.plan import PlanSettings, cached_plan
    from albert_jax.data.store import TextStore
    from albert_jax.data.vocabulary import Vocabulary

    manifest = json.loads((data / "manifest.json").read_text())
    (source,) = manifest["sources"]
    vocabulary = (data / "spiece.model").read_bytes()
    plan = cached_plan(
        TextStore(data, "train"),
        Vocabulary.load(data / "spiece.model").starts_word,
        PlanSettings(slots=48, examples=3, mask_slots=10, mask_rate=0.15, short_fraction=0.1),
    )
    weighted = hashlib.sha256(json.dumps([plan.digest, [[source["name"], "1"]]]).encode()).hexdigest()
    said = {
        "format": 2,
        "config": CONFIG | {"data": CONFIG["data"] | {"path": str(data)}},
        "model": CONFIG["model"],
        "data": manifest,
        "data_fingerprint": manifest["splits"]["train"]["fingerprint"],
        "vocabulary_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "plan": weighted,
        "packing": plan.digest,
        "rows_per_step": str(ROWS),
        "versions": VERSIONS,
    }
    if form == 1:
        del said["format"], said["packing"]
        said["versions"] = VERSIONS | {"albert_jax": "0.1.0"}
    return said


def sealed(meta: dict[str, Any]) -> str:
    """The seal of a checkpoint's `meta` that has none yet."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def write_workdir(
    workdir: pathlib.Path, data: pathlib.Path, form: int = 2, changes: dict[str, Any] | None = None
) -> None:
    """Writes a run that was interrupted after step 6.

    Args:
      workdir: to be made.
      data: the data set.
      form: 2, or 1.
      changes: of what `run.json` and the checkpoint say.
    """
    said = identity(data, form) | (changes or {})
    folder = workdir.absolute() / "checkpoints" / str(STEP)
    for name, tree in items(form).items():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / name, jax.tree.map(jax.numpy.asarray, tree))
    meta = said | {"step": STEP, "position": POSITION, "digests": digests(form)}
    if form > 1:
        meta |= {"interval": INTERVAL, "skipped": []}
        left_out = {"rows": LEFT_OUT, "told": 5, "restored": 4, "times": 1, "abandoned": []}
        (workdir / "left_out.json").write_text(json.dumps(left_out) + "\n")
    meta["seal"] = sealed(meta)
    (folder / "meta").mkdir()
    (folder / "meta" / "metadata").write_text(json.dumps(meta))
    (workdir / "run.json").write_text(json.dumps(said, indent=2) + "\n")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    shutil.copy(data / "spiece.model", workdir / "spiece.model")
