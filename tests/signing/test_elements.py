"""The walker takes what is DICOM, refuses what is not, and says where."""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from signing import DicomError, Limits, Reason, VerifiedView, read

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"
UNDEFINED = 0xFFFFFFFF


def element(tag: int, vr: str, value: bytes = b"", length: int | None = None, order: str = "<") -> bytes:
    size = len(value) if length is None else length
    form = "HH2s2xI" if vr in {"OB", "OW", "SQ", "UN", "UT"} else "HH2sH"
    return struct.pack(order + form, tag >> 16, tag & 0xFFFF, vr.encode(), size) + value


def item(content: bytes = b"", *, delimited: bool = False) -> bytes:
    if delimited:
        return struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED) + content + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
ROWS = element(0x00280010, "US", b"\x02\x00")
NAME = element(0x00100010, "PN", b"Doe^Jane")


def file(data_set: bytes, syntax: str = EXPLICIT) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(0x00020010, "UI", uid)
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + data_set


def refusal(data: bytes, limits: Limits | None = None) -> DicomError:
    with pytest.raises(DicomError) as caught:
        read(data, limits=limits or Limits())
    return caught.value


@pytest.mark.parametrize(
    ("data_set", "says"),
    [
        (b"", "the data set is empty"),
        (element(0x00080005, "CS", b"abcd", length=3_000_000_000 % 65536), "claims"),
        (element(0x7FE00010, "OW", b"abcd", length=3_000_000_000), "claims 3000000000 bytes"),
        (element(0x7FE00010, "OW", b"abcd", length=0xFFFFFFFE), "claims 4294967294 bytes"),
        (ROWS + NAME, "(0010,0010) at byte 182 is out of order"),
        (element(0x00280010, "QQ", b"\0\0"), "has no valid VR"),
        (element(0x00280010, "us", b"\0\0"), "has no valid VR"),
        (element(0x00100010, "PN", b"Doe"), "odd length, 3"),
        (element(0x00000002, "UI", b"1\0") + ROWS, "is not for a data set"),
        (element(0x00020010, "UI", b"1\0") + ROWS, "too small"),
        (ROWS + element(0xFFFF0001, "US", b"\0\0"), "is not for a data set"),
        (item() + ROWS, "where a data element must begin"),
        (ROWS + END, "where a data element must begin"),
        (element(0x00081140, "SQ", ROWS), "where an item must begin"),
        (element(0x00081140, "SQ", item(ROWS), length=UNDEFINED), "delimiter is missing"),
        (element(0x00081140, "SQ", item(ROWS) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 4), UNDEFINED), "has a length"),
        (element(0x00081140, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 99) + ROWS), "claims 99 bytes"),
        (element(0x00100010, "PN", b"", length=0xFFFF), "claims 65535 bytes"),
        (element(0x00420011, "OB", b"", length=UNDEFINED) + END, "no length"),
        (element(0x7FE00010, "OW", item() + END, length=UNDEFINED), "Pixel Data at byte 172 has no length"),
        (struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 7, 2) + b"\0\0", "reserved bytes"),
        (ROWS[:5], "ends within a header"),
    ],
)
def test_a_broken_data_set_is_malformed_and_the_sentence_says_where(data_set: bytes, says: str) -> None:
    error = refusal(file(data_set))

    assert error.reason is Reason.MALFORMED
    assert says in error.detail


@pytest.mark.parametrize(
    "data_set",
    [
        ROWS + ROWS,
        NAME + ROWS + NAME,
        element(0x00081140, "SQ", item(NAME + NAME)),
        element(0x00081140, "SQ", item(element(0x00081140, "SQ", item(ROWS + ROWS, delimited=True)))),
    ],
)
def test_a_tag_there_twice_is_refused_at_every_depth(data_set: bytes) -> None:
    assert refusal(file(data_set)).reason is Reason.DUPLICATE_ELEMENT


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (element(0x7FE00010, "OB", b"\0" * 8), "is not encapsulated"),
        (element(0x7FE00010, "OB", item(), length=UNDEFINED), "have no delimiter"),
        (element(0x7FE00010, "OB", END, length=UNDEFINED), "no offset table item"),
        (element(0x7FE00010, "OB", item() + item(b"abc") + END, length=UNDEFINED), "odd length"),
        (element(0x7FE00010, "OB", item() + ROWS + END, length=UNDEFINED), "where a fragment must begin"),
        (element(0x7FE00010, "OB", struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), UNDEFINED), "no length"),
        (element(0x7FE00010, "OB", struct.pack("<HHI", 0xFFFE, 0xE000, 2**31) + END, UNDEFINED), "claims 2147483648"),
    ],
)
def test_broken_encapsulation_is_malformed(pixels: bytes, says: str) -> None:
    assert says in refusal(file(pixels, JPEG)).detail


