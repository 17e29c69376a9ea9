"""Which callers are one person: a second pair of eyes is another person's, not another credential of the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self

from gateway.errors import ConfigError, Settled
from gateway.settings.config import Config

_REVIEW = "review"


class Persons:
    """People by the identities under which they call (`Source.identity`)."""

    def __init__(self, names: Mapping[str, str] | None = None, *, complete: bool = False) -> None:
        """`names`: person by identity; `complete`: nobody else is a person, else each other caller is one."""
        self._names = dict(names or {})
        self._complete = complete

    @classmethod
    def of(cls, config: Config) -> Self:
        """As [[review.persons]] has it.

        Where four eyes are asked for and reviewers show more than one kind of credentials (tokens, certificates, each
        identity provider), one person may have several, so that nobody counts who is not named.

        Raises:
            ConfigError: names each identity that nobody may have, has twice, or that is missing, by its key.
        """
        if config.review is None:
            return cls()
        several = config.review.four_eyes and len(set(_kinds(config))) > 1
        if problems := [*_wrong(config), *(_missing(config) if several else ())]:
            raise ConfigError(problems)
        named = {identity: person.name for person in config.review.persons for identity in person.identities}
        return cls(named, complete=several)

    def who(self, identity: str) -> str:
        """The person behind a caller.

        Raises:
            Settled: the configuration does not say who that is, and it might be somebody who agreed already.
        """
        if not self.knows(identity):
            raise Settled("you are in no [[review.persons]], and who you are decides whether two people agree")
        return self._names.get(identity, identity)

    def knows(self, identity: str) -> bool:
        """Whether the caller counts as a person."""
        return identity in self._names or not self._complete


def _kinds(config: Config) -> Iterator[str]:
    """The kinds of credentials by which reviewers are known."""
    for source in config.sources:
        if _REVIEW in source.roles:
            yield "token" if source.token_file is not None else "certificate"
    for name in _reviewing_providers(config):
        yield f"oidc.{name}"


def _wrong(config: Config) -> Iterator[str]:
    assert config.review is not None
    sources = {source.name for source in config.sources if _REVIEW in source.roles}
    providers, seen, names = set(_reviewing_providers(config)), set[str](), set[str]()
    for number, person in enumerate(config.review.persons):
        where = f"review.persons.{number}"
        if person.name in names:
            yield f"{where}.name: {person.name!r} is another person already"
        if person.name in sources and person.name not in person.identities:
            yield f"{where}.name: a source is called {person.name!r}, and is not one of this person's identities"
        names.add(person.name)
        for place, identity in enumerate(person.identities):
            provider, slash, subject = identity.partition("/")
            if identity not in sources and not (slash and subject and provider in providers):
                yield f"{where}.identities.{place}: {identity!r} is no source that may review, and no PROVIDER/SUBJECT"
            if identity in seen:
                yield f"{where}.identities.{place}: {identity!r} is listed already"
            seen.add(identity)


def _missing(config: Config) -> Iterator[str]:
    """Sources without a person; who has an identity provider's token and none is told so when he acts."""
    assert config.review is not None
    known = {identity for person in config.review.persons for identity in person.identities}
    for index, source in enumerate(config.sources):
        if _REVIEW in source.roles and source.name not in known:
            yield (
                f"sources.{index}: needs a place in [[review.persons]], because review.four_eyes counts people, and "
                "reviewers have several kinds of credentials"
            )


def _reviewing_providers(config: Config) -> Iterator[str]:
    for name, provider in config.oidc.items():
        if any(_REVIEW in roles for roles in provider.roles.values()):
            yield name
