"""README.md of a model that goes to the Hub: what it is, how it came about, what is not known.

base      the base model and its licence
run       an adapter, and the run it was trained in
card      the facts as text
"""

from trainer.model_card.base import published_name
from trainer.model_card.card import Card, render, write_model_card

__all__ = ["Card", "published_name", "render", "write_model_card"]
