"""Tensors on disk: safetensors files that a manifest names by digest, read once, hashed, and only then parsed."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from detectors.errors import ArtefactError

FILE_BYTES_MAX = 2**30
"""A twin of a 250-million-parameter model still fits; more is not an artefact of ours."""
State = dict[str, Tensor]

_FILE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\.safetensors")


def read_file(directory: Path, entry: Mapping[str, Any], name: str) -> State:
    """The tensors of the file that an entry names.

    Raises:
        ArtefactError: no such file, another one than the entry says, or none of ours; `name` is what it is for.
    """
    if not _FILE_NAME.fullmatch(entry["file"]):
        raise ArtefactError(f"{name}: {entry['file']!r} is not a file name of an artefact")
    path = directory / entry["file"]
    try:
        if not path.is_file() or path.is_symlink():
            raise ArtefactError(f"{name}: {entry['file']} is missing or not a regular file")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ArtefactError(f"{name}: {entry['file']} cannot be read") from error
    if len(content) > FILE_BYTES_MAX:
        raise ArtefactError(f"{name}: {entry['file']} is larger than {FILE_BYTES_MAX} bytes")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ArtefactError(f"{name}: {entry['file']} is not the file that was fitted")
    try:
        tensors: State = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtefactError(f"{name}: {entry['file']} is not a safetensors file") from error
    return tensors


def write_file(directory: Path, name: str, state: State) -> dict[str, str]:
    """Write tensors, and say under which name and digest."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    content = safetensors.torch.save(tensors)
    (directory / f"{name}.safetensors").write_bytes(content)
    return {"file": f"{name}.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
