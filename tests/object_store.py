# SPDX-License-Identifier: Apache-2.0
"""A Google Cloud Storage of our own, in memory, behind the JSON API on this machine.

It answers gcsfs, tensorstore (so Orbax) and array_record's reader: uploads in one piece, in two parts and resumable,
ranges, listings with prefixes and pages, deletion, copies and moves, generations and their preconditions. A test module
that says `pytest_plugins = ["tests.object_store"]` has the fixture `object_store`. What it cannot do is fail by itself:
`fail` and `damage` are for that.
(PYTEST_DONT_REWRITE: it is imported before pytest registers it.)
"""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import google_crc32c
import pytest
from etils import epath

_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")
_COPY = re.compile(_OBJECT.pattern + r"/(?:copyTo|rewriteTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to>[^/]+)")
_MOVE = re.compile(_OBJECT.pattern + r"/moveTo/o/(?P<to>[^/]+)")
_LIST = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o")
_BUCKET = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)")
_UPLOAD = re.compile(r"(?:/upload|/resumable/upload)/storage/v1/b/(?P<bucket>[^/]+)/o")
_XML = re.compile(r"/(?P<bucket>[^/]+)/(?P<name>.+)")
Parameters = dict[str, str]


class _RefusalError(Exception):
    """An answer that is no success: its status and why."""


