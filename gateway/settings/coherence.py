"""Mistakes that lie between the tables of a configuration; found in the raw document, however wrong the rest is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ARTEFACT_TRUST = "artefacts"
"""Name under [trust] that holds the artefact keys, so no trust policy may have it."""
NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""A name that is safe as a metric label, a log field and a file name."""
DEFAULT = "default"
"""Name under [limits] that holds for every caller without limits of its own."""
RESERVED = frozenset({DEFAULT, "anonymous"})
"""Names that no source may have: they stand for all others, and for nobody known."""

BY_RULE = "by-rule"
"""In the place of a route's name, where the routing rules choose it."""

_THREADS_PER_PLACE = 2
"""Handler threads for each place in the largest batch: one batch waits while the next one fills."""


def mistakes_between_tables(document: dict[str, Any]) -> list[str]:
    """One sentence for each, led by its dotted key."""
    return [
        *_model_mistakes(document),
        *_route_mistakes(document),
        *_routing_mistakes(document),
        *_rule_mistakes(document),
        *_source_mistakes(document),
        *_oidc_mistakes(document),
        *_limit_mistakes(document),
        *_dicom_mistakes(document),
    ]


def _model_mistakes(document: dict[str, Any]) -> Iterator[str]:
    if not (models := _table(document, "models")):
        return
    for name in models:
        if _table(models, name).keys().isdisjoint({"model", "kserve"}):
            yield f"models.{name}.model: required, unless models.{name}.kserve says which server has the model"
    if "engine" not in document:
        yield "engine: required, because there are models"
    if "artefacts" not in _table(document, "trust"):
        yield "trust.artefacts: required, because there are models"
    threads, batch = (
        _table(document, "receivers", "grpc").get("threads"),
        _table(document, "engine").get("batch_size_max"),
    )
    if isinstance(threads, int) and isinstance(batch, int) and threads < _THREADS_PER_PLACE * batch:
        yield (
            f"receivers.grpc.threads: {threads} handler threads can never fill batches of {batch}; "
            f"it must be at least {_THREADS_PER_PLACE * batch} (twice engine.batch_size_max)"
        )


def _route_mistakes(document: dict[str, Any]) -> Iterator[str]:
    models, trust, routes = (_table(document, key) for key in ("models", "trust", "routes"))
    if not routes:
        yield "routes: at least one is needed"
    for name in trust:
        if name != ARTEFACT_TRUST and not re.fullmatch(NAME, name):
            yield f"trust.{name}: not a name: lower-case letters, digits, - and _"
    for name in routes:
        route = _table(routes, name)
        if (wanted := route.get("trust")) is not None and (wanted not in trust or wanted == ARTEFACT_TRUST):
            yield f"routes.{name}.trust: there is no [trust.{wanted}]"
        yield from _upstream_mistakes(name, route, models)
        destination = route.get("destination")
        if (route.get("upstream") == "dicom") != (destination is not None):
            yield f'routes.{name}.destination: goes with upstream = "dicom", each with the other'
        elif destination is not None and destination not in _table(document, "destinations"):
            yield f"routes.{name}.destination: there is no [destinations.{destination}]"
        if route.get("model") is None:
            continue
        where = f"routes.{name}.policy" if "policy" in route else "policy"
        if "detection" not in (_table(route, "policy") or _table(document, "policy")):
            yield f"{where}.detection: required, because route {name} has a model"


def _routing_mistakes(document: dict[str, Any]) -> Iterator[str]:
    rules, routes = document.get("routing"), _table(document, "routes")
    if BY_RULE in routes:
        yield f"routes.{BY_RULE}: not a name for a route: it says that the rules choose"
    takes_all: int | None = None
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        if not isinstance(rule, dict):
            continue
        if (wanted := rule.get("route")) is not None and wanted not in routes:
            yield f"routing.{index}.route: there is no [routes.{wanted}]"
        if takes_all is not None:
            yield f"routing.{index}: never reached, because rule {takes_all} takes every scan"
        elif not any(rule.get(key) for key in ("modality", "body_part", "calling_ae")):
            takes_all = index