def test_fragments_are_ranges_of_the_buffer_and_not_copies() -> None:
    data = file(element(0x7FE00010, "OB", item() + item(b"\xff\xd8") + item(b"\xff\xd9") + END, UNDEFINED), JPEG)
    elements = read(data)

    assert [bytes(part) for part in elements.fragments()] == [b"", b"\xff\xd8", b"\xff\xd9"]
    assert elements.fragments()[1].obj is elements.data.obj


def nested(depth: int) -> bytes:
    content = ROWS
    for _ in range(depth):
        content = element(0x00081140, "SQ", item(content))
    return file(content)


def test_nesting_is_bounded_and_deep_nesting_costs_no_stack() -> None:
    read(nested(32))
    assert "deeper than 32" in refusal(nested(33)).detail
    assert refusal(nested(60)).reason is Reason.MALFORMED
    header = struct.pack("<HH2s2xI", 0x0008, 0x1140, b"SQ", UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
    assert refusal(file(header * 3000)).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("limits", "data_set"),
    [
        (Limits(elements_max=3), b"".join(element(0x00090000 + n, "US", b"\0\0") for n in range(1, 6))),
        (Limits(items_max=3), element(0x00081140, "SQ", item() * 5)),
        (Limits(items_max=3), b"".join(element(0x00081140 + n, "SQ", item()) for n in range(5))),
    ],
)
def test_counts_are_bounded(limits: Limits, data_set: bytes) -> None:
    read(file(data_set))
    assert refusal(file(data_set), limits).reason is Reason.MALFORMED


def test_the_number_of_fragments_is_bounded() -> None:
    pixels = element(0x7FE00010, "OB", item() * 5 + END, UNDEFINED)
    assert refusal(file(pixels, JPEG), Limits(fragments_max=3)).reason is Reason.MALFORMED


def test_an_object_above_the_size_limit_is_refused_unread(ct: bytes) -> None:
    assert refusal(ct, Limits(bytes_max=1000)).reason is Reason.LIMITS


def deflated(data_set: bytes, after: bytes = b"") -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return file(compressor.compress(data_set) + compressor.flush() + after, DEFLATED)


def test_a_deflated_data_set_reads_as_its_inflated_self() -> None:
    elements = read(deflated(NAME + ROWS))
    assert elements.deflated
    assert elements.integer(0x00280010) == 2


def test_a_deflate_bomb_is_refused_by_limits_within_bounded_memory() -> None:
    bomb = deflated(element(0x7FE00010, "OB", b"\0" * (64 * 2**20)))
    tracemalloc.start()
    try:
        assert refusal(bomb).reason is Reason.LIMITS
        assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    finally:
        tracemalloc.stop()


def test_inflating_costs_no_more_memory_than_the_data_set_however_little_it_was_deflated() -> None:
    pixels = hashlib.shake_128(b"noise").digest(24 * 2**20)
    stored = deflated(element(0x7FE00010, "OB", pixels), b"\0")
    tracemalloc.start()
    try:
        assert read(stored).value(0x7FE00010) == pixels
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broken", [deflated(NAME, b"abc"), deflated(NAME)[:-4], file(b"\xff\xff", DEFLATED)])
def test_a_broken_deflate_stream_is_malformed(broken: bytes) -> None:
    assert refusal(broken).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"DICM",
        b"\0" * 128 + b"DICM",
        b"\0" * 400,
        b"GIF89a" * 60,
        file(ROWS)[128:],
        file(ROWS).replace(b"UL", b"US"),
    ],
)
def test_what_is_no_dicom_file_is_malformed(data: bytes) -> None:
    assert refusal(data).reason is Reason.MALFORMED


def test_a_file_without_transfer_syntax_is_malformed() -> None:
    assert "transfer syntax" in refusal(file(ROWS, "")).detail


def test_a_truncated_file_is_malformed_unless_cut_between_two_elements(ct: bytes) -> None:
    between = {element.end for element in read(ct)}
    cuts = [length for length in (*range(0, 4000, 3), *range(4000, len(ct), 97)) if length not in between]
    assert {refusal(ct[:length]).reason for length in cuts} == {Reason.MALFORMED}


def test_a_file_twice_over_is_refused(ct: bytes) -> None:
    assert refusal(ct + ct).reason is Reason.MALFORMED


def test_no_sentence_holds_a_value(ct: bytes) -> None:
    secret = b"SECRETNAME"
    for data_set in (element(0x00100010, "PN", secret) * 2, element(0x00100010, "PN", secret, 4000)):
        assert "SECRET" not in str(refusal(file(data_set)))
    numbers = read(file(element(0x00201041, "DS", secret)))
    with pytest.raises(DicomError) as caught:
        numbers.decimal(0x00201041)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
def test_three_encodings_of_one_object_read_alike(name: str, bundled: Callable[[str], bytes]) -> None:
    elements = read(bundled(name))
    assert (elements.integer(0x00280010), elements.text(0x00080060)) == (64, "MR")
    assert elements.decimals(0x00280030) == (0.3125, 0.3125)
    assert elements.uid(0x00080016) == "1.2.840.10008.5.1.4.1.1.4"
    assert len(elements.value(0x7FE00010)) == 64 * 64 * 2


