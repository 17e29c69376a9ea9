"""Signed scans, tampered with in thousands of ways and screened by a gateway that runs: none may be admitted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from gateway.client.client import Answer, Client, ClientError
from lab.attacks.command import FILES_MAX, REPORT, apart
from lab.attacks.tampering import edited, empty_fragment
from lab.data import DataError
from lab.progress import Watch
from lab.statistics import clopper_pearson
from signing import read
from signing.dictionary import DATA_SET_TRAILING_PADDING, DIGITAL_SIGNATURES_SEQUENCE, MAC_PARAMETERS_SEQUENCE
from signing.testing import strip_signatures

IN_FLIGHT = 8
"""Scans under way at once."""
KEPT_MAX = 100
"""Admitted forgeries that are kept as files: the first is already too many."""
_PIXEL_DATA = 0x7FE00010
_SPARED = (MAC_PARAMETERS_SEQUENCE, DIGITAL_SIGNATURES_SEQUENCE, DATA_SET_TRAILING_PADDING)
"""PS3.3 C.12.1.1.3.1.1: no signature covers padding; PS3.10 7.2: it means nothing, so that a change is no forgery."""
_SIGNATURES = ("MACParametersSequence", "DigitalSignaturesSequence")
_MEANINGS = ("PatientID", "PatientName", "StudyDate", "SeriesDescription", "BodyPartExamined", "AccessionNumber")

Draws = np.random.Generator
Varied = Callable[[bytes, Sequence[bytes], Draws], bytes]
"""Maps a signed file, all signed files and chance to what an intruder sends; ValueError where it cannot be done."""


def pixels(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """One bit of Pixel Data, anywhere."""
    element = read(content).get(_PIXEL_DATA)
    assert element is not None
    values = element if element.fragments is None else element.fragments[draws.integers(1, len(element.fragments))]
    return _flipped(content, values.offset, values.offset + values.length, draws)


def metadata(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """One element that says whose scan this is, or of what: another word in its place."""

    def change(dataset: Dataset) -> None:
        name = _MEANINGS[draws.integers(len(_MEANINGS))]
        value = f"{draws.integers(10**8):08d}" if name != "StudyDate" else f"20{draws.integers(10, 25)}0101"
        setattr(dataset, name, value)

    return edited(content, change)


def window(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """Another window."""

    def change(dataset: Dataset) -> None:
        dataset.WindowCenter, dataset.WindowWidth = f"{draws.normal(0, 500):.3f}", f"{draws.uniform(1, 4000):.3f}"

    return edited(content, change)


def fragments(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """A few empty fragments more, somewhere; of an encapsulated object alone."""
    for _ in range(int(draws.integers(1, 9))):
        content = empty_fragment(content, draws.uniform())
    return content


def stripping(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """No signatures any more, and another name for the object, as if it had never had any."""
    return replay(strip_signatures(content), (), draws)


def replay(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """The same pixels and patient as a new instance of another study, as if taken anew."""

    def change(dataset: Dataset) -> None:
        fresh = [generate_uid(entropy_srcs=[str(draws.integers(2**62))]) for _ in range(2)]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = fresh[0]
        dataset.StudyInstanceUID = fresh[1]

    return edited(content, change)


def graft(content: bytes, others: Sequence[bytes], draws: Draws) -> bytes:
    """The signatures of another scan, which are valid there."""
    strange = [each for each in others if each != content]
    if not strange:
        raise ValueError("there is no other scan to take signatures from")
    donor: list[Dataset] = []
    edited(strange[draws.integers(len(strange))], donor.append)

    def change(dataset: Dataset) -> None:
        for name in _SIGNATURES:
            setattr(dataset, name, getattr(donor[0], name))
        dataset.InstanceNumber = str(draws.integers(10**6))

    return edited(content, change)


def bits(content: bytes, _others: Sequence[bytes], draws: Draws) -> bytes:
    """One bit of the data set, anywhere but in the signatures themselves and in padding, which means nothing."""
    element = [each for each in read(content).elements if each.tag not in _SPARED]
    chosen = element[draws.integers(len(element))]
    return _flipped(content, chosen.start, chosen.end, draws)


VARIED: Mapping[str, Varied] = {
    "pixels": pixels,
    "metadata": metadata,
    "window": window,
    "fragments": fragments,
    "stripping": stripping,
    "replay": replay,
    "graft": graft,
    "bits": bits,
}
"""By name, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """A tampered scan."""

    tampering: str
    content: bytes


