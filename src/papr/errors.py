"""The errors papr raises. Each message says what was expected and what came, in one line."""


class PaprError(Exception):
    """Base of every error papr raises on purpose; catch this one to catch them all."""


class DataError(PaprError, ValueError):
    """Data that a run was pointed at cannot be read as what it was taken for."""


class ConfigError(PaprError, ValueError):
    """An option has a value outside its range or of the wrong type."""


class UnsupportedModelError(PaprError, TypeError):
    """The model is not one papr can prune; the message names its class and the reason."""


class MissingSiteError(UnsupportedModelError):
    """A host lacks a module that papr looks for, as one of another version of its library may."""


class ProposalError(PaprError, ValueError):
    """The proposal could not be loaded, or did not return a usable map."""


class SelectionError(PaprError, ValueError):
    """Tensors handed to a selection do not fit together, or no selection exists yet."""


class PrunedModelError(PaprError, RuntimeError):
    """Something was asked of a pruned model that only the dense one can give."""


class ExportError(PaprError, RuntimeError):
    """A model could not be written to a file, or the file does not answer as the model does."""


class WriteError(PaprError, OSError):
    """A file of results cannot be written: the disk is full, or the folder is not the user's."""


class VideoError(PaprError, ValueError):
    """A video cannot be read, or a frame was asked for that it does not have."""


def one_line(error: BaseException) -> str:
    """Type and first line of somebody else's error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"


class PaprWarning(UserWarning):
    """papr had to assume something; said once."""
