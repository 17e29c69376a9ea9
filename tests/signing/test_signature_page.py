"""The administrator's page explains every word that a command may answer with."""

from __future__ import annotations

from pathlib import Path

import pytest

from signing import Reason
from signing.diff import Kind
from signing.lint import Code
from signing.series import SeriesReason

PAGE = (Path(__file__).parents[2] / "docs" / "signatures.md").read_text()


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_row(reason: Reason) -> None:
    assert f"\n| `{reason}` | " in PAGE


@pytest.mark.parametrize("word", [*Code, *Kind, *SeriesReason])
def test_every_other_word_is_there(word: str) -> None:
    assert f"`{word}`" in PAGE