def _upstream_mistakes(name: str, route: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    model, asked = route.get("model"), route.get("upstream")
    if model is None:
        if asked in {"embedded", "kserve"}:
            yield f'routes.{name}.upstream: "{asked}" needs a model'
    elif model not in models:
        yield f"routes.{name}.model: there is no [models.{model}]"
    elif asked == "kserve" and "kserve" not in _table(models, model):
        yield f'routes.{name}.upstream: "kserve" needs [models.{model}.kserve]'
    elif asked == "embedded" and "model" not in _table(models, model):
        yield f'routes.{name}.upstream: "embedded" needs models.{model}.model'


def _rule_mistakes(document: dict[str, Any]) -> Iterator[str]:
    """A rule about a source that is not there would wait for it for ever."""
    sources = document.get("sources")
    known = {each.get("name") for each in sources if isinstance(each, dict)} if isinstance(sources, list) else set()
    policies = {"policy": _table(document, "policy")}
    policies |= {
        f"routes.{name}.policy": _table(document, "routes", name, "policy") for name in _table(document, "routes")
    }
    for where, policy in policies.items():
        rules = policy.get("rules")
        for place, rule in enumerate(rules if isinstance(rules, list) else ()):
            wanted = rule.get("source") if isinstance(rule, dict) else None
            for index, source in enumerate(wanted if isinstance(wanted, list) else ()):
                if source not in known:
                    yield f"{where}.rules.{place}.source.{index}: there is no source called {source!r}"


def _source_mistakes(document: dict[str, Any]) -> Iterator[str]:
    sources, routes = document.get("sources"), _table(document, "routes")
    if not isinstance(sources, list) or not sources:
        yield "sources: at least one is needed, or nobody may call"
        return
    doors = [_table(document, "receivers", door, "tls") for door in ("grpc", "dimse", "stow")]
    verifies_clients = any("client_ca" in door for door in doors)
    seen: set[tuple[str, object]] = set()
    for index, source in enumerate(sources):
        if not isinstance(source, dict):
            continue
        for key in ("name", "token_file", "tls_subject", "tls_san", "calling_ae"):
            if (value := source.get(key)) is not None and (key, str(value)) in seen:
                yield f"sources.{index}.{key}: {value!r} belongs to another source already"
            seen.add((key, str(value)))
        for key in ("tls_subject", "tls_san"):
            if key in source and not verifies_clients:
                yield f"sources.{index}.{key}: needs a door with tls.client_ca"
        wanted = source.get("routes")
        for place, route in enumerate(wanted if isinstance(wanted, list) else ()):
            if route not in routes:
                yield f"sources.{index}.routes.{place}: there is no [routes.{route}]"


def _oidc_mistakes(document: dict[str, Any]) -> Iterator[str]:
    providers, routes, sources = _table(document, "oidc"), _table(document, "routes"), document.get("sources")
    names = {str(each.get("name")) for each in (sources if isinstance(sources, list) else ()) if isinstance(each, dict)}
    issuers: set[object] = set()
    for name in providers:
        provider = _table(providers, name)
        if name in names:
            yield f"oidc.{name}: a source has that name already"
        if provider.get("issuer") in issuers:
            yield f"oidc.{name}.issuer: belongs to another provider already"
        issuers.add(provider.get("issuer"))
        wanted = provider.get("routes")
        for place, route in enumerate(wanted if isinstance(wanted, list) else ()):
            if route not in routes:
                yield f"oidc.{name}.routes.{place}: there is no [routes.{route}]"


def _limit_mistakes(document: dict[str, Any]) -> Iterator[str]:
    limits, sources = _table(document, "limits"), document.get("sources")
    if limits and DEFAULT not in limits:
        yield f"limits.{DEFAULT}: required, for every caller without limits of its own"
    known = set(_table(document, "oidc"))
    known |= {
        str(each.get("name")) for each in (sources if isinstance(sources, list) else ()) if isinstance(each, dict)
    }
    for name in known & RESERVED:
        yield f"sources: the name {name!r} has a meaning of its own"
    for name in limits:
        if name != DEFAULT and name not in known:
            yield f"limits.{name}: there is no source of that name"


def _dicom_mistakes(document: dict[str, Any]) -> Iterator[str]:
    """An AE title is a claim that anybody can make: where certificates are shown, one must go with it."""
    dimse, routes = _table(document, "receivers", "dimse"), _table(document, "routes")
    for title, route in _table(dimse, "routes").items():
        if route == BY_RULE and not document.get("routing"):
            yield f'receivers.dimse.routes.{title}: "{BY_RULE}" needs [[routing]]'
        elif route not in (*routes, BY_RULE):
            yield f"receivers.dimse.routes.{title}: there is no [routes.{route}]"
    sources = document.get("sources")
    for index, source in enumerate(sources if isinstance(sources, list) else ()):
        if not isinstance(source, dict) or "calling_ae" not in source:
            continue
        if not dimse:
            yield f"sources.{index}.calling_ae: needs [receivers.dimse]"
        elif "tls" in dimse and source.keys().isdisjoint({"tls_subject", "tls_san"}):
            yield f"sources.{index}.calling_ae: needs tls_subject or tls_san too: the DICOM door asks for certificates"


def _table(document: object, *keys: str) -> dict[str, Any]:
    """The table at a dotted key of a document that may be wrong everywhere; empty where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}
