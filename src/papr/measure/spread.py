"""Which samples stand for all where all would take too long."""


def spread(count: int, total: int) -> list[int]:
    """Which of `total` to take where `count` must do, ascending: evenly spread, not the first.

    Folders are sorted by class, and the first images of one are all alike.
    """
    count = min(count, total)
    return [i * total // count for i in range(count)]
