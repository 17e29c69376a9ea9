"""The denoiser that is guided by features: it need not restore the scan, only what the model sees in it.

Liao et al. 2018, arXiv:1712.02976 (HGD, feature-guided: the distance is taken at the topmost convolution), which won
the NeurIPS 2017 defence track. Limits: fitted to one model; Athalye and Carlini 2018, arXiv:1804.03286, take it to no
accuracy by differentiating through denoiser and model together.
"""

from detectors.denoisers.unet import UNetDenoiser


class HGD(UNetDenoiser):
    """A U-Net whose goal is `guidance`: the protected model's features of the clean scan."""

    name = "hgd"
