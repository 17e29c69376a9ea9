"""What the model would see: decodes the pixels of the verified view and renders them as the profile says."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray

from gateway.case import Case, Image
from gateway.deadline import Deadline
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pixels.decode import Decompressor, Pixels, decode
from gateway.pixels.imaging import Rendering, place_of, render, require_content
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from signing import DicomError, Reason, VerifiedView

_LARGE_VALUES = 1 << 22
_LARGE_AT_ONCE = 2
"""Frames of more than `_LARGE_VALUES` that are rendered at the same time: each takes some 16 bytes a value."""
_SOP_CLASS_UID, _MODALITY, _BODY_PART_EXAMINED = 0x00080016, 0x00080060, 0x00180015


class PreprocessStage:
    """Turns the view into the model's input, or says why it cannot: `indeterminate` with the reason."""

    name = "preprocess"
    requires = frozenset({"view"})
    provides = frozenset({"image"})

    def __init__(self, model: str, profile: Profile, decompressor: Decompressor, *, colour: bool = False) -> None:
        """Render as `profile` says for the configured `model`; `decompressor` decodes compressed pixels.

        Colour is refused, unless the model's detectors were fitted on `colour` too: they know nothing of it.
        """
        self._model = model
        self._colour = colour
        self._profile = profile
        self._decompressor = decompressor
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        torch.set_num_threads(1)  # many handlers render at once; a team of threads for each would fight over the cores

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`.

        (1) the object is one that the model was made for
        (2) decode, from the bytes that the view covers
        (3) render, frame by frame, so that memory is bounded by one frame's
        """
        assert case.view is not None
        try:
            self._require_match(case.view)  # (1)
            frames, rendering = self.decoded(case.view)  # (2)
            image = self.rendered(frames, rendering)  # (3)
        except UnexaminableError as error:
            return case.with_finding(Finding(self.name, Outcome.INDETERMINATE, error.reason, error.detail))
        count, (rows, columns) = len(frames), frames.shape[-2:]
        detail = f"{count} frame{'s' if count > 1 else ''} of {rows} x {columns}"
        return case.with_finding(Finding(self.name, Outcome.PASSED, Reason.OK, detail), image=image)

    def decoded(self, view: VerifiedView) -> tuple[Pixels, Rendering]:
        """Stored values of all frames, and how they are shown; raises `UnexaminableError`."""
        frames = decode(view, self._decompressor)
        if frames.ndim == 4 and not self._colour:
            detail = "the image is in colour, and the detectors were fitted on grey ones"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        return frames, Rendering.of(view, self._profile)

    def rendered(self, frames: Pixels, rendering: Rendering) -> Image:
        """What the model is shown; raises `UnexaminableError`."""
        pixels = self._rendered(frames, rendering)
        place = place_of((frames.shape[1], frames.shape[2]), rendering.pixel_aspect, self._profile)
        require_content(pixels[:, :, place[0], place[1]])
        return Image(pixels, self._model)

    def _require_match(self, view: VerifiedView) -> None:
        match = self._profile.match
        for tag, allowed, keyword in (
            (_MODALITY, match.modality, "Modality"),
            (_BODY_PART_EXAMINED, match.body_part, "Body Part Examined"),
            (_SOP_CLASS_UID, match.sop_classes, "SOP Class"),
        ):
            if not allowed:
                continue
            try:
                value = view.text(tag)
            except DicomError:
                value = None
            if value not in allowed:
                raise UnexaminableError(
                    GatewayReason.UNSUPPORTED_IMAGE, f"{keyword} is none that the model was made for"
                )

    def _rendered(self, frames: Pixels, rendering: Rendering) -> NDArray[np.float32]:
        """(frames, channels, height, width)."""
        size = (self._profile.input.channels, *self._profile.input.size)
        pixels = np.empty((len(frames), *size), np.float32)
        for index, frame in enumerate(frames):
            if frame.size > _LARGE_VALUES:
                with self._large:
                    pixels[index] = self._frame(frame, rendering)
            else:
                pixels[index] = self._frame(frame, rendering)
        if not np.isfinite(pixels).all():
            raise UnexaminableError(GatewayReason.NOT_FINITE, "the rendered image has values that are not finite")
        return pixels

    def _frame(self, frame: Pixels, rendering: Rendering) -> NDArray[np.float32]:
        with torch.inference_mode():
            stored = torch.from_numpy(frame.astype(np.float32)[np.newaxis])
            rendered: NDArray[np.float32] = render(stored, rendering, self._profile)[0].numpy()
        return rendered
