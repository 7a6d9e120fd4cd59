"""JSON schemas in the words that llguidance knows: what it lacks is said by what it has."""

from hagane.generation.schemas.rewriting import rewritten

__all__ = ["rewritten"]
