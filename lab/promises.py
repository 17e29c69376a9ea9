"""Tries detectors of other packages before anything is fitted: hours of hardening shall not end in their mistakes."""

from collections.abc import Sequence

from detectors import registry
from detectors.errors import ArtefactError
from detectors.testing import check_method, small_material


def promising(methods: Sequence[str]) -> None:
    """Hold every method that does not come with Scanward to the contract, on small material; ours are tested here.

    Raises:
        ArtefactError: names the detector, and the promise that it breaks.
    """
    strangers = [registry.method(name) for name in methods if name not in registry.OURS]
    for each in strangers:
        try:
            check_method(each, small_material())
        except Exception as error:  # a stranger's code: whatever it raises, the detector is not to be fitted
            raise ArtefactError(f"detector {each.name}, of another package, breaks its contract: {error}") from error
