"""The English words that name people, and the company in which they name something else.

Captions are short and plain, so lists beat a parser here: they can be read, and a wrong entry is one line to mend.
"""

import re

# What a captioner calls one person.
_SINGULAR = (
    "man woman boy girl person lady guy gentleman child kid baby toddler teenager teen adult infant bride groom "
    "businessman businesswoman policeman policewoman fireman firefighter fisherman cowboy cowgirl soldier actor "
    "actress model male female player singer dancer husband wife mother father mom dad son daughter brother sister "
    "grandmother grandfather grandma grandpa friend sibling twin parent officer chef cook nurse doctor student "
    "teacher waiter waitress worker athlete musician guitarist surfer skier snowboarder skateboarder skater cyclist "
    "biker rider swimmer runner hiker golfer batter pitcher boxer wrestler performer clown priest monk nun king queen "
    "prince princess photographer reporter speaker politician president celebrity human individual dude "
    "sailor pilot farmer gardener salesman saleswoman craftsman cameraman spokesman spokeswoman sportsman workman "
    "tourist spectator passenger"
).split()
_IRREGULAR = {"child": "children", "person": "people", "wife": "wives", "lady": "ladies", "baby": "babies"}


def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("man", "woman")) and word != "human":
        return f"{word[:-2]}en"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "ch", "sh")) else f"{word}s"


SINGULAR = frozenset(_SINGULAR)
PLURAL = {_plural(word): word for word in _SINGULAR} | {"persons": "person", "folks": "person"}
# Words for several people that have no singular of their own: what one of them is called, and how many they are.
COLLECTIVE: dict[str, int | None] = {"couple": 2, "duo": 2, "trio": 3, "family": None, "group": None, "crowd": None}
# Of these it is the words behind them that tell who they are: "two people, a man and a woman".
GENERIC = frozenset({"person", "friend", "individual", "human", "adult", "sibling", "twin", "parent", "kid", "child"})

NUMBERS = {
    word: number
    for number, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), start=1)
}
GROUPS = {"group": None, "couple": 2, "pair": 2, "trio": 3, "duo": 2, "quartet": 4} | dict.fromkeys(
    "bunch crowd team row line band circle crew party gathering number class".split()
)
SOME = frozenset("several some many few various multiple numerous".split())
DETERMINERS = frozenset("the these those his her their its my our your".split())
ARTICLES = frozenset({"a", "an"})
# Between a number and its noun stands nothing but what describes it; these words end such a phrase.
NOT_ADJECTIVES = frozenset(
    "a an the of and or with in on at by to from for is are was were be as while who that which next near beside "
    "behind "
    "front holding wearing standing sitting riding playing looking posing watching walking talking eating taking "
    "photo picture image no without not".split()
)
# In front of a plural without any number: "young men" is written out as "a young man and a young man".
ADJECTIVES = frozenset(
    "young old older younger elderly smiling happy beautiful pretty handsome tall short little small big large fat "
    "thin adult grown middle-aged teenage other different white black asian african american european chinese indian "
    "japanese male female well-dressed blond blonde bearded bald muscular married pregnant naked shirtless barefoot "
    "attractive famous rich poor retired".split()
)

# A person's word before one of these describes a thing or an animal: "a model train", "a baby elephant".
_ANIMALS = (
    "elephant giraffe zebra bear lion tiger cat kitten dog puppy bird chick duck duckling goose goat sheep lamb cow "
    "calf "
    "horse foal pony pig piglet deer fawn rabbit bunny monkey gorilla panda koala kangaroo penguin seal whale dolphin "
    "turtle fox wolf owl otter hippo rhino llama alpaca squirrel raccoon hedgehog swan ostrich camel animal dinosaur"
).split()
_FOLLOWERS = {
    "model": "train car airplane plane ship boat house aircraft helicopter railroad railway rocket kit village city of "
    "engine truck bus tram ford t",
    "baby": "carriage stroller seat shower blue grand clothes food bottle crib cot doll powder monitor shoes buggy "
    "carrots carrot corn pram toys",
    "child": "seat seats care safety lock proof",
    "kid": "menu meal rock",
    "kids": "menu meal room toys table pool bike",
    "man": "cave hole bun purse bag kind power hunt cub",
    "lady": "bug bugs bird beetle finger",
    "king": "size bed penguin crab cobra",
    "queen": "size bed bee anne",
    "cook": "book books ware top",
    "batter": "bowl",
    "player": "piano",
    "people": "mover carrier",
    "boy": "band",
    "girl": "band",
    "male": " ".join(_ANIMALS),
    "female": " ".join(_ANIMALS),
    "human": "hand hands body skull skeleton head heart foot feet eye eyes face",
    "adult": " ".join(_ANIMALS),
    "mother": " ".join(_ANIMALS) + " nature board ship",
    "fisherman": "sweater hat bend",
    "pilot": "whale",
    "president": "day",
    "clown": "fish",
}
_FOLLOWERS["baby"] += " " + " ".join(_ANIMALS)
FOLLOWERS = {word: frozenset(names.split()) for word, names in _FOLLOWERS.items()}
_PRECEDERS = {
    "player": "record dvd cd cassette mp3 media music video tape vinyl ray disc audio",
    "runner": "table carpet",
    "pitcher": "water glass milk beer",
    "batter": "cake pancake",
    "worker": "metal wood",
    "speaker": "stereo bluetooth loud",
    "cook": "slow",
}
# Made of something, whoever it looks like.
MADE_OF = frozenset(
    "toy toys plastic lego wooden stone bronze wax cardboard stuffed gingerbread stick straw tin inflatable ceramic "
    "marble porcelain clay origami".split()
)
PRECEDERS = {word: frozenset(names.split()) for word, names in _PRECEDERS.items()}
# "a statue of a man" is no man; a photo or a painting is what the caption describes when it begins with it.
FIGURES = frozenset("statue sculpture bust figurine figure mannequin doll cutout dummy puppet".split())
MEDIA = frozenset(
    "photo photograph picture image painting portrait drawing sketch illustration poster mural billboard shot selfie "
    "view sign silhouette cartoon".split()
)
NEGATIONS = frozenset({"no", "without", "any", "zero"})

# A word with its apostrophes and hyphens, so that "man-made" and "snow-man" are words of their own.
TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*")
