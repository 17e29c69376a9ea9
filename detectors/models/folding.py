"""Networks as they run fastest: weights channels last; not to be trained, normalisation part of the convolution."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)


def folded(network: Network) -> Network:
    """A frozen copy for inference; its outputs differ by rounding alone, its weights have no use elsewhere.

    In every chain of layers a convolution takes up the normalisation that follows it, activations overwrite their
    inputs, and weights lie channels last. Gradients by the images pass as before.
    """
    copied = copy.deepcopy(network).eval()
    for chain in [module for module in copied.modules() if isinstance(module, nn.Sequential)]:
        for place, layer in enumerate(chain):
            before = chain[place - 1]
            if place and isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                chain[place - 1], chain[place] = fuse_conv_bn_eval(before, layer), nn.Identity()
            elif place and isinstance(layer, nn.ReLU):
                layer.inplace = True
    lay_out(copied)
    return copied.requires_grad_(False)


def lay_out(network: nn.Module) -> None:
    """Put the weights of convolutions channels last, in which they run faster; the layout spreads to what they give.

    Said in so many words, since torch takes weights for a single channel to lie so already: then the first layer would
    answer channels first, and the second copy all of it.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor.detach())
