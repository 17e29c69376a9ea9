"""Whole studies on one stream: a thread takes instances in, others examine them, the handler answers in order."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from typing import TypeAlias

from gateway.api.v1 import gateway_pb2 as pb
from gateway.errors import Overloaded, ScanError
from gateway.receivers.chunks import BeginObject, Received, next_object
from gateway.reply import Reply

IN_FLIGHT = 8
"""Instances of one study that are examined or wait to be answered: enough to fill batches, few enough to hold."""

_LOOK_S = 0.5
"""How often a reader that nobody listens to any more notices it."""

Examine: TypeAlias = Callable[[Received, int], Reply]
_Item: TypeAlias = "Future[Reply] | Exception | None"


class StudyRoom:
    """Room for some studies at a time, and the threads that examine their instances."""

    def __init__(self, threads: int, *, instances_max: int) -> None:
        """`threads` as the door has for calls: a study may take a quarter of them, and never all."""
        self._places = threading.BoundedSemaphore(max(1, threads // 4))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="study")
        self._instances_max = instances_max

    def answers(self, parts: Iterator[pb.ProtectChunk], begin: BeginObject, examine: Examine) -> Iterator[Reply]:
        """Answer the instances in the order in which they come, until the sender closes its side.

        Args:
            parts: as `chunks.pieces` gives them.
            begin: called with the first piece of each object.
            examine: called with each object and its number from 1, for several objects at a time; the first alone,
                since it says which study this is.

        Raises:
            Overloaded: too many studies are under way.
            ScanError: pieces in another order, or too many instances; beside whatever `examine` raises.
            CutOff: the stream ended in the middle of an instance.
        """
        if not self._places.acquire(blocking=False):
            raise Overloaded("too many studies are under way at once")
        try:
            reader = _Reader(self._pool, self._instances_max, lambda: next_object(parts, begin), examine)
            with reader:
                yield from reader.replies()
        finally:
            self._places.release()

    def close(self) -> None:
        """Finish what is being examined."""
        self._pool.shutdown()


class _Reader:
    """One study's thread that takes instances in, and the queue of what they will be answered."""

    def __init__(
        self, pool: ThreadPoolExecutor, instances_max: int, take: Callable[[], Received | None], examine: Examine
    ) -> None:
        self._pool = pool
        self._instances_max = instances_max
        self._take = take
        self._examine = examine
        self._answers: queue.Queue[_Item] = queue.Queue(IN_FLIGHT)
        self._stopped = threading.Event()
        # In a context of its own, since who calls is known by context.
        self._thread = threading.Thread(target=copy_context().run, args=(self._read,), name="study", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Take no more in; what is being examined is finished first, so that no good scan is held for a bad one."""
        self._stopped.set()
        with suppress(queue.Empty):
            while True:
                item = self._answers.get_nowait()
                if isinstance(item, Future):
                    wait([item])

    def replies(self) -> Iterator[Reply]:
        while (item := self._answers.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item.result()

    def _read(self) -> None:
        try:
            for number in itertools.count(1):
                received = self._take()
                if received is None:
                    self._put(None)
                    return
                if number > self._instances_max:
                    raise ScanError(f"the study has more than {self._instances_max} instances")
                answer = self._pool.submit(copy_context().run, self._examine, received, number)
                del received  # the next object may be large too
                if not self._put(answer):
                    return
                if number == 1:
                    wait([answer])
        except Exception as error:  # the handler's thread says it, whatever it is
            self._put(error)

    def _put(self, item: _Item) -> bool:
        """Whether somebody still listens."""
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._answers.put(item, timeout=_LOOK_S)
                return True
        return False
