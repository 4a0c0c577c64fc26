# SPDX-License-Identifier: Apache-2.0
"""Turns SIGTERM and SIGINT into a wish to stop, which all processes of the run grant at the same place.

Two cases. While a run *prepares* (it opens data, restores, compiles) nothing is newer than the last checkpoint, so it
leaves at once, from a thread: Python's own handlers have to wait until a compilation is over. Between preparing and
training stands one decision that all processes share, 'train' or 'leave', and whoever writes it first has written it.

While it *trains*, every process asks `granted` before it starts anything on the devices that all of them must start. A
request, such as to stop or to save, holds all processes there, before the same call: each says how many calls it has
let pass, and the largest number of all is where the request is granted. The ones that are behind pass the calls in
between, since what the others have started cannot end without them. So nothing waits for more than the steps that are
under way, and no step carries flags.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, Self

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP, SAVE = "stop", "save"  # what can be requested
_LOOK = 0.2  # seconds between two looks at what the other processes decided
_CLOSE_LOOK = 0.01  # while they are about to decide

_log = logging.getLogger(__name__)


class Register:
    """A value that is written once; here it is shared by the threads of one process, in `distributed` by processes.

    Args:
      put: (key, value) -> whether it was written, because nothing stood there.
      get: key -> what stands there, or None.
    """

    def __init__(
        self, put: Callable[[str, str], bool] | None = None, get: Callable[[str], str | None] | None = None
    ) -> None:
        self._values: dict[str, str] = {}
        self.put = put or (lambda key, value: self._values.setdefault(key, value) is value)
        self.get = get or self._values.get


class Interruption:
    """While it is entered, the first SIGTERM or SIGINT is a wish to stop; further ones are passed over.

    A second signal must not break off the save that the first one led to: launchers repeat theirs. Enter it before
    anything that takes long is imported.

    Args:
      last: whether the process ends after it: signals are then passed over to its very end.

    Attributes:
      requested: whether this process, or while it prepares any process, was told to stop.
      name: of the signal.
      phase: what the run is doing, for those who watch it: 'start', 'data', 'restore', 'compile', 'step', 'evaluate',
        'save', 'finish'.
      leaving: set when the process is being left from the middle of its work; whatever fails from then on is due to it.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self.requested, self.name, self.phase = False, "", "start"
        self._register, self._process, self._processes = Register(), 0, 1
        self._preparing, self._round = True, 0
        self._requests: set[str] = set()  # of this process, not granted yet
        self._passed, self._grants, self._held = 0, 0, False
        self._lock = threading.RLock()
        self._previous: dict[int, object] = {}
        self._farewells: list[Callable[[], None]] = []
        self.leaving = threading.Event()

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="signals")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._wake()
        self._thread.join()
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)  # type: ignore[arg-type]
        os.close(self._reader)
        os.close(self._writer)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def on(self, number: signal.Signals, listener: Callable[[], None]) -> None:
        """Calls `listener` at another signal, in the main thread."""
        self._previous[number] = signal.signal(number, lambda *_: listener())

    def before_leaving(self, farewell: Callable[[], None]) -> None:
        """Calls `farewell` where the process is left from the middle of its work."""
        self._farewells.append(farewell)

    def share(self, register: Register, process: int, processes: int) -> None:
        """Makes the decision one of several processes; call it as soon as they have met."""
        with self._lock:
            self._register, self._process, self._processes = register, process, processes
        self._wake()  # the thread has to look at the others from now on
        if self.requested:
            self._wish()

    def prepare(self) -> None:
        """From here on nothing is newer than the last checkpoint, in all processes, until `begin`."""
        with self._lock:
            if not self._preparing:
                self._preparing, self._round = True, self._round + 1
                self._passed, self._grants, self._held = 0, 0, False
        if self.requested:
            self._wish()

    def begin(self) -> None:
        """Ends the preparation; call it when all processes are ready, in all of them.

        Where one of them has been told to stop meanwhile, none comes back from here.
        """
        key = self._decision()
        if self._process == 0:
            self._register.put(key, "train")
        while (decision := self._register.get(key)) is None:
            time.sleep(_LOOK / 10)
        if decision == "leave":
            self._leave()
        with self._lock:
            self._preparing = False

    def request(self, what: str) -> None:
        """Asks all processes for something, to be granted at their next common call of `granted`; from any thread."""
        with self._lock:
            self._requests.add(what)
        self._wake()

    def granted(self) -> frozenset[str]:
        """What was requested by any process and is to be done now, the same in all processes; most often nothing.

        Call it before each start of something that all processes must start, in all of them and in the same order, and
        wait for the last such thing to end before `prepare`.
        """
        while True:
            with self._lock:
                if self._processes == 1:
                    granted = frozenset(self._requests)
                    self._requests -= granted  # and none that a signal handler adds meanwhile
                    return granted
                if not self._held:
                    self._passed += 1
                    return frozenset()
                if (decided := self._register.get(f"{self._grant()}/decided")) is not None:
                    return self._pass_or_take(json.loads(decided))
            time.sleep(_CLOSE_LOOK)

    def _pass_or_take(self, decided: dict[str, Any]) -> frozenset[str]:
        if self._passed < decided["after"]:
            self._passed += 1
            return frozenset()
        self._grants, self._held = self._grants + 1, False
        granted = frozenset(decided["requests"])
        self._requests -= granted
        return granted

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Runs in the main thread, as soon as it can; the other thread has most likely been quicker."""
        self._note(number)

    def _note(self, number: int) -> None:
        if not self.requested:
            self.requested, self.name = True, signal.Signals(number).name
            self._requests.add(STOP)

    def _watch(self) -> None:
        while not self._ended.is_set():
            pause = None if self._processes == 1 else _CLOSE_LOOK if self._held else _LOOK
            select.select([self._reader], [], [], pause)
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._reader, 64):
                    if number in SIGNALS:
                        self._note(number)
            if self.requested:
                self._wish()
            elif self._processes > 1:
                self._look()
            if self._processes > 1:
                with contextlib.suppress(Exception):  # the store is gone with process 0, and the runtime ends this one
                    self._negotiate()

    def _grant(self) -> str:
        return f"albert_jax/grant/{self._round}.{self._grants}"

    def _negotiate(self) -> None:
        """Makes this process's requests known to the others, and answers theirs."""
        with self._lock:
            if self._preparing:
                return
            key = self._grant()
            if self._requests and not self._held:
                self._register.put(f"{key}/requested", "")
            if not self._held and self._register.get(f"{key}/requested") is not None:
                self._held = True
                answer = {"after": self._passed, "requests": sorted(self._requests)}
                self._register.put(f"{key}/{self._process}", json.dumps(answer))
            if not self._held or self._process:
                return
        answers = [self._register.get(f"{key}/{process}") for process in range(self._processes)]
        if None not in answers:
            said = [json.loads(str(answer)) for answer in answers]
            requests = sorted(set().union(*(answer["requests"] for answer in said)))
            decided = {"after": max(answer["after"] for answer in said), "requests": requests}
            self._register.put(f"{key}/decided", json.dumps(decided))

    def _decision(self) -> str:
        return f"albert_jax/decision/{self._round}"

    def _wish(self) -> None:
        """Leaves at once where the run is only preparing; else the loop will."""
        with self._lock:
            if self._preparing:
                self._register.put(self._decision(), "leave")
                if self._register.get(self._decision()) != "train":
                    self._leave()

    def _look(self) -> None:
        """Leaves where another process was told to stop while this one prepares."""
        with self._lock:
            if self._preparing and self._register.get(self._decision()) == "leave":
                self.requested, self.name = True, "a signal to another process"
                self._leave()

    def _leave(self) -> None:
        """Ends the process, from whatever it is doing."""
        self.leaving.set()
        _log.info(
            "interrupted by %s during '%s': nothing new to save; the same command goes on from the last checkpoint.",
            self.name or "a signal to another process",
            self.phase,
        )
        for farewell in self._farewells:
            with contextlib.suppress(Exception):
                farewell()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
