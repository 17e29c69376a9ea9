"""Rendering follows PS3.3 C.11, one way for every caller, and keeps the gradient."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from gateway.finding import GatewayReason
from gateway.pixels.imaging import LookupTable, Rendering, Window, from_uint8, render
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from signing import VerifiedView, read


def profile(size: tuple[int, int] = (8, 8), windows: str = "", **keys: Any) -> Profile:
    rest = {"channels": 1, "range": [0.0, 1.0], **keys}
    lines = "\n".join(f"{key} = {str(value).replace(chr(39), chr(34))}" for key, value in rest.items())
    return Profile.from_toml(
        f'name="m"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n'
        f'[input]\nname="x"\nlayout="NCHW"\nsize=[{size[0]},{size[1]}]\n{lines}\n{windows}'.encode()
    )


def view_of(pixels: NDArray[np.uint16], **attributes: Any) -> tuple[VerifiedView, Dataset]:
    """An object as a door receives it, and the same for the oracle."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["imaging"])
    dataset.Modality = "CT"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return VerifiedView.of_unsigned(read(file.getvalue())), dataset


def ramp() -> NDArray[np.uint16]:
    return np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)


def shown(pixels: NDArray[np.uint16], rendering: Rendering, model: Profile) -> NDArray[np.float32]:
    stored = torch.from_numpy(pixels.astype(np.float32))[None]
    return render(stored, rendering, model)[0, 0].numpy()


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (1000.5, 1), (-600, 1500), (0, 4096)])
def test_windows_as_the_standard_does(function: str | None, center: float, width: float) -> None:
    """Compared with pydicom's transformation of the same object."""
    view, dataset = view_of(
        ramp(),
        RescaleSlope=1.5,
        RescaleIntercept=-1024,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
    )
    values = apply_voi_lut(apply_modality_lut(ramp(), dataset), dataset)
    lowest, highest = -1024.0, 4095 * 1.5 - 1024
    expected = (values - lowest) / (highest - lowest)
    got = shown(ramp(), Rendering.of(view, profile()), profile())
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_the_profiles_window_goes_before_the_objects() -> None:
    model = profile(windows='[[window]]\nmodality = "CT"\ncenter = 0\nwidth = 1000\n')
    view, _ = view_of(ramp(), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=0)
    got = shown(ramp(), Rendering.of(view, model), model)
    np.testing.assert_allclose(got, np.clip((ramp() - 1024.0 + 500) / 1000, 0, 1), atol=2e-6)


def test_without_any_window_the_full_stored_range_is_shown() -> None:
    view, _ = view_of(ramp(), RescaleSlope=-2, RescaleIntercept=7)
    got = shown(ramp(), Rendering.of(view, profile()), profile())
    np.testing.assert_allclose(got, 1 - ramp() / 4095, atol=2e-6)


def test_monochrome1_is_inverted() -> None:
    view, _ = view_of(ramp(), PhotometricInterpretation="MONOCHROME1")
    got = shown(ramp(), Rendering.of(view, profile()), profile())
    np.testing.assert_allclose(got, 1 - ramp() / 4095, atol=2e-6)


