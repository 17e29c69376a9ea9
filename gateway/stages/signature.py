"""Who vouches for the scan: verifies its DICOM digital signatures and passes on only what they cover."""

from __future__ import annotations

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.finding import Finding, Outcome
from gateway.policy import SIGNATURE
from gateway.store.replay import Claim, Replayed, ReplayLedger
from gateway.telemetry.metrics import Metrics
from signing import DicomError, Elements, Reason, SignatureError, Source, Trust, VerifiedSignature, VerifiedView, verify
from signing.content import content_digest

_SOP_INSTANCE_UID, _PATIENT_ID, _ISSUER_OF_PATIENT_ID = 0x00080018, 0x00100020, 0x00100021
_UNSIGNED = frozenset({Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED})


class SignatureStage:
    """Turns the verification of a scan's signatures into one finding.

    A scan that passes goes on as the view that its signature covers. An unsigned one goes on whole, so that the
    other stages can say what they see of it to a reviewer; only the policy can admit it. One whose signature fails,
    or that came unsigned from a source that signs all it sends, goes no further; nor does one whose instance was
    accepted before as something else.
    """

    name = SIGNATURE
    requires: frozenset[str] = frozenset()
    provides = frozenset({"view"})

    def __init__(self, trust: Trust, replay: ReplayLedger, metrics: Metrics) -> None:
        """Verify against `trust`, compare with `replay`, and count what was found in `metrics`."""
        self._trust = trust
        self._replay = replay
        self._metrics = metrics

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`."""
        finding, view = self._examine(case)
        self._metrics.signature(finding.outcome, finding.reason, self._trust.policy.required_profile)
        return case.with_finding(finding) if view is None else case.with_finding(finding, view=view)

    def _examine(self, case: Case) -> tuple[Finding, VerifiedView | None]:
        scan = case.scan
        if scan.elements is None:
            assert scan.defect is not None
            return Finding(self.name, Outcome.FAILED, scan.defect.reason, scan.defect.detail), None
        try:
            source = Source(scan.source.calling_ae, scan.source.tls_subject, scan.source.enrolled)
            signed = verify(scan.elements, self._trust, at=case.received_at, source=source)
            self._remember(signed)
        except DicomError as error:
            return Finding(self.name, Outcome.FAILED, error.reason, error.detail), None
        except SignatureError as error:
            return self._refused(scan.elements, error)
        except Replayed as error:
            return Finding(self.name, Outcome.FAILED, Reason.REPLAYED, str(error)), None
        detail = f"profile {signed.profile}, signer {signed.signer.fingerprint_sha256}"
        return Finding(self.name, Outcome.PASSED, Reason.OK, detail), signed.view

    def _remember(self, signed: VerifiedSignature) -> None:
        """Durable before anything is decided; a policy that does not ask for a signed UID leaves nothing to compare."""
        view = signed.view
        if (instance := view.uid(_SOP_INSTANCE_UID)) is not None:
            patient = (
                bytes(view.value(_PATIENT_ID)).strip(b" \0"),
                bytes(view.value(_ISSUER_OF_PATIENT_ID)).strip(b" \0"),
            )
            scope = self._trust.policy.required_profile
            signer = signed.signer.fingerprint_sha256
            self._replay.accept(Claim(scope, instance, signer, content_digest(signed), patient))

    def _refused(self, elements: Elements, error: SignatureError) -> tuple[Finding, VerifiedView | None]:
        if error.reason not in _UNSIGNED:
            outcome = Outcome.INDETERMINATE if error.indeterminate else Outcome.FAILED
            return Finding(self.name, outcome, error.reason, error.detail), None
        try:
            view = VerifiedView.of_unsigned(elements)
        except DicomError as defect:
            return Finding(self.name, Outcome.FAILED, defect.reason, defect.detail), None
        return Finding(self.name, Outcome.FAILED, error.reason, error.detail), view
