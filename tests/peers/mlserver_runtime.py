"""Runs one ONNX model inside MLServer; loaded by the server itself, from its model-settings.json."""

from __future__ import annotations

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """As small as the server allows."""

    async def load(self) -> bool:
        """Read the model that `parameters.uri` names."""
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it on the one input."""
        given = payload.inputs[0]
        values = NumpyCodec.decode_input(given).astype(np.float32)
        outputs = self._session.run(None, {given.name: values})
        names = [each.name for each in self._session.get_outputs()]
        encoded = [NumpyCodec.encode_output(name, value) for name, value in zip(names, outputs, strict=True)]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=encoded)
