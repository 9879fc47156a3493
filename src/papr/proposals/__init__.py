"""Who looks first: networks, and anything else that scores pixels."""

from papr.proposals.image import Proposal, as_proposal

__all__ = ["Proposal", "as_proposal"]
