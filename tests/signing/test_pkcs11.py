"""Keys in a PKCS #11 token sign what keys in files sign: against SoftHSM, a real token in software."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import signing
from gateway.cli import main
from signing import SignError, read
from signing.pkcs11_uri import MODULE_VARIABLE, PIN_VARIABLE, Pkcs11Uri
from signing.signers import Pkcs11Signer
from signing.testing import Hospital, Key

MODULE = next(iter(sorted(Path("/usr/lib").glob("**/libsofthsm2.so"))), None)
SOFTHSM = MODULE is not None and shutil.which("softhsm2-util") and importlib.util.find_spec("pkcs11")
needs_softhsm = pytest.mark.skipif(not SOFTHSM, reason="needs softhsm: a PKCS #11 token in software")
PIN = "4711"


class TestUri:
    """RFC 7512, without the parts that would show a PIN."""

    def test_it_names_token_key_module_and_pin_file(self, tmp_path: Path) -> None:
        pin = tmp_path / "pin"
        pin.write_text(f"{PIN}\n")
        pin.chmod(0o600)
        uri = f"pkcs11:token=CT%20room;object=ct;id=%01%ff;type=private?module-path=/lib/p.so&pin-source=file:{pin}"
        assert Pkcs11Uri.parse(uri) == Pkcs11Uri("/lib/p.so", "CT room", None, "ct", b"\x01\xff", PIN)

    def test_module_and_pin_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MODULE_VARIABLE, "/lib/p.so")
        monkeypatch.setenv(PIN_VARIABLE, PIN)
        found = Pkcs11Uri.parse("pkcs11:object=ct;serial=abc")
        assert (found.module, found.pin, found.serial, found.token) == ("/lib/p.so", PIN, b"abc", None)

    @pytest.mark.parametrize(
        ("uri", "says"),
        [
            ("https://hsm/", "pkcs11:"),
            ("pkcs11:object=100%", "percent"),
            ("pkcs11:token=a?module-path=/p", "names no key"),
            ("pkcs11:object=a", "module-path"),
            ("pkcs11:object=a;type=cert?module-path=/p", "private"),
            ("pkcs11:object=a?module-path=/p&pin-value=1234", "pin-value"),
            ("pkcs11:object=a;object=b?module-path=/p", "twice"),
            ("pkcs11:object=a;colour=red?module-path=/p", "colour"),
            ("pkcs11:object=a?module-path=/p&pin-source=https://x/pin", "file"),
            ("pkcs11:object=a?module-path=/p&pin-source=file:/none/pin", "PIN file"),
        ],
    )
    def test_what_cannot_be_used_is_refused_by_name(self, uri: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(MODULE_VARIABLE, raising=False)
        with pytest.raises(SignError, match=says) as caught:
            Pkcs11Uri.parse(uri)
        assert "1234" not in str(caught.value)

    def test_a_pin_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        pin = tmp_path / "pin"
        pin.write_text(PIN)
        pin.chmod(0o644)
        with pytest.raises(SignError, match="0600"):
            Pkcs11Uri.parse(f"pkcs11:object=a?module-path=/p&pin-source=file:{pin}")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory, hospital: Hospital, now: datetime) -> Iterator[Path]:
    """A token with the keys of the CT (RSA), the MR (P-256) and one on P-384; returns a folder of its files."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    softhsm("--init-token", "--free", "--label", "hospital", "--so-pin", "0815", "--pin", PIN)
    wide = ec.generate_private_key(ec.SECP384R1())
    (folder / "wide.pem").write_bytes(certified(hospital, wide).public_bytes(Encoding.PEM))
    keys: dict[str, Key] = {"ct": hospital.key("ct"), "mr": hospital.key("mr"), "wide": wide}
    for number, (label, key) in enumerate(keys.items(), 1):
        pem = folder / f"{label}.key"
        pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        into = ("--token", "hospital", "--pin", PIN, "--label", label, "--id", f"{number:02x}")
        softhsm("--import", str(pem), *into)
    pkcs11 = importlib.import_module("pkcs11")
    pkcs11.lib(str(MODULE)).reinitialize()  # whatever tokens it knew before
    (folder / "pin").touch(mode=0o600)
    (folder / "pin").write_text(PIN)
    yield folder
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


