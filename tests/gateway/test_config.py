"""The configuration: what is refused, by which key, and that the reference in deploy/ can be read."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.settings.config import Config
from gateway.testing import write_keys, write_secret, write_token

REFERENCE = Path(__file__).parents[2] / "deploy" / "scanward.toml"
SECRETS = {"private_key", "receipt", "checkpoint", "quarantine", "token_file"}

GOOD = """
[receivers.grpc]
address = "127.0.0.1:0"
unsafe_plaintext = true
threads = 8
concurrent_calls_max = 16
[metrics]
address = "127.0.0.1:0"
[storage]
directory = "data"
spool_bytes_max = 4294967296
quarantine_bytes_max = 1073741824
[keys]
receipt = "keys/receipt.pem"
checkpoint = "keys/checkpoint.pem"
quarantine = "keys/quarantine.key"
[engine]
device = "cpu"
batch_size_max = 4
batch_wait_ms_max = 2.0
queue_max = 16
threads = 1
[models.chest]
profile = "profile.toml"
model = "model.onnx"
detectors = "detectors"
[trust.artefacts]
public_keys = ["keys/receipt.pub"]
[trust.hospital]
policy = "hospital.toml"
roots = ["root.pem"]
[policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
[policy.signature]
failed = "reject"
unsigned = "quarantine"
stripped = "reject"
[policy.detection]
false_positive_rate = 0.01
suspect = "quarantine"
denoise = "if_agree"
grey_p = 0.05
[limits.default]
scans_per_s = 20.0
scans_burst = 100
bytes_per_s = 1e8
bytes_burst = 4294967296
holds_per_hour = 60.0
holds_burst = 20
calls_share = 0.5
spool_share = 0.5
[routes.chest]
trust = "hospital"
model = "chest"
upstream = "embedded"
[routes.archive]
trust = "hospital"
upstream = "none"
[[sources]]
name = "ct"
roles = ["submit"]
token_file = "token"
enrolled = true
routes = ["chest", "archive"]
"""

RULE = """
[[policy.rules]]
name = "mine"
disposition = "reject"
p_at_most = 0.05
[routes.chest]"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with every file that `GOOD` names."""
    write_keys(tmp_path / "keys")
    write_token(tmp_path / "token")
    for name in ("profile.toml", "model.onnx", "hospital.toml", "root.pem"):
        (tmp_path / name).touch()
    (tmp_path / "detectors").mkdir()
    return tmp_path


def load(site: Path, text: str = GOOD) -> Config:
    path = site / "scanward.toml"
    path.write_text(text)
    return Config.load(path)


def problems(site: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(site, text)
    return caught.value.problems


def without(text: str, *tables: str) -> str:
    """The document less these tables."""
    parts = re.split(r"^(?=\[)", text, flags=re.M)
    return "".join(part for part in parts if not part.startswith(tuple(f"[{table}]" for table in tables)))


def test_reads_a_whole_configuration_with_paths_relative_to_its_file(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")

    config = load(site)

    assert config.keys.receipt == site / "keys" / "receipt.pem"
    assert config.storage.directory == site / "data"
    assert config.trust.policies["hospital"].roots == (site / "root.pem",)
    assert config.routes["archive"].model is None


KSERVE = '[models.chest.kserve]\naddress = "127.0.0.1:8001"\nmodel = "chest"\n[engine]\n'


def test_the_reference_configuration_is_accepted(tmp_path: Path) -> None:
    """Every file that deploy/scanward.toml names is put where it says; nothing else is changed."""
    for key, value in _paths(tomllib.loads(REFERENCE.read_text())):
        path = tmp_path / value
        path.parent.mkdir(parents=True, exist_ok=True)
        if key in SECRETS:
            write_secret(path, b"0" * 64)
        elif key == "detectors" or not path.suffix:
            path.mkdir(exist_ok=True)
        else:
            path.touch()

    config = load(tmp_path, REFERENCE.read_text())

    assert config.policy_of("chest").detection is not None
    assert config.policy_of("archive").indeterminate == "reject"


def test_the_reference_configuration_holds_every_key(tmp_path: Path) -> None:
    text = REFERENCE.read_text()
    for table in _tables(Config):
        for key in table.model_fields:
            assert re.search(rf"(^|[\[.\s#]){key}(\]|\.| =)", text, re.M), f"{table.__name__}.{key} is not explained"


def test_names_every_mistake_at_once_by_its_dotted_key(site: Path) -> None:
    text = (
        GOOD.replace('address = "127.0.0.1:0"\nunsafe', 'address = "0.0.0.0:1"\nunsafe', 1)
        .replace('device = "cpu"', 'device = "tpu"')
        .replace('model = "chest"\nupstream', 'model = "mr"\nupstream')
        .replace("grey_p = 0.05", "grey_p = 0.005")
        .replace('routes = ["chest", "archive"]', 'routes = ["chest", "lost"]')
        .replace('roots = ["root.pem"]', 'roots = ["gone.pem"]\nunknown = 1')
    )

    found = problems(site, text)

    for start in (
        "receivers.grpc: unsafe_plaintext is allowed on a loopback address only",
        "engine.device: ",
        "routes.chest.model: there is no [models.mr]",
        'policy.detection: denoise = "if_agree" needs grey_p greater',
        "sources.0.routes.1: there is no [routes.lost]",
        "trust.hospital.roots.0: ",
        "trust.hospital.unknown: ",
    ):
        assert any(problem.startswith(start) for problem in found), f"{start} not in {found}"
    assert len(found) == 7, found


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("threads = 8", 'threads = "8"', "receivers.grpc.threads"),
        ("[storage]", '[traces]\naddress = "collector.example:4317"\n[storage]', "traces"),
        ("[storage]", '[traces]\naddress = "127.0.0.1:4317"\nshare = 2.0\n[storage]', "traces.share"),
        ("threads = 8", "threads = 7", "receivers.grpc.threads"),
        ("threads = 8\n", "", "receivers.grpc.threads"),
        ("unsafe_plaintext = true", "", "receivers.grpc"),
        ('receipt = "keys/receipt.pem"', "", "keys.receipt"),
        ('indeterminate = "quarantine"', "", "policy.indeterminate"),
        ('unsigned = "quarantine"', 'unsigned = "admit"', "policy.signature.unsigned"),
        ('failed = "reject"', 'failed = "unsafe_admit"', "policy.signature.failed"),
        ('stripped = "reject"', 'stripped = "unsafe_admit"', "policy.signature.stripped"),
        ("false_positive_rate = 0.01", "false_positive_rate = 1.0", "policy.detection.false_positive_rate"),
        ('denoise = "if_agree"', 'denoise = "never"', "policy.detection"),
        ('upstream = "none"', 'upstream = "embedded"', "routes.archive.upstream"),
        ('upstream = "none"', 'upstream = "kserve"', "routes.archive.upstream"),
        ('upstream = "embedded"', 'upstream = "kserve"', "routes.chest.upstream"),
        ("[engine]", KSERVE, "models.chest.kserve"),
        (
            "[engine]",
            KSERVE.replace('"127.0.0.1:8001"', '"10.0.0.1:1"\nunsafe_plaintext = true'),
            "models.chest.kserve",
        ),
        ('model = "model.onnx"\n', "", "models.chest.model"),
        ("[engine]", '[[routing]]\nroute = "lost"\n[engine]', "routing.0.route"),
        ("[engine]", '[[routing]]\nroute = "chest"\n[[routing]]\nroute = "archive"\n[engine]', "routing.1"),
        ('[routes.chest]\ntrust = "hospital"', '[routes.chest]\ntrust = "artefacts"', "routes.chest.trust"),
        ('public_keys = ["keys/receipt.pub"]', "public_keys = []", "trust.artefacts"),
        ("enrolled = true\n", "", "sources.0.enrolled"),
        ('token_file = "token"', 'tls_subject = "ct"', "sources.0.tls_subject"),
        ('token_file = "token"', "", "sources.0"),
        ('roles = ["submit"]', 'roles = ["root"]', "sources.0.roles.0"),
        ('roles = ["submit"]', "roles = []", "sources.0.roles"),
        ("[limits.default]", "[limits.ct]", "limits.default"),
        ("[limits.default]", "[limits.mr]", "limits.mr"),
        ("scans_per_s = 20.0", "scans_per_s = 0.0", "limits.default.scans_per_s"),
        ("calls_share = 0.5", "calls_share = 1.5", "limits.default.calls_share"),
        ("holds_burst = 20", "", "limits.default.holds_burst"),
        ('device = "cpu"\n', "", "engine.device"),
        ("[trust.hospital]", "[trust.Hospital]", "trust.Hospital"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", "p_at_most = 0.0"), "policy.rules.0.p_at_most"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", 'modality = ["ZZ"]'), "policy.rules.0.modality"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", 'source = ["us"]'), "policy.rules.0.source.0"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", 'signature = ["passed"]'), "policy.rules.0.signature.0"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", "study_held_min = 0"), "policy.rules.0.study_held_min"),
        ("[routes.chest]", RULE.replace('"reject"', '"unsafe_admit"'), "policy.rules.0.disposition"),
        ("[routes.chest]", RULE.replace("p_at_most = 0.05", ""), "policy.rules.0"),
        ("[routes.chest]", RULE.replace("[routes.chest]", RULE), "policy"),
        ("[routes.chest]", '[policy.study]\nsuspect = "reject"\n[routes.chest]', "policy.study.false_discovery_rate"),
        ("enrolled = true", "enrolled = true\nunsafe_monitor_until = 2999-01-01", "sources.0.unsafe_monitor_until"),
    ],
)
def test_refuses_by_key(site: Path, old: str, new: str, key: str) -> None:
    assert old in GOOD
    assert any(problem.startswith(f"{key}: ") for problem in problems(site, GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(("days", "taken"), [(-400, True), (90, True), (91, False)])
def test_monitor_mode_is_dated_at_most_90_days_ahead(site: Path, days: int, taken: bool) -> None:
    """One that is over is no mistake: a gateway that is restarted later must still come up."""
    until = datetime.now(UTC).date() + timedelta(days=days)
    text = GOOD.replace("enrolled = true", f"enrolled = true\nunsafe_monitor_until = {until}")
    found = [] if taken else problems(site, text)
    assert load(site, text).sources[0].unsafe_monitor_until == until if taken else len(found) == 1


def test_refuses_a_key_that_others_can_read(site: Path) -> None:
    (site / "keys" / "receipt.pem").chmod(0o640)
    assert any("keys.receipt" in each and "0600" in each for each in problems(site, GOOD))


def test_a_model_needs_an_engine_artefact_keys_and_a_detection_policy(site: Path) -> None:
    text = without(GOOD, "engine", "trust.artefacts", "policy.detection")
    found = problems(site, text)
    assert {problem.split(":")[0] for problem in found} == {"engine", "trust.artefacts", "policy.detection"}


def test_signatures_alone_need_neither_engine_nor_artefacts(site: Path) -> None:
    text = without(GOOD, "engine", "models.chest", "trust.artefacts", "policy.detection", "routes.chest")
    config = load(site, text.replace('["chest", "archive"]', '["archive"]'))
    assert config.engine is None


@pytest.mark.parametrize("text", ["", "= 1", "routes = 3\nsources = {}\ntrust = []\nmodels = 1"])
def test_a_file_that_is_something_else_is_a_configuration_error(site: Path, text: str) -> None:
    assert problems(site, text)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Config.load(tmp_path / "none.toml")


def _paths(table: dict[str, object]) -> list[tuple[str, str]]:
    """(key, path) of every relative path in the reference: a word with a slash that is not absolute."""
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                found += _paths(each)
            elif isinstance(each, str) and "/" in each and not each.startswith("/"):
                found.append((key, each))
    return found


def _tables(model: type) -> list[type]:
    """The model and every model below it."""
    from pydantic import BaseModel

    found, todo = [], [model]
    while todo:
        each = todo.pop()
        found.append(each)
        for field in [*each.model_fields.values()]:
            todo += [inner for inner in _inner(field.annotation) if issubclass(inner, BaseModel) and inner not in found]
        todo += [inner for inner in _inner(each.__annotations__.get("__pydantic_extra__")) if inner not in found]
    return found


def _inner(annotation: object) -> list[type]:
    from typing import get_args

    if isinstance(annotation, str):
        from gateway.settings.trust import TrustConfig

        return [TrustConfig] if "TrustConfig" in annotation else []
    if isinstance(annotation, type):
        return [annotation]
    return [each for argument in get_args(annotation) for each in _inner(argument)]


def test_a_model_that_only_a_server_has_is_not_answered_for_here(site: Path) -> None:
    text = GOOD.replace('model = "model.onnx"\n', "") + KSERVE.replace("[engine]\n", "unsafe_plaintext = true\n")

    assert problems(site, text) == ['routes.chest.upstream: "embedded" needs models.chest.model']
    config = load(site, text.replace('upstream = "embedded"', 'upstream = "kserve"'))
    assert config.models["chest"].model is None
