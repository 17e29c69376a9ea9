"""The reasons a signature is refused, in the order in which the first that applies is reported."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an object was refused; members are listed in order of precedence."""

    LIMITS = "limits"
    MALFORMED = "malformed"
    DUPLICATE_ELEMENT = "duplicate_element"
    FILE_META_MISMATCH = "file_meta_mismatch"
    UNSIGNED = "unsigned"
    MAIN_DATASET_UNSIGNED = "main_dataset_unsigned"
    MAC_PARAMETERS_MISSING = "mac_parameters_missing"
    MAC_PARAMETERS_AMBIGUOUS = "mac_parameters_ambiguous"
    UNSUPPORTED_MAC = "unsupported_mac"
    MAC_TRANSFER_SYNTAX = "mac_transfer_syntax"
    DATA_ELEMENTS_SIGNED = "data_elements_signed"
    UNSIGNABLE_ELEMENT = "unsignable_element"
    MAC_MISMATCH = "mac_mismatch"
    MAC_PARAMETERS_UNSIGNED = "mac_parameters_unsigned"
    DATA_ELEMENTS_SIGNED_MISMATCH = "data_elements_signed_mismatch"
    WEAK_MAC = "weak_mac"
    FRAGMENT_STRUCTURE = "fragment_structure"
    UNTRUSTED = "untrusted"
    TIMESTAMP_INVALID = "timestamp_invalid"
    TIMESTAMP_MISSING = "timestamp_missing"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    KEY_USAGE = "key_usage"
    EXTENDED_KEY_USAGE = "extended_key_usage"
    WEAK_KEY = "weak_key"
    SIGNER_NOT_ALLOWED = "signer_not_allowed"
    REQUIRED_ATTRIBUTE_UNSIGNED = "required_attribute_unsigned"
    UNSIGNED_ATTRIBUTE_PRESENT = "unsigned_attribute_present"
    OK = "ok"
    REVOCATION_UNKNOWN = "revocation_unknown"
    BINDING_MISMATCH = "binding_mismatch"
    TOO_OLD = "too_old"
    REPLAYED = "replayed"
    STRIPPED = "stripped"

    @property
    def precedence(self) -> int:
        """Its place in the order above; smaller is reported first."""
        return _PRECEDENCE[self]


_PRECEDENCE = {reason: place for place, reason in enumerate(Reason)}
