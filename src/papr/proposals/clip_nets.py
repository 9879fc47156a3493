"""Networks that look at clips, by name."""

NAMES: tuple[str, ...] = ()


def knows(source: str) -> bool:
    """Whether `source` names one."""
    return False


def load(source: str, pretrained: bool = True):  # type: ignore[no-untyped-def]
    """The network behind a name."""
    raise NotImplementedError
