"""Counts in words."""


def counted(number: int, what: str) -> str:
    """A number and what is counted, in the singular or the plural.

    Examples:
        `counted(1, "image")` is "1 image"; `counted(2, "class")` is "2 classes".

    Args:
        number: how many.
        what: the noun in the singular; of several words the last one changes.
    """
    if number == 1:
        return f"1 {what}"
    ending = "es" if what.endswith(("s", "x", "ch", "sh")) else "s"
    if what.endswith("y") and what[-2:-1] not in "aeiou":
        what, ending = what[:-1], "ies"
    return f"{number} {what}{ending}"
