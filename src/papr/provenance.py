"""Where weights come from: what must stand beside every answer and every figure."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Kinds of weights; see `Weights`.
PRETRAINED, CHECKPOINT, RANDOM = "pretrained", "checkpoint", "random"
#: The name under which it lies in files of JSON and in the metadata of Parquet, ONNX and PNG.
KEY = "provenance"
#: Why weights are random, as a rule.
ASKED = "asked for"
#: How callers go on without weights, for messages.
FLAG = "pass --random-weights (in Python random_weights=True) to go on with random ones"
PROPOSAL_FLAG = FLAG.replace("random_weights=True", "papr.Proposal(..., pretrained=False)")


@dataclass(frozen=True)
class Weights:
    """What the weights of one network are.

    Attributes:
        kind: "pretrained", "checkpoint" (a file of the user's), "random", or "given" where the
            user handed a module over.
        source: the name they were found by, or the path of the file.
        sha256: of the file that was read, where one was.
        why: of random ones, in one line.
    """

    kind: str
    source: str = ""
    sha256: str = ""
    why: str = ""

    @property
    def random(self) -> bool:
        """Whether answers mean nothing."""
        return self.kind == RANDOM

    def __str__(self) -> str:
        """In words, to stand before "weights": random, pretrained, checkpoint own.pth 1a2b3c4d."""
        if self.kind != CHECKPOINT:
            return self.kind
        return f"checkpoint {Path(self.source).name} {self.sha256[:8]}"

    def to_dict(self) -> dict[str, str]:
        """Plain data: what is known."""
        return {name: value for name, value in asdict(self).items() if value}


#: Of modules that the user handed over.
GIVEN = Weights("given")


@dataclass(frozen=True)
class Provenance:
    """What the weights of all that take part are.

    Attributes:
        host: those of the host; None where none takes part.
        proposals: name -> those of the networks that look first.
    """

    host: Weights | None = None
    proposals: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def random(self) -> list[str]:
        """Whose weights are random."""
        host = ["host"] if self.host is not None and self.host.random else []
        return host + [f"proposal {n}" for n, weights in self.proposals.items() if weights.random]

    def __str__(self) -> str:
        """In words: "pretrained weights"; of proposals only what is not as usual."""
        said = [] if self.host is None else [f"{self.host} weights"]
        unusual = {n: w for n, w in self.proposals.items() if w.kind != PRETRAINED}
        return ", ".join([*said, *(f"proposal {n} {w}" for n, w in unusual.items())])

    @property
    def note(self) -> str:
        """A line for pictures; empty where all weights are trained."""
        return f"random weights: {', '.join(self.random)}" if self.random else ""

    def blank(self, what: str) -> str:
        """Why there is no such figure, in one sentence; empty where all weights are trained.

        Args:
            what: the figures, such as "agreement, cosine and top-1".
        """
        if not self.random:
            return ""
        return (
            f"Random weights ({', '.join(self.random)}): {what} would mean nothing and stay blank."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        host = {} if self.host is None else {"host": self.host.to_dict()}
        return host | {"proposals": {n: weights.to_dict() for n, weights in self.proposals.items()}}


#: Where no network takes part.
NOBODY = Provenance()


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; the file is never held whole."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()
