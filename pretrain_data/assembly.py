# SPDX-License-Identifier: Apache-2.0
"""From what the passes left to the data set: shards under TFDS's names, index, metadata, manifest."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import albert_jax
from albert_jax.errors import UserError
from albert_jax.remote import MANIFEST, directory, exists, is_remote, named_refusals, publish
from pretrain_data import shards
from pretrain_data.passes import Job, result
from pretrain_data.summary import Summary
from pretrain_data.workplace import Workplace

FORMAT = 2
# Arrays of a part's index that the data set keeps, with the count that gives their length.
_KEPT: dict[str, tuple[str, np.dtype[Any]]] = {
    "sentence_lengths": ("sentences", np.dtype(np.uint16)),
    "sentences_per_record": ("records", np.dtype(np.int32)),
    "records_per_document": ("documents", np.dtype(np.int32)),
    "digests": ("records", np.dtype(np.uint8)),
}


def collect(job: Job) -> Summary:
    """Adds up what `tokenize` counted in every part."""
    summary = Summary(job.splits, source_bytes=sum(source.size for source in job.sources))
    for number, (source, _) in enumerate(job.parts):
        with job.workplace.opened(result("tokenize", number)) as folder:
            summary.add(job.sources[source].name, json.loads((folder / "counts.json").read_text()))
    return summary


def assemble(job: Job, summary: Summary, weights: dict[str, float], folder: Path) -> None:
    """Fills `folder` with everything of the data set but its shards, which `place` puts beside it.

    Args:
        job: the build.
        summary: of `collect`.
        weights: of each source, by name.
        folder: empty, local.
    """
    (folder / "index").mkdir()
    (folder / "build").mkdir()
    splits = {split: _join_split(job, split, summary, folder / "index") for split in job.splits}
    (folder / "spiece.model").write_bytes(job.model)
    shards.write_metadata(
        folder,
        shards.features(job.tokenizer.vocab_size),
        {split: (found["shard_records"], found.pop("num_bytes")) for split, found in splits.items()},
    )
    _join_quarantined(job, folder)
    np.save(folder / "build" / "held_out.npy", job.held_out)
    if job.duplicates is not None:
        with job.workplace.opened("joined/duplicates") as kept:
            shutil.copyfile(kept / "duplicates.npz", folder / "build" / "duplicates.npz")
    manifest = _manifest(job, summary, weights, splits)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _join_split(job: Job, split: str, summary: Summary, index: Path) -> dict[str, Any]:
    """Joins the parts' indexes, one part in memory at a time; returns what the manifest says of the split."""
    unigrams = np.zeros(job.tokenizer.vocab_size, np.int64)
    fingerprint = hashlib.sha256()
    found: dict[str, Any] = {"parts": [], "shard_records": [], "num_bytes": 0}
    continued: list[np.ndarray] = []
    sentences = 0
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(_array_file(index / f"{split}.{name}.npy", name, vars(summary.splits[split])))
            for name in _KEPT
        }
        for number, part in _indexes(job, split):
            if len(part["sentences_per_record"]):
                found["parts"].append(number)
                found["shard_records"].append(len(part["sentences_per_record"]))
                found["num_bytes"] += int(part["num_bytes"])
            for name, file in files.items():
                file.write(np.ascontiguousarray(part[name], _KEPT[name][1]).tobytes())
            fingerprint.update(part["digests"].tobytes())
            continued.append(part["continued_sentences"] + sentences)
            sentences += len(part["sentence_lengths"])
            unigrams += part["unigrams"]
    np.save(index / f"{split}.unigrams.npy", unigrams)
    np.save(index / f"{split}.continued_sentences.npy", np.concatenate(continued))
    return {"fingerprint": fingerprint.hexdigest(), **found}


