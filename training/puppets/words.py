"""Words for puppets, in the order in which a prompt would say them. A description stands in the caption as it is."""

from __future__ import annotations

from collections.abc import Sequence

from .dice import Dice
from .identity import Item, Puppet

MAX_WORDS = 34  # of a caption; word pieces are few more, for the words are common ones
ITEMS_WORDS = 22  # of them, for people and their things
_PLURAL = ("trousers", "shorts", "shoes")


def item_words(item: Item) -> str:
    """Such as "a red striped shirt" or "blue trousers"."""
    words = f"{item.colour} {item.kind}" if item.pattern == "plain" else f"{item.colour} {item.pattern} {item.kind}"
    if item.kind in _PLURAL:
        return words
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def person_words(puppet: Puppet, people: int = 1) -> str:
    """Such as "a girl in a red striped shirt and blue trousers": the more people in the picture, the fewer words each."""
    clothes = [puppet.upper]
    if people <= 2 and puppet.lower is not None:
        clothes.append(puppet.lower)
    if people == 1 and puppet.hat is not None:
        clothes.append(puppet.hat)
    name = face_words(puppet) if people == 1 else f"a {puppet.kind}"
    return f"{name} in {listed([item_words(item) for item in clothes])}"


def face_words(puppet: Puppet) -> str:
    return f"a bald {puppet.kind}" if puppet.hair_style == "bald" else f"a {puppet.kind} with {puppet.hair} hair"


def listed(words: Sequence[str]) -> str:
    """Such as "one, two and three"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def choose_items(dice: Dice, visible: Sequence[tuple[str, Item]], words: int) -> list[tuple[str, Item]]:
    """As many of somebody's things, in their order, as fit into so many words."""
    chosen = []
    for number in dice.shuffled(range(len(visible))):
        needed = len(item_words(visible[number][1]).split()) + 1
        if needed <= words:
            chosen.append(number)
            words -= needed
    return [visible[number] for number in sorted(chosen)]


def dressed_words(puppet: Puppet, items: Sequence[tuple[str, Item]]) -> str:
    """Somebody with some things, given as (category, item), such as "a boy with red hair in a cap with a blue bag"."""
    worn = [item_words(item) for category, item in items if category != "bag"]
    carried = [f" with {item_words(item)}" for category, item in items if category == "bag"]
    return "".join([face_words(puppet), f" in {listed(worn)}" if worn else "", *carried])


def caption(people: Sequence[str], actions: Sequence[tuple[str, int]], place: str) -> str:
    """A whole sentence.

    Args:
        people: everybody's words.
        actions: what groups of them do, and how many people each group has; "{0}" and "{1}" in it stand for people of
            the group where they have different parts. Words that would make the caption too long are left out.
        place: where they are.
    """
    silent = [("", count) for _, count in actions]
    alone = [[*silent[:number], action, *silent[number + 1 :]] for number, action in enumerate(actions)]
    for told in (actions, *alone):
        sentence = _sentence(people, told, place)
        if len(sentence.replace(",", " ,").split()) <= MAX_WORDS:
            return sentence
    return _sentence(people, silent, place)


def _sentence(people: Sequence[str], actions: Sequence[tuple[str, int]], place: str) -> str:
    parts, start = [], 0
    for action, count in actions:
        group, start = people[start : start + count], start + count
        if "{0}" in action:
            parts.append(action.format(*group))
        else:
            parts += [*group[:-1], f"{group[-1]} {action}".strip()]
    return f"{listed(parts)} {place}"
