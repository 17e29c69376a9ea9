"""A token of the identity provider lets its bearer in; one that is forged, stale, or meant for others does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client, ClientError
from gateway.errors import ConfigError
from gateway.receivers.gate import Gate
from gateway.receivers.identity import Caller, Credentials
from gateway.receivers.jwks import JwksError, KeySet, parse
from gateway.receivers.receiver import Unauthenticated
from gateway.receivers.roles import Role
from gateway.settings.oidc import OidcConfig
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
ISSUER = "https://login.example/realms/imaging"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256, ED = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()


def jwk(kid: str, key: Any, **more: str) -> dict[str, Any]:
    algorithm = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
    name = next((name for kind, name in algorithm.items() if isinstance(key, kind)), "EdDSA")
    made = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    return {**{name: value for name, value in made.items() if name != "key_ops"}, "kid": kid, "use": "sig", **more}


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": keys})


KEYS = jwks(jwk("rsa", RSA), jwk("p256", P256), jwk("ed", ED), {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"})


def configured(**changes: Any) -> OidcConfig:
    table = {
        "issuer": ISSUER, "audience": "scanward", "algorithms": ["RS256", "ES256", "EdDSA"], "leeway_s": 30.0,
        "roles_claim": "realm_access.roles", "roles": {"look": ["review"], "send": ["submit"]},
        "routes": ["open"], "enrolled": False, **changes,
    }  # fmt: skip
    return OidcConfig.model_validate_json(json.dumps(table, default=str))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(KEYS)
    return path


@pytest.fixture
def gate(file: Path) -> Gate:
    return Gate((), {"idp": configured(jwks_file=file)})


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": "scanward", "sub": "dr.grey", "nbf": now - 10, "exp": now + 300,
        "realm_access": {"roles": ["look", "make-coffee"]}, **changes,
    }  # fmt: skip
    header = {} if kid is None else {"kid": kid}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm, header)


def admit(gate: Gate, shown: str) -> Caller:
    return gate.admit(Credentials(shown))


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "rsa"), (P256, "ES256", "p256"), (ED, "EdDSA", "ed")]
)
def test_who_the_provider_vouches_for_comes_in_with_the_roles_of_the_claim(
    gate: Gate, key: Any, algorithm: str, kid: str
) -> None:
    caller = admit(gate, token(key, algorithm, kid))
    assert (caller.source.identity, caller.roles, caller.routes) == ("idp/dr.grey", {Role.REVIEW}, ("open",))


def test_two_roles_may_come_as_a_line_of_text(file: Path) -> None:
    gate = Gate((), {"idp": configured(jwks_file=file, roles_claim="scope")})
    assert admit(gate, token(scope="openid look send")).roles == {Role.REVIEW, Role.SUBMIT}


@pytest.mark.parametrize("claim", [None, "look", {"roles": {"look": 1}}, {"roles": [1, None, ["look"]]}, [], 7])
def test_a_claim_of_another_form_gives_no_role(gate: Gate, claim: object) -> None:
    changes = {"realm_access": claim}
    assert admit(gate, token(**changes)).roles == frozenset()


PAST, FUTURE = int(time.time()) - 3600, int(time.time()) + 3600
PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(token(OTHER_RSA), id="signed-by-another-key"),
        pytest.param(token(kid="p256"), id="names-a-key-of-another-kind"),
        pytest.param(token(kid="gone"), id="names-a-key-that-is-not-there"),
        pytest.param(token(kid=None), id="names-no-key"),
        pytest.param(token(algorithm="RS512"), id="algorithm-that-is-not-configured"),
        pytest.param(token(algorithm="PS256"), id="padding-that-is-not-configured"),
        pytest.param(jwt.encode({"iss": ISSUER}, None, "none", {"kid": "rsa"}), id="unsigned"),
        pytest.param(token(b"secret" * 8, "HS256", "shared"), id="signed-with-a-shared-secret"),
        pytest.param(token(exp=PAST), id="expired"),
        pytest.param(token(nbf=FUTURE, exp=FUTURE + 60), id="not-valid-yet"),
        pytest.param(token(aud="another"), id="meant-for-another"),
        pytest.param(token(iss="https://evil.example"), id="issued-by-another"),
        *(pytest.param(token(**{name: None}), id=f"without-{name}") for name in ("iss", "aud", "exp", "nbf", "sub")),
        pytest.param(token(sub="two words\n"), id="subject-that-breaks-a-line"),
        pytest.param(token()[:-6] + "AAAAAA", id="signature-changed"),
        pytest.param("a.b.c", id="no-token-at-all"),
        pytest.param(token(pad="x" * 9000), id="too-long"),
    ],
)
def test_nobody_else_comes_in(gate: Gate, shown: str) -> None:
    with pytest.raises(Unauthenticated):
        admit(gate, shown)


def test_a_header_that_wants_more_than_is_understood_is_refused(gate: Gate) -> None:
    shown = jwt.encode({"iss": ISSUER}, RSA, "RS256", {"kid": "rsa", "crit": ["exp"]})
    with pytest.raises(Unauthenticated):
        admit(gate, shown)


def test_the_clocks_may_differ_by_the_leeway(gate: Gate) -> None:
    assert admit(gate, token(exp=int(time.time()) - 10)).source.person == "dr.grey"


def test_a_key_for_one_algorithm_is_for_no_other(file: Path) -> None:
    file.write_text(jwks(jwk("rsa", RSA, alg="PS256")))
    with pytest.raises(Unauthenticated, match="publish"):
        admit(Gate((), {"idp": configured(jwks_file=file)}), token())


@pytest.mark.parametrize(
    "document",
    [
        "", "[]", "{}", '{"keys": 7}', '{"keys": [7]}', '{"keys": []}',
        jwks({"kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB"}),
        jwks({"kty": "oct", "kid": "s", "k": "AAAA"}), jwks(jwk("e", RSA, use="enc")), jwks(*[jwk("k", ED)] * 65),
        '{"keys":' + "[" * 100_000,
    ],
)  # fmt: skip
def test_a_document_without_keys_is_refused(document: str) -> None:
    with pytest.raises(JwksError):
        parse(document.encode())


def test_a_file_without_keys_is_named_when_the_service_starts(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        Gate((), {"idp": configured(jwks_file=tmp_path / "jwks.json")})
    assert caught.value.problems == ["oidc.idp.jwks_file: not a JWK set (RFC 7517)"]


def test_a_changed_file_is_taken_and_a_broken_one_is_not(gate: Gate, file: Path) -> None:
    file.write_text(jwks(jwk("new", OTHER_RSA)))
    gate.look()
    assert admit(gate, token(OTHER_RSA, kid="new")).source.person == "dr.grey"
    with pytest.raises(Unauthenticated):
        admit(gate, token())
    file.write_text("half a docu")
    gate.look()
    assert admit(gate, token(OTHER_RSA, kid="new")).source.person == "dr.grey"


class Publisher(HTTPServer):
    """A provider's endpoint for its keys."""

    document, asked, redirect = KEYS, 0, ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks"