def _indexes(job: Job, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for number in range(len(job.parts)):
        with job.workplace.opened(result("tokenize", number)) as folder, np.load(folder / f"{split}.npz") as part:
            yield number, dict(part)


@contextmanager
def _array_file(path: Path, name: str, counts: dict[str, int]) -> Iterator[BinaryIO]:
    """An .npy file of known length, opened behind its header."""
    of, dtype = _KEPT[name]
    shape = (counts[of], 16) if name == "digests" else (counts[of],)
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _join_quarantined(job: Job, folder: Path) -> None:
    for number in range(len(job.parts)):
        with job.workplace.opened(result("tokenize", number)) as part:
            if (part / "quarantined.jsonl").is_file():
                with open(part / "quarantined.jsonl", "rb") as bad, open(folder / "quarantined.jsonl", "ab") as file:
                    shutil.copyfileobj(bad, file)


def _manifest(
    job: Job, summary: Summary, weights: dict[str, float], splits: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    tokenizer = job.tokenizer
    return {
        "format": FORMAT,
        "vocabulary": {
            "sha256": hashlib.sha256(job.model).hexdigest(),
            "size": tokenizer.vocab_size,
            "do_lower_case": tokenizer.do_lower_case,
            "remove_space": tokenizer.remove_space,
            "keep_accents": tokenizer.keep_accents,
            "cleaning": tokenizer.cleaning,
        },
        "splits": {
            split: {
                **{name: getattr(summary.splits[split], name) for name in ("records", "documents", "sentences")},
                **{name: getattr(summary.splits[split], name) for name in ("tokens", "unknown_tokens", "text_bytes")},
                **splits[split],
                "sources": {name: dict(counts) for name, counts in summary.sources[split].items()},
            }
            for split in job.splits
        },
        "sources": [
            {"name": source.name, "weight": weights.get(source.name, 1.0), **source.manifest()}
            for source in job.sources[: job.training_sources]
        ],
        "validation_sources": [
            {"name": source.name, **source.manifest()} for source in job.sources[job.training_sources :]
        ],
        "near_duplicates_removed": job.near_duplicates,
        "dropped": dict(summary.dropped),
        "reading": dict(summary.log),
        "quarantined": summary.quarantined,
        "split_sentences": sum(counts.split_sentences for counts in summary.splits.values()),
        "created_by": f"albert_jax {albert_jax.__version__}",
    }


def shard_names(folder: Path) -> dict[str, str]:
    """For each shard of an assembled data set the name of the file in the workplace that it is."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        shards.shard_name(split, index, len(content["parts"])): f"{result('tokenize', number)}/{split}.array_record"
        for split, content in manifest["splits"].items()
        for index, number in enumerate(content["parts"])
    }


def place(job: Job, folder: Path, out: str, *, overwrite: bool) -> int:
    """Gives an assembled data set its shards and its final name; returns its size in bytes.

    Raises:
        UserError: it cannot be written, or something has come to be at `out` that may not be replaced.
    """
    if job.workplace.remote:
        shards_there = {name: f"{job.workplace.path}/{made}" for name, made in shard_names(folder).items()}
        return publish(folder, out, replace=overwrite, copied=shards_there)
    check_output(out, overwrite)
    for name, made in shard_names(folder).items():
        try:
            os.link(Path(job.workplace.path, made), folder / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(Path(job.workplace.path, made), folder / name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    target = Path(out)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(folder, target)
        shutil.rmtree(old)
    else:
        os.rename(folder, target)
    return size


def check_output(out: str, overwrite: bool) -> None:
    """Refuses an output that is there, unless it is a data set that may be replaced, or an upload that broke off.

    Raises:
        UserError: see above; also that `out` is in no store that can be written to.
    """
    directory(out)
    there = exists if is_remote(out) else os.path.lexists
    with named_refusals(out):
        whole = there(f"{out}/{MANIFEST}") and there(f"{out}/dataset_info.json")
        if not there(out) or (is_remote(out) and not whole and Workplace(out).begun()):
            return
    if not overwrite:
        raise UserError(f"{out!r} exists; give another --out, or --overwrite to replace it")
    if not whole:
        raise UserError(
            f"{out!r} is not a data set of this program, so --overwrite leaves it alone; give another --out"
        )
