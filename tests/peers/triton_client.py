"""Asks an inference server as any user of Triton would, and prints what came back; run by the peer's own Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

ADDRESS, TOKEN, MODEL, FILE = sys.argv[1:5]
HEADERS = {"authorization": f"Bearer {TOKEN}"}


def main() -> None:
    """One line of JSON: what the server says of itself, and its answer about the file."""
    client = triton.InferenceServerClient(ADDRESS)
    metadata = client.get_model_metadata(MODEL, headers=HEADERS, as_json=True)
    said: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL, headers=HEADERS),
        "other_ready": client.is_model_ready("elsewhere", headers=HEADERS),
        "server": client.get_server_metadata(headers=HEADERS).name,
        "inputs": [each["name"] for each in metadata["inputs"]],
    }
    if FILE.endswith(".npy"):
        tensor = np.load(FILE)
        asked = triton.InferInput(metadata["inputs"][1]["name"], tensor.shape, "FP32")
        asked.set_data_from_numpy(tensor)
    else:
        asked = triton.InferInput("DICOM", [1], "BYTES")
        asked.set_data_from_numpy(np.array([Path(FILE).read_bytes()], dtype=np.object_))
    try:
        answer = client.infer(MODEL, [asked], headers=HEADERS, request_id="7")
    except triton.InferenceServerException as error:
        said |= {"status": error.status(), "message": error.message()}
    else:
        response = answer.get_response()
        said |= {
            "id": response.id,
            "label": answer.as_numpy("label")[0].decode(),
            "probabilities": answer.as_numpy("probabilities").tolist(),
            "parameters": {name: value.string_param for name, value in response.parameters.items()},
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
