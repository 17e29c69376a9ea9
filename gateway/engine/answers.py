"""The worker's way to models that only a server has: this process asks for it, since the worker has no network."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.errors import AnswerError
from detectors.models.answers import Ask
from gateway.deadline import Deadline
from gateway.errors import GatewayError

_FLOAT_BYTES = 4
_log = structlog.get_logger(__name__)


class Answering(Protocol):
    """A model's server; safe to call from many threads at once."""

    def answers(self, images: NDArray[np.float32], deadline: Deadline) -> NDArray[np.float32]:
        """(N, …) as the model gives it for (N, channels, rows, columns); raises `UpstreamError`."""


def attend(
    connection: Connection, servers: Mapping[str, Answering], deadline: Callable[[], Deadline]
) -> threading.Thread:
    """Answer one worker's questions, in a thread of their own, until it is gone.

    Args:
        connection: this end of the line; closed with it.
        servers: by model.
        deadline: until when somebody waits for what the worker has in hand.
    """
    thread = threading.Thread(target=_attend, args=(connection, servers, deadline), name="engine-answers", daemon=True)
    thread.start()
    return thread


def _attend(connection: Connection, servers: Mapping[str, Answering], deadline: Callable[[], Deadline]) -> None:
    with connection:
        while True:
            try:
                question = json.loads(connection.recv_bytes())
                images = _received(connection, tuple(question["shape"]))
                try:
                    answers = servers[question["model"]].answers(images, deadline())
                except Exception as error:  # whatever it was: the worker waits
                    said = str(error) if isinstance(error, GatewayError) else type(error).__name__
                    _log.warning("examination_unanswered", model=question["model"], reason=said)
                    connection.send_bytes(json.dumps({"error": said}).encode())
                else:
                    connection.send_bytes(json.dumps({"shape": answers.shape}).encode())
                    connection.send_bytes(np.ascontiguousarray(answers, np.float32).data)
            except (EOFError, OSError):
                return  # the worker is gone; another one gets another line


def asking(connection: Connection, model: str) -> Ask:
    """The worker's end: a function from images to answers; raises `AnswerError`."""

    def ask(images: Tensor) -> Tensor:
        connection.send_bytes(json.dumps({"model": model, "shape": images.shape}).encode())
        connection.send_bytes(np.ascontiguousarray(images.numpy(), np.float32).data)
        answer = json.loads(connection.recv_bytes())
        if "error" in answer:
            raise AnswerError(answer["error"])
        return torch.from_numpy(_received(connection, tuple(answer["shape"])).copy())

    return ask


def _received(connection: Connection, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The numbers that follow their shape; raises `OSError` where they are more."""
    return np.frombuffer(connection.recv_bytes(_FLOAT_BYTES * math.prod(shape)), np.float32).reshape(shape)
