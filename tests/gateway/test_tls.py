"""Certificates are taken while the gateway runs: new connections meet the new ones, half a change changes nothing."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydicom.data import get_testdata_file
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.errors import ConfigError
from gateway.receivers.tls import Handshakes, grpc_handshakes
from gateway.settings.doors import TlsConfig
from gateway.testing import GatewayProcess, Site, write_secret

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SPIFFE = "spiffe://hospital.example/ct-1"


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Issues certificates to servers and clients."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.root = own.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, name: str, *alternatives: x509.GeneralName) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM), private)

    def server(self) -> Issued:
        return self.issue("gateway", x509.DNSName("localhost"))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))


OLD, NEW = Authority("old"), Authority("new")
CT_1 = x509.UniformResourceIdentifier(SPIFFE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, OLD.server())
    (tmp_path / "clients.pem").write_bytes(OLD.root)
    return tmp_path


def put(folder: Path, issued: Issued) -> None:
    (folder / "server.pem").write_bytes(issued.certificate)
    (folder / "server.key").unlink(missing_ok=True)
    write_secret(folder / "server.key", issued.key)


@pytest.fixture
def gateway(folder: Path) -> Iterator[GatewayProcess]:
    site = Site.make(folder)
    text = site.config.read_text().replace("unsafe_plaintext = true\n", "").replace("127.0.0.1:0", "localhost:0", 1)
    tls = '[receivers.grpc.tls]\ncertificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "clients.pem"\n'
    source = (
        f'[[sources]]\nname = "ct-1"\nroles = ["submit"]\ntls_san = "{SPIFFE}"\nenrolled = false\nroutes = ["open"]\n'
    )
    site.config.write_text(text.replace("[metrics]", f"{tls}[metrics]") + source)
    with GatewayProcess(site.config) as process:
        yield process


def channel(gateway: GatewayProcess, root: bytes, client: Issued) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(root, client.key, client.certificate)
    return grpc.secure_channel(gateway.addresses.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)])


def answer(through: grpc.Channel) -> grpc.StatusCode:
    try:
        rpc.ProtectionGatewayStub(through).Protect(pb.ProtectRequest(dicom=CT), timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_certificates_and_authorities_are_taken_while_it_runs(gateway: GatewayProcess, folder: Path) -> None:
    ct, stranger = OLD.issue("x", CT_1), OLD.issue("x", x509.DNSName("ct-1"))
    with channel(gateway, OLD.root, ct) as kept, channel(gateway, OLD.root, stranger) as other:
        assert (answer(kept), answer(other)) == (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)

        put(folder, NEW.server())
        (folder / "clients.pem").write_bytes(OLD.root + NEW.root)
        time.sleep(1.1)  # handshakes look at the files once a second
        with channel(gateway, NEW.root, NEW.issue("x", CT_1)) as fresh, channel(gateway, OLD.root, ct) as stale:
            assert (answer(fresh), answer(stale)) == (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        assert answer(kept) is grpc.StatusCode.OK  # what was open stays open

    (folder / "clients.pem").write_bytes(NEW.root)
    time.sleep(1.1)
    with channel(gateway, NEW.root, ct) as gone:
        assert answer(gone) is grpc.StatusCode.UNAVAILABLE


DOORS = """
[receivers.dimse]
address = "127.0.0.1:0"
routes = { OPEN = "open" }
[receivers.dimse.tls]
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients.pem"
[receivers.stow]
address = "127.0.0.1:0"
[receivers.stow.tls]
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients.pem"
"""
NODE = f"""
[[sources]]
name = "ct-1"
roles = ["submit"]
tls_san = "{SPIFFE}"
calling_ae = "CT1"
enrolled = false
routes = ["open"]
"""


def client(folder: Path, root: bytes, issued: Issued) -> ssl.SSLContext:
    """Believes that authority, and shows that certificate."""
    (folder / "client.pem").write_bytes(issued.certificate + issued.key)
    context = ssl.create_default_context(cadata=root.decode())
    context.check_hostname = False
    context.load_cert_chain(folder / "client.pem")
    return context


def associated(gateway: GatewayProcess, context: ssl.SSLContext) -> Association:
    assert gateway.addresses.dimse is not None
    host, _, port = gateway.addresses.dimse.rpartition(":")
    entity = AE("CT1")
    entity.add_requested_context(Verification)
    return entity.associate(host, int(port), ae_title="OPEN", tls_args=(context, None))


def stow_answers(gateway: GatewayProcess, context: ssl.SSLContext) -> bool:
    assert gateway.addresses.http is not None
    connection = http.client.HTTPSConnection(gateway.addresses.http, timeout=30, context=context)
    try:
        connection.request("GET", "/nothing")
        return connection.getresponse().status == 404
    except OSError:
        return False


def test_dicom_and_web_doors_take_them_as_well_and_an_open_association_goes_on(folder: Path) -> None:
    site = Site.make(folder, tables=DOORS)
    with site.config.open("a") as file:
        file.write(NODE)
    with GatewayProcess(site.config) as gateway:
        old = client(folder, OLD.root, OLD.issue("x", CT_1))
        kept = associated(gateway, old)
        assert (kept.is_established, stow_answers(gateway, old)) == (True, True)

        put(folder, NEW.server())
        (folder / "clients.pem").write_bytes(NEW.root)
        time.sleep(1.1)  # handshakes look at the files once a second
        new = client(folder, NEW.root, NEW.issue("x", CT_1))
        fresh = associated(gateway, new)
        assert (fresh.is_established, stow_answers(gateway, new)) == (True, True)
        gone = client(folder, NEW.root, OLD.issue("x", CT_1))  # of an authority that is not believed any more
        for context in (old, gone):
            assert (associated(gateway, context).is_established, stow_answers(gateway, context)) == (False, False)
        assert kept.send_c_echo().Status == 0x0000
        kept.release()
        fresh.release()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def config(folder: Path) -> TlsConfig:
    table = {"certificate": folder / "server.pem", "private_key": folder / "server.key"}
    return TlsConfig.model_validate({**table, "client_ca": folder / "clients.pem"})


def test_half_a_change_changes_nothing_and_the_other_half_is_waited_for(folder: Path) -> None:
    current, after = Handshakes("tls", config(folder), lambda pem: pem, clock=Clock()), NEW.server()
    (folder / "server.pem").write_bytes(after.certificate)
    assert current.changed() is None
    put(folder, after)
    assert current.changed() is not None
    assert current.changed() is None


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("server.key", OLD.server().key, "private_key: does not belong"),
        ("server.key", b"no key", "private_key: not a private key"),
        ("server.pem", b"no certificate", "certificate: not a certificate"),
        ("clients.pem", b"", "client_ca: no certificates"),
    ],
)
def test_files_that_cannot_serve_are_named(folder: Path, file: str, content: bytes, key: str) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"receivers\.grpc\.tls\.{key}"):
        grpc_handshakes("receivers.grpc.tls", config(folder))
