"""A TOML file as it stands, and what is wrong with it in sentences that each name a key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails

from gateway.errors import ConfigError


def read(path: Path) -> dict[str, Any]:
    """The document; raises `ConfigError` where there is none."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def sentences(problems: list[ErrorDetails]) -> list[str]:
    """One for each mistake; a list whose items were refused is not called too short as well."""
    places = [problem["loc"] for problem in problems]
    said = []
    for problem in problems:
        place = problem["loc"]
        if problem["type"] == "too_short" and any(other[:-1] == place for other in places):
            continue
        key = ".".join(str(part) for part in place) or "the file"
        said.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return said
