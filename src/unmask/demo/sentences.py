"""Simple English sentences of a small grammar, with exact membership.

A pattern is a text with positions; each position stands for a tuple of phrases that make sense in
that place. A pattern with ``{person}`` is used once with a woman and once with a man.
"""

from __future__ import annotations

import functools
import random
import re

from unmask.demo.example import Example


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


POSITIONS: dict[str, tuple[str, ...]] = {
    "girl": _split("Anna, Mia, Emma, Lily, Sara, Nina, Julia, Lucy, Kate, Grace"),
    "boy": _split("Tom, Ben, Sam, Max, Leo, Jack, Paul, Mark, David, Peter"),
    "pet": _split("cat, dog, kitten, puppy, rabbit"),
    "animal": _split("cat, dog, horse, fox, rabbit, sheep, cow, goat"),
    "size": _split("small, big, old, young, brown, black, white"),
    "rest": _split("sat, slept, lay, rested"),
    "surface": _split("mat, bed, sofa, rug, floor, chair, grass, blanket"),
    "moved": _split("ran, walked, came"),
    "outside": _split("park, river, garden, field, forest, hill, lake"),
    "because": _split(
        "it was sunny, it was hungry, it was thirsty, it was warm outside, it heard a noise"
    ),
    "time": _split("morning, evening, afternoon, day"),
    "drinks": _split("hot tea, hot coffee, cold milk, cold water, apple juice, warm milk"),
    "room": _split("kitchen, garden, living room, office"),
    "food": _split("bread, soup, rice, fish, pasta, chicken"),
    "side": _split("salad, cheese, fruit, eggs, beans"),
    "meal": _split("breakfast, lunch, dinner"),
    "interesting": _split("good, long, short, new, funny"),
    "topic": _split("history, music, animals, the sea, the stars, trains, cooking"),
    "put": _split("put, left, found"),
    "item": _split("keys, phone, letter, money, glasses, pen, book"),
    "holder": _split("bag, box, drawer, pocket, car, desk"),
    "colour": _split("red, blue, green, yellow, black, white"),
    "garment": _split("shirt, hat, dress, coat, jacket, bag"),
    "shop": _split("store, market, mall"),
    "game": _split("football, tennis, chess, cards, music, games"),
    "when": _split("lunch, dinner, school, work"),
    "job": _split(
        "farmer fed the cows in the barn, farmer fed the sheep in the field, "
        "farmer planted corn in the field, teacher helped the students in the classroom, "
        "teacher wrote a word on the board, doctor helped the man in the hospital, "
        "doctor saw the child in the hospital, cook made soup in the kitchen, "
        "cook cut the bread in the kitchen, driver stopped the bus at the station, "
        "driver washed the bus in the street, baker sold bread in the shop, "
        "baker made a cake in the kitchen, singer sang a song on the stage"
    ),
    "coldday": _split("cold, windy, snowing"),
    "warmwear": _split("a warm coat, a warm hat, a thick jacket, thick gloves"),
    "hotday": _split("hot, sunny, very warm"),
    "coolact": _split("swam in the lake, drank cold water, ate ice cream, went to the beach"),
    "season": _split(
        "winter the snow falls on the hills, winter the lake is covered with ice, "
        "winter the nights are long and dark, spring the flowers grow in the garden, "
        "spring the birds sing in the trees, spring the grass is fresh and green, "
        "summer the sun shines all day, summer the children swim in the sea, "
        "summer the days are long and hot, autumn the leaves fall from the trees, "
        "autumn the apples are ripe, autumn the wind blows from the sea"
    ),
    "look": _split("small, big, young, lovely, happy, lazy"),
    "petname": _split("Rex, Luna, Bella, Max, Coco"),
    "vehicle": _split("bus, train, taxi, truck"),
    "speed": _split("slowly, quickly, suddenly"),
    "stop": _split("station, corner, bridge, red light"),
    "relative": _split("mother, father, sister, brother, friend, uncle"),
    "gift": _split("book, ball, watch, flower, card, cake, ticket"),
    "visit": _split("park, beach, zoo, museum, library, market, cinema"),
    "noise": _split(
        "dog was barking loudly, baby was crying, music was too loud, wind was strong, "
        "moon was very bright"
    ),
}

PATTERNS: tuple[str, ...] = (
    "The {pet} {rest} on the {surface}.",
    "The {size} {pet} {rest} on the {surface}.",
    "The {size} {animal} {moved} to the {outside} because {because}.",
    "Every {time} {person} drinks {drinks} in the {room}.",
    "{person} ate {food} and {side} for {meal}.",
    "{person} read a {interesting} book about {topic} in the {room}.",
    "{person} {put} the {item} in the {holder}.",
    "{person} bought a {colour} {garment} at the {shop}.",
    "{girl} and {boy} played {game} together after {when}.",
    "The {job}.",
    "It was {coldday}, so {person} wore {warmwear}.",
    "It was {hotday}, so {person} {coolact}.",
    "In the {season}.",
    "{person} has a {look} {pet} named {petname}.",
    "The {vehicle} stopped {speed} at the {stop}.",
    "{person} gave {his} {relative} a {gift} for {his} birthday.",
    "After {when} {person} went to the {visit} with {his} {relative}.",
    "{person} could not sleep because the {noise}.",
)


@functools.cache
def _patterns() -> tuple[str, ...]:
    """Return the patterns with people and their pronouns filled in."""
    patterns: list[str] = []
    for pattern in PATTERNS:
        if "{person}" in pattern:
            patterns.append(pattern.replace("{person}", "{girl}").replace("{his}", "her"))
            patterns.append(pattern.replace("{person}", "{boy}").replace("{his}", "his"))
        else:
            patterns.append(pattern)
    return tuple(patterns)


@functools.cache
def _grammar() -> re.Pattern[str]:
    """Return the expression that matches exactly the sentences of the grammar."""

    def position(name: str) -> str:
        return "(?:" + "|".join(map(re.escape, POSITIONS[name])) + ")"

    parts = []
    for pattern in _patterns():
        # Splitting at the positions' names leaves fixed text and names in turn.
        pieces = re.split(r"\{(\w+)\}", pattern)
        parts.append("".join(position(p) if i % 2 else re.escape(p) for i, p in enumerate(pieces)))
    return re.compile("|".join(f"(?:{part})" for part in parts))


def is_sentence(text: str) -> bool:
    """Return whether the grammar can produce exactly this sentence."""
    return _grammar().fullmatch(text) is not None


def split_sentences(text: str) -> list[str]:
    """Split a text into its sentences."""
    return re.split(r"(?<=\.) ", text)


def _one(rng: random.Random) -> str:
    pattern = rng.choice(PATTERNS)
    if "{person}" in pattern:
        name, his = ("girl", "her") if rng.random() < 0.5 else ("boy", "his")
        pattern = pattern.replace("{person}", "{" + name + "}").replace("{his}", his)
    return re.sub(r"\{(\w+)\}", lambda m: rng.choice(POSITIONS[m[1]]), pattern)


def sentence(rng: random.Random, level: int = 4) -> Example:
    """Draw a text of one sentence (level 1) or of one or two."""
    text = _one(rng)
    if level > 1 and rng.random() < 0.5:
        text += " " + _one(rng)
    return Example("sentence", "", text, text)


def check_sentence(output: str) -> bool:
    """Return whether every sentence of the output belongs to the grammar."""
    return all(is_sentence(part) for part in split_sentences(output.strip()))