class _Answer(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        self.server.asked += 1
        body = self.server.document.encode()
        self.send_response(302 if self.server.redirect else 200)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_keys_from_a_url_are_fetched_outside_of_calls_and_seldom(publisher: Publisher) -> None:
    clock = Clock()
    keys = KeySet("idp", configured(jwks_url=publisher.url), clock=clock)
    assert keys.find("rsa") is None
    keys.look()
    assert keys.find("rsa") is not None
    assert publisher.asked == 1
    publisher.document = jwks(jwk("new", OTHER_RSA))
    for _ in range(100):  # strangers name keys that nobody has
        assert keys.find("new") is None
        keys.look()
    assert publisher.asked == 1
    clock.now += 61
    keys.look()
    assert (keys.find("new") is not None, keys.find("rsa"), publisher.asked) == (True, None, 2)


def test_keys_are_believed_only_so_long_where_their_url_is_gone(publisher: Publisher) -> None:
    clock = Clock()
    keys = KeySet("idp", configured(jwks_url=publisher.url, jwks_s_max=3600.0), clock=clock)
    keys.look()
    publisher.document = "gone"
    clock.now += 3599
    keys.look()
    assert keys.find("rsa") is not None
    clock.now += 2
    assert keys.find("rsa") is None


@pytest.mark.parametrize("attack", ["redirect", "flood"])
def test_an_endpoint_that_misbehaves_changes_nothing(publisher: Publisher, attack: str) -> None:
    clock = Clock()
    keys = KeySet("idp", configured(jwks_url=publisher.url), clock=clock)
    keys.look()
    if attack == "redirect":
        publisher.redirect = publisher.url
    else:
        publisher.document = jwks(jwk("evil", OTHER_RSA)) + " " * (300 << 10)
    clock.now += 4000
    keys.look()
    assert (keys.find("rsa") is not None, keys.find("evil")) == (True, None)


def test_a_reload_forgets_no_keys(publisher: Publisher) -> None:
    before, after = (Gate((), {"idp": configured(jwks_url=publisher.url)}) for _ in range(2))
    before.look()
    after.adopt(before)
    assert admit(after, token()).source.person == "dr.grey"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"jwks_url": "http://login.example/keys"}, "https"),
        ({"jwks_url": None}, "jwks_file or jwks_url"),
        ({"roles": {"look": ["root"]}}, "roles"),
        ({"leeway_s": 3600.0}, "leeway_s"),
    ],
)
def test_a_mistake_in_the_table_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        configured(**{"jwks_url": "https://login.example/keys", **changes})


def test_a_running_gateway_takes_tokens_and_new_keys_by_themselves(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    keys = site.directory / "jwks.json"
    keys.write_text(KEYS)
    table = f"""
[oidc.idp]
issuer = "{ISSUER}"
audience = "scanward"
algorithms = ["RS256"]
jwks_file = "jwks.json"
leeway_s = 30.0
roles_claim = "realm_access.roles"
routes = ["open"]
enrolled = false
[oidc.idp.roles]
look = ["review"]
send = ["submit"]
"""
    site.config.write_text(site.config.read_text() + table)
    may, may_not = token(realm_access={"roles": ["send"]}), token()
    rotated = token(OTHER_RSA, kid="new", realm_access={"roles": ["send"]})
    with GatewayProcess(site.config) as gateway:

        def status(shown: str) -> str:
            with Client(gateway.addresses.grpc, token=shown) as client:
                try:
                    return client.protect(CT, "open").disposition
                except ClientError as error:
                    return error.status

        assert [status(may), status(may_not), status(rotated)] == ["admit", "PERMISSION_DENIED", "UNAUTHENTICATED"]
        keys.write_text(jwks(jwk("new", OTHER_RSA)))
        while status(rotated) != "admit":
            time.sleep(0.2)
        assert status(may) == "UNAUTHENTICATED"
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
    assert {body["source"] for body in bodies if body["kind"] == "decided"} == {"idp/dr.grey"}