@dataclasses.dataclass
class _Object:
    """One object.

    Attributes:
      data: its bytes.
      crc32c: of what was uploaded, in base64, as the service gives it.
      md5: likewise.
      generation: the store's counter when it was written.
      written: seconds since 1970.
    """

    data: bytes
    crc32c: str
    md5: str
    generation: int
    written: float

    @classmethod
    def of(cls, data: bytes, generation: int) -> "_Object":
        crc32c = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        return cls(data, crc32c, base64.b64encode(hashlib.md5(data).digest()).decode(), generation, time.time())

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """The object's metadata, as the JSON API gives them."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.written)) + f".{int(self.written % 1 * 1000):03d}Z"
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self.generation}",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "md5Hash": self.md5,
            "generation": str(self.generation),
            "metageneration": "1",
            "etag": f"g{self.generation}",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": stamp,
            "updated": stamp,
        }


@dataclasses.dataclass
class _Fault:
    """Requests yet to fail: how many, of which method (any where empty), with what text in them, with which status.

    `done` says that the store does what is asked, and only its answer is lost.
    """

    times: int
    method: str
    containing: str
    status: int
    done: bool = False


# --- the store --------------------------------------------------------------------------------------------------------


class ObjectStore:
    """The objects, by bucket and name, and the server that gives them out; buckets need not be created.

    Attributes:
      page: most entries of one answer to a listing.
      requests: "METHOD PATH?PARAMETERS" of all requests so far, unquoted; an upload in two parts names its object too.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._buckets: dict[str, dict[str, _Object]] = {}
            self._sessions: dict[str, tuple[str, str, Parameters, bytearray]] = {}
            self._faults: list[_Fault] = []
            self._generation = 1
            self.page, self.requests = 1000, list[str]()

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """The variables that lead gcsfs, tensorstore and array_record here, without anybody's credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask by gRPC what kind of bucket this is
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # otherwise tensorstore looks for a machine in the cloud
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "NO_GCE_CHECK": "true",
            "CLOUDSDK_CONFIG": "/dev/null",
            "GOOGLE_APPLICATION_CREDENTIALS": "",
        }

    # For tests.

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Writes an object."""
        with self._lock:
            self._generation += 1
            self._buckets.setdefault(bucket, {})[name] = _Object.of(bytes(data), self._generation)

    def get(self, bucket: str, name: str) -> bytes:
        """Reads an object; KeyError where there is none."""
        with self._lock:
            return self._buckets[bucket][name].data

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of a bucket's objects that begin so, sorted."""
        with self._lock:
            return sorted(name for name in self._buckets.get(bucket, {}) if name.startswith(prefix))

    def delete(self, bucket: str, name: str) -> None:
        """Deletes an object; KeyError where there is none."""
        with self._lock:
            del self._buckets[bucket][name]

    def damage(self, bucket: str, name: str, at: int = 0) -> None:
        """Flips the bits of one byte behind the back of the object's checksums and generation."""
        with self._lock:
            found = self._buckets[bucket][name]
            changed = bytearray(found.data)
            changed[at] ^= 0xFF
            found.data = bytes(changed)

    def fail(
        self, times: int, *, method: str = "", containing: str = "", status: int = 503, done: bool = False
    ) -> None:
        """Lets the next so many requests fail with a status, of those like `requests` with this method and text.

        With `done` they are carried out, and only the answer says that they failed.
        """
        with self._lock:
            self._faults.append(_Fault(times, method, containing, status, done))

    def clear_faults(self) -> None:
        """Lets nothing fail any more."""
        with self._lock:
            self._faults.clear()

    # For the handler.

    def fault(self, request: str) -> _Fault | None:
        """How a request is to fail, None where it is not; keeps the request in `requests`."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times and request.startswith(fault.method) and fault.containing in request:
                    fault.times -= 1
                    return fault
        return None

    def check(self, bucket: str, name: str, parameters: Parameters, *, reading: bool = False) -> _Object | None:
        """The object, if there is one, once the preconditions of a request hold."""
        with self._lock:
            found = self._buckets.get(bucket, {}).get(name)
        generation = found.generation if found else 0
        match, other = (parameters.get(f"ifGeneration{kind}Match") for kind in ("", "Not"))
        if match is not None and int(match) != generation:
            raise _RefusalError(412, "conditionNotMet")
        if other is not None and int(other) == generation:
            raise _RefusalError(304 if reading else 412, "conditionNotMet")
        if found and int(parameters.get("generation") or generation) != generation:
            found = None
        return found

    def existing(self, bucket: str, name: str, parameters: Parameters, *, reading: bool = False) -> _Object:
        """The object; refused where there is none."""
        found = self.check(bucket, name, parameters, reading=reading)
        if found is None:
            raise _RefusalError(404, f"No such object: {bucket}/{name}")
        return found

    def upload(self, bucket: str, name: str, parameters: Parameters, data: bytes) -> dict[str, Any]:
        """Writes an object if the preconditions hold; gives its metadata."""
        with self._lock:
            self.check(bucket, name, parameters)
            self.put(bucket, name, data)
            return self._buckets[bucket][name].resource(bucket, name)

    def remove(self, bucket: str, name: str, parameters: Parameters) -> None:
        """Deletes an object if the preconditions hold."""
        with self._lock:
            self.existing(bucket, name, parameters)
            self.delete(bucket, name)

    def copy(self, source: tuple[str, str], target: tuple[str, str], parameters: Parameters) -> dict[str, Any]:
        """Copies an object; gives the copy's metadata."""
        with self._lock:
            found = self.existing(*source, {"generation": parameters.get("sourceGeneration", "")})
            return self.upload(*target, parameters, found.data)

    def listing(self, bucket: str, parameters: Parameters) -> dict[str, Any]:
        """One page of a listing; a page's token is its first name or prefix."""
        prefix, delimiter, end = (parameters.get(k, "") for k in ("prefix", "delimiter", "endOffset"))
        first = max(parameters.get("startOffset", ""), parameters.get("pageToken", ""))
        with self._lock:
            entries: dict[str, dict[str, Any] | None] = {}
            for name in self.names(bucket, prefix):
                if end and name >= end:
                    continue
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                entry = name if cut < 0 else name[: cut + len(delimiter)]
                if entry >= first:
                    entries[entry] = self._buckets[bucket][name].resource(bucket, name) if cut < 0 else None
        size = min(self.page, int(parameters.get("maxResults", self.page)))
        shown, rest = list(entries)[:size], list(entries)[size:]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        items, prefixes = [entries[k] for k in shown if entries[k]], [k for k in shown if not entries[k]]
        answer |= ({"items": items} if items else {}) | ({"prefixes": prefixes} if prefixes else {})
        return answer | ({"nextPageToken": rest[0]} if rest else {})

    def begin(self, bucket: str, name: str, parameters: Parameters) -> str:
        """Begins a resumable upload; gives its id."""
        with self._lock:
            self.check(bucket, name, parameters)
            session = f"upload-{len(self._sessions)}-{self._generation}"
            self._sessions[session] = bucket, name, parameters, bytearray()
            return session

    def resume(self, session: str, content_range: str, data: bytes) -> dict[str, Any] | int:
        """Takes a piece of a resumable upload; gives the object's metadata when it is whole, else the bytes so far."""
        with self._lock:
            if session not in self._sessions:
                raise _RefusalError(404, f"no such upload: {session}")
            bucket, name, parameters, received = self._sessions[session]
            form = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)", content_range or f"bytes */{len(data)}")
            if form is None:
                raise _RefusalError(400, f"Content-Range is {content_range!r}")
            if form[1] is not None or not content_range:
                begin = int(form[1] or 0)
                if begin > len(received):
                    raise _RefusalError(400, f"a piece at {begin} after {len(received)} bytes")
                received[begin:] = data
            if form[3] == "*" or int(form[3]) != len(received):
                return len(received)
            del self._sessions[session]
            return self.upload(bucket, name, parameters, bytes(received))

    def cancel(self, session: str) -> None:
        """Gives a resumable upload up."""
        with self._lock:
            self._sessions.pop(session, None)


