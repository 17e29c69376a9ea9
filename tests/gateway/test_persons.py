"""Four eyes are two people's: who they are is written down wherever one person may have two credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.callers.persons import Persons
from gateway.errors import ConfigError, Settled
from gateway.settings.config import Config
from gateway.testing import Site

REVIEW = "[review]\nfour_eyes = true\ndecided_days_max = 30\n"
OIDC = """
[oidc.hospital]
issuer = "https://login.hospital.example"
audience = "scanward"
algorithms = ["ES256"]
jwks_file = "pki/root.pem"
leeway_s = 30.0
roles_claim = "roles"
routes = ["open"]
enrolled = false
roles = { reviewers = ["review"] }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Of its sources, all with tokens, `reviewer` alone may review."""
    return Site.make(tmp_path_factory.mktemp("persons"))


def persons(site: Site, more: str, *people: tuple[str, str]) -> Persons:
    listed = "".join(f'[[review.persons]]\nname = "{name}"\nidentities = [{known}]\n' for name, known in people)
    text = site.config.read_text().replace("[[sources]]", f"{more}{listed}[[sources]]", 1)
    path = Path(site.directory, "own.toml")
    path.write_text(text)
    return Persons.of(Config.load(path))


def test_with_one_kind_of_credentials_each_caller_is_a_person_unless_named(site: Site) -> None:
    alone = persons(site, REVIEW)
    assert (alone.who("reviewer"), alone.who("another")) == ("reviewer", "another")
    assert persons(site, REVIEW, ("ann", '"reviewer"')).who("reviewer") == "ann"


def test_with_several_kinds_only_who_is_named_is_a_person(site: Site) -> None:
    known = persons(site, OIDC + REVIEW, ("ann", '"reviewer", "hospital/ann@x"'), ("ben", '"hospital/ben@x"'))
    assert known.who("reviewer") == known.who("hospital/ann@x") == "ann"
    assert known.who("hospital/ben@x") == "ben"
    with pytest.raises(Settled):
        known.who("hospital/carl@x")


def test_a_source_that_may_review_and_is_nobody_is_a_mistake_with_several_kinds(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"sources\.1: needs a place in \[\[review\.persons\]\]"):
        persons(site, OIDC + REVIEW)
    two_eyes = REVIEW.replace("true", "false")
    assert persons(site, OIDC + two_eyes).who("hospital/carl@x") == "hospital/carl@x"


@pytest.mark.parametrize(
    ("people", "mistake"),
    [
        ([("ann", '"scanner"')], r"persons\.0\.identities\.0: 'scanner' is no source that may review"),
        ([("ann", '"reviewer", "clinic/ann"')], r"persons\.0\.identities\.1: 'clinic/ann' is no source"),
        ([("ann", '"reviewer", "hospital/"')], r"persons\.0\.identities\.1"),
        ([("ann", '"reviewer"'), ("ben", '"reviewer"')], r"persons\.1\.identities\.0: 'reviewer' is listed already"),
        ([("ann", '"reviewer"'), ("ann", '"hospital/ann"')], r"persons\.1\.name: 'ann' is another person"),
        ([("reviewer", '"hospital/ann"')], r"persons\.0\.name: a source is called 'reviewer'"),
    ],
)
def test_who_is_listed_wrongly_is_named_by_key(site: Site, people: list[tuple[str, str]], mistake: str) -> None:
    with pytest.raises(ConfigError, match=rf"review\.{mistake}"):
        persons(site, OIDC + REVIEW, *people)
