"""Reads a torch.export file (.pt2) without torch.export.load, which evaluates text of the file as Python."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from detectors.errors import ConversionError
from detectors.models.archive import entries
from detectors.models.aten import ARITHMETIC, PLACE, Argument, AtenReference, Block, Call, Value, Weight, function_of

# torch's schema of exported programs: torch/_export/serde/schema.py, version 8
_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_STRIDED = 7
_LITERALS = ("as_int", "as_ints", "as_float", "as_floats", "as_string", "as_bool", "as_bools")
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
"""Calls that only state what torch found out about lengths."""


def from_export(model: bytes) -> AtenReference:
    """Rebuild a model from the bytes of a file that `torch.export.save` wrote.

    Nothing in the file is executed or unpickled: its graph is JSON, its tensors are plain bytes.

    Raises:
        ConversionError: not such a file, a fixed number of images, or an operator that does more than compute.
    """
    files = entries(model)
    try:
        programs = [name for name in files if name.startswith("models/") and name.endswith(".json")]
        if len(programs) != 1:
            raise ConversionError(f"the archive holds {len(programs)} exported programs; one is supported")
        if files.get("byteorder", b"little") != b"little":
            raise ConversionError("the file was not written on a little-endian machine")
        program = json.loads(files[programs[0]])["graph_module"]
        graph, signature = program["graph"], program["signature"]
        places, image = _inputs(signature, files)
        if "as_int" in graph["tensor_values"][image]["sizes"][0]:
            count = graph["tensor_values"][image]["sizes"][0]["as_int"]
            raise ConversionError(f"exported for {count} images at once; export with dynamic_shapes, for any number")
        weights = {name: _tensor(files, *place) for name, place in places.items()}
        calls = tuple(call for node in graph["nodes"] for call in _call(node, weights))
        given = [_argument(each, weights) for each in graph["outputs"]]
        kinds = [next(iter(spec)) for spec in signature["output_specs"]]
    except (KeyError, ValueError, TypeError, IndexError, StopIteration, RecursionError, AttributeError) as error:
        raise ConversionError("the file is not a torch.export program as torch 2.8 and later write it") from error
    if kinds != ["user_output"]:
        raise ConversionError(f"the model gives {kinds}; one tensor is supported")
    fixed = {name for name, (_, entry) in places.items() if not entry["is_param"]}
    return AtenReference(Block(calls, tuple(given)), weights, image, fixed=fixed)


_At = tuple[str, Mapping[str, Any]]


def _inputs(signature: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[dict[str, _At], str]:
    """Where each tensor of the file lies, by its name in the graph, and the name of the image input."""
    tables = {}
    for kind in ("weights", "constants"):
        table = files.get(f"data/{kind}/model_{kind}_config.json", b"{}")
        tables[kind] = json.loads(table).get("config", {})
    places: dict[str, _At] = {}
    images = []
    for spec in signature["input_specs"]:
        ((kind, what),) = spec.items()
        if kind == "user_input":
            images.append(what["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = what[f"{kind}_name"]
            source = "weights" if name in tables["weights"] else "constants"
            places[what["arg"]["name"]] = (source, tables[source][name])
        else:
            raise ConversionError(f"the model takes an input of kind {kind}")
    if len(images) != 1:
        raise ConversionError(f"the model takes {len(images)} inputs; one image input is supported")
    return places, images[0]


def _tensor(files: Mapping[str, bytes], kind: str, entry: Mapping[str, Any]) -> Tensor:
    """One tensor from its plain bytes."""
    if entry["use_pickle"]:
        raise ConversionError("a tensor of the file is pickled, which is refused")
    meta = entry["tensor_meta"]
    kind_of = _TYPES.get(meta["dtype"])
    if kind_of is None:
        raise ConversionError(f"tensors of type {meta['dtype']} are not supported")
    sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    content = files[f"data/{kind}/{entry['path_name']}"]
    if math.prod(sizes) == 0:
        return torch.empty(sizes, dtype=kind_of)
    flat = torch.frombuffer(bytearray(content), dtype=kind_of)
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if min(offset, *sizes, *strides, 0) < 0 or reach >= len(flat):
        raise ConversionError("a tensor of the file reaches beyond its bytes")
    return flat.as_strided(sizes, strides, offset).clone()


def _call(node: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[Call]:
    """One node as a call; none where it only checks."""
    target = str(node["target"])
    arguments = {each["name"]: _argument(each["arg"], weights) for each in node["inputs"]}
    outputs, spread = _outputs(node["outputs"])
    if target.startswith("torch.ops.aten."):
        name = target.removeprefix("torch.ops.aten.")
        if name.partition(".")[0] in _CHECKS:
            return []
        return [Call(f"aten::{name}", function_of(name), arguments, outputs, spread)]
    if target.startswith("_operator.") and target.removeprefix("_operator.") in ARITHMETIC:
        name = target.removeprefix("_operator.")
        return [Call(name, ARITHMETIC[name], arguments, outputs)]
    raise ConversionError(f"operator {target} is custom or not supported, refused")


def _outputs(given: list[Mapping[str, Any]]) -> tuple[tuple[str, ...], bool]:
    """Names that a node's results get, and whether the results are one sequence."""
    names: list[str] = []
    for each in given:
        ((kind, what),) = each.items()
        if kind == "as_tensors":
            return tuple(str(one["name"]) for one in what), True
        if kind == "as_none":
            continue
        names.append(str(what["name"] if kind == "as_tensor" else what["as_name"]))
    return tuple(names), len(names) > 1


def _argument(given: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Argument:
    """An argument as the interpreter takes it."""
    ((kind, what),) = given.items()
    if kind in _LITERALS:
        return what
    if kind in _TRANSLATED:
        return _TRANSLATED[kind](what)
    if kind in _LISTS:
        return [_argument({_LISTS[kind]: each}, weights) for each in what]
    if kind == "as_optional_tensor":
        return _argument(what, weights)
    if kind == "as_tensor":
        return Weight(what["name"]) if what["name"] in weights else Value(what["name"])
    raise ConversionError(f"an argument of kind {kind} is not supported")


def _symbol(what: Mapping[str, Any]) -> Argument:
    """A length: a number, or the name of a computed one."""
    ((form, value),) = what.items()
    return Value(value) if form == "as_name" else value


def _real_or_not(what: int) -> torch.dtype:
    """A type; every real one is 32-bit, which is what the whole reference computes in."""
    return torch.float32 if _TYPES[what].is_floating_point else _TYPES[what]


_TRANSLATED: Mapping[str, Callable[[Any], Argument]] = {
    "as_none": lambda _what: None, "as_device": lambda _what: PLACE, "as_layout": {_STRIDED: torch.strided}.__getitem__,
    "as_memory_format": _FORMATS.__getitem__, "as_scalar_type": _real_or_not,
    "as_sym_int": _symbol, "as_sym_bool": _symbol, "as_sym_float": _symbol,
}  # fmt: skip
_LISTS = {
    "as_tensors": "as_tensor", "as_optional_tensors": "as_optional_tensor", "as_sym_ints": "as_sym_int",
    "as_sym_floats": "as_sym_float", "as_sym_bools": "as_sym_bool",
}  # fmt: skip