def softhsm(*arguments: str) -> None:
    subprocess.run(["softhsm2-util", *arguments], check=True, capture_output=True)


def certified(hospital: Hospital, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    issuer, model = hospital.certificate("intermediate"), hospital.certificate("mr")
    builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(issuer.subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    usage = model.extensions.get_extension_for_class(x509.KeyUsage).value
    return builder.add_extension(usage, critical=True).sign(hospital.key("intermediate"), hashes.SHA256())


def uri(token: Path, which: str) -> str:
    return f"pkcs11:token=hospital;{which}?module-path={MODULE}&pin-source=file:{token / 'pin'}"


@needs_softhsm
class TestToken:
    """The key never leaves the token, and the signature is like any other."""

    @pytest.mark.parametrize("mac", ["SHA256", "SHA384", "SHA512"])
    @pytest.mark.parametrize("who", ["ct", "mr", "wide"])
    def test_an_object_signed_by_a_token_verifies(
        self, who: str, mac: str, token: Path, hospital: Hospital, ct: bytes, now: datetime
    ) -> None:
        certificate = token / "wide.pem" if who == "wide" else hospital.path(f"{who}.pem")
        signer = Pkcs11Signer.open(uri(token, f"object={who}"), certificate)
        try:
            signed = signing.sign(ct, signer=signer, mac=mac, at=now)
        finally:
            signer.close()
        found = signing.verify(read(signed), hospital.trust(), at=now)
        assert found.algorithm == {"ct": "RSA-3072", "mr": "P-256", "wide": "P-384"}[who]

    def test_the_command_line_signs_with_a_token(self, token: Path, hospital: Hospital, ct: bytes) -> None:
        (token / "ct.dcm").write_bytes(ct)
        named = ["--pkcs11-uri", uri(token, "object=ct"), "--cert", str(hospital.path("ct.pem"))]
        ended = CliRunner().invoke(main, ["sign", str(token / "ct.dcm"), str(token / "out.dcm"), *named])
        assert ended.exit_code == 0, ended.output
        assert read((token / "out.dcm").read_bytes()).items(0xFFFAFFFA)

    def test_a_token_makes_the_same_rsa_signature_as_a_file(self, token: Path, hospital: Hospital) -> None:
        assert isinstance(hospital.key("ct"), rsa.RSAPrivateKey)
        signer = Pkcs11Signer.open(uri(token, "id=%01"), hospital.path("ct.pem"))
        digest = bytes(range(32))
        assert signer.sign_digest(digest, "SHA256") == hospital.signer("ct").sign_digest(digest, "SHA256")
        signer.close()

    def test_a_certificate_of_another_key_is_noticed(self, token: Path, hospital: Hospital) -> None:
        signer = Pkcs11Signer.open(uri(token, "object=mr"), token / "wide.pem")
        with pytest.raises(SignError, match="not for the key"):
            signer.sign_digest(bytes(32), "SHA256")
        signer.close()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("hospital", "clinic"), "NoSuchToken"),
            (("object=ct", "object=none"), "NoSuchKey"),
            (("libsofthsm2.so", "libnone.so"), "PKCS #11 token"),
        ],
    )
    def test_what_is_not_there_is_named(
        self, change: tuple[str, str], says: str, token: Path, hospital: Hospital
    ) -> None:
        wrong = uri(token, "object=ct").replace(*change)
        with pytest.raises(SignError, match=says):
            Pkcs11Signer.open(wrong, hospital.path("ct.pem"))

    def test_a_wrong_pin_is_named_and_not_repeated(self, token: Path, hospital: Hospital, tmp_path: Path) -> None:
        pin = tmp_path / "pin"
        pin.touch(mode=0o600)
        pin.write_text("9999")
        wrong = f"pkcs11:token=hospital;object=ct?module-path={MODULE}&pin-source=file:{pin}"
        with pytest.raises(SignError, match="PinIncorrect") as caught:
            Pkcs11Signer.open(wrong, hospital.path("ct.pem"))
        assert "9999" not in str(caught.value)