def test_readers_return_none_where_absent_or_empty() -> None:
    elements = read(file(element(0x00100010, "PN") + ROWS))
    assert elements.text(0x00100010) is None
    assert elements.text(0x00100020) is None
    assert elements.integer(0x00280011) is None
    assert elements.decimals(0x00281050) == ()
    assert elements.items(0x00081140) == ()
    assert bytes(elements.value(0x00281050)) == b""


@pytest.mark.parametrize(
    ("tag", "vr", "value", "reader"),
    [
        (0x00281050, "DS", b"NaN ", "decimal"),
        (0x00281050, "DS", b"1e999 ", "decimal"),
        (0x00281050, "DS", b"1_0 ", "decimal"),
        (0x00281050, "DS", b"1\\2 ", "decimal"),
        (0x00281050, "DS", "١٢".encode(), "decimal"),
        (0x00281050, "FD", struct.pack("<d", float("inf")), "decimal"),
        (0x00280008, "IS", b"1.5 ", "integer"),
        (0x00280010, "OB", b"\2\0", "integer"),
        (0x00280010, "UL", b"\2\0", "integer"),
        (0x00280010, "US", b"\2\0\3\0", "integer"),
        (0x00080018, "UI", b"1..2", "uid"),
        (0x00080018, "UI", b"1.02", "uid"),
        (0x00080018, "UI", b"../x", "uid"),
        (0x00080018, "UI", b"1." * 33 + b"1\0", "uid"),
        (0x00100010, "OB", b"ab", "text"),
        (0x00081140, "OB", b"ab", "items"),
    ],
)
def test_a_value_of_another_form_is_malformed(tag: int, vr: str, value: bytes, reader: str) -> None:
    elements = read(file(element(tag, vr, value)))
    with pytest.raises(DicomError) as caught:
        getattr(elements, reader)(tag)
    assert caught.value.reason is Reason.MALFORMED


def test_text_is_decoded_by_the_object_s_character_set() -> None:
    latin = read(file(element(0x00080005, "CS", b"ISO_IR 100") + element(0x00100010, "PN", "Müller".encode("latin-1"))))
    utf8 = read(file(element(0x00080005, "CS", b"ISO_IR 192") + element(0x00100010, "PN", "Żółć".encode())))
    unknown = read(file(element(0x00080005, "CS", b"KLINGON ") + element(0x00100010, "PN", b"\xff\xfe")))
    assert latin.text(0x00100010) == "Müller"
    assert utf8.text(0x00100010) == "Żółć"
    assert unknown.text(0x00100010) == "\ufffd\ufffd"


def test_a_mapped_file_is_walked_in_place(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    pixels = 256 * 2**20
    with path.open("wb") as out:
        out.write(file(NAME + ROWS + element(0x7FE00010, "OW", b"", pixels)))
        out.truncate(out.tell() + pixels)
    with path.open("rb") as mapped, mmap.mmap(mapped.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tracemalloc.start()
        elements = read(memoryview(data))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
        assert len(elements.value(0x7FE00010)) == pixels
        del elements


def with_group_length(data: bytes) -> bytes:
    """A corpus file without (0002,0000), given one, so that what lies behind is reached."""
    if data[128:132] != b"DICM" or data[132:136] == b"\x02\x00\x00\x00":
        return data
    at = 132
    while data[at : at + 2] == b"\x02\x00" and at + 12 < len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"UN", b"OW", b"SQ", b"UT")
        size = struct.unpack_from("<I", data, at + 8)[0] + 12 if long else struct.unpack_from("<H", data, at + 6)[0] + 8
        at += size
    return data[:132] + element(0x00020000, "UL", struct.pack("<I", max(0, min(at, len(data)) - 132))) + data[132:]


def test_no_file_of_the_malformed_corpus_does_more_than_be_refused(shared: Path) -> None:
    manifest = json.loads((shared / "malformed/manifest.json").read_text())
    reasons: set[Reason] = set()
    walked: set[str] = set()
    for entry in manifest:
        data = (shared / "malformed" / entry["file"]).read_bytes()
        for variant in (data, with_group_length(data)):
            try:
                view = VerifiedView.of_unsigned(read(variant))
            except DicomError as error:
                reasons.add(error.reason)
                continue
            walked.add(entry["file"])
            for each in view:
                for reader in (view.text, view.integer, view.decimals, view.uid, view.items):
                    with suppress(DicomError):
                        reader(each.tag)
    assert reasons == {Reason.MALFORMED, Reason.LIMITS, Reason.DUPLICATE_ELEMENT, Reason.FILE_META_MISMATCH}
    structural = ("truncated", "nested", "bomb", "empty.", "gzip", "png", "text.", "twice", "encap", "magic", "4GB")
    to_refuse = {each["file"] for each in manifest if each["expect"] == "refuse"}
    assert not {file for file in walked & to_refuse if any(word in file for word in structural)} - {
        "made__pixel_data_empty.dcm"  # well-formed: an empty Pixel Data is for preprocessing to refuse
    }
