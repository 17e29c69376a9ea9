"""What `lint`, `diff`, `resign`, `series` and `verify DIR` answer to scripts: exit codes, documents, reasons."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.cli import main
from signing import read
from signing.testing import Hospital, flip_pixel_bit, replace_value

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))
PATIENT_ID, PIXEL_DATA = 0x00100020, 0x7FE00010
needs_dcmtk = pytest.mark.skipif(shutil.which("dcmcjpls") is None, reason="needs dcmtk: transcodes without loss")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def signed(pki: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("signed") / "ct.dcm"
    assert run("sign", CT, out, *key(pki, "ct")).exit_code == 0
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def key(pki: Hospital, who: str) -> tuple[object, ...]:
    return "--key", pki.path(f"{who}.key"), "--cert", pki.path(f"{who}.pem")


def trust(pki: Hospital) -> tuple[object, ...]:
    crls = ("--crl", pki.path("root.crl"), "--crl", pki.path("intermediate.crl"))
    return "--trust", pki.path("root.pem"), "--intermediates", pki.path("intermediate.pem"), *crls


def test_help_names_every_command() -> None:
    text = run("--help").output
    for command in ("sign", "verify", "resign", "lint", "diff", "series"):
        assert f"\n  {command} " in text
        assert run(command, "--help").exit_code == 0


class TestLint:
    """Exit 0: nothing found; 1: something; 2: unreadable."""

    def test_a_folder_is_one_document(self, tmp_path: Path) -> None:
        shutil.copy(CT, tmp_path / "a.dcm")
        (tmp_path / "b.dcm").write_bytes(replace_value(CT.read_bytes(), PATIENT_ID, b"X   "))
        ended = run("lint", tmp_path, "--json")
        document = json.loads(ended.stdout)
        assert (ended.exit_code, document["ok"], [file["ok"] for file in document["files"]]) == (
            1,
            False,
            [True, False],
        )
        (finding,) = document["files"][1]["findings"]
        assert (finding["code"], finding["tag"], finding["path"]) == ("redundant_padding", "(0010,0020)", "PatientID")
        assert {"severity", "rule", "advice", "detail"} <= set(finding)

    def test_nothing_found_is_0(self) -> None:
        ended = run("lint", CT, MR)
        assert (ended.exit_code, ended.stdout) == (0, f"ok\t{CT}\nok\t{MR}\n")

    def test_what_cannot_be_read_is_2_and_in_the_document(self, tmp_path: Path) -> None:
        (tmp_path / "x.dcm").write_bytes(b"no scan")
        ended = run("lint", CT, tmp_path / "x.dcm", tmp_path / "none", "--json")
        readable = [file["readable"] for file in json.loads(ended.stdout)["files"]]
        assert (ended.exit_code, readable) == (2, [True, False, False])

    def test_an_empty_folder_is_a_document_and_not_all_well(self, tmp_path: Path) -> None:
        ended = run("lint", tmp_path, "--json")
        assert (ended.exit_code, json.loads(ended.stdout)) == (2, {"files": [], "ok": False})


class TestDiff:
    """Exit 0: the same; 1: not; 2: unreadable."""

    def test_signing_is_no_difference(self, signed: Path) -> None:
        ended = run("diff", CT, signed, "--json")
        assert (ended.exit_code, json.loads(ended.stdout)) == (0, {"same": True, "differences": []})

    def test_the_first_or_every_difference_is_named_without_values(self, tmp_path: Path) -> None:
        other = tmp_path / "other.dcm"
        other.write_bytes(flip_pixel_bit(replace_value(CT.read_bytes(), PATIENT_ID, b"7XZQ"), 9))
        ended = run("diff", CT, other)
        assert (ended.exit_code, ended.stdout) == (1, "value\tPatientID\t(0010,0020)\tbyte 0\tlengths 4, 4\n")
        document = json.loads(run("diff", CT, other, "--all", "--json").stdout)
        assert [(each["path"], each["offset"]) for each in document["differences"]] == [
            ("PatientID", 0),
            ("PixelData", 9),
        ]
        assert "7XZQ" not in json.dumps(document)
        assert "B: 7XZQ" in run("diff", CT, other, "--show-values").stdout

    def test_what_cannot_be_read_is_2(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"no scan")
        ended = run("diff", CT, tmp_path / "x", "--json")
        assert (ended.exit_code, json.loads(ended.stdout)["same"]) == (2, None)


@needs_dcmtk
class TestResign:
    """A copy is signed anew only if it says what was verified, to the last pixel."""

    @pytest.fixture
    def transcoded(self, signed: Path, tmp_path: Path) -> Callable[..., Path]:
        def made(*command: str, source: Path = signed) -> Path:
            out = tmp_path / f"{command[0]}-{source.name}"
            subprocess.run([*command, str(source), str(out)], check=True, capture_output=True)
            return out

        return made

    @pytest.mark.parametrize("command", [["dcmcrle"], ["dcmcjpls"], ["dcmconv", "+td"]], ids=lambda words: words[0])
    def test_a_lossless_copy_is_signed_and_verifies(
        self, command: list[str], transcoded: Callable[..., Path], signed: Path, pki: Hospital, tmp_path: Path
    ) -> None:
        copy, out = transcoded(*command), tmp_path / "out.dcm"
        assert run("verify", copy, *trust(pki)).exit_code == 1 or command[0] == "dcmconv"
        ended = run("resign", copy, out, "--original", signed, *trust(pki), *key(pki, "mr"), "--json")
        assert (ended.exit_code, json.loads(ended.stdout)["reason"]) == (0, "ok"), ended.output
        (file,) = json.loads(run("verify", out, *trust(pki), "--json").stdout)["files"]
        assert file["verdict"] == "passed"
        (signature,) = file["signatures"]
        assert "MR Scanner" in signature["signer"]["subject"]
        assert signature["covers"] == json.loads(ended.stdout)["covers"]

    def test_many_frames_are_compared_too(self, transcoded: Callable[..., Path], pki: Hospital, tmp_path: Path) -> None:
        dataset = dcmread(CT)
        dataset.NumberOfFrames = 70
        dataset.PixelData = bytes(dataset.PixelData) * 70
        dataset.save_as(tmp_path / "many.dcm")
        source, out = tmp_path / "many-signed.dcm", tmp_path / "out.dcm"
        assert run("sign", tmp_path / "many.dcm", source, *key(pki, "ct")).exit_code == 0
        copy = transcoded("dcmcrle", source=source)
        ended = run("resign", copy, out, "--original", source, *trust(pki), *key(pki, "mr"))
        assert ended.exit_code == 0, ended.output
        copy.write_bytes(
            flip_pixel_bit(transcoded("dcmdjpls", source=transcoded("dcmcjpls", source=source)).read_bytes(), 2_000_000)
        )
        assert run("resign", copy, out, "--original", source, *trust(pki), *key(pki, "mr")).exit_code == 2
        forced = (*trust(pki), *key(pki, "mr"), "--force")
        assert run("resign", copy, out, "--original", source, *forced).exit_code == 1

    def test_there_and_back_is_the_first_object_again(
        self, transcoded: Callable[..., Path], signed: Path, pki: Hospital, tmp_path: Path
    ) -> None:
        back = transcoded("dcmdjpls", source=transcoded("dcmcjpls"))
        out = tmp_path / "out.dcm"
        assert run("resign", back, out, "--original", signed, *trust(pki), *key(pki, "mr")).exit_code == 0
        assert run("diff", out, signed).exit_code == 0

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (flip_pixel_bit, "decoded pixels"),
            (lambda data: replace_value(data, PATIENT_ID, b"2CT1"), "PatientID"),
            (lambda data: data[: read(data).get(PIXEL_DATA).start], "no pixel data"),  # type: ignore[union-attr]
            (
                lambda data: data.replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x15\x00LO\x02\x00x \x08\x00\x16\x00UI", 1),
                "0008,0015",
            ),
        ],
        ids=["pixel", "patient", "no pixels", "added"],
    )
    def test_a_copy_that_says_something_else_is_refused(
        self,
        spoil: Callable[[bytes], bytes],
        says: str,
        transcoded: Callable[..., Path],
        signed: Path,
        pki: Hospital,
        tmp_path: Path,
    ) -> None:
        copy, out = transcoded("dcmdjpls", source=transcoded("dcmcjpls")), tmp_path / "out.dcm"
        copy.write_bytes(spoil(copy.read_bytes()))
        ended = run("resign", copy, out, "--original", signed, *trust(pki), *key(pki, "mr"), "--json")
        assert (ended.exit_code, json.loads(ended.stdout)["reason"]) == (1, "not_the_same"), ended.output
        assert says in json.loads(ended.stdout)["detail"]
        assert not out.exists()

    def test_an_original_that_does_not_verify_is_refused(
        self, transcoded: Callable[..., Path], signed: Path, pki: Hospital, tmp_path: Path
    ) -> None:
        forged, out = tmp_path / "forged.dcm", tmp_path / "out.dcm"
        forged.write_bytes(flip_pixel_bit(signed.read_bytes()))
        copy = transcoded("dcmcrle", source=forged)
        ended = run("resign", copy, out, "--original", forged, *trust(pki), *key(pki, "mr"), "--json")
        assert (ended.exit_code, json.loads(ended.stdout)["reason"]) == (1, "mac_mismatch")

    def test_a_copy_that_is_no_dicom_is_2(self, signed: Path, pki: Hospital, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"no scan")
        ended = run("resign", tmp_path / "x", tmp_path / "o", "--original", signed, *trust(pki), *key(pki, "mr"))
        assert ended.exit_code == 2


class TestSeries:
    """Exit 0: all there and nothing else; 1: not; 2: unreadable."""

    @pytest.fixture
    def folder(self, tmp_path: Path, pki: Hospital) -> Path:
        folder = tmp_path / "series"
        folder.mkdir()
        shutil.copy(CT, folder / "1.dcm")
        assert run("series", "sign", folder, folder / "manifest.json", *key(pki, "ct")).exit_code == 0
        return folder

    def verify(self, folder: Path, pki: Hospital) -> tuple[int, str, list[str]]:
        ended = run("series", "verify", folder, folder / "manifest.json", *trust(pki), "--json")
        document = json.loads(ended.stdout)
        return ended.exit_code, document["reason"], [finding["reason"] for finding in document["findings"]]

    def test_a_whole_series_is_0(self, folder: Path, pki: Hospital) -> None:
        assert self.verify(folder, pki) == (0, "ok", [])
        ended = run("series", "verify", folder, folder / "manifest.json", *trust(pki))
        assert ended.stdout.startswith("passed/ok\t1 of 1 objects there")

    def test_missing_and_mixed_are_1(self, folder: Path, pki: Hospital) -> None:
        shutil.copy(MR, folder / "2.dcm")
        (folder / "1.dcm").unlink()
        assert self.verify(folder, pki) == (1, "missing", ["mixed", "missing"])

    def test_unreadable_is_2(self, folder: Path, pki: Hospital) -> None:
        (folder / "x").write_bytes(b"no scan")
        assert self.verify(folder, pki) == (2, "unreadable", ["unreadable"])

    def test_a_manifest_that_is_not_believed_says_why(self, folder: Path, pki: Hospital) -> None:
        again = ("series", "sign", folder, folder / "manifest.json", *key(pki, "stranger"))
        assert (run(*again).exit_code, run(*again, "--force").exit_code) == (2, 0)
        assert self.verify(folder, pki) == (1, "manifest_untrusted", [])
        (folder / "manifest.json").write_text("{}")
        assert self.verify(folder, pki) == (2, "manifest_malformed", [])

    def test_two_series_cannot_be_listed_as_one(self, folder: Path, pki: Hospital) -> None:
        shutil.copy(MR, folder / "2.dcm")
        ended = run("series", "sign", folder, folder / "manifest.json", *key(pki, "ct"), "--force")
        assert ended.exit_code == 2


class TestManyFiles:
    """`verify DIR` uses all cores and answers as one process would."""

    def test_the_order_is_that_of_the_names(self, signed: Path, pki: Hospital, tmp_path: Path) -> None:
        good, bad = signed.read_bytes(), flip_pixel_bit(signed.read_bytes())
        for number in range(60):
            (tmp_path / f"{number:02}.dcm").write_bytes(bad if number % 7 == 3 else good)
        (tmp_path / "41.dcm").write_bytes(b"no scan")
        ended = run("verify", tmp_path, *trust(pki), "--json")
        files = json.loads(ended.stdout)["files"]
        assert ended.exit_code == 2
        assert [Path(file["path"]).name for file in files] == [f"{number:02}.dcm" for number in range(60)]
        reasons = ["mac_mismatch" if number % 7 == 3 else "ok" for number in range(60)]
        reasons[41] = "malformed"
        assert [file["reason"] for file in files] == reasons

    def test_a_terminal_sees_how_far_it_is_and_stdout_does_not(
        self, signed: Path, pki: Hospital, tmp_path: Path
    ) -> None:
        for number in range(8):
            shutil.copy(signed, tmp_path / str(number))
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "gateway.cli", "verify", tmp_path, *trust(pki)]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=theirs) as process:
            os.close(theirs)
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
        seen = os.read(ours, 65536)
        os.close(ours)
        assert (process.returncode, len(lines)) == (0, 8)
        assert b"verifying" in seen

    def test_no_file_at_all_is_an_empty_document_and_not_all_well(self, pki: Hospital, tmp_path: Path) -> None:
        ended = run("verify", tmp_path, *trust(pki), "--json")
        assert (ended.exit_code, json.loads(ended.stdout)) == (2, {"files": []})


class TestKeys:
    """One key, and one way to it."""

    def test_an_encrypted_key_wants_its_password(self, pki: Hospital, tmp_path: Path) -> None:
        encrypted, password = tmp_path / "ct.key", tmp_path / "password"
        form = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        encrypted.write_bytes(pki.key("ct").private_bytes(*form))
        password.write_text("secret\n")
        options = ("--key", encrypted, "--cert", pki.path("ct.pem"))
        assert run("sign", CT, tmp_path / "o", *options).exit_code == 2
        assert run("sign", CT, tmp_path / "o", *options, "--password-file", password).exit_code == 0

    def test_neither_or_both_keys_is_2(self, pki: Hospital, tmp_path: Path) -> None:
        certificate = ("--cert", pki.path("ct.pem"))
        both = ("--key", pki.path("ct.key"), "--pkcs11-uri", "pkcs11:object=a?module-path=/none")
        assert run("sign", CT, tmp_path / "o", *certificate).exit_code == 2
        assert run("sign", CT, tmp_path / "o", *certificate, *both).exit_code == 2
        assert run("sign", CT, tmp_path / "o", *certificate, *both[2:]).exit_code == 2
        assert not os.listdir(tmp_path)
