"""Many files on all cores: the answers of one process, in order, and none where a process died."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import pytest

import signing
from signing import SigningError
from signing.parallel import Verifiers
from signing.testing import Hospital, flip_pixel_bit


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, ct: bytes, hospital: Hospital, now: datetime) -> list[Path]:
    folder = tmp_path_factory.mktemp("many")
    good = signing.sign(ct, signer=hospital.signer("mr"), at=now)
    for number in range(50):
        (folder / f"{number:02}").write_bytes(flip_pixel_bit(good) if number % 3 else good)
    return [*sorted(folder.iterdir()), folder / "none"]


def test_processes_answer_as_one_would(files: list[Path], hospital: Hospital, now: datetime) -> None:
    with Verifiers(hospital.trust(), now, processes=1) as alone, Verifiers(hospital.trust(), now, processes=3) as three:
        assert list(three.verify(files)) == list(alone.verify(files))
    assert multiprocessing.active_children() == []


def test_paths_are_taken_only_as_fast_as_verdicts_are(files: list[Path], hospital: Hospital, now: datetime) -> None:
    """However many files there are, few are waited for."""
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[0]

    with Verifiers(hospital.trust(), now, processes=2) as verifiers:
        assert len(list(islice(verifiers.verify(endless()), 100))) == 100
    assert taken < 300


def test_the_death_of_a_process_is_not_a_verdict(files: list[Path], hospital: Hospital, now: datetime) -> None:
    with Verifiers(hospital.trust(), now, processes=2) as verifiers:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(SigningError, match="died"):
            list(verifiers.verify(files))