# --- the server -------------------------------------------------------------------------------------------------------


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: ObjectStore):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says what went wrong here, but not that a client hung up: array_record does after every record."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    _silent = False

    def _answer(self) -> None:
        store = self.server.store
        data = self._body()  # read in any case: what is left of it would be taken for the next request
        url = urllib.parse.urlsplit(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        try:
            if parameters.get("uploadType") == "multipart":
                name, data = self._two_parts(data)
                parameters.setdefault("name", name)
            asked = "&".join(f"{key}={value}" for key, value in parameters.items())
            fault = store.fault(f"{self.command} {urllib.parse.unquote(url.path)}{'?' * bool(asked)}{asked}")
            self._silent = fault is not None
            if fault is None or fault.done:
                self._route(store, url.path, parameters, data)
            self._silent = False
            if fault is not None:
                raise _RefusalError(fault.status, "not available, by the test's wish")
        except _RefusalError as refusal:
            self._silent = False
            status, reason = refusal.args
            error = {"code": status, "message": reason, "errors": [{"reason": reason, "message": reason}]}
            self._send(b"" if status == 304 else json.dumps({"error": error}).encode(), status)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _route(self, store: ObjectStore, path: str, parameters: Parameters, data: bytes) -> None:
        method = self.command
        if (upload := _UPLOAD.fullmatch(path)) and method in ("POST", "PUT", "DELETE"):
            self._upload(store, urllib.parse.unquote(upload["bucket"]), parameters, data)
        elif (copy := _COPY.fullmatch(path)) and method == "POST":
            source, target = _unquoted(copy, "bucket", "name"), _unquoted(copy, "to_bucket", "to")
            resource = store.copy(source, target, parameters)
            rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
            self._json(rewritten if "/rewriteTo/" in path else resource)
        elif (move := _MOVE.fullmatch(path)) and method == "POST":
            bucket, source_name, target_name = (urllib.parse.unquote(move[k]) for k in ("bucket", "name", "to"))
            resource = store.copy((bucket, source_name), (bucket, target_name), parameters)
            store.delete(bucket, source_name)
            self._json(resource)
        elif (found := _OBJECT.fullmatch(path)) and method == "DELETE":
            store.remove(*_unquoted(found, "bucket", "name"), parameters)
            self._send(b"", 204)
        elif found and method in ("GET", "HEAD"):
            media = parameters.get("alt") == "media"
            self._object(store.existing(*_unquoted(found, "bucket", "name"), parameters, reading=True), found, media)
        elif (listed := _LIST.fullmatch(path)) and method == "GET":
            self._json(store.listing(urllib.parse.unquote(listed["bucket"]), parameters))
        elif (bucket_match := _BUCKET.fullmatch(path)) and method == "GET":
            self._json({"kind": "storage#bucket", "name": bucket_match["bucket"], "id": bucket_match["bucket"]})
        elif path == "/storage/v1/b" and method == "POST":
            self._json({"kind": "storage#bucket", "name": json.loads(data)["name"]})
        elif (found := _XML.fullmatch(path)) and method in ("GET", "HEAD") and not path.startswith("/storage/"):
            self._object(store.existing(*_unquoted(found, "bucket", "name"), parameters, reading=True), found, True)
        else:
            raise _RefusalError(501, f"{method} {self.path} is not answered by tests/object_store.py")

    def _upload(self, store: ObjectStore, bucket: str, parameters: Parameters, data: bytes) -> None:
        if session := parameters.get("upload_id"):
            if self.command == "DELETE":
                store.cancel(session)
                raise _RefusalError(499, "cancelled")
            answer = store.resume(session, self.headers.get("Content-Range", ""), data)
            if isinstance(answer, int):
                self._send(b"", 308, {"Range": f"bytes=0-{answer - 1}"} if answer else {})
            else:
                self._json(answer)
            return
        kind = parameters["uploadType"]
        if kind in ("media", "multipart"):
            self._json(store.upload(bucket, parameters["name"], parameters, data))
        else:
            name = parameters.get("name") or json.loads(data)["name"]
            session = store.begin(bucket, name, parameters)
            path = f"/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o?uploadType=resumable&upload_id={session}"
            self._send(b"", 200, {"Location": f"{store.url}{path}"})

    def _two_parts(self, data: bytes) -> tuple[str, bytes]:
        """The name and the content of a multipart/related upload, whose lines end in either way."""
        boundary = re.escape(f"--{self.headers.get_boundary()}".encode())
        form = rb"\s*%b\r?\n.*?\r?\n\r?\n(?P<json>.*?)\r?\n%b\r?\n.*?\r?\n\r?\n(?P<content>.*)\r?\n%b--\s*"
        parts = re.fullmatch(form % (boundary, boundary, boundary), data, re.DOTALL)
        if parts is None:
            raise _RefusalError(400, "this is no multipart/related upload of two parts")
        return json.loads(parts["json"]).get("name", ""), parts["content"]

    def _object(self, found: _Object, match: re.Match[str], media: bool) -> None:
        if not media:
            self._json(found.resource(*_unquoted(match, "bucket", "name")))
            return
        headers = {
            "X-Goog-Hash": f"crc32c={found.crc32c},md5={found.md5}",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Stored-Content-Length": str(len(found.data)),
            "ETag": f'"g{found.generation}"',
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or asked[0] == "bytes=-":
            self._send(found.data, 200, headers)
            return
        size = len(found.data)
        begin = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        end = min(size, int(asked[2]) + 1) if asked[1] and asked[2] else size
        if begin >= size:
            raise _RefusalError(416, f"the range begins at {begin} of {size} bytes")
        self._send(found.data[begin:end], 206, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, answer: dict[str, Any]) -> None:
        self._send(json.dumps(answer).encode(), 200, {"Content-Type": "application/json; charset=UTF-8"})

    def _send(self, data: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        if self._silent:
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: `ObjectStore.requests` has it."""


def _unquoted(match: re.Match[str], bucket: str, name: str) -> tuple[str, str]:
    return urllib.parse.unquote(match[bucket]), urllib.parse.unquote(match[name])


# --- fixtures ---------------------------------------------------------------------------------------------------------


def forget() -> None:
    """Makes this process's clients forget listings, which they keep, and the store that they first led to."""
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture(scope="session")
def _object_store_server() -> Iterator[ObjectStore]:
    """One server for all tests: its clients keep its address."""
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def object_store(_object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store that gs:// paths of this process, and of those that it starts, lead to."""
    _object_store_server.clear()
    for name, value in _object_store_server.environment().items():
        monkeypatch.setenv(name, value)
    forget()
    return _object_store_server
