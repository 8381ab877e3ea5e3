"""From the words for a thing to its category, by the noun that the phrase is about.

Captions speak of more than can be a subject: scenery, parts of the body, crowds, "the image". Those have no category.
"""

from __future__ import annotations

import re

PERSON, FACE, ANIMAL, OTHER = "person", "face", "animal", "other"
UPPER, LOWER, DRESS, BAG, HAT, SHOES = "upper garment", "lower garment", "dress", "bag", "hat", "shoes"

_WORDS: dict[str | None, str] = {
    PERSON: "person man woman boy girl child kid baby infant toddler teenager adult lady gentleman guy girlfriend boyfriend"
    " male female human model dancer player athlete runner soldier officer policeman policewoman firefighter doctor nurse"
    " worker chef waiter waitress singer musician actor actress bride groom mother father mom dad parent brother sister son"
    " daughter grandmother grandfather friend student teacher rider cyclist skier surfer skater swimmer boxer warrior knight"
    " king queen prince princess wizard witch robot puppet doll mannequin businessman businesswoman photographer artist"
    " customer tourist pedestrian individual figure character hero superhero astronaut pirate clown ballerina skateboarder"
    " snowboarder batter pitcher goalkeeper fisherman farmer cowboy",
    FACE: "face head portrait",
    UPPER: "shirt t-shirt tshirt tee blouse top jacket coat sweater jumper hoodie hoody cardigan vest waistcoat blazer parka"
    " sweatshirt pullover polo jersey tunic turtleneck trenchcoat raincoat overcoat cape cloak poncho kimono bra bikini corset"
    " camisole crop-top windbreaker anorak suit tuxedo uniform robe bathrobe apron shawl gilet",
    LOWER: "trousers pants jeans skirt shorts leggings tights chinos slacks joggers sweatpants culottes kilt miniskirt"
    " underpants capris",
    DRESS: "dress gown sundress jumpsuit overalls dungarees romper onesie saree sari qipao cheongsam abaya bodysuit leotard"
    " swimsuit nightgown",
    BAG: "bag handbag backpack purse tote clutch satchel briefcase suitcase luggage rucksack knapsack pouch wallet duffel"
    " shopper crossbody",
    HAT: "hat cap beanie beret helmet bonnet fedora sombrero turban headscarf crown tiara visor hood headband headdress bandana",
    SHOES: "shoe boot sneaker sandal heel slipper trainer loafer pump flip-flop footwear clog moccasin cleat stiletto",
    ANIMAL: "dog cat puppy kitten horse cow sheep goat pig bird parrot owl eagle duck goose swan chicken rooster hen rabbit"
    " bunny hamster mouse rat squirrel fox wolf bear panda lion tiger leopard cheetah elephant giraffe zebra monkey ape gorilla"
    " chimpanzee deer moose camel llama donkey pony fish goldfish shark whale dolphin turtle tortoise frog toad snake lizard"
    " crocodile alligator dinosaur dragon butterfly bee insect spider crab octopus penguin kangaroo koala hedgehog raccoon otter"
    " seal pet animal bull calf lamb",
    None: "background foreground sky cloud sun moon star wall floor ceiling ground street road sidewalk pavement path grass lawn"
    " field tree bush leaf forest wood mountain hill building house skyscraper city town window door room kitchen bedroom studio"
    " water sea ocean beach sand lake river wave snow rain fog smoke fire light lighting shadow reflection darkness image photo"
    " photograph picture painting illustration drawing artwork scene view camera lens frame shot angle side front back left right"
    " middle center centre top-left corner edge distance hair hairstyle ponytail braid beard moustache mustache hand arm leg foot"
    " feet finger eye eyebrow ear nose mouth lip tooth teeth smile expression skin neck shoulder chest waist hip knee body pose"
    " posture gaze makeup tattoo it he she they him her them his hers their who which that this these those something one ones"
    " everyone someone people crowd group couple family team pair audience day night time evening morning afternoon sunset"
    " sunrise weather air atmosphere mood style color colour tone pattern design texture text letter word logo sign position"
    " bottom nature landscape environment setting area place space park garden stage horizon surface outfit clothing clothes"
    " garment attire",
}  # fmt: skip
_CATEGORY = {word: category for category, words in _WORDS.items() for word in words.split()}
# Nouns of two words whose last word alone says something else.
_COMPOUNDS: dict[str, str | None] = {
    "tank top": UPPER,
    "crop top": UPPER,
    "halter top": UPPER,
    "swim trunks": LOWER,
    "swimming trunks": LOWER,
    "high heels": SHOES,
    "high heel": SHOES,
    "flip flops": SHOES,
    "rubber boots": SHOES,
    "teddy bear": OTHER,
    "toy car": OTHER,
    "hot dog": OTHER,
    "fire fighter": PERSON,
    "police officer": PERSON,
    "tote bag": BAG,
    "hair band": HAT,
    "left side": None,
    "right side": None,
}
_MEASURE = re.compile(r"^(?:(?:a|an|the|his|her|their|one|two)\s+)?(?:pair|piece|set|type|kind)s?\s+of\s+")
# What follows the noun: "a man | in a red coat", "the dog | that sleeps".
_AFTER = re.compile(
    r"[,.;:()]|\s(?:in|with|of|on|at|from|by|to|for|and|or|that|who|whose|which|while|near|behind|beside|against|under|over|above"
    r"|below|inside|between|next|is|are|was|has|wearing|dressed|holding|carrying|standing|sitting|walking|running|riding|looking"
    r"|facing|lying|dancing|jumping|playing|smiling|posing|made|worn|covered|hanging|featuring|resembling|like)(?=\s|$)"
)


def noun_of(phrase: str) -> tuple[str, str]:
    """What a phrase is about, one or two words, and what follows it: "two pairs of red shoes on ice" -> ("red shoes", "on ice")."""
    text = " ".join(phrase.lower().replace("’", "'").split())
    text = _MEASURE.sub("", text)
    cut = _AFTER.search(text)
    head, rest = (text[: cut.start()], text[cut.start() :]) if cut else (text, "")
    return " ".join(head.split()[-2:]), rest.strip()


def category_of(phrase: str) -> str | None:
    """The category of what a phrase is about; None for what cannot be a subject.

    A thing whose name is unknown is "other".
    """
    noun, rest = noun_of(phrase)
    if not noun:
        return None
    if noun in _COMPOUNDS:
        return _COMPOUNDS[noun]
    word = noun.split()[-1].strip("'\"-")
    if not any(map(str.isalpha, word)):
        return None
    for form in _singulars(word):
        if form in _CATEGORY:
            category = _CATEGORY[form]
            # "a bag of oranges", "the top of the hill": the container, not the garment
            return OTHER if rest.startswith("of") and category in (BAG, UPPER, HAT) else category
    return OTHER


def is_several(phrase: str) -> bool:
    """Whether a phrase speaks of several people or animals: "two women"."""
    words = noun_of(phrase)[0].split()
    return (
        bool(words)
        and words[-1] not in _CATEGORY
        and category_of(phrase) in (PERSON, ANIMAL)
        and words[-1][-2:] != "'s"
    )


def _singulars(word: str) -> list[str]:
    """The word itself, then what it may be the plural or the possessor of."""
    forms = [word, word.removesuffix("'s")]
    irregular = {
        "men": "man",
        "women": "woman",
        "children": "child",
        "wolves": "wolf",
        "leaves": "leaf",
        "mice": "mouse",
    }
    forms.append(irregular.get(word, word))
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s"):
        forms.append(word[:-1])
    return forms
