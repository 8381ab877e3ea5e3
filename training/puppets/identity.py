"""Who a puppet is: everything about its looks that stays the same from picture to picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from .dice import Dice

Colour = tuple[int, int, int]

# Far apart from each other, so that a blurred patch still tells which one it is.
COLOURS: Mapping[str, Colour] = {
    "red": (222, 38, 42),
    "orange": (250, 132, 28),
    "yellow": (252, 212, 44),
    "green": (46, 158, 66),
    "turquoise": (36, 196, 190),
    "blue": (30, 100, 226),
    "purple": (140, 40, 158),
    "pink": (250, 124, 180),
    "white": (246, 246, 246),
    "black": (42, 42, 50),
}
HAIR: Mapping[str, Colour] = {
    "black": (38, 32, 34),
    "brown": (112, 66, 34),
    "blond": (244, 206, 96),
    "red": (206, 84, 30),
    "grey": (168, 168, 172),
    "white": (240, 238, 232),
    "blue": (60, 130, 230),
    "green": (80, 190, 90),
    "pink": (248, 110, 172),
}
SKINS: tuple[Colour, ...] = (
    (255, 221, 194),
    (244, 196, 156),
    (219, 160, 112),
    (173, 115, 72),
    (122, 78, 50),
    (86, 54, 40),
)
KINDS = ("girl", "boy", "woman", "man")
PATTERNS = ("plain", "striped", "dotted", "checked")
UPPERS = ("t-shirt", "shirt", "coat", "dress")
LOWERS = ("trousers", "shorts", "skirt")
HAT_HEIGHTS: Mapping[str, float] = {  # above the head's middle, in its radii
    "cap": 1.6,
    "beanie": 2.25,
    "top hat": 2.15,
    "sun hat": 1.65,
    "party hat": 2.65,
    "crown": 2.05,
}
HATS = tuple(HAT_HEIGHTS)
HAIR_HEIGHTS: Mapping[str, float] = {"afro": 2.0, "bun": 2.0, "spiky": 1.7, "mohawk": 1.95, "curly": 1.6}
BAGS = ("backpack", "shoulder bag", "handbag")
HAIR_STYLES: Mapping[str, tuple[str, ...]] = {
    "girl": ("long", "bob", "pigtails", "ponytail", "bun", "afro", "curly"),
    "woman": ("long", "bob", "ponytail", "bun", "afro", "curly", "short"),
    "boy": ("short", "spiky", "curly", "mohawk", "afro", "bob"),
    "man": ("short", "spiky", "bald", "mohawk", "curly", "afro"),
}
HEAD_SHAPES: Mapping[str, tuple[float, float, float]] = {  # width, height, roundness (exponent of a superellipse)
    "round": (1.0, 1.0, 2.0),
    "long": (0.9, 1.12, 2.2),
    "wide": (1.14, 0.94, 2.2),
    "square": (0.98, 1.0, 3.4),
}


@dataclass(frozen=True)
class Item:
    """A thing to wear or to carry.

    Attributes:
        kind: such as ``t-shirt`` or ``backpack``.
        colour: a key of `COLOURS`.
        pattern: one of `PATTERNS`.
        second: the pattern's (or a trimming's) colour, a key of `COLOURS`.
    """

    kind: str
    colour: str
    pattern: str = "plain"
    second: str = "white"

    @property
    def rgb(self) -> Colour:
        return COLOURS[self.colour]

    @property
    def second_rgb(self) -> Colour:
        return COLOURS[self.second]


@dataclass(frozen=True)
class Puppet:
    """One identity.

    Attributes:
        seed: the number it is made from.
        kind: one of `KINDS`.
        girth: factor on the thickness of trunk and limbs.
        head: a key of `HEAD_SHAPES`.
        head_size: factor on the head's radius.
        skin: colour.
        hair: a key of `HAIR`; hair_style: one of `HAIR_STYLES`.
        eyes: colour of the pupils; mouth: ``smile``, ``open`` or ``flat``.
        glasses, beard: whether it has them.
        upper, shoes: always there; lower is None under a dress; hat and bag may be None.
    """

    seed: int
    kind: str
    girth: float
    head: str
    head_size: float
    skin: Colour
    hair: str
    hair_style: str
    eyes: Colour
    mouth: str
    glasses: bool
    beard: bool
    upper: Item
    lower: Item | None
    shoes: Item
    hat: Item | None
    bag: Item | None

    @property
    def hair_rgb(self) -> Colour:
        return HAIR[self.hair]

    @property
    def head_height(self) -> float:
        """How far hat or hair reach above the head's middle, in radii of the head."""
        return HAT_HEIGHTS[self.hat.kind] if self.hat is not None else HAIR_HEIGHTS.get(self.hair_style, 1.3)

    @property
    def head_breadth(self) -> float:
        """The same to the sides."""
        if self.hat is not None and self.hat.kind == "sun hat":
            return 2.0
        return {"afro": 1.7, "pigtails": 1.9, "ponytail": 1.9, "long": 1.4, "spiky": 1.6}.get(self.hair_style, 1.3)


