"""Names and things that the word problems talk about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thing:
    """A countable object; ``kind`` is food, plant, fragile or plain."""

    one: str
    many: str
    kind: str = "plain"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOYS: tuple[str, ...] = _words(
    "Tom Ben Sam Max Leo Jack Noah Adam Paul Mark John Luke Eric Carl Hugo Ivan Omar Peter "
    "David Henry Oscar Felix James Simon Daniel Victor Martin Robert George Oliver"
)
GIRLS: tuple[str, ...] = _words(
    "Anna Mia Eva Lily Emma Sara Nina Rosa Julia Clara Alice Laura Maria Sophie Helen Grace "
    "Ruby Lucy Kate Jane Ella Zoe Amy Ida Nora Vera Olga Diana Emily Hannah"
)

THINGS: tuple[Thing, ...] = (
    *(
        Thing(word, word + "s")
        for word in _words(
            "pen pencil book ball stamp card coin toy marble sticker shell button stone "
            "balloon ribbon ticket notebook kite shirt hat ring bead block robot car doll "
            "crayon key magnet poster candle"
        )
    ),
    *(
        Thing(word, word + "s", "food")
        for word in _words("cookie apple banana cake carrot egg donut pie lemon muffin")
    ),
    *(Thing(word, word + "s", "plant") for word in _words("flower rose orange pear plum tulip")),
    *(Thing(word, word + "s", "fragile") for word in _words("cup plate bowl lamp bottle")),
    Thing("candy", "candies", "food"),
    Thing("sandwich", "sandwiches", "food"),
    Thing("peach", "peaches", "plant"),
    Thing("cherry", "cherries", "plant"),
    Thing("strawberry", "strawberries", "plant"),
    Thing("glass", "glasses", "fragile"),
)

CONTAINERS: tuple[str, ...] = (
    "boxes",
    "bags",
    "baskets",
    "shelves",
    "jars",
    "drawers",
    "trays",
    "packs",
    "bins",
)
PACKS: tuple[str, ...] = ("packs", "bags", "boxes", "sets")
PLACES: tuple[str, ...] = ("park", "market", "garden", "street", "beach", "school")
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "black", "white", "big", "small")
FRIENDS: tuple[str, ...] = ("friends", "children", "cousins", "students")
