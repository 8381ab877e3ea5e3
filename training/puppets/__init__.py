"""A small world to train in and to measure with: puppets whose looks, poses and places are drawn by numbers.

`PuppetSource` makes samples without end; `puppet`, `draw_scene`, `draw_reference` and `draw_item` draw what one asks for,
and `measure` holds a picture against the truth.
"""

from .backgrounds import background
from .canvas import PARTS, PERSON_STEP
from .identity import Item, Puppet, puppet
from .kept import KeptSamples
from .measure import PuppetMeasures, measure, routing_iou
from .references import draw_item, draw_reference, neutral
from .scene import Scene, draw_scene, people_in
from .source import PuppetSource
from .words import item_words, person_words

__all__ = [
    "PARTS",
    "PERSON_STEP",
    "Item",
    "KeptSamples",
    "Puppet",
    "PuppetMeasures",
    "PuppetSource",
    "Scene",
    "background",
    "draw_item",
    "draw_reference",
    "draw_scene",
    "item_words",
    "measure",
    "neutral",
    "people_in",
    "person_words",
    "puppet",
    "routing_iou",
]
