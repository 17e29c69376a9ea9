"""A protected model that answers and shows nothing else: no gradient, no features, no weights to copy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import onnxruntime
import torch
from torch import Tensor

from detectors.errors import ConversionError, InputError
from detectors.models.reference import output_of, parse

Ask = Callable[[Tensor], Tensor]
"""Maps (N, C, H, W) float32 images on the CPU, as the model takes them, to its outputs on the CPU."""


class AnswersOnly:
    """Whatever answers: onnxruntime where a graph cannot be rebuilt, or somebody's call to a model server.

    Detectors that compare answers (shifts, the small twin, the fusion of both) work as ever; those that read gradients
    or features cannot.
    """

    gradients = False
    tap_names: tuple[str, ...] = ()

    def __init__(self, ask: Ask, output_name: str, device: torch.device | None = None) -> None:
        self._ask = ask
        self.output_name = output_name
        self.device = device or torch.device("cpu")

    @classmethod
    def from_onnx(cls, model: bytes, output: str | None = None) -> Self:
        """A model run by onnxruntime, on the CPU, from the bytes of its file.

        Raises:
            ConversionError: not ONNX, external data, a custom operator, or a graph that onnxruntime refuses.
        """
        name = output_of(parse(model).graph, output)
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common root
            raise ConversionError("onnxruntime refuses the model") from error
        taken = session.get_inputs()
        if len(taken) != 1:
            raise ConversionError(f"the model takes {len(taken)} inputs; one image input is supported")
        batch = taken[0].shape[0] if taken[0].shape else None

        def ask(images: Tensor) -> Tensor:
            parts = torch.split(images, batch) if isinstance(batch, int) else (images,)
            try:
                answers = [session.run([name], {taken[0].name: part.numpy()})[0] for part in parts]
            except Exception as error:
                raise ConversionError("onnxruntime cannot run the model on these images") from error
            return torch.cat([torch.from_numpy(answer) for answer in answers])

        return cls(ask, name)

    def __call__(self, x: Tensor) -> Tensor:
        """The model's output for (N, C, H, W) images; no gradient passes.

        Raises:
            ConversionError: an answer that is not finite, or not one an image.
        """
        answers = self._ask(x.detach().cpu().contiguous()).float()
        if not answers.ndim or len(answers) != len(x) or not bool(answers.isfinite().all()):
            raise ConversionError("the model did not give one finite answer an image")
        return answers.to(self.device)

    def forward_with_taps(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's output; a tap is an input error."""
        if taps:
            raise InputError(f"the model gives answers alone, and no {sorted(taps)}")
        return self(x), {}

    def to(self, device: torch.device) -> Self:
        """The same, with answers on another device."""
        return type(self)(self._ask, self.output_name, device)

    def load_state_dict(self, _state_dict: Mapping[str, Tensor]) -> Any:
        """There are no weights: raises ConversionError."""
        raise ConversionError("the model gives answers alone: it has no weights, and no copy of it can be made")
