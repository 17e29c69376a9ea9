"""Name constraints on a certification path (RFC 5280 4.2.1.10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cryptography import x509
from cryptography.x509.oid import NameOID


def allowed(path: tuple[x509.Certificate, ...]) -> bool:
    """Every certificate's names lie within the name constraints of every issuer above it."""
    for above, issuer in enumerate(path[1:], start=1):
        try:
            constraints = issuer.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        if not all(_within(certificate, constraints) for certificate in path[:above]):
            return False
    return True


def _within(certificate: x509.Certificate, constraints: x509.NameConstraints) -> bool:
    permitted, excluded = list(constraints.permitted_subtrees or ()), list(constraints.excluded_subtrees or ())
    for named in _names(certificate):
        same_kind = [subtree for subtree in permitted if type(subtree) is type(named)]
        if same_kind and not any(_in_subtree(named, subtree) for subtree in same_kind):
            return False
        if any(_in_subtree(named, subtree, unknown=True) for subtree in excluded if type(subtree) is type(named)):
            return False
    return True


def _names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    if list(certificate.subject):
        yield x509.DirectoryName(certificate.subject)
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        yield x509.RFC822Name(str(attribute.value))
    try:
        yield from certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return


def _in_subtree(named: x509.GeneralName, subtree: x509.GeneralName, *, unknown: bool = False) -> bool:
    """Whether a name lies in a subtree; `unknown` where this kind of name cannot be compared: that refuses."""
    if isinstance(named, x509.DirectoryName) and isinstance(subtree, x509.DirectoryName):
        return _starts_with(named.value.rdns, subtree.value.rdns)
    if isinstance(named, x509.DNSName) and isinstance(subtree, x509.DNSName):
        return _is_below(named.value, subtree.value)
    if isinstance(named, x509.RFC822Name) and isinstance(subtree, x509.RFC822Name):
        base, host = subtree.value.lower(), named.value.rpartition("@")[2].lower()
        if "@" in base:
            return named.value.lower() == base
        return host.endswith(base) if base.startswith(".") else host == base
    return unknown


def _starts_with(
    rdns: Iterable[x509.RelativeDistinguishedName], base: Iterable[x509.RelativeDistinguishedName]
) -> bool:
    ours, theirs = list(rdns), list(base)
    return ours[: len(theirs)] == theirs


def _is_below(host: str, base: str) -> bool:
    host, base = host.lower().rstrip("."), base.lower().strip(".")
    return not base or host == base or host.endswith("." + base)
