"""Which of many are worth a look: the Pareto front of cost and quality."""

from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points on which no other is at least as good in both and better in one.

    Args:
        points: (cost, quality) of each: less of the first is better, more of the second.

    Returns:
        Their positions, by rising cost; equal points are all there, or none of them.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    best = float("-inf")
    for i in order:
        cost, quality = points[i]
        if quality > best or (front and points[front[-1]] == (cost, quality)):
            front.append(i)
            best = quality
    return front