@lru_cache(maxsize=65536)
def puppet(seed: int) -> Puppet:
    """The puppet of a number: the same one for ever."""
    dice = Dice("puppet", seed)
    kind = dice.pick(KINDS)
    upper = _clothes(dice, _upper_kind(dice, kind))
    lower = None if upper.kind == "dress" else _clothes(dice, _lower_kind(dice, kind), unlike=upper.colour, plain=0.65)
    worn = {upper.colour, *([lower.colour] if lower else [])}
    return Puppet(
        seed=seed,
        kind=kind,
        girth=dice.pick((0.86, 1.0, 1.0, 1.15, 1.32)),
        head=dice.pick(tuple(HEAD_SHAPES)),
        head_size=1.08 if kind in ("girl", "boy") else 1.0,
        skin=dice.pick(SKINS),
        hair=dice.pick(tuple(HAIR)),
        hair_style=dice.pick(HAIR_STYLES[kind]),
        eyes=dice.pick(((34, 30, 34), (34, 30, 34), (40, 90, 190), (40, 130, 60))),
        mouth=dice.pick(("smile", "smile", "open", "flat")),
        glasses=dice.chance(0.2),
        beard=kind == "man" and dice.chance(0.45),
        upper=upper,
        lower=lower,
        shoes=Item("shoes", _other_colour(dice, worn)),
        hat=_accessory(dice, HATS, 0.45, worn),
        bag=_accessory(dice, BAGS, 0.4, worn),
    )


def _upper_kind(dice: Dice, kind: str) -> str:
    return dice.pick(UPPERS if kind in ("girl", "woman") else UPPERS[:3])


def _lower_kind(dice: Dice, kind: str) -> str:
    return dice.pick(LOWERS if kind in ("girl", "woman") else LOWERS[:2])


def _clothes(dice: Dice, kind: str, unlike: str = "", plain: float = 0.34) -> Item:
    colour = _other_colour(dice, {unlike})
    pattern = "plain" if dice.chance(plain) else dice.pick(PATTERNS[1:])
    return Item(kind, colour, pattern, _second_colour(dice, colour))


def _accessory(dice: Dice, kinds: tuple[str, ...], share: float, worn: set[str]) -> Item | None:
    wanted, kind, colour = dice.chance(share), dice.pick(kinds), _other_colour(dice, worn)
    return Item(kind, colour, second=_second_colour(dice, colour)) if wanted else None


def _other_colour(dice: Dice, taken: set[str]) -> str:
    return dice.pick([name for name in COLOURS if name not in taken])


def _second_colour(dice: Dice, colour: str) -> str:
    """White on most, so that the pattern stands out; on white or yellow something dark."""
    if colour in ("white", "yellow"):
        return dice.pick(("red", "blue", "black", "green"))
    return dice.pick(("white", "white", "yellow")) if colour != "orange" else "white"
