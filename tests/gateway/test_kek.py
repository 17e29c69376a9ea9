"""The quarantine's key in a file, in the environment and in a token: the same contract, against SoftHSM."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.app.plan import Plan
from gateway.case import Case
from gateway.errors import ConfigError
from gateway.finding import GatewayReason
from gateway.settings.config import Config
from gateway.store.kek import Kek, RawKek, TokenKek, VaultError, load
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from gateway.testing import Site
from gateway.verdict import Disposition, Verdict

MODULE = next(iter(sorted(Path("/usr/lib").glob("**/libsofthsm2.so"))), None)
SOFTHSM = MODULE is not None and shutil.which("softhsm2-util") and importlib.util.find_spec("pkcs11")
needs_softhsm = pytest.mark.skipif(not SOFTHSM, reason="needs softhsm: a PKCS #11 token in software")
PIN = "4711"
HELD = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The URI of a key by its label, in a token with `kek`, `other`, `short` (128 bits) and `loose` (extractable)."""
    import pkcs11

    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    (folder / "pin").touch(mode=0o600)
    (folder / "pin").write_text(PIN)
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    made = ("--init-token", "--free", "--label", "vault", "--so-pin", "0815", "--pin", PIN)
    subprocess.run(["softhsm2-util", *made], check=True, capture_output=True)
    library = pkcs11.lib(str(MODULE))
    library.reinitialize()  # whatever tokens it knew before
    with library.get_token(token_label="vault").open(user_pin=PIN, rw=True) as session:
        for label, bits, extractable in (("kek", 256, False), ("other", 256, False), ("short", 128, False)):
            template = {pkcs11.Attribute.EXTRACTABLE: extractable}
            session.generate_key(pkcs11.KeyType.AES, bits, label=label, store=True, template=template)
        template = {pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: False}
        session.generate_key(pkcs11.KeyType.AES, 256, label="loose", store=True, template=template)
    yield lambda label: f"pkcs11:token=vault;object={label}?module-path={MODULE}&pin-source=file:{folder}/pin"
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture(params=["raw", pytest.param("token", marks=needs_softhsm)])
def keks(request: pytest.FixtureRequest) -> tuple[Kek, Kek]:
    """A key and another of its kind."""
    if request.param == "raw":
        return RawKek(bytes(range(32))), RawKek(bytes(32))
    uri = request.getfixturevalue("token")
    return TokenKek.open(uri("kek")), TokenKek.open(uri("other"))


def test_what_is_wrapped_is_unwrapped_by_the_same_key_in_the_same_place_alone(keks: tuple[Kek, Kek]) -> None:
    kek, other = keks
    wrapped = kek.wrap(bytes(32), bytes(12), b"here")

    assert len(wrapped) == 48
    assert kek.unwrap(wrapped, bytes(12), b"here") == bytes(32)
    for holder, taken, nonce, context in (
        (other, wrapped, bytes(12), b"here"),
        (kek, wrapped, bytes(12), b"there"),
        (kek, wrapped, bytes(11) + b"\x01", b"here"),
        (kek, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), bytes(12), b"here"),
    ):
        with pytest.raises(VaultError):
            holder.unwrap(taken, nonce, context)


def test_each_use_has_a_secret_of_its_own_the_same_each_time(keks: tuple[Kek, Kek]) -> None:
    kek, other = keks

    assert kek.derive(b"names") == kek.derive(b"names")
    assert len({kek.derive(b"names"), kek.derive(b"replay"), other.derive(b"names")}) == 3
    assert len(kek.derive(b"names")) == 32
    assert len(kek.id) == 8
    assert kek.id != other.id


def test_many_threads_share_it(keks: tuple[Kek, Kek]) -> None:
    kek = keks[0]

    def there_and_back(number: int) -> bool:
        data, nonce = number.to_bytes(32, "big"), number.to_bytes(12, "big")
        return kek.unwrap(kek.wrap(data, nonce, b""), nonce, b"") == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(200)))


def test_a_quarantine_keeps_scans_under_it(
    keks: tuple[Kek, Kek], tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    kek, other = keks
    case = make_case()
    first = Quarantine(tmp_path / "q", kek, name_key=bytes(32), bytes_max=1 << 24, metrics=Metrics())
    identity = first.hold(case, HELD)
    first.close()

    again = Quarantine(tmp_path / "q", kek, name_key=bytes(32), bytes_max=1 << 24, metrics=Metrics())
    assert b"".join(again.read(identity)) == bytes(case.scan.data)
    again.close()
    strange = Quarantine(tmp_path / "q", other, name_key=bytes(32), bytes_max=1 << 24, metrics=Metrics())
    with pytest.raises(VaultError, match="another key"):
        b"".join(strange.read(identity))
    strange.close()


@needs_softhsm
def test_a_gateway_is_configured_with_a_key_in_a_token(tmp_path: Path, token: Callable[[str], str]) -> None:
    site = Site.make(tmp_path)
    text = site.config.read_text()
    assert 'quarantine = "keys/quarantine.key"' in text
    site.config.write_text(text.replace('quarantine = "keys/quarantine.key"', f'quarantine = "{token("kek")}"'))

    once, again = (Plan.of(Config.load(site.config)).keys for _ in range(2))  # as SIGHUP does

    assert isinstance(once.quarantine, TokenKek)
    assert once.quarantine is again.quarantine
    assert once.replay == again.replay
    assert PIN not in repr(once)


@needs_softhsm
@pytest.mark.parametrize(
    ("label", "sentence"), [("short", "256 bits"), ("loose", "CKA_EXTRACTABLE"), ("none", "PKCS #11 key: NoSuchKey")]
)
def test_a_key_that_does_not_do_is_named(token: Callable[[str], str], label: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(token(label))

    assert PIN not in str(caught.value)


def test_a_key_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site.make(tmp_path)
    text = site.config.read_text()
    site.config.write_text(text.replace('quarantine = "keys/quarantine.key"', 'quarantine = "env:HELD_KEY"'))

    monkeypatch.setenv("HELD_KEY", bytes(range(32)).hex())
    assert Plan.of(Config.load(site.config)).keys.quarantine.id == RawKek(bytes(range(32))).id
    for wrong in ("", "abc", "zz" * 32):
        monkeypatch.setenv("HELD_KEY", wrong)
        with pytest.raises(ConfigError, match=r"keys\.quarantine: env:HELD_KEY: ") as caught:
            Plan.of(Config.load(site.config))
        assert not wrong or wrong not in str(caught.value)