def test_tables_as_the_standard_does() -> None:
    """A modality LUT and a VOI LUT, compared with pydicom's transformation of the same object."""
    modality, voi = Dataset(), Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [4096, 0, 16], "US"
    modality.LUTData = ((np.arange(4096) ** 2) // 300).astype("<u2").tobytes()
    modality["LUTData"].VR = "OW"
    voi.LUTDescriptor, voi.LUTData = [1000, 200, 12], (np.arange(1000) * 4).astype("<u2").tobytes()
    voi["LUTData"].VR = "OW"
    view, dataset = view_of(ramp(), ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    expected = apply_voi_lut(apply_modality_lut(ramp(), dataset), dataset) / 4095
    got = shown(ramp(), Rendering.of(view, profile()), profile())
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(("bits", "vr", "read_alike"), [(16, "OW", True), (8, "OW", True), (16, "OB", False)])
def test_a_table_of_words_means_the_same_in_big_endian(bits: int, vr: str, read_alike: bool) -> None:
    """A re-encoding turns words round whatever they hold, and leaves bytes: the MAC holds, so the values must too."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, bits], "US"
    table.LUTData = np.arange(256)[::-1].astype("<u2" if bits == 16 else "u1").tobytes()
    table["LUTData"].VR = vr
    view, dataset = view_of(ramp(), ModalityLUTSequence=[table])
    expected = Rendering.of(view, profile())
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    if vr == "OW":
        table.LUTData = np.frombuffer(table.LUTData, "<u2").astype(">u2").tobytes()
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    rewritten = VerifiedView.of_unsigned(read(file.getvalue()))
    if read_alike:
        got = Rendering.of(rewritten, profile())
        assert got.modality_table is not None
        assert expected.modality_table is not None
        assert torch.equal(got.modality_table.entries, expected.modality_table.entries)
    else:
        with pytest.raises(UnexaminableError):
            Rendering.of(rewritten, profile())


def test_eight_bits_map_linearly_to_the_range() -> None:
    model = profile(
        size=(1, 256),
        range=[-1.0, 3.0],
        aspect="'stretch'",
        windows='[[window]]\nmodality = "CT"\ncenter = 0\nwidth = 9\n',
    )
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    got = from_uint8(images, model)
    torch.testing.assert_close(got[0, 0, 0], torch.linspace(-1, 3, 256), atol=1e-6, rtol=0)
    torch.testing.assert_close(from_uint8(images.float()[:, None], model), got, atol=0, rtol=0)


def test_mean_and_deviation_are_taken_off_in_each_channel() -> None:
    model = profile(channels=3, mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 2.0])
    got = from_uint8(torch.full((2, 8, 8), 255, dtype=torch.uint8), model)
    assert got.shape == (2, 3, 8, 8)
    torch.testing.assert_close(got[:, :, 0, 0], torch.tensor([[1.0, 3.0, 0.5]] * 2))


def test_proportions_are_kept_and_the_rest_is_the_lower_end() -> None:
    model = profile(size=(8, 8), range=[-1.0, 1.0])
    got = from_uint8(torch.full((1, 8, 16), 255, dtype=torch.uint8), model)[0, 0]
    assert torch.equal(got[2:6], torch.ones(4, 8))
    assert torch.equal(got[[0, 1, 6, 7]], -torch.ones(4, 8))


def test_pixel_spacing_counts_for_the_proportions() -> None:
    """8 x 16 pixels, rows twice as far apart as columns: a square."""
    view, _ = view_of(np.full((8, 16), 4095, np.uint16), PixelSpacing=[1.0, 0.5])
    stored = torch.full((1, 8, 16), 4095.0)
    assert torch.equal(render(stored, Rendering.of(view, profile()), profile()), torch.ones(1, 1, 8, 8))


def test_stretching_fills_the_input() -> None:
    got = from_uint8(torch.full((1, 8, 16), 255, dtype=torch.uint8), profile(aspect="'stretch'"))
    assert torch.equal(got, torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reduction_is_antialiased(interpolation: str) -> None:
    checkers = (torch.arange(64).view(-1, 1) + torch.arange(64)) % 2 * 255
    got = from_uint8(checkers.to(torch.uint8)[None], profile(interpolation=f"'{interpolation}'"))[0, 0]
    torch.testing.assert_close(got[1:-1, 1:-1], torch.full((6, 6), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "rendering",
    [
        Rendering(slope=2.0, intercept=-100.0, window=Window(100.0, 300.0)),
        Rendering(window=Window(100.0, 90.0, "SIGMOID"), inverted=True),
        Rendering(voi_table=LookupTable(10.0, torch.arange(200) ** 2.0, 40000.0)),
    ],
)
def test_keeps_the_gradient(rendering: Rendering) -> None:
    """Against a finite difference of the same function, in the middle of the window."""
    model = profile(size=(4, 4), mean=[0.3], std=[0.5])
    stored = (100.3 + 20 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1))).requires_grad_(True)
    direction = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.1
    weights = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((render(stored, rendering, model) * weights).sum(), stored)
    ahead, behind = (render((stored + step * direction).detach(), rendering, model) for step in (1, -1))
    measured = float(((ahead - behind) * weights).sum() / 2)
    assert measured == pytest.approx(float((gradient * direction).sum()), rel=0.03, abs=1e-5)


def test_the_size_of_a_grey_level_is_known() -> None:
    line = Rendering(slope=2.0, intercept=-100.0, window=Window(0.5, 511.0, "LINEAR")).affine(profile())
    assert line is not None
    assert 1 / (255 * line[0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"WindowCenter": 1, "WindowWidth": 0}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"WindowCenter": 1, "WindowWidth": -5}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"WindowCenter": 1, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"WindowCenter": 1, "WindowWidth": "1e300"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"WindowCenter": [1, 2], "WindowWidth": 5}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"WindowCenter": 1, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, GatewayReason.NOT_FINITE),
        ({"RescaleSlope": "1e300", "RescaleIntercept": 0}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PixelSpacing": [0, 1]}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"PixelSpacing": [1000, 1]}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"SharedFunctionalGroupsSequence": [Dataset()]}, GatewayReason.UNSUPPORTED_IMAGE),
        ({"BitsStored": 0}, GatewayReason.UNSUPPORTED_IMAGE),
    ],
)
def test_a_header_that_cannot_be_followed_is_named(attributes: dict[str, Any], reason: GatewayReason) -> None:
    view, _ = view_of(ramp(), **attributes)
    with pytest.raises(UnexaminableError) as caught:
        Rendering.of(view, profile())
    assert caught.value.reason is reason


@pytest.mark.parametrize("slope", [b"NaN ", b"1E+999", b"-inf", b"2\\3 "])
def test_rescaling_by_no_number_is_not_finite(slope: bytes) -> None:
    """Such a value cannot be written with pydicom, so it is put into the file's bytes."""
    _, dataset = view_of(ramp(), RescaleSlope="7.7777777"[: len(slope) + len(slope) % 2], RescaleIntercept=0)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    placeholder = str(dataset.RescaleSlope.original_string).encode()
    wanted = slope.ljust(len(placeholder) + len(placeholder) % 2)
    assert file.getvalue().count(placeholder) == 1
    data = file.getvalue().replace(placeholder.ljust(len(wanted)), wanted)
    with pytest.raises(UnexaminableError) as caught:
        Rendering.of(VerifiedView.of_unsigned(read(data)), profile())
    assert caught.value.reason is GatewayReason.NOT_FINITE
