"""Bags, as marks on a figure: what of them is behind the body, and what is before it."""

from __future__ import annotations

import numpy as np

from .canvas import Mark, Way, outlined
from .figure import WRISTS, Figure, unit
from .identity import Item, Puppet


def bag_behind(puppet: Puppet, shape: Figure) -> list[Mark]:
    """A backpack seen from the front looks out beside the trunk."""
    bag = puppet.bag
    return _backpack(bag, shape) if bag is not None and bag.kind == "backpack" and not shape.back else []


def bag_before(puppet: Puppet, shape: Figure) -> list[Mark]:
    """Straps, and bags in front of trunk and legs."""
    bag = puppet.bag
    if bag is None:
        return []
    if bag.kind == "backpack":
        return _backpack(bag, shape) if shape.back else _straps(bag, shape)
    if bag.kind == "shoulder bag":
        first, _, _, fourth = shape.trunk
        strap = Mark(np.array([first, fourth]), "bag", bag.rgb, Way.LINE, 0.035 * shape.size)
        return [strap, *_pouch(bag, shape, fourth, fourth - first, 0.09)]
    hand = shape.joints[WRISTS[1]] + 0.13j * shape.size
    return _pouch(bag, shape, hand, 1j, 0.1)


def _straps(bag: Item, shape: Figure) -> list[Mark]:
    first, second, third, fourth = shape.trunk
    top, bottom = (first + second) / 2, (third + fourth) / 2
    marks = []
    for start, end in ((first, third), (second, fourth)):
        start, end = top + 0.62 * (start - top), bottom + 0.72 * (end - bottom)
        line = np.array([start, start + 0.7 * (end - start)])
        marks.append(Mark(line, "bag", bag.rgb, Way.LINE, 0.04 * shape.size))
    return marks


def _backpack(bag: Item, shape: Figure) -> list[Mark]:
    top, bottom = (shape.trunk[0] + shape.trunk[1]) / 2, (shape.trunk[2] + shape.trunk[3]) / 2
    down = unit(bottom - top)
    length = max(abs(bottom - top), 0.2 * shape.size)
    wide = abs(shape.trunk[1] - shape.trunk[0]) / 2
    half = 1j * down * (wide if shape.back else wide + 0.06 * shape.size)
    middle = (top + bottom) / 2 - (0.0 if shape.back else 0.11 * shape.size * shape.yaw) * shape.right
    top, bottom = middle - 0.5 * length * down, middle + 0.38 * length * down
    below = top + 0.1 * length * down
    outline = np.array([top - 0.7 * half, below - half, bottom - half, bottom + half, below + half, top + 0.7 * half])
    marks = outlined(outline, "bag", bag.rgb, shape.size)
    if shape.back:
        pocket = middle + 0.1 * length * down
        box = np.array([pocket - 0.6 * half, pocket + 0.6 * half, bottom + 0.6 * half, bottom - 0.6 * half])
        marks += outlined(box, "bag", bag.second_rgb, shape.size)
    return marks


def _pouch(bag: Item, shape: Figure, middle: complex, down: complex, half: float) -> list[Mark]:
    """A bag with a flap, its middle at `middle`."""
    tall = half * shape.size * unit(down)
    across = 1j * tall
    high, low = middle - 0.7 * tall, middle + 0.9 * tall
    fold = middle + 0.1 * tall
    marks = []
    if bag.kind == "handbag":
        handle = np.array([high - 0.5 * across, middle - 1.5 * tall, high + 0.5 * across])
        marks.append(Mark(handle, "bag", bag.rgb, Way.LINE, 0.025 * shape.size))
    body = np.array([high - across, high + across, low + 1.15 * across, low - 1.15 * across])
    flap = np.array([high - across, high + across, fold + 0.8 * across, fold - 0.8 * across])
    return [*marks, *outlined(body, "bag", bag.rgb, shape.size), Mark(flap, "bag", bag.second_rgb, Way.CONVEX)]
