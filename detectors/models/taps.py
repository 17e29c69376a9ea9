"""Which values of a graph are worth keeping as features: the ends of its blocks, early ones included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from detectors.models.operators import Node, numbers

PARTS = 4
"""Into how many parts the layers with weights are cut; each part's last block end is kept."""
_LEARNED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Step:
    """What the rule must know of one node of a graph, whatever kind of file it came from."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    learned: bool
    """Whether it applies weights as a convolution or a linear layer does."""


def with_block_ends(steps: Sequence[Step], source: str, last: tuple[str, ...]) -> tuple[str, ...]:
    """Names of values, from the input on; the last is the input of the head.

    Args:
        steps: the graph in the order of computation.
        source: name of the image input.
        last: the values that are kept at the end.

    Returns:
        The last block end in each quarter of the layers, then `last`. Limits: under the skips of a U-Net only its first
        and its last layers are block ends; of maps that a transformer keeps channels last, the pooled features are by
        row.
    """
    ends = _block_ends(steps, source, until=last[0])
    layers = max((count for count, _ in ends), default=0)
    early: dict[str, None] = {}
    for part in range(1, PARTS + 1):
        passed = [name for count, name in ends if 1 <= count <= part * layers / PARTS]
        early |= dict.fromkeys(passed[-1:])
    return (*(name for name in early if name not in last), *last)


def default_taps(nodes: Sequence[Node], source: str, constants: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The taps of an ONNX graph.

    Args:
        nodes: the graph in the order of computation.
        source: name of the image input.
        constants: values that do not depend on the image.

    Returns:
        Block ends, then what the last layer before global pooling gives, and the pooled features; without such a
        pooling, the input of the last linear layer.
    """
    steps = [Step(node.inputs, node.outputs, node.operator in _LEARNED) for node in nodes]
    return with_block_ends(steps, source, _last(nodes, constants))


def _block_ends(steps: Sequence[Step], source: str, until: str) -> list[tuple[int, str]]:
    """Values up to `until` through which everything that follows passes, each with the learned layers before it.

    Of several with the same number the last is kept: after the activation, not before. Inside a residual block two
    values are alive, so only its end is found; in a plain network, every layer's.
    """
    last_use = {name: place for place, step in enumerate(steps) for name in step.inputs}
    alive, learned = {source}, 0
    found: dict[int, str] = {}
    for place, step in enumerate(steps):
        if not alive.intersection(step.inputs):
            continue  # of constants alone
        learned += step.learned
        alive |= {name for name in step.outputs if name}
        alive = {name for name in alive if last_use.get(name, len(steps)) > place}
        if len(alive) == 1:
            found[learned] = next(iter(alive))
        if until in step.outputs:
            break
    return list(found.items())


def _last(nodes: Sequence[Node], constants: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Input and output of the last pooling over all of space; without one, the input of the last linear layer."""
    for node in reversed(nodes):
        if node.operator == "GlobalAveragePool" or _pools_space(node, constants):
            return node.inputs[0], node.outputs[0]
    for node in reversed(nodes):
        if node.operator in ("Gemm", "MatMul"):
            return (node.inputs[0],)
    return (nodes[-1].inputs[0],)


def _pools_space(node: Node, constants: Mapping[str, Tensor]) -> bool:
    """Whether a ReduceMean averages over rows and columns."""
    if node.operator != "ReduceMean":
        return False
    axes = node.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in constants:
        axes = numbers(constants[node.inputs[1]])
    return sorted(axis % 4 for axis in axes or ()) == [2, 3]
