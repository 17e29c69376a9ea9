"""The command line as scripts see it: flags, exit codes, one JSON document on stdout and nothing else."""

from __future__ import annotations

import http.server
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydicom.data import get_testdata_file

from gateway.cli import main
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from signing import der, read
from signing.testing import Hospital, flip_pixel_bit

CT = Path(str(get_testdata_file("CT_small.dcm")))
MR = Path(str(get_testdata_file("MR_small.dcm")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


def run(*arguments: object, token: str | None = None) -> Result:
    environment = {"SCANWARD_TOKEN": token, "SCANWARD_ADDRESS": None}
    return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])


def trust_of(hospital: Hospital) -> list[object]:
    crls = [hospital.path("root.crl"), hospital.path("intermediate.crl")]
    options = [("--trust", hospital.path("root.pem")), ("--intermediates", hospital.path("intermediate.pem"))]
    return [word for option in [*options, *(("--crl", crl) for crl in crls)] for word in option]


class TestHelp:
    """Help is what a new user reads first."""

    def test_it_imports_nothing_heavy(self) -> None:
        script = (
            "import sys\nfrom gateway.cli import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'torch', 'grpc', 'cryptography', 'numpy', 'onnx', 'onnxruntime', 'pydantic', 'pydicom', 'rich',"
            " 'structlog', 'lab', 'signing', 'detectors'}\n"
            "print('loaded:', sorted(heavy & set(sys.modules)))"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines()[-1] == "loaded: []"

    def test_it_names_every_command_and_the_exit_codes(self) -> None:
        text = run("--help").output
        for command in ("serve", "check-config", "screen", "sign", "verify", "audit", "demo"):
            assert f"\n  {command} " in text
        assert "1 examined and found wanting" in text

    @pytest.mark.parametrize("command", ["serve", "check-config", "screen", "sign", "verify", "audit", "demo"])
    def test_each_command_has_help(self, command: str) -> None:
        assert run(command, "--help").exit_code == 0

    @pytest.mark.parametrize(
        "arguments", [["nonsense"], ["--nonsense"], ["verify"], ["audit", "show"], ["screen", "x"]]
    )
    def test_a_usage_error_is_2(self, arguments: list[str]) -> None:
        ended = run(*arguments)
        assert (ended.exit_code, ended.stdout) == (2, "")


class TestConfiguration:
    """`check-config` and `serve` on configurations that cannot be served."""

    def test_a_good_one_is_0(self, site: Site) -> None:
        ended = run("check-config", site.config)
        assert (ended.exit_code, ended.stdout) == (0, "")
        assert "can be served" in ended.stderr

    @pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"]])
    def test_every_mistake_is_named_by_its_key(self, site: Site, tmp_path: Path, command: list[str]) -> None:
        text = site.config.read_text().replace('"pki/', f'"{site.directory}/pki/').replace("threads = 8", "threads = 0")
        (tmp_path / "bad.toml").write_text(text)
        ended = run(*command, tmp_path / "bad.toml")
        assert ended.exit_code == 2
        for key in ("receivers.grpc.threads", "keys.receipt", "trust.strict.policy", "sources.0.token_file"):
            assert f"\n  {key}: " in ended.stderr

    def test_a_mistake_inside_a_named_file_is_named_too(self, site: Site, tmp_path: Path) -> None:
        site_2 = Site.make(tmp_path)
        (tmp_path / "reject.toml").write_text("mac = ['SHA256']")
        (tmp_path / "keys" / "quarantine.key").write_text("abc")
        ended = run("check-config", site_2.config)
        assert ended.exit_code == 2
        assert "trust.strict: " in ended.stderr
        assert "keys.quarantine: " in ended.stderr


class TestScreen:
    """`screen` against a real gateway."""

    def test_admitted_is_0(self, site: Site, gateway: GatewayProcess) -> None:
        options = ("--address", gateway.addresses.grpc, "--route", "open", "--json")
        ended = run("screen", CT, MR, *options, token=site.tokens["scanner"])
        document = json.loads(ended.stdout)
        assert (ended.exit_code, document["ok"]) == (0, True)
        assert [scan["disposition"] for scan in document["scans"]] == ["admit", "admit"]
        assert set(document["scans"][0]) == {
            "path", "scan_sha256", "disposition", "reasons", "detail", "prediction", "log_index",
            "quarantine_id", "earlier", "released_by", "ms", "error",
        }  # fmt: skip

    def test_refused_is_1(self, site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
        token_file = site.directory / "tokens" / "scanner"
        (tmp_path / "x.dcm").write_bytes(b"no scan")
        options = ("--address", gateway.addresses.grpc, "--route", "open", "--token-file", token_file)
        ended = run("screen", CT, tmp_path / "x.dcm", *options)
        assert ended.exit_code == 1
        headings, *rows = [line.split("\t") for line in ended.stdout.splitlines()]
        assert headings == [
            "scan", "disposition", "reason", "diagnosis", "ms", "record", "answered", "quarantine id", "what is wrong",
        ]  # fmt: skip
        assert [len(row) for row in rows] == [len(headings)] * 2
        assert [row[1] for row in rows] == ["admit", "reject"]
        assert rows[1][2] == "malformed"
        assert rows[1][-1].startswith("not a DICOM file")

    def test_what_is_not_dicom_in_a_folder_is_counted(
        self, site: Site, gateway: GatewayProcess, tmp_path: Path
    ) -> None:
        (tmp_path / "README.txt").write_text("no scan")
        (tmp_path / "ct.dcm").write_bytes(CT.read_bytes())
        where = (tmp_path, "--address", gateway.addresses.grpc, "--route", "open")
        document = json.loads(run("screen", *where, "--json", token=site.tokens["scanner"]).stdout)
        assert (document["skipped"], len(document["scans"])) == (1, 1)
        ended = run("screen", *where, token=site.tokens["scanner"])
        assert "1 files that are not DICOM were skipped" in ended.stderr
        assert "\tbefore\t" in ended.stdout  # the same bytes were answered a moment ago

    def test_not_examined_is_2(self, gateway: GatewayProcess) -> None:
        ended = run("screen", CT, "--address", gateway.addresses.grpc, "--json", token="x" * 40)
        assert ended.exit_code == 2
        assert json.loads(ended.stdout)["scans"][0]["error"]["status"] == "UNAUTHENTICATED"

    def test_an_empty_folder_is_2(self, gateway: GatewayProcess, tmp_path: Path) -> None:
        ended = run("screen", tmp_path, "--address", gateway.addresses.grpc)
        assert (ended.exit_code, ended.stdout) == (2, "")
        ended = run("screen", tmp_path, "--address", gateway.addresses.grpc, "--json")
        assert (ended.exit_code, json.loads(ended.stdout)) == (2, {"scans": [], "skipped": 0, "ok": False})

    @pytest.mark.parametrize("study", [(), ("--study",)], ids=["scans", "study"])
    def test_plaintext_to_another_machine_is_2(self, study: tuple[str, ...]) -> None:
        ended = run("screen", CT, "--address", "192.0.2.1:1", "--json", *study)
        assert (ended.exit_code, json.loads(ended.stdout)) == (2, {"scans": [], "skipped": 0, "ok": False})

    def test_a_study_that_is_not_answered_is_2_and_still_one_document(self, gateway: GatewayProcess) -> None:
        ended = run("screen", CT, "--study", "--address", gateway.addresses.grpc, "--json", token="x" * 40)
        assert (ended.exit_code, json.loads(ended.stdout)["ok"]) == (2, False)


class TestSignAndVerify:
    """`sign` and `verify`, which need no gateway."""

    @pytest.fixture
    def signed(self, site: Site, tmp_path: Path) -> Path:
        out, pki = tmp_path / "signed.dcm", site.hospital
        ended = run("sign", CT, out, "--key", pki.path("ct.key"), "--cert", pki.path("ct.pem"))
        assert ended.exit_code == 0, ended.output
        return out

    def test_what_was_signed_is_verified(self, site: Site, signed: Path) -> None:
        ended = run("verify", signed, *trust_of(site.hospital), "--json")
        assert ended.exit_code == 0
        (file,) = json.loads(ended.stdout)["files"]
        assert (file["verdict"], file["reason"]) == ("passed", "ok")
        assert set(file["checks"]) == {
            "crypto", "coverage", "signer", "chain", "revocation", "timestamp", "binding", "freshness",
        }  # fmt: skip
        (signature,) = file["signatures"]
        assert {"path", "uid", "profile", "purpose", "signer", "algorithm", "mac", "signed_at", "timestamp", "covers",
                "unsigned"} <= set(signature)  # fmt: skip
        assert "PatientID" in signature["covers"]

    def test_a_changed_pixel_is_1(self, site: Site, signed: Path) -> None:
        signed.write_bytes(flip_pixel_bit(signed.read_bytes()))
        ended = run("verify", signed, *trust_of(site.hospital), "--json")
        assert ended.exit_code == 1
        assert json.loads(ended.stdout)["files"][0]["reason"] == "mac_mismatch"

    def test_unsigned_is_1_and_one_line_for_people(self, site: Site) -> None:
        ended = run("verify", CT, *trust_of(site.hospital))
        assert ended.exit_code == 1
        assert ended.stdout.startswith(f"failed/unsigned\t{CT}")

    def test_what_cannot_be_read_is_2_and_in_the_document(self, site: Site, signed: Path, tmp_path: Path) -> None:
        (tmp_path / "x.dcm").write_bytes(b"no scan")
        ended = run("verify", signed, tmp_path / "x.dcm", tmp_path / "none", *trust_of(site.hospital), "--json")
        assert ended.exit_code == 2
        reasons = [file["reason"] for file in json.loads(ended.stdout)["files"]]
        assert reasons == ["ok", "malformed", "malformed"]

    def test_trust_that_cannot_be_read_is_2_and_still_a_document(self) -> None:
        ended = run("verify", CT, "--trust", CT, "--json")
        assert (ended.exit_code, json.loads(ended.stdout)) == (2, {"files": []})

    def test_it_is_judged_as_at_the_given_time(self, site: Site, signed: Path) -> None:
        ended = run("verify", signed, *trust_of(site.hospital), "--at", "2001-01-01T00:00:00Z", "--json")
        assert ended.exit_code == 1
        assert run("verify", signed, *trust_of(site.hospital), "--at", "2001-01-01T00:00:00").exit_code == 2

    def test_a_key_that_does_not_fit_the_certificate_is_2(self, site: Site, tmp_path: Path) -> None:
        pki = site.hospital
        ended = run("sign", CT, tmp_path / "o", "--key", pki.path("mr.key"), "--cert", pki.path("ct.pem"))
        assert ended.exit_code == 2
        assert not (tmp_path / "o").exists()

    def test_a_time_stamp_is_fetched_and_verified(self, site: Site, tmp_path: Path) -> None:
        out, pki = tmp_path / "stamped.dcm", site.hospital
        with _authority(pki) as url:
            options = ("--key", pki.path("mr.key"), "--cert", pki.path("mr.pem"), "--mac", "sha512", "--tsa", url)
            assert run("sign", MR, out, *options).exit_code == 0
        (file,) = json.loads(run("verify", out, *trust_of(pki), "--json").stdout)["files"]
        assert file["verdict"] == "passed", file
        assert file["signatures"][0]["timestamp"] is not None
        assert file["signatures"][0]["mac"] == "SHA512"

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:9/"])
    def test_an_authority_that_does_not_answer_is_2(self, site: Site, tmp_path: Path, url: str) -> None:
        pki = site.hospital
        options = ("--key", pki.path("mr.key"), "--cert", pki.path("mr.pem"), "--tsa", url)
        assert run("sign", MR, tmp_path / "o", *options).exit_code == 2

    def test_signing_in_place_keeps_every_other_byte(self, site: Site, tmp_path: Path) -> None:
        path, pki = tmp_path / "own.dcm", site.hospital
        path.write_bytes(CT.read_bytes())
        options = ("--key", pki.path("ct.key"), "--cert", pki.path("ct.pem"), "--tags", "PatientID")
        ended = run("sign", path, path, *options)
        assert (ended.exit_code, path.read_bytes()) == (2, CT.read_bytes())
        assert "own.dcm: is there already; --force replaces it" in ended.stderr
        assert run("sign", path, path, *options, "--force").exit_code == 0
        before, after = read(CT.read_bytes()), read(path.read_bytes())
        assert {element.tag for element in after} - {element.tag for element in before} == {0x4FFE0001, 0xFFFAFFFA}
        assert list(tmp_path.iterdir()) == [path]

    def test_what_is_called_like_a_part_of_it_is_left_alone(self, site: Site, tmp_path: Path) -> None:
        pki = site.hospital
        (tmp_path / "out.dcm.part").write_text("precious")
        ended = run("sign", CT, tmp_path / "out.dcm", "--key", pki.path("ct.key"), "--cert", pki.path("ct.pem"))
        assert ended.exit_code == 0
        assert (tmp_path / "out.dcm.part").read_text() == "precious"
        assert {path.name for path in tmp_path.iterdir()} == {"out.dcm", "out.dcm.part"}

    def test_nothing_is_called_signed_that_was_not_written(self, site: Site, tmp_path: Path) -> None:
        pki = site.hospital
        (tmp_path / "link.dcm").symlink_to(tmp_path / "nowhere.dcm")
        for out in (tmp_path / "link.dcm", tmp_path / "none" / "out.dcm"):
            ended = run("sign", CT, out, "--key", pki.path("ct.key"), "--cert", pki.path("ct.pem"))
            assert ended.exit_code == 2, ended.stdout
            assert f"{out}" in ended.stderr
            assert ".part" not in ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["link.dcm"]


class TestAudit:
    """`audit verify`, `show` and `export` on the log of a gateway that has stopped."""

    @pytest.fixture(scope="class")
    @staticmethod
    def stopped(tmp_path_factory: pytest.TempPathFactory) -> Site:
        site = Site.make(tmp_path_factory.mktemp("audit"))
        with (
            GatewayProcess(site.config) as process,
            Client(process.addresses.grpc, token=site.tokens["scanner"]) as client,
        ):
            client.protect(CT, "open")
        return site

    def test_an_unchanged_log_is_0(self, stopped: Site) -> None:
        data, key = stopped.directory / "data", stopped.directory / "keys" / "checkpoint.pub"
        ended = run("audit", "verify", "--log", data / "audit.sqlite", "--key", key,
                    "--checkpoint", data / "checkpoint.note", "--json")  # fmt: skip
        document = json.loads(ended.stdout)
        assert ended.exit_code == 0
        assert set(document) == {"records", "first_bad", "root", "ok"}
        assert (document["records"], document["first_bad"], document["ok"]) == (3, None, True)

    def test_another_key_is_1(self, stopped: Site) -> None:
        data, key = stopped.directory / "data", stopped.directory / "keys" / "receipt.pub"
        ended = run("audit", "verify", "--log", data / "audit.sqlite", "--key", key, "--json")
        assert (ended.exit_code, json.loads(ended.stdout)["ok"]) == (1, False)

    def test_no_key_at_all_is_2(self, stopped: Site) -> None:
        log = stopped.directory / "data" / "audit.sqlite"
        assert run("audit", "verify", "--log", log, "--key", CT).exit_code == 2

    def test_a_changed_record_is_1_and_named(self, stopped: Site, tmp_path: Path) -> None:
        log, key = tmp_path / "log.sqlite", stopped.directory / "keys" / "checkpoint.pub"
        shutil.copy(stopped.directory / "data" / "audit.sqlite", log)
        with sqlite3.connect(log) as database:
            database.execute("DROP TRIGGER entries_no_update")
            database.execute("UPDATE entries SET body = (SELECT body FROM entries WHERE idx = 0) WHERE idx = 1")
        ended = run("audit", "verify", "--log", log, "--key", key)
        assert (ended.exit_code, "record 1 of 3 cannot be believed" in ended.stdout) == (1, True)

    @pytest.mark.parametrize("place", ["no-such-file", "postgresql:///nothing?host=/nowhere"])
    def test_a_log_that_cannot_be_read_is_2_in_its_own_words(self, stopped: Site, place: str) -> None:
        key = stopped.directory / "keys" / "checkpoint.pub"
        for command in (("verify", "--key", key), ("show", 0), ("export", "--out", stopped.directory / "never")):
            ended = run("audit", *command, "--log", place)
            assert (ended.exit_code, ended.stdout) == (2, "")
            assert ended.stderr.startswith("Error: audit log"), ended.stderr
            assert "configuration" not in ended.stderr
        assert not (stopped.directory / "never").exists()

    def test_a_checkpoint_that_is_none_is_2(self, stopped: Site) -> None:
        data, key = stopped.directory / "data", stopped.directory / "keys" / "checkpoint.pub"
        ended = run("audit", "verify", "--log", data / "audit.sqlite", "--key", key, "--checkpoint", key)
        assert (ended.exit_code, ended.stderr) == (2, "Error: not a signed note\n")

    def test_only_records_of_a_period_are_exported(self, stopped: Site, tmp_path: Path) -> None:
        log = stopped.directory / "data" / "audit.sqlite"
        for name, options, count in (("all", ("--from", "2020-01-01"), 3), ("none", ("--to", "2020-01-01"), 0)):
            out = tmp_path / name
            assert run("audit", "export", "--log", log, "--out", out, *options).exit_code == 0
            assert len(out.read_text().splitlines()) == count
        assert run("audit", "export", "--log", log, "--out", tmp_path / "x", "--from", "noon").exit_code == 2

    def test_records_are_exported_as_dicom_audit_messages(self, stopped: Site, tmp_path: Path) -> None:
        log, out = stopped.directory / "data" / "audit.sqlite", tmp_path / "messages"
        ended = run("audit", "export", "--log", log, "--out", out, "--format", "atna", "--source-id", "gateway-1")
        assert ended.exit_code == 0
        (message,) = out.read_text().splitlines()  # that it started; an admitted scan has none
        assert message.startswith("<AuditMessage>")
        assert 'AuditSourceID="gateway-1"' in message

    def test_a_record_is_shown_and_one_that_is_not_there_is_2(self, stopped: Site) -> None:
        log = stopped.directory / "data" / "audit.sqlite"
        assert json.loads(run("audit", "show", 1, "--log", log).stdout)["record"]["kind"] == "decided"
        assert run("audit", "show", 99, "--log", log).exit_code == 2

    def test_every_record_is_exported_and_no_file_overwritten(self, stopped: Site, tmp_path: Path) -> None:
        log, out = stopped.directory / "data" / "audit.sqlite", tmp_path / "log.jsonl"
        assert run("audit", "export", "--log", log, "--out", out).exit_code == 0
        kinds = [json.loads(line)["record"]["kind"] for line in out.read_text().splitlines()]
        assert kinds == ["started", "decided", "answered"]
        assert run("audit", "export", "--log", log, "--out", out).exit_code == 2


class _Authority:
    """An HTTP time-stamping authority of the demo hospital (RFC 3161 3.4), on loopback."""

    def __init__(self, hospital: Hospital) -> None:
        authority = hospital.authority(lambda: datetime.now(UTC))

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                imprint = der.parse(query).children()[1].children()[1].content
                token = authority.stamp_digest(imprint)
                status = der.encode(der.SEQUENCE, der.encode_integer(0))
                answer = der.encode(der.SEQUENCE, status, token)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _authority(hospital: Hospital) -> _Authority:
    return _Authority(hospital)
