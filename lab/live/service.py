"""A gateway that runs, as a black-box attack meets it: a scan is sent, a verdict and perhaps scores come back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gateway.client.client import Answer, Client, ClientError
from gateway.profile import Profile
from lab.attacks.dicom import Opened, written
from lab.attacks.guarded import with_verdict
from lab.data import DataError

IN_FLIGHT = 8
"""Questions under way at once."""
PAUSE_S = 0.5
"""After the first refusal for too many scans; each further pause is twice as long."""
_LEAST = 1e-7
"""Score below which logarithms say nothing more."""
_THROTTLED = "RESOURCE_EXHAUSTED"


class SpentError(Exception):
    """The attack is over before it ended: its questions are asked, or the gateway takes no more of them."""


@dataclass(slots=True)
class Told:
    """What the gateway let the attacker see."""

    questions: int = 0
    throttled: int = 0
    """Times that it asked to wait, beyond what the client waits for by itself."""
    dispositions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Through:
    """A scan that was misread and admitted."""

    content: bytes
    """The file that was sent."""
    stored: Tensor
    """(1, 1, rows, columns) its values."""
    linf: float
    """Largest change, stored values."""


class Service:
    """One scan's header before a gateway: called with stored values, it sends them as DICOM and tells the answers.

    Its answers have one column more than the model has classes, as `lab.attacks.guarded.Admitted` reads them. Every
    question goes the way of a clean scan: written into the object, sent, parsed, decoded and examined.
    """

    def __init__(
        self, client: Client, route: str, scan: Opened, label: int, profile: Profile, questions: int, patience_s: float
    ) -> None:
        """Stand before a gateway with one scan.

        Args:
            client: connected.
            route: to ask on.
            scan: whose middle frame is changed.
            label: right answer.
            profile: of the protected model.
            questions: at most.
            patience_s: how long one question may wait for a gateway that asks to.
        """
        self.told = Told()
        self.closest: Through | None = None
        """The misread and admitted scan nearest to the clean one so far; changed in some value."""
        self.last: bytes = scan.content
        self._client, self._route, self._scan, self._label = client, route, scan, label
        self._middle = len(scan.frames) // 2
        self._classes = {name: place for place, name in enumerate(profile.classes)}
        self._left, self._patience_s = questions, patience_s

    def __call__(self, stored: Tensor) -> Tensor:
        """Ask about (N, 1, rows, columns) stored values: (N, classes + 1).

        Raises:
            SpentError: there are fewer questions left, or the gateway keeps asking to wait.
            DataError: the gateway cannot be asked, or its route has no model behind it.
        """
        if len(stored) > self._left:
            raise SpentError("questions")
        self._left -= len(stored)
        contents = [self._file(values) for values in stored]
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            asked = [pool.submit(self._asked, content) for content in contents]
        for values, content, future in zip(stored, contents, asked, strict=True):
            if future.exception() is None:
                self._note(values[None], content, future.result())
        answers = [future.result() for future in asked]
        logits = torch.stack([self._logits(answer) for answer in answers])
        return with_verdict(logits, torch.tensor([not answer.admitted for answer in answers])).to(stored.device)

    def _file(self, values: Tensor) -> bytes:
        frames = self._scan.frames.clone()
        frames[self._middle] = values.cpu()
        return written(self._scan, frames)

    def _asked(self, content: bytes) -> Answer:
        pause, waited = PAUSE_S, 0.0
        while True:
            try:
                return self._client.protect(content, self._route)
            except ClientError as error:
                if error.status != _THROTTLED:
                    raise DataError(f"the gateway does not answer: {error}") from error
                self.told.throttled += 1
                if waited + pause > self._patience_s:
                    raise SpentError("rate limit") from error
            time.sleep(pause)
            pause, waited = 2 * pause, waited + pause

    def _note(self, values: Tensor, content: bytes, answer: Answer) -> None:
        self.told.questions += 1
        self.told.dispositions[answer.disposition] += 1
        self.told.reasons.update(answer.reasons)
        self.last = content
        if not answer.admitted or self._right(answer):
            return
        linf = float((values.cpu() - self._scan.frames[self._middle : self._middle + 1]).abs().max())
        if linf > 0 and (self.closest is None or linf < self.closest.linf):
            self.closest = Through(content, values.cpu(), linf)

    def _scores(self, answer: Answer) -> Sequence[float]:
        if answer.prediction is None:
            raise DataError("the route has no model behind it: nothing can be misread there")
        found = {each.name: each.score for each in answer.prediction.scores}
        if set(found) != set(self._classes):
            raise DataError("the gateway's model has other classes than the profile")
        return [found[name] for name in self._classes]

    def _right(self, answer: Answer) -> bool:
        scores = torch.tensor(self._scores(answer))
        return int(scores.argmax()) == self._label

    def _logits(self, answer: Answer) -> Tensor:
        """(classes,): the logarithms of an admitted scan's scores; of one that is held nothing is told."""
        if not answer.admitted:
            return torch.zeros(len(self._classes))
        return torch.tensor(self._scores(answer)).clamp_min(_LEAST).log()
