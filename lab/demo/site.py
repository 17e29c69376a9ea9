"""A small hospital on one machine: its certificates, keys, sources and configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from string import Template

from gateway.testing import write_keys, write_token
from lab.demo.material import Material
from signing.testing import Hospital

SOURCES = ("ct-scanner", "old-modality", "archive-importer")

_CONFIGURATION = Template("""\
# A small hospital on one machine, as the demo left it. Start it with: scanward serve --config scanward.toml

[receivers.grpc]
address = "127.0.0.1:0"
unsafe_plaintext = true            # on loopback alone
threads = 32
concurrent_calls_max = 64

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
seed = "keys/seed.key"

[engine]
device = "cpu"
batch_size_max = 16
batch_wait_ms_max = 2.0
queue_max = 64
threads = $threads

[models.diagnosis]
profile = "$profile"
model = "$model"
detectors = "$detectors"

[trust.artefacts]
public_keys = ["$artefact_key"]
unsafe_marginal_guarantee = $marginal

[trust.hospital]                   # scanners sign; what is not signed is refused
policy = "trust-hospital.toml"
roots = ["pki/root.pem"]
intermediates = ["pki/intermediate.pem"]
crls = ["pki/root.crl", "pki/intermediate.crl"]

[trust.legacy]                     # modalities that cannot sign yet
policy = "trust-legacy.toml"
roots = ["pki/root.pem"]
intermediates = ["pki/intermediate.pem"]
crls = ["pki/root.crl", "pki/intermediate.crl"]

[policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "reject", stripped = "reject" }
detection = { false_positive_rate = 0.01, suspect = "quarantine", denoise = "never" }

[routes.ct-phantom]
trust = "hospital"
model = "diagnosis"
upstream = "embedded"

[routes.legacy]
trust = "legacy"
model = "diagnosis"
upstream = "embedded"

[routes.legacy.policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "unsafe_admit", stripped = "reject" }
detection = { false_positive_rate = 0.01, suspect = "quarantine", denoise = "if_agree", grey_p = 0.05 }

[routes.archive]                   # signatures only: no model behind it
trust = "hospital"
upstream = "none"

[review]                           # who reviews may release what was held
four_eyes = false
decided_days_max = 30

# One command sends everything here, as fast as it can.
[limits.default]
scans_per_s = 1000.0
scans_burst = 1000
bytes_per_s = 1e9
bytes_burst = 4294967296
holds_per_hour = 3600.0
holds_burst = 100
calls_share = 1.0
spool_share = 1.0

# The demo's senders are reviewers too, so that its table can show reasons and p-values.
[[sources]]
name = "ct-scanner"
roles = ["submit", "review"]
token_file = "tokens/ct-scanner"
enrolled = true                    # it signs all it sends: what arrives unsigned from it was stripped
routes = ["ct-phantom"]

[[sources]]
name = "old-modality"
roles = ["submit", "review"]
token_file = "tokens/old-modality"
enrolled = false
routes = ["legacy"]

[[sources]]
name = "archive-importer"
roles = ["submit", "review"]
token_file = "tokens/archive-importer"
enrolled = false
routes = ["archive"]
""")


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything of the small hospital lies."""

    directory: Path
    hospital: Hospital

    @property
    def configuration(self) -> Path:
        """The file that `scanward serve` starts."""
        return self.directory / "scanward.toml"

    @property
    def audit_log(self) -> Path:
        """The gateway's audit log."""
        return self.directory / "data" / "audit.sqlite"

    @property
    def checkpoint_key(self) -> Path:
        """Public half of the key that signs the audit log's checkpoints."""
        return self.directory / "keys" / "checkpoint.pub"

    @property
    def receipt_key(self) -> Path:
        """Public half of the key that signs receipts."""
        return self.directory / "keys" / "receipt.pub"

    def token(self, source: str) -> str:
        """The bearer token that a source shows."""
        return (self.directory / "tokens" / source).read_text("ascii").strip()


def build(directory: Path, material: Material) -> Site:
    """Make the hospital's certificates, the gateway's keys and its configuration."""
    site = Site(directory, Hospital.make(directory / "pki"))
    write_keys(directory / "keys")
    (directory / "tokens").mkdir(mode=0o700)
    for source in SOURCES:
        write_token(directory / "tokens" / source)
    (directory / "trust-hospital.toml").write_text('required_profile = "inference"\nunsigned = "reject"\n')
    (directory / "trust-legacy.toml").write_text('required_profile = "inference"\nunsigned = "unsafe_admit"\n')
    site.configuration.write_text(
        _CONFIGURATION.substitute(
            threads=max(1, (os.cpu_count() or 2) // 2),
            profile=material.profile_file,
            model=material.model_file,
            detectors=material.detectors,
            artefact_key=material.artefact_key,
            marginal="true" if material.guarantee == "marginal" else "false",
        )
    )
    return site
