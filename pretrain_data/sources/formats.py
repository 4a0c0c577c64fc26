# SPDX-License-Identifier: Apache-2.0
"""What a file's name and its first bytes tell of its format.

Text has no mark of its own, so whatever else is known is told from it: a corpus of tags, column names or HTTP headers
would train without an error.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from albert_jax.errors import UserError
from pretrain_data.sources.base import listing
from pretrain_data.sources.files import COMPRESSED_SUFFIXES, open_binary

KINDS = ("text", "jsonl", "parquet", "wikiextractor", "mediawiki", "tfds")
_READ = {
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
    ".xml": "mediawiki",
}
_HEAD_BYTES = 512
_LOOKS = 16  # files of a source that are opened to look at their first bytes


class _Other(NamedTuple):
    """A format that is not read: what it is, and what to do; {path} is the file."""

    what: str
    remedy: str


def _as_parquet(table: str) -> str:
    """A command that writes a table, an expression of c (CSV), f (Feather) and i (Arrow's streams), as Parquet."""
    code = "import pyarrow.csv as c, pyarrow.feather as f, pyarrow.ipc as i, pyarrow.parquet as p"
    return (
        f"""run python -c '{code}; p.write_table({table}, "{{path}}.parquet")' and name {{path}}.parquet with --field"""
    )


_CSV = 'c.read_csv("{path}", parse_options=c.ParseOptions(%snewlines_in_values=True))'
# Both forms: files, which begin with this mark, and streams, as data sets of Hugging Face are.
_ARROW = 'f.read_table("{path}") if open("{path}", "rb").read(6) == b"ARROW1" else i.open_stream("{path}").read_all()'
_UNPACK = "unpack it and name the files in it"
_CONVERT = "convert it to plain text first, as pandoc does"
_EXTRACT = "extract its text first, as trafilatura does"
_OTHERS = {
    ".csv": _Other("a table in CSV", _as_parquet(_CSV % "")),
    ".tsv": _Other("a table in TSV", _as_parquet(_CSV % 'delimiter="\\t", ')),
    **dict.fromkeys((".arrow", ".feather"), _Other("an Arrow file", _as_parquet(_ARROW))),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _Other("a page in HTML", _EXTRACT)),
    **dict.fromkeys(
        (".warc", ".wet", ".wat", ".arc"),
        _Other("a web archive", "write the text of its records as JSON lines first, as warcio and datatrove do"),
    ),
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar"), _Other("an archive of files", _UNPACK)),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".epub", ".tex"), _Other("a document", _CONVERT)),
    ".pdf": _Other("a document in PDF", "convert it to plain text first, as pdftotext does"),
    **dict.fromkeys(
        (".lz4", ".br", ".lzma", ".z", ".lzo", ".sz", ".lz"),
        _Other("compressed in a way that is not read", f"use {listing(COMPRESSED_SUFFIXES)}"),
    ),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords", ".array_record", ".record"),
        _Other("a file of records", "name the data set that it belongs to as tfds:FOLDER"),
    ),
}
_COMPRESSED = _Other("compressed, but its name does not say so", "give its name the suffix {suffix}")
_XML = _Other("XML, but no dump of MediaWiki", _EXTRACT)
# First bytes, behind a byte-order mark and white space, and what they tell: a kind that is read, or one that is not.
_SIGNATURES: tuple[tuple[bytes, str | _Other], ...] = (
    (rb'<doc id="', "wikiextractor"),
    (rb"(<\?xml[^>]*>\s*)?<mediawiki", "mediawiki"),
    (rb"PAR1", "parquet"),
    (rb'\{\s*"', "jsonl"),
    (rb"WARC/[\d.]+\s", _OTHERS[".warc"]),
    (rb"(?i)(<\?xml[^>]*>\s*)?(<!doctype html|<html|<head|<body)", _OTHERS[".html"]),
    (rb"<\?xml\s", _XML),
    (rb"%PDF-", _OTHERS[".pdf"]),
    (rb"\{\\rtf", _OTHERS[".rtf"]),
    (rb"ARROW1\0\0", _OTHERS[".feather"]),
    (rb"PK\x03\x04|Rar!\x1a|7z\xbc\xaf", _OTHERS[".zip"]),
    (rb"(?s).{257}ustar", _OTHERS[".tar"]),
    *(
        (magic, _COMPRESSED._replace(remedy=_COMPRESSED.remedy.format(suffix=suffix)))
        for magic, suffix in (
            (rb"\x1f\x8b", ".gz"),
            (rb"BZh[1-9]1AY", ".bz2"),
            (rb"\xfd7zXZ\0", ".xz"),
            (rb"\x28\xb5\x2f\xfd", ".zst"),
        )
    ),
)


def kind_of_files(paths: Sequence[str], what: str) -> str:
    """The kind of the files that `--source` names without saying it.

    Args:
        paths: the files.
        what: as the source names them.

    Raises:
        UserError: they are of a format that is not read or not known, or of several.
    """
    kinds = sorted({_kind_by_name(path, what) for path in paths})
    if len(kinds) > 1:
        raise UserError(
            f"{what!r} matches files of different kinds ({', '.join(kinds)}); name each kind by a --source of its own, "
            f"or say what all of them are as in {kinds[-1]}:{what}"
        )
    if kinds == ["text"]:
        for path in paths[:: -(-len(paths) // _LOOKS)]:
            _check_text(path, what)
    return kinds[0]


def _kind_by_name(path: str, what: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    name = next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), name)
    if "pages-articles" in name:  # parts of Wikipedia's dumps end in -p1p41242
        return "mediawiki"
    suffix = os.path.splitext(name)[1]
    if suffix in _OTHERS:
        raise _refusal(path, what, _OTHERS[suffix])
    if suffix.strip(".").isdecimal() or not suffix:  # wiki_00, part.0001
        return "text"
    if suffix not in _READ:
        raise UserError(
            f"the suffix of {path!r} is that of no format known here; say what it is, as in text:{what} (the kinds are "
            f"{listing(KINDS)})"
        )
    return _READ[suffix]


def _check_text(path: str, what: str) -> None:
    """Refuses a file that is called text and begins as something else does."""
    with open_binary(path) as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    found = next((found for signature, found in _SIGNATURES if re.match(signature, head)), None)
    if isinstance(found, _Other):
        raise _refusal(path, what, found)
    if found:
        looks = {"wikiextractor": "output of WikiExtractor", "mediawiki": "a dump of MediaWiki", "jsonl": "JSON lines"}
        raise UserError(
            f"{path!r} looks like {looks.get(found, found)}; name it as {found}:{what}, or as text:{what} if it is none"
        )


def _refusal(path: str, what: str, other: _Other) -> UserError:
    remedy = other.remedy.replace("{path}", path)
    return UserError(f"{path!r} is {other.what}; {remedy}, or name it as text:{what} if it is plain text")
