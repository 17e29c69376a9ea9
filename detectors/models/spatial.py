"""The table of ONNX operators, continued: convolution, pooling, resizing and the moving of axes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from detectors.models.operators import Node, numbers, operator

_CONVOLUTION: dict[int, Callable[..., Tensor]] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    3: functional.max_pool1d,
    4: functional.max_pool2d,
    5: functional.max_pool3d,
}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    3: functional.avg_pool1d,
    4: functional.avg_pool2d,
    5: functional.avg_pool3d,
}


def padding(node: Node, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, from `pads` or from `auto_pad`."""
    axes = len(kernel)
    rule = node.get("auto_pad", "NOTSET")
    if rule == "NOTSET":
        pads = list(node.get("pads") or [0] * (2 * axes))
        return pads[:axes], pads[axes:]
    if rule == "VALID":
        return [0] * axes, [0] * axes
    strides, dilations = node.get("strides") or [1] * axes, node.get("dilations") or [1] * axes
    totals = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, stride, width, dilation in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if rule == "SAME_UPPER" else (large, small)


def spread(before: list[int], after: list[int]) -> list[int]:
    """Padding in the order of `torch.nn.functional.pad`: last axis first, before then after."""
    return [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]


def even(node: Node, x: Tensor, kernel: list[int], fill: float) -> tuple[Tensor, list[int]]:
    """Padding that torch's own operator can take; what is uneven is padded here, with `fill`."""
    before, after = padding(node, x, kernel)
    if before == after:
        return x, before
    return functional.pad(x, spread(before, after), value=fill), [0] * len(kernel)


@operator("Conv")
def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution in one to three dimensions."""
    if x.ndim not in _CONVOLUTION:
        raise node.refuse(f"{x.ndim - 2} spatial axes")
    x, pad = even(node, x, list(weight.shape[2:]), 0.0)
    ones = [1] * (weight.ndim - 2)
    stride, dilation = node.get("strides") or ones, node.get("dilations") or ones
    return _CONVOLUTION[x.ndim](x, weight, bias, stride, pad, dilation, node.get("group", 1))


@operator("ConvTranspose")
def convolve_transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution; uneven padding is cut off afterwards."""
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):
        raise node.refuse("auto_pad and output_shape are not supported; export with explicit pads")
    before, after = padding(node, x, list(weight.shape[2:]))
    ones = [1] * len(before)
    stride, dilation = node.get("strides") or ones, node.get("dilations") or ones
    extra = node.get("output_padding") or [0] * len(before)
    call = _TRANSPOSED[x.ndim]
    if before == after:
        return call(x, weight, bias, stride, before, extra, node.get("group", 1), dilation)
    whole = call(x, weight, bias, stride, 0, extra, node.get("group", 1), dilation)
    for axis, (first, last) in enumerate(zip(before, after, strict=True), start=2):
        whole = whole.narrow(axis, first, whole.shape[axis] - first - last)
    return whole


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    """Largest value of each window; the optional indices are not computed."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.refuse("its second output, the indices, is not supported")
    kernel = node.get("kernel_shape")
    ones = [1] * len(kernel)
    (before, _), sizes = padding(node, x, kernel), x.shape[2:]
    x, pad = even(node, x, kernel, -torch.inf)
    stride, dilation = node.get("strides") or ones, node.get("dilations") or ones
    largest = _MAX_POOL[x.ndim](x, kernel, stride, pad, dilation, bool(node.get("ceil_mode", 0)))
    for axis, (size, first, step) in enumerate(zip(sizes, before, stride, strict=True), start=2):
        starts = -(-(size + first) // step)  # a window that begins in the padding behind is none
        largest = largest.narrow(axis, 0, min(largest.shape[axis], starts))
    return largest


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean of each window."""
    kernel = node.get("kernel_shape")
    ones = [1] * len(kernel)
    if any(width != 1 for width in node.get("dilations") or ones):
        raise node.refuse("dilated windows are not supported")
    before, after = padding(node, x, kernel)
    counted = bool(node.get("count_include_pad", 0))
    if before != after and (not counted or node.get("ceil_mode", 0)):
        raise node.refuse("uneven padding that does not count, or with ceil_mode, is not supported")
    x, pad = even(node, x, kernel, 0.0)
    return _AVERAGE_POOL[x.ndim](x, kernel, node.get("strides") or ones, pad, bool(node.get("ceil_mode", 0)), counted)


@operator("GlobalAveragePool")
def global_average_pool(_node: Node, x: Tensor) -> Tensor:
    """Mean over all spatial axes, which stay with length 1."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_node: Node, x: Tensor) -> Tensor:
    """Largest value over all spatial axes, which stay with length 1."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("Pad")
def pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Constant, reflected or repeated borders; widths as an attribute up to opset 10, as an input since."""
    widths = node.get("pads") if pads is None else numbers(pads)
    chosen = [axis % x.ndim for axis in numbers(axes)] if axes is not None else list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = widths[place], widths[place + len(chosen)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(node.get("mode", "constant"))
    if mode is None:
        raise node.refuse(f"mode {node.get('mode')!r} is not supported")
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else value.item()
        return functional.pad(x, spread(before, after), value=fill)
    if any(before[:2] + after[:2]):
        raise node.refuse("reflected or repeated borders on the batch or channel axis are not supported")
    return functional.pad(x, spread(before[2:], after[2:]), mode=mode)


@operator("Resize", "Upsample")
def resize(
    node: Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Nearest, linear or cubic resampling in the coordinate rules that torch's exporters write."""
    if node.operator == "Upsample":
        scales = roi
    size = _size(node, x, scales, sizes)
    mode, rule = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        plain = node.operator == "Upsample" or (rule == "asymmetric" and node.get("nearest_mode") == "floor")
        exact = rule == "half_pixel" and node.get("nearest_mode", "round_prefer_floor") == "round_prefer_floor"
        if not plain and not exact:
            raise node.refuse(f"nearest resampling with {rule!r} is not supported")
        return functional.interpolate(x, size, mode="nearest" if plain else "nearest-exact")
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    if (mode, x.ndim) not in names or rule not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise node.refuse(f"mode {mode!r} with {rule!r} is not supported")
    if mode == "cubic" and node.get("cubic_coeff_a", -0.75) != -0.75:
        raise node.refuse("only the cubic coefficient -0.75 is supported")
    aligned, smooth = rule == "align_corners", bool(node.get("antialias", 0))
    return functional.interpolate(x, size, mode=names[mode, x.ndim], align_corners=aligned, antialias=smooth)


def _size(node: Node, x: Tensor, scales: Tensor | None, sizes: Tensor | None) -> list[int]:
    """Length of each spatial axis of the result."""
    if node.get("axes") or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("axes and keep_aspect_ratio_policy are not supported")
    if sizes is not None and sizes.numel():
        return numbers(sizes)[2:]
    if scales is None or scales.numel() != x.ndim:
        raise node.refuse("neither sizes nor scales are given")
    return [int(length * scale) for length, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]


# --- shapes and axes -----------------------------------------------------------------------------------------------


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """Two axes: all before `axis`, all from it on."""
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for length in x.shape[:axis]:
        rows *= length
    return x.reshape(rows, -1)


@operator("Reshape")
def reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Zero keeps a length, unless `allowzero`."""
    lengths = numbers(shape)
    if not node.get("allowzero", 0):
        lengths = [x.shape[place] if length == 0 else length for place, length in enumerate(lengths)]
    return x.reshape(lengths)


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """Reorder the axes; by default reverse them."""
    return x.permute(node.get("perm") or list(reversed(range(x.ndim))))


@operator("Concat")
def concatenate(node: Node, *values: Tensor) -> Tensor:
    """Join along one axis."""
    return torch.cat(values, node.get("axis"))


@operator("Split")
def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Sizes as an attribute up to opset 12, as an input since; else equal parts."""
    axis = node.get("axis", 0)
    lengths = node.get("split") if sizes is None else numbers(sizes)
    if lengths:
        return torch.split(x, lengths, axis)
    part = -(-x.shape[axis] // (node.get("num_outputs") or len(node.outputs)))
    return torch.split(x, part, axis)


@operator("Slice")
def slice_axes(node: Node, x: Tensor, *bounds: Tensor | None) -> Tensor:
    """Python's slices, one an axis: starts, ends, axes, steps; attributes up to opset 9, inputs since."""
    first, last, axes, steps = (*(None if each is None else numbers(each) for each in bounds), *[None] * 4)[:4]
    first, last = first or node.get("starts"), last or node.get("ends")
    chosen = axes or node.get("axes") or list(range(len(first)))
    for start, end, axis, stride in zip(first, last, chosen, steps or [1] * len(first), strict=True):
        places = range(*slice(start, end, stride).indices(x.shape[axis]))  # exporters write 2**63 for "to the end"
        if stride > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, places.stop, stride),)]
        else:
            x = x.index_select(axis, torch.tensor(places, device=x.device))
    return x


@operator("Squeeze")
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of length 1; axes as an attribute up to opset 12, as an input since."""
    chosen = node.get("axes") if axes is None else numbers(axes)
    return x.squeeze() if not chosen else x.squeeze(tuple(chosen))


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of length 1; axes as an attribute up to opset 12, as an input since."""
    chosen = node.get("axes") if axes is None else numbers(axes)
    total = x.ndim + len(chosen)
    for axis in sorted(axis % total for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Pick entries along one axis; negative ones count from the end."""
    axis = node.get("axis", 0) % max(x.ndim, 1)
    places = indices.to(x.device)
    places = torch.where(places < 0, places + x.shape[axis], places)
    shape = list(x.shape[:axis]) + list(indices.shape) + list(x.shape[axis + 1 :])
    return x.index_select(axis, places.reshape(-1)).reshape(shape)


@operator("Expand")
def expand(_node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(numbers(shape))))  # type: ignore[no-untyped-call]


@operator("Tile")
def tile(_node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(numbers(repeats))


@operator("Shape")
def shape_of(node: Node, x: Tensor) -> Tensor:
    """Lengths of the axes, on the CPU."""
    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def size_of(_node: Node, x: Tensor) -> Tensor:
    """Number of elements, on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    """One value everywhere."""
    value = node.get("value")
    fill = torch.zeros(1) if value is None else value
    return fill.expand(numbers(shape) if shape.numel() else []).clone() if shape.numel() else fill.reshape(())


@operator("Range")
def count(_node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from start to limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become pixels, in the column-row-depth order that pixel shuffling means or the other one."""
    block = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Pixels become channels."""
    n, c, h, w = x.shape
    block = node.get("blocksize")
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@operator("Trilu")
def triangle(node: Node, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Upper or lower triangle of the last two axes."""
    offset = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


@operator("IsNaN")
def is_nan(_node: Node, x: Tensor) -> Tensor:
    """Where a value is not a number: exporters guard attention masks with it."""
    return torch.isnan(x)
