"""The canonical stream, rule by rule, against bytes written out by hand."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest

from signing import Reason, SignatureError, read
from signing.canonical import covered_elements, is_forbidden, is_signable, signature_tail, stream, update
from signing.dictionary import implicit_vr, keyword, tag_of

ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = 0xFFFFFFFF
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, JPEG = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50"


class Encoder:
    """Writes elements in one of the native encodings."""

    def __init__(self, syntax: str) -> None:
        self.syntax, self.order, self.explicit = syntax, ">" if syntax == BIG else "<", syntax != IMPLICIT

    def element(self, tag: int, vr: str, value: bytes = b"", length: int | None = None) -> bytes:
        size = len(value) if length is None else length
        halves = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if not self.explicit:
            return halves + struct.pack(self.order + "I", size) + value
        form = "2s2xI" if vr in {"OB", "OW", "OF", "OD", "SQ", "UN", "UT"} else "2sH"
        return halves + struct.pack(self.order + form, vr.encode(), size) + value

    def item(self, content: bytes, *, delimited: bool = False) -> bytes:
        size = UNDEFINED if delimited else len(content)
        end = struct.pack(self.order + "HHI", 0xFFFE, 0xE00D, 0) if delimited else b""
        return struct.pack(self.order + "HHI", 0xFFFE, 0xE000, size) + content + end

    def sequence(self, tag: int, *items: bytes, delimited: bool = False) -> bytes:
        content = b"".join(items)
        if not delimited:
            return self.element(tag, "SQ", content)
        return self.element(tag, "SQ", content + struct.pack(self.order + "HHI", 0xFFFE, 0xE0DD, 0), UNDEFINED)

    def file(self, data_set: bytes) -> bytes:
        uid = self.syntax.encode() + b"\0" * (len(self.syntax) % 2)
        meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
        return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta + data_set


def canonical_stream(data: bytes, *tags: int) -> bytes:
    elements = read(data)
    listed = tags or [each.tag for each in elements if not is_forbidden(each.tag) and is_signable(each)]
    return b"".join(stream(elements, covered_elements(elements, listed), explicit=elements.explicit))


@pytest.fixture(params=[EXPLICIT, IMPLICIT, BIG], ids=["explicit", "implicit", "big-endian"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return Encoder(request.param)


def test_ordinary_elements_are_explicit_little_endian_in_ascending_order(encoder: Encoder) -> None:
    rows = encoder.element(0x00280010, "US", struct.pack(encoder.order + "H", 513))
    offset = encoder.element(0x00720072, "FD", struct.pack(encoder.order + "d", 1.5))
    pixels = encoder.element(0x7FE00010, "OW", struct.pack(encoder.order + "HH", 1, 0x0203))
    data = encoder.file(encoder.element(0x00100020, "LO", b"AB") + rows + offset + pixels)

    assert canonical_stream(data, 0x7FE00010, 0x00100020, 0x00280010) == (
        b"\x10\x00\x20\x00LO\x02\x00AB" + b"\x28\x00\x10\x00US\x02\x00\x01\x02"
        b"\xe0\x7f\x10\x00OW\x00\x00\x04\x00\x00\x00\x01\x00\x03\x02"
    )


def test_an_empty_value_is_encoded_with_length_0(encoder: Encoder) -> None:
    assert canonical_stream(encoder.file(encoder.element(0x00100020, "LO"))) == b"\x10\x00\x20\x00LO\x00\x00"


def test_sequences_and_items_have_no_length_and_no_item_delimiter(encoder: Encoder) -> None:
    inner = encoder.element(0x00081150, "UI", b"1.2\0")
    expected = b"\x08\x00\x40\x11SQ\0\0" + ITEM + b"\x08\x00\x50\x11UI\x04\x001.2\0" + ITEM + END
    streams = {
        canonical_stream(encoder.file(encoder.sequence(0x00081140, first, second, delimited=delimited)))
        for delimited in (True, False)
        for first in (encoder.item(inner), encoder.item(inner, delimited=True))
        for second in (encoder.item(b""), encoder.item(b"", delimited=True))
    }
    assert streams == {expected}


def test_an_empty_sequence_ends_all_the_same(encoder: Encoder) -> None:
    assert canonical_stream(encoder.file(encoder.sequence(0x00081140))) == b"\x08\x00\x40\x11SQ\0\0" + END


def test_nested_sequences_are_encoded_in_full_however_large(encoder: Encoder) -> None:
    many = [encoder.item(encoder.element(0x00081150, "UI", b"1." + b"%05d" % n + b"1")) for n in range(4000)]
    data = encoder.file(encoder.sequence(0x00081115, encoder.item(encoder.sequence(0x00081199, *many))))
    nested = b"".join(ITEM + b"\x08\x00\x50\x11UI\x08\x001." + b"%05d" % n + b"1" for n in range(4000))

    assert canonical_stream(data) == (b"\x08\x00\x15\x11SQ\0\0" + ITEM + b"\x08\x00\x99\x11SQ\0\0" + nested + END + END)


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_fragments_have_no_length_and_are_ob_whatever_the_file_says(vr: str) -> None:
    encoder = Encoder(JPEG)
    content = encoder.item(b"\0\0\0\0") + encoder.item(b"\xff\xd8") + encoder.item(b"\xff\xd9") + END + b"\0" * 4
    data = encoder.file(encoder.element(0x7FE00010, vr, content, UNDEFINED))

    assert canonical_stream(data) == (
        b"\xe0\x7f\x10\x00OB\0\0" + ITEM + b"\0\0\0\0" + ITEM + b"\xff\xd8" + ITEM + b"\xff\xd9" + END
    )


@pytest.mark.parametrize(
    "tag", [0x00080000, 0x00080001, 0x00020010, 0x00040010, 0x4FFE0001, 0xFFFAFFFA, 0xFFFA0010, 0xFFFCFFFC, 0x60000000]
)
def test_some_elements_are_never_signed_and_naming_one_is_a_failure(tag: int, ct: bytes) -> None:
    elements = read(ct)
    assert is_forbidden(tag)
    with pytest.raises(SignatureError) as caught:
        covered_elements(elements, [0x00080018, tag])
    assert caught.value.reason is Reason.UNSIGNABLE_ELEMENT


def test_a_sequence_that_holds_un_anywhere_cannot_be_signed(encoder: Encoder) -> None:
    encoder = Encoder(EXPLICIT)
    unknown = encoder.sequence(0x00081199, encoder.item(encoder.element(0x00091001, "UN", b"ab")))
    elements = read(encoder.file(encoder.sequence(0x00081115, encoder.item(unknown))))
    with pytest.raises(SignatureError) as caught:
        covered_elements(elements, [0x00081115])
    assert caught.value.reason is Reason.UNSIGNABLE_ELEMENT


def test_un_cannot_be_signed_whatever_its_length() -> None:
    encoder = Encoder(EXPLICIT)
    implicit = Encoder(IMPLICIT)
    inner = implicit.item(implicit.element(0x00081150, "UI", b"1.2\0")) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    for unknown in (encoder.element(0x00091001, "UN", b"ab"), encoder.element(0x00091001, "UN", inner, UNDEFINED)):
        element = read(encoder.file(unknown)).get(0x00091001)
        assert element is not None
        assert not is_signable(element)


def test_signature_macros_and_group_lengths_inside_items_are_left_out_of_stream_and_view() -> None:
    encoder = Encoder(EXPLICIT)
    macro = encoder.sequence(0xFFFAFFFA, encoder.item(encoder.element(0x04000005, "US", b"\0\0")))
    inner = encoder.element(0x00080000, "UL", b"\0" * 4) + encoder.element(0x00081150, "UI", b"1.2\0") + macro
    elements = read(encoder.file(encoder.sequence(0x00081140, encoder.item(inner))))
    (covered,) = covered_elements(elements, [0x00081140])

    assert covered.items is not None
    assert [each.tag for each in covered.items[0]] == [0x00081150]
    assert b"".join(stream(elements, (covered,), explicit=True)) == (
        b"\x08\x00\x40\x11SQ\0\0" + ITEM + b"\x08\x00\x50\x11UI\x04\x001.2\0" + END
    )


def test_an_implicit_value_longer_than_its_vr_can_say_cannot_be_signed() -> None:
    encoder = Encoder(IMPLICIT)
    element = read(encoder.file(encoder.element(0x00100020, "LO", b"A" * 65536))).get(0x00100020)
    assert element is not None
    assert not is_signable(element)


def test_values_are_hashed_as_stored_padding_included() -> None:
    encoder = Encoder(EXPLICIT)
    assert canonical_stream(encoder.file(encoder.element(0x00080070, "LO", b"ACME  "))).endswith(b"ACME  ")


def test_us_or_ss_follows_pixel_representation() -> None:
    encoder = Encoder(IMPLICIT)
    for representation, vr in ((0, b"US"), (1, b"SS")):
        signedness = encoder.element(0x00280103, "US", struct.pack("<H", representation))
        data = encoder.file(signedness + encoder.element(0x00280106, vr.decode(), b"\1\0"))
        assert canonical_stream(data, 0x00280106) == b"\x28\x00\x06\x01" + vr + b"\x02\x00\1\0"


def test_private_implicit_elements_are_un_but_for_their_creators() -> None:
    assert implicit_vr(0x00090010, False) == "LO"
    assert implicit_vr(0x00091001, False) == "UN"


def test_the_tail_leaves_out_certificate_signature_and_timestamp() -> None:
    encoder = Encoder(EXPLICIT)
    fields = [0x04000005, 0x04000100, 0x04000105, 0x04000110, 0x04000115, 0x04000120, 0x04000305, 0x04000310]
    content = b"".join(encoder.element(tag, "LO", b"ab") for tag in fields)
    (item,) = read(encoder.file(encoder.sequence(0xFFFAFFFA, encoder.item(content)))).items(0xFFFAFFFA)
    assert [each.tag for each in signature_tail(item)] == [0x04000005, 0x04000100, 0x04000105, 0x04000110]


def test_one_mr_gives_one_stream_in_three_encodings(bundled: Callable[[str], bytes]) -> None:
    streams = set()
    for name in ("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"):
        elements = read(bundled(name))
        digest = hashlib.sha256()
        listed = [each.tag for each in elements if not is_forbidden(each.tag) and not each.tag & 0x10000]
        update(digest, elements, covered_elements(elements, listed), explicit=elements.explicit)
        streams.add(digest.hexdigest())
    assert len(streams) == 1


def test_neighbouring_elements_of_an_explicit_file_are_hashed_in_one_run(mr: bytes) -> None:
    elements = read(mr)
    everything = [each.tag for each in elements if not is_forbidden(each.tag)]
    assert len(list(stream(elements, covered_elements(elements, everything), explicit=True))) <= 3


def test_the_dictionary_is_pydicom_s() -> None:
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in (0x00100010, 0x7FE00010, 0x60003000, 0x60023000, 0x00283002, 0x54001010, 0x00280106):
        ours, theirs = implicit_vr(tag, False), dictionary_VR(tag)
        assert ours == theirs or ours in theirs.split(" or ")
        assert keyword(tag) == keyword_for_tag(tag)
    assert tag_of("PatientID") == tag_of("00100020") == 0x00100020
    assert tag_of("NoSuchKeyword") is None
