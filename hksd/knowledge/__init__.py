"""What a teacher knows, for the loop: asked of the network in every step, or computed once per view and kept."""

from hksd.knowledge.plan import live_because, source
from hksd.knowledge.source import Cost, Live, Stored, cost

__all__ = ["Cost", "Live", "Stored", "cost", "live_because", "source"]
