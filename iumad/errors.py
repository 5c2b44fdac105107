"""Errors that a user can cause and mend; the command line prints them as one line and exits with 2."""


class IumadError(ValueError):
    """Base of all errors caused by what the user gave: a file, a key, a value."""


class ConfigError(IumadError):
    """A params file or a configuration value is wrong."""


class DataError(IumadError):
    """An image, a mask, a point cloud or a folder cannot be used; the text names the file."""


class CheckpointError(IumadError):
    """A checkpoint cannot be read or belongs to another configuration."""


class MetricError(IumadError):
    """A metric is undefined for the given arrays, e.g. one class only or no defect region."""


class DamagedFileError(IumadError):
    """A file of the results folder was changed, cut or misplaced; the text names it and the remedy."""


class Interrupted(
    BaseException
):  # a KeyboardInterrupt would be swallowed by the parser of the command line
    """Ctrl-C or SIGTERM; the text says what is saved."""

    def __init__(self, text: str, signal: int = 2) -> None:
        super().__init__(text)
        self.signal = signal  # number; 2 is SIGINT
