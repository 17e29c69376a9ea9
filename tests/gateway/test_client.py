"""The client against a real gateway process: message or stream, one file or a folder, plaintext or mutual TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.client.client import UNARY_BYTES_MAX, Client, ClientError, files_in
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site, write_certificate
from signing import read
from signing.dictionary import tag_of

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


@pytest.fixture
def client(site: Site, gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
        yield client


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A valid object of 18 MB, more than one message may hold."""
    dataset = dcmread(CT)
    dataset.Rows = dataset.Columns = 3000
    dataset.PixelData = np.arange(3000 * 3000, dtype=np.uint16).tobytes()
    path = tmp_path / "large.dcm"
    dataset.save_as(path)
    return path


def test_a_file_and_its_bytes_get_the_same_answer(client: Client) -> None:
    assert client.protect(CT, "open") == client.protect(CT.read_bytes(), "open")


def test_an_object_larger_than_a_message_is_streamed(client: Client, large: Path) -> None:
    assert large.stat().st_size > 16 << 20

    from_file = client.protect(large, "open")
    from_memory = client.protect(large.read_bytes(), "open")

    assert from_file.disposition == "admit"
    assert from_file.receipt == from_memory.receipt


@pytest.mark.parametrize("size", [UNARY_BYTES_MAX, UNARY_BYTES_MAX + 1])
def test_either_side_of_the_seam_between_message_and_stream_is_answered(client: Client, size: int) -> None:
    answer = client.protect(CT.read_bytes().ljust(size, b"\0"), "open")
    assert answer.reasons == ("malformed",)


def test_an_answer_carries_a_receipt_that_the_gateways_key_signed(client: Client, site: Site) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key((site.directory / "keys" / "receipt.pub").read_bytes())
    answer = client.protect(CT, "open")
    statement = verify_receipt(answer.receipt, [key])  # type: ignore[list-item]
    assert statement["subject"][0]["digest"]["sha256"] == answer.scan_sha256


def test_a_folder_is_screened_in_order_and_what_is_not_dicom_is_left_out(client: Client, tmp_path: Path) -> None:
    for name in ("b/2.dcm", "a/1.dcm", "a/3.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CT.read_bytes())
    (tmp_path / "a" / "README.txt").write_text("no scan")

    files, skipped = files_in(tmp_path)
    results = list(client.screen(files, "open", in_flight=2))

    assert [result.path.relative_to(tmp_path).as_posix() for result in results] == ["a/1.dcm", "a/3.dcm", "b/2.dcm"]
    assert all(result.answer is not None and result.answer.admitted for result in results)
    assert skipped == 1


def test_one_bad_file_does_not_stop_the_others(client: Client, tmp_path: Path) -> None:
    results = list(client.screen([CT, tmp_path / "none.dcm", MR], "open"))
    assert [result.error.status if result.error else None for result in results] == [None, "CLIENT", None]


def test_without_a_route_a_sender_of_several_is_asked_to_name_one(client: Client) -> None:
    with pytest.raises(ClientError, match="name a route") as caught:
        client.protect(CT)
    assert caught.value.status == "INVALID_ARGUMENT"


def test_a_gateway_that_is_not_there_is_a_client_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Client(address) as client, pytest.raises(ClientError) as caught:
        client.protect(b"")
    assert caught.value.status == "UNAVAILABLE"


def test_no_token_and_no_scan_leaves_this_machine_in_plaintext() -> None:
    with pytest.raises(ClientError, match="not this machine"):
        Client("192.0.2.1:443", token="secret")


class TestMutualTls:
    """A gateway that asks for certificates, and takes a sender's subject for its name."""

    @pytest.fixture(scope="class")
    @staticmethod
    def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("tls")
        for authority, leaves in (("ca", ("server", "scanner-7", "unknown")), ("other-ca", ("intruder",))):
            issuer = write_certificate(folder, authority, None)
            for leaf in leaves:
                write_certificate(folder, leaf, issuer)
        return folder

    @pytest.fixture(scope="class")
    @staticmethod
    def address(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        site = Site.make(tmp_path_factory.mktemp("site"))
        text = site.config.read_text().replace("unsafe_plaintext = true\n", "")
        text = text.replace(
            "[metrics]",
            f'[receivers.grpc.tls]\ncertificate = "{pki}/server.pem"\nprivate_key = "{pki}/server.key"\n'
            f'client_ca = "{pki}/ca.pem"\n[metrics]',
        )
        text = text.replace('token_file = "tokens/scanner"', 'tls_subject = "scanner-7"')
        site.config.write_text(text)
        with GatewayProcess(site.config) as process:
            yield process.addresses.grpc

    @staticmethod
    def client(pki: Path, address: str, name: str | None) -> Client:
        certificate = (pki / f"{name}.pem").read_bytes() if name else None
        key = (pki / f"{name}.key").read_bytes() if name else None
        return Client(address, ca=(pki / "ca.pem").read_bytes(), certificate=certificate, private_key=key)

    def test_a_configured_subject_is_let_in(self, pki: Path, address: str) -> None:
        with self.client(pki, address, "scanner-7") as client:
            assert client.protect(CT, "open").disposition == "admit"

    def test_a_good_certificate_of_nobody_in_particular_is_not(self, pki: Path, address: str) -> None:
        with self.client(pki, address, "unknown") as client, pytest.raises(ClientError) as caught:
            client.protect(CT, "open")
        assert caught.value.status == "UNAUTHENTICATED"

    def test_a_probe_needs_a_certificate_and_no_token(self, pki: Path, address: str) -> None:
        with self.client(pki, address, "unknown") as client:
            client.check_health()

    @pytest.mark.parametrize("name", [None, "intruder"])
    def test_without_a_certificate_of_the_right_ca_nothing_is_heard(
        self, pki: Path, address: str, name: str | None
    ) -> None:
        with self.client(pki, address, name) as client, pytest.raises(ClientError) as caught:
            client.protect(CT, "open")
        assert caught.value.status == "UNAVAILABLE"


def test_the_large_object_is_read_whole(large: Path) -> None:
    """The fixture is what it says: the strict reader takes it."""
    rows = tag_of("Rows")
    assert rows is not None
    assert read(large.read_bytes()).integer(rows) == 3000
