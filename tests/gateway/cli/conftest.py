"""A real server of revocation material, with the certificates that name it, and a real OCSP responder."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from gateway.cli import main
from signing import Trust

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]
NOW = datetime.now(UTC).replace(microsecond=0)


def minutes(number: float) -> datetime:
    return NOW + timedelta(minutes=number)


def plainly(content: bytes) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def status(code: int, location: str = "") -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(code)
        if location:
            request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def cut_off(request: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"only this")


def endless(request: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(1 << 16))


def trickling(request: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"0")
        time.sleep(0.05)


@dataclass
class Server:
    """Answers as told, by path."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def __getitem__(self, path: str) -> str:
        return self.address + path


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            served.asked.append(self.path)
            with suppress(OSError):
                served.answers.get(self.path, status(404))(self, body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        served.address = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        listening.shutdown()


@dataclass(frozen=True)
class Party:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, issuer: Party | None = None, *extensions: x509.ExtensionType, ca: bool = True) -> Party:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(minutes(-9999)).not_valid_after(minutes(99999))
        builder = builder.issuer_name(issuer.certificate.subject if issuer else subject)
        for extension in (x509.BasicConstraints(ca, None), *extensions):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return cls(builder.sign((issuer or cls(None, key)).key, hashes.SHA256()), key)  # type: ignore[arg-type]

    def crl(
        self,
        at: float,
        *,
        until: float = 9999,
        revoked: x509.Certificate | None = None,
        number: int = 1,
        delta: int = 0,
    ) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(minutes(at)).next_update(minutes(until))
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        if delta:
            builder = builder.add_extension(x509.DeltaCRLIndicator(delta), critical=True)
        if revoked is not None:
            entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(minutes(at)).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def ocsp(
        self,
        about: x509.Certificate,
        issuer: x509.Certificate,
        at: float,
        *,
        until: float = 9999,
        word: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    ) -> bytes:
        """A response by this party, as a responder of `issuer` or as that itself."""
        withdrawn = minutes(at) if word is ocsp.OCSPCertStatus.REVOKED else None
        builder = ocsp.OCSPResponseBuilder().add_response(
            about,
            issuer,
            hashes.SHA1(),  # noqa: S303
            word,
            minutes(at),
            minutes(until),
            withdrawn,
            None,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, self.certificate)
        return builder.certificates([self.certificate]).sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Site:
    """What a trust policy of a gateway names; there is no gateway, and there are no keys of one."""

    directory: Path
    server: Server
    root: Party
    device_ca: Party
    scanner: Party

    now = NOW
    minutes = staticmethod(minutes)
    plainly = staticmethod(plainly)
    status = staticmethod(status)
    cut_off = staticmethod(cut_off)
    endless = staticmethod(endless)
    trickling = staticmethod(trickling)
    party = staticmethod(Party.make)

    @property
    def config(self) -> Path:
        return self.directory / "scanward.toml"

    @property
    def crls(self) -> Path:
        return self.directory / "crls"

    @property
    def responses(self) -> Path:
        return self.directory / "ocsp"

    def configure(self, **changes: str) -> None:
        keys = {
            "policy": '"policy.toml"',
            "roots": '["root.pem"]',
            "intermediates": '["device-ca.pem"]',
            "crls": '["crls"]',
            "ocsp": "[]",
            "refresh": '{ certificates = ["scanner.pem"] }',
            **changes,
        }
        self.config.write_text("[trust.hospital]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))

    def refresh(self, *options: str) -> Result:
        words = ["trust", "refresh", "--config", str(self.config), "--once", "--timeout", "0.5", *options]
        return CliRunner().invoke(main, words)

    def outcomes(self, *options: str) -> tuple[int, list[tuple[str, str, str]]]:
        """Exit code; what became of each source."""
        ended = self.refresh("--json", *options)
        document = json.loads(ended.stdout)
        assert document["ok"] == (ended.exit_code == 0)
        return ended.exit_code, [(each["about"], each["result"], each["detail"]) for each in document["sources"]]

    def stored(self, folder: Path | None = None) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (folder or self.crls).iterdir()}

    def responder(self, signer: Party, issuer: Party, *known: Party, at: float = -60, **how: object) -> Answer:
        """Answers questions after the `known`, as a responder for `issuer`."""
        certificates = {each.certificate.serial_number: each.certificate for each in known}

        def answer(request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
            assert request.headers["Content-Type"] == "application/ocsp-request"
            about = certificates[ocsp.load_der_ocsp_request(body).serial_number]
            plainly(signer.ocsp(about, issuer.certificate, at, **how))(request, body)  # type: ignore[arg-type]

        return answer

    def trust(self) -> Trust:
        """As the gateway reads it."""
        pem = [self.directory / f"{name}.pem" for name in ("root", "device-ca")]
        return Trust.load(None, pem[:1], pem[1:], [self.crls], [self.responses])


@pytest.fixture
def site(tmp_path: Path, server: Server) -> Site:
    def points(*paths: str) -> x509.CRLDistributionPoints:
        names = [x509.UniformResourceIdentifier(server[path]) for path in paths]
        return x509.CRLDistributionPoints([x509.DistributionPoint(names, None, None, None)])

    def responder(path: str) -> x509.AuthorityInformationAccess:
        where = x509.UniformResourceIdentifier(server[path])
        return x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, where)])

    root = Party.make("Root CA")
    device_ca = Party.make("Device CA", root, points("/root.crl"), responder("/ocsp/root"))
    addresses = points("/device-ca.crl", "/mirror.crl"), responder("/ocsp/device-ca")
    scanner = Party.make("CT Scanner 0001", device_ca, *addresses, ca=False)
    for name, party in (("root", root), ("device-ca", device_ca), ("scanner", scanner)):
        (tmp_path / f"{name}.pem").write_bytes(party.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "policy.toml").write_text('unsigned = "reject"\n')
    (tmp_path / "crls").mkdir()
    (tmp_path / "ocsp").mkdir()
    server.answers["/root.crl"] = plainly(root.crl(-60))
    server.answers["/device-ca.crl"] = plainly(device_ca.crl(-60))
    made = Site(tmp_path, server, root, device_ca, scanner)
    made.configure()
    return made
