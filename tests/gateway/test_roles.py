"""Every method that can be served has its row, and the row holds over a real socket."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gateway import api
from gateway.receivers.roles import METHODS


def interfaces() -> Iterator[FileDescriptor]:
    """Of all that the gateway has stubs for, and of the two services that gRPC brings along."""
    yield health_pb2.DESCRIPTOR
    yield reflection_pb2.DESCRIPTOR
    for module in pkgutil.walk_packages(api.__path__, f"{api.__name__}."):
        if module.name.endswith("_pb2"):
            yield importlib.import_module(module.name).DESCRIPTOR


def methods() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for interface in interfaces()
        for service in interface.services_by_name.values()
        for method in service.methods
    }


def test_every_method_of_every_service_has_a_row() -> None:
    assert methods() - METHODS.keys() == set()


def test_no_row_is_left_of_a_method_that_has_gone() -> None:
    assert METHODS.keys() - methods() == set()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_row_is_empty(method: str) -> None:
    """A method that nobody may call should not be served."""
    assert METHODS[method] != frozenset()
