"""What a signature's content is, so that two signatures can be compared without the objects that carried them."""

from __future__ import annotations

from signing import canonical
from signing.dictionary import IMPLICIT_LITTLE_ENDIAN
from signing.profiles import is_administrative
from signing.verified import VerifiedSignature


def content_digest(signed: VerifiedSignature) -> str:
    """SHA-256 over the canonical stream of the covered elements but administrative ones, in hexadecimal digits.

    Two accepted signatures have the same content exactly where a model would be shown the same object. What does not
    count: the signature's own items (its UID, time, certificate and MAC algorithm, so that signing again is the same
    content), how the data set is encoded between the native transfer syntaxes, and what archives add or rewrite. What
    does count: which attributes are covered, because what is not covered is not passed on; and compressed pixels as
    they are compressed, because telling that two codings show the same pixels would need a decoder here.

    The required set of a profile alone would be too little to compare: that of `base` is the instance's UID.
    """
    view = signed.view
    elements = tuple(element for element in view if not is_administrative(element.tag))
    if signed.mac == "SHA256" and len(elements) == len(view):
        return signed.signed_digest  # the same stream under the same hash, so the pixels are not hashed twice
    digest = canonical.new_hash("SHA256")
    canonical.update(digest, view, elements, explicit=view.transfer_syntax != IMPLICIT_LITTLE_ENDIAN)
    return digest.hexdigest()
