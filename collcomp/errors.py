"""The errors that collcomp raises beside `ValueError` and `TypeError`."""


class CollcompError(Exception):
    """Base of every error of this package that is not about one argument."""


class FrameError(CollcompError):
    """A frame is damaged, or is not the one that this rank expected.

    Ranks that name different codecs, counts or dtypes in one call end here too.
    """


class TransportError(CollcompError):
    """Bytes could not be moved; the communicator can no longer be used."""


class DeadlineError(TransportError):
    """An operation did not finish in its time."""
