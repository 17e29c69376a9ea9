"""Everything that this room raises.

DetectorError
├── InputError        an image or an observation that no detector may look at
│   └── TooFewError   a category with too few clean scans for the rate that is asked for
├── NotFittedError    a part that was asked to score before it was fitted
├── ArtefactError     a fitted artefact that must not be used
├── ConversionError   a model that cannot become a differentiable reference
└── AnswerError       a model on a server that did not answer
    └── AnotherModelError   or that is another one than was fitted for
"""


class DetectorError(Exception):
    """Root of this room's errors; the sentence it carries names no patient and no path of one."""


class InputError(DetectorError):
    """Images of a wrong shape or type, or with values that are not finite."""


class TooFewError(InputError):
    """A category that cannot be calibrated: its clean scans are too few for the false-positive rate."""


class NotFittedError(DetectorError):
    """A detector, a calibration or a denoiser without the numbers it needs."""


class ArtefactError(DetectorError):
    """An artefact that is malformed, changed, or fitted for another model or profile."""


class ConversionError(DetectorError):
    """An ONNX model that this room cannot rebuild in torch; names the operator and the node."""


class AnswerError(DetectorError):
    """A protected model that only a server has, and that gave no answer: nothing is known of any image it was about."""


class AnotherModelError(AnswerError):
    """The server answers with another model than the one that the detectors were fitted for."""
