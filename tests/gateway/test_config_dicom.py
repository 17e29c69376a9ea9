"""The configuration of DICOM doors and destinations: what is refused, and by which key."""

from __future__ import annotations

import re

import pytest

from gateway.errors import ConfigError
from gateway.settings.config import Config
from gateway.testing import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("config") / "site")


def load(site: Site, more: str) -> Config:
    """Load the site's configuration with this in front of its sources."""
    path = site.directory / "other.toml"
    before, sources = site.config.read_text().split("[[sources]]", 1)
    path.write_text(f"{before}{more}\n[[sources]]{sources}")
    return Config.load(path)


def problems(site: Site, more: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(site, more)
    return caught.value.problems


def without(text: str, *tables: str) -> str:
    """The document less these tables."""
    parts = re.split(r"^(?=\[)", text, flags=re.M)
    return "".join(part for part in parts if not part.startswith(tuple(f"[{table}]" for table in tables)))


DIMSE = """
[receivers.dimse]
address = "127.0.0.1:0"
unsafe_plaintext = true
[receivers.dimse.routes]
SCANWARD = "open"
[[sources]]
name = "ct-2"
roles = ["submit"]
calling_ae = "CT2"
enrolled = false
routes = ["open"]
"""


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("unsafe_plaintext = true\n[receivers.dimse.routes]", "[receivers.dimse.routes]", "receivers.dimse"),
        ('SCANWARD = "open"', 'SCANWARD = "lost"', "receivers.dimse.routes.SCANWARD"),
        ('SCANWARD = "open"', '"SEVENTEEN-LETTERS" = "open"', "receivers.dimse.routes.SEVENTEEN-LETTERS.[key]"),
        ('SCANWARD = "open"\n', "", "receivers.dimse.routes"),
        ('calling_ae = "CT2"', 'calling_ae = " CT2"', "sources.0.calling_ae"),
        ('calling_ae = "CT2"\n', "", "sources.0"),
        ("unsafe_plaintext = true\n[receivers.dimse.routes]", "[receivers.dimse.tls]", "sources.0.calling_ae"),
    ],
)
def test_refuses_a_dicom_door_by_key(site: Site, old: str, new: str, key: str) -> None:
    assert old in DIMSE
    load(site, DIMSE)
    assert any(problem.startswith(f"{key}: ") for problem in problems(site, DIMSE.replace(old, new)))


def test_an_ae_title_without_a_dicom_door_is_a_mistake(site: Site) -> None:
    found = problems(site, without(DIMSE, "receivers.dimse", "receivers.dimse.routes"))
    assert [problem.split(":")[0] for problem in found] == ["sources.0.calling_ae"]


DESTINATION = """
[routes.onward]
trust = "open"
upstream = "dicom"
destination = "pacs"
[destinations.pacs]
address = "pacs:104"
ae_title = "PACS"
unsafe_plaintext = true
"""


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('destination = "pacs"\n', "", "routes.onward.destination"),
        ('destination = "pacs"', 'destination = "other"', "routes.onward.destination"),
        ('upstream = "dicom"', 'upstream = "none"', "routes.onward.destination"),
        ('ae_title = "PACS"\n', "", "destinations.pacs"),
        ('ae_title = "PACS"', 'stow_url = "http://pacs/studies"', "destinations.pacs"),
        ("unsafe_plaintext = true", "", "destinations.pacs"),
        ('address = "pacs:104"\nae_title = "PACS"', 'stow_url = "https://pacs/studies"', "destinations.pacs"),
    ],
)
def test_refuses_a_destination_by_key(site: Site, old: str, new: str, key: str) -> None:
    assert old in DESTINATION
    load(site, DESTINATION)
    assert any(problem.startswith(f"{key}: ") for problem in problems(site, DESTINATION.replace(old, new)))


STOW = """
[receivers.stow]
address = "127.0.0.1:0"
unsafe_plaintext = true
"""


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("127.0.0.1:0", "0.0.0.0:0", "receivers.stow"),
        ("unsafe_plaintext = true", "", "receivers.stow"),
        ("unsafe_plaintext = true", "unsafe_plaintext = true\nthreads = 0", "receivers.stow.threads"),
    ],
)
def test_refuses_a_web_door_by_key(site: Site, old: str, new: str, key: str) -> None:
    load(site, STOW)
    assert any(problem.startswith(f"{key}: ") for problem in problems(site, STOW.replace(old, new)))
