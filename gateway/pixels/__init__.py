"""From a scan's verified bytes to what a model sees: decoded in a disposable process, rendered once for all."""