def forgeries(scans: Sequence[bytes], names: Sequence[str], count: int, seed: int) -> Iterator[Forgery]:
    """Yield tampered scans, the ways and the scans in turn; what cannot be done to a scan is done to the next.

    Raises:
        DataError: a tampering that can be done to none of the scans.
    """
    draws = np.random.default_rng(seed)
    for number in range(count):
        name = names[number % len(names)]
        for place in range(len(scans)):
            scan = scans[(number // len(names) + place) % len(scans)]
            try:
                yield Forgery(name, VARIED[name](scan, scans, draws))
            except ValueError:
                continue
            break
        else:
            raise DataError(f"{name}: can be done to none of these scans")


def tamper_through(
    client: Client, address: str, route: str, names: Sequence[str], count: int, seed: int, source: Path, out: Path,
    watch: Watch = lambda _stage, _share: None,
) -> dict[str, Any]:  # fmt: skip
    """Screen tampered copies of a folder's signed scans.

    (1) the scans as they are must be admitted: else the count says nothing
    (2) each forgery is sent; what is admitted is kept as a file
    (3) the count, by tampering and by the gateway's reasons

    Args:
        client: connected to the gateway.
        address: where that is, for the report.
        route: to send to.
        names: of `VARIED`.
        count: forgeries.
        seed: of everything that is drawn.
        source: folder of signed files whose names end in .dcm.
        out: gets attack.json, and every forgery that was admitted.
        watch: told of progress.

    Raises:
        DataError: scans, names or gateway cannot be used.
    """
    apart(source, out)
    if strange := sorted(set(names) - set(VARIED)):
        raise DataError(f"no tampering is called {', '.join(strange)}; there are {', '.join(VARIED)}")
    scans = _originals(client, route, source)  # (1)
    out.mkdir(parents=True, exist_ok=True)
    tally: dict[str, Counter[str]] = {name: Counter() for name in names}
    reasons: Counter[str] = Counter()
    distinct: set[bytes] = set()
    admitted: list[str] = []
    made = forgeries(scans, names, count, seed)
    for number, (forgery, answer) in enumerate(_screened(client, route, made), start=1):  # (2)
        distinct.add(hashlib.sha256(forgery.content).digest())
        tally[forgery.tampering][answer.disposition] += 1
        reasons.update(answer.reasons)
        if answer.admitted:
            admitted.append(f"admitted-{number}-{forgery.tampering}.dcm")
            if len(admitted) <= KEPT_MAX:
                (out / admitted[-1]).write_bytes(forgery.content)
        watch("screening forgeries", number / count)
    document = {  # (3)
        "schema": 1,
        "through": address,
        "route": route,
        "scans": len(scans),
        "sent": count,
        "distinct": len(distinct),
        "admitted": admitted,
        "admitted_rate": clopper_pearson(len(admitted), count),
        "tampering": {name: dict(found) for name, found in tally.items()},
        "reasons": dict(reasons),
        "seed": seed,
        "ok": not admitted,
    }
    (out / REPORT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _originals(client: Client, route: str, source: Path) -> list[bytes]:
    """Signed scans that the gateway admits as they are."""
    files = sorted(source.glob("*.dcm"))[:FILES_MAX]
    if not files:
        raise DataError(f"{source}: holds no .dcm file")
    scans = [path.read_bytes() for path in files]
    for path, scan in zip(files, scans, strict=True):
        if not (answer := _asked(client, scan, route)).admitted:
            raise DataError(f"{path.name}: as it is, the gateway answers {answer.disposition}: the count says nothing")
    return scans


def _screened(client: Client, route: str, made: Iterator[Forgery]) -> Iterator[tuple[Forgery, Answer]]:
    """Yield forgeries with the gateway's answers, in their order; several are under way at once."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        while batch := list(islice(made, 8 * IN_FLIGHT)):
            answers = pool.map(lambda forgery: _asked(client, forgery.content, route), batch)
            yield from zip(batch, answers, strict=True)


def _asked(client: Client, content: bytes, route: str) -> Answer:
    try:
        return client.protect(content, route)
    except ClientError as error:
        raise DataError(f"the gateway does not answer: {error}") from error


def _flipped(content: bytes, start: int, end: int, draws: Draws) -> bytes:
    """The bytes with one bit of those from start to end changed."""
    altered = bytearray(content)
    altered[draws.integers(start, end)] ^= 1 << int(draws.integers(8))
    return bytes(altered)
