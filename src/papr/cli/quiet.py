"""What other libraries say on standard error that means nothing to the user of a command.

Named one by one, by who says it and the words, and silenced in the command line alone: whoever
imports papr hears all of it.
"""

import logging

#: Logger -> words of messages that are about the insides of other libraries.
_LOGGED = {
    # torchao, which transformers imports, registers its enums with torch in a way that torch 2.14
    # no longer needs: two lines before every host of transformers.
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),
}


class _Without(logging.Filter):
    """Lets all records through but those with one of these words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(words in message for words in self._words)


def hush() -> None:
    """Silence what is named above, in this process."""
    for logger, words in _LOGGED.items():
        logging.getLogger(logger).addFilter(_Without(words))
