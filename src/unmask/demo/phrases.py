"""Surface wordings of the word problems, as ``str.format`` templates.

Fields: N hero, F friend, S subject of a later sentence (He, She or the name), s he/she,
him him/her, o/os the thing, n/a/b numbers, cs containers, ks packs, x/y colours, fs the
people who share, place a place, v a verb of movement, bus a vehicle.
"""

from __future__ import annotations

START = (
    "{N} has {n} {os}.",
    "{N} starts with {n} {os}.",
    "{N} owns {n} {os}.",
    "At first {N} has {n} {os}.",
    "There are {n} {os} on {N}'s table.",
)
# The first number of the text is always the left operand.
CONTAINERS = (
    "{N} has {a} {cs} with {b} {os} each.",
    "{N} has {a} {cs} of {b} {os}.",
    "{N} has {a} {cs} with {b} {os} in each.",
    "{N} has {a} {cs}. Each holds {b} {os}.",
    "{N} puts {a} {os} in each of {b} {cs}.",
    "There are {a} {os} in each of {N}'s {b} {cs}.",
    "{N} fills {a} {cs} with {b} {os} each.",
)
KINDS = (
    "{N} has {a} {x} {os} and {b} {y} {os}.",
    "{N} owns {a} {x} {os} and {b} {y} ones.",
    "{N} has {a} {x} and {b} {y} {os}.",
    "There are {a} {x} {os} and {b} {y} {os} on {N}'s table.",
)
GAIN = (
    "{S} buys {n} more {os}.",
    "{S} buys {n} {os}.",
    "{S} finds {n} {os} at the {place}.",
    "{S} finds {n} more {os}.",
    "{S} gets {n} {os} from {F}.",
    "{S} gets {n} more {os}.",
    "{F} gives {him} {n} {os}.",
    "Then {s} wins {n} {os}.",
    "Then {s} buys {n} more {os}.",
)
GAIN_PLANT = ("{S} picks {n} more {os}.", "{S} picks {n} {os} in the garden.")
LOSS = (
    "{S} gives {n} {os} to {F}.",
    "{S} gives {F} {n} {os}.",
    "{S} gives away {n} {os}.",
    "{S} loses {n} {os}.",
    "{S} sells {n} {os}.",
    "{S} sells {n} {os} at the {place}.",
    "Then {s} loses {n} of them.",
    "Then {s} gives {n} of them to {F}.",
)
LOSS_FOOD = ("{S} eats {n} {os}.", "{S} eats {n} of them.", "{F} eats {n} {os}.")
LOSS_FRAGILE = ("{S} breaks {n} {os}.", "Then {n} {os} break.", "{F} breaks {n} of them.")
PACKS = (
    "{S} buys {a} {ks} with {b} {os} each.",
    "{S} buys {a} {ks} of {b} {os}.",
    "Then {s} gets {a} {ks} of {b} {os}.",
    "{F} gives {him} {a} {ks} with {b} {os} each.",
)
DOUBLE = (
    "The number of {os} doubles.",
    "Then the number of {os} doubles.",
    "{S} doubles the number of {os}.",
    "A month later the number of {os} doubles.",
)
TRIPLE = (
    "The number of {os} triples.",
    "Then the number of {os} triples.",
    "{S} triples the number of {os}.",
    "A month later the number of {os} triples.",
)
HALF = (
    "{S} gives half of the {os} away.",
    "{S} gives half of them to {F}.",
    "{S} sells half of the {os}.",
    "Then {s} loses half of them.",
)
SHARE = (
    "{S} shares out all {os} equally to {k} {fs}.",
    "{S} divides the {os} equally among {k} {fs}.",
    "{S} gives all {os} to {k} {fs} in equal parts.",
    "Then {s} shares them equally among {k} {fs}.",
    "{S} shares the {os} equally among {k} {fs}.",
)
ASK = (
    "How many {os} does {s} have?",
    "How many {os} does {N} have?",
    "How many {os} does {s} have now?",
    "How many {os} does {N} have now?",
)
ASK_ALL = (
    "How many {os} does {s} have in total?",
    "How many {os} does {N} have in all?",
)
ASK_LEFT = (
    "How many {os} are left?",
    "How many {os} does {s} have left?",
    "How many {os} does {N} have left?",
)
ASK_SHARE = (
    "How many {os} does each of them get?",
    "How many {os} does each get?",
    "How many {os} go to each of the {fs}?",
)

MORE = (
    "{F} has {n} more {os} than {N}.",
    "{F} has {n} {os} more than {N}.",
    "{F} owns {n} more {os} than {N}.",
    "{F} has {n} more than {N}.",
)
FEWER = (
    "{F} has {n} fewer {os} than {N}.",
    "{F} has {n} {os} fewer than {N}.",
    "{F} owns {n} fewer {os} than {N}.",
    "{F} has {n} fewer than {N}.",
)
TWICE = (
    "{F} has twice as many {os} as {N}.",
    "{F} has twice as many as {N}.",
    "{F} owns twice as many {os} as {N}.",
    "{F} has double the {os} of {N}.",
)
THRICE = (
    "{F} has three times as many {os} as {N}.",
    "{F} has three times as many as {N}.",
    "{F} owns three times as many {os} as {N}.",
    "{F} has triple the {os} of {N}.",
)
HALF_AS = (
    "{F} has half as many {os} as {N}.",
    "{F} has half as many as {N}.",
    "{F} owns half as many {os} as {N}.",
    "{F} has half the {os} of {N}.",
)
ASK_FRIEND = (
    "How many {os} does {F} have?",
    "How many {os} does {F} have now?",
    "How many {os} does {F} own?",
)
ASK_TOGETHER = (
    "How many {os} do they have together?",
    "How many {os} do they have in total?",
    "How many {os} do {N} and {F} have together?",
    "How many {os} do the two have in all?",
)

PRICE = (
    "One {o} costs {a} dollars. {N} buys {b} {os}.",
    "The price of one {o} is {a} dollars. {N} buys {b} {os}.",
    "{N} buys {a} {os} for {b} dollars each.",
    "{N} buys {a} {os}. Each costs {b} dollars.",
    "{N} gets {a} {os} at {b} dollars each.",
)
ALSO = (
    "{S} also buys a toy for {n} dollars.",
    "{S} also pays {n} dollars for lunch.",
    "{S} also buys a drink for {n} dollars.",
    "{S} also pays {n} dollars for a bag.",
)
PAY = (
    "{S} pays with {n} dollars.",
    "{S} gives the shop {n} dollars.",
    "{S} hands over {n} dollars.",
    "Then {s} pays with {n} dollars.",
)
ASK_COST = (
    "How much does {s} pay?",
    "How much does {N} pay?",
    "How many dollars does {s} pay?",
    "How much is it in total?",
)
ASK_CHANGE = (
    "How much change does {s} get?",
    "How much change does {N} get?",
    "How many dollars does {s} get back?",
    "How much does {s} get back?",
)

MONEY = (
    "{N} has {n} dollars.",
    "{N} has saved {n} dollars.",
    "{N} starts with {n} dollars.",
    "{N} takes {n} dollars to the shop.",
)
SPEND = (
    "{S} spends {n} dollars.",
    "{S} pays {n} dollars for a {o}.",
    "{S} spends {n} dollars on {os}.",
    "{S} gives {n} dollars to {F}.",
)
SPEND_EACH = (
    "{S} buys {a} {os} for {b} dollars each.",
    "{S} pays for {a} {os} at {b} dollars each.",
    "Then {s} buys {a} {os} for {b} dollars each.",
    "{S} buys {a} {os}. Each costs {b} dollars.",
)
EARN = (
    "{S} earns {n} dollars.",
    "{S} gets {n} dollars from {F}.",
    "{F} gives {him} {n} dollars.",
    "Then {s} earns {n} dollars more.",
)
EARN_EACH = (
    "{S} works {a} hours for {b} dollars each.",
    "{S} earns {a} dollars a day for {b} days.",
    "{S} gets {a} dollars every week for {b} weeks.",
    "Then {s} earns {a} dollars a day for {b} days.",
)
ASK_MONEY = (
    "How much money does {s} have?",
    "How much money does {N} have now?",
    "How many dollars does {s} have now?",
)
ASK_MONEY_LEFT = (
    "How much money is left?",
    "How much money does {s} have left?",
    "How many dollars does {N} have left?",
)

DAYS = (
    "{N} {v} {a} km every day for {b} days.",
    "{N} {v} {a} km a day for {b} days.",
    "For {a} days {N} {v} {b} km every day.",
    "Each day {N} {v} {a} km. {S} does this for {b} days.",
)
FURTHER = (
    "Then {s} {v} {n} km more.",
    "{S} {v} another {n} km.",
    "Then {s} {v} {n} more km to the {place}.",
    "After that {s} {v} {n} km more.",
)
FRIEND_KM_MORE = (
    "{F} {v} {n} km more than {N}.",
    "{F} {v} {n} more km than {N}.",
)
FRIEND_KM_LESS = (
    "{F} {v} {n} km less than {N}.",
    "{F} {v} {n} fewer km than {N}.",
)
ASK_KM = (
    "How many km is that in total?",
    "How many km does {s} go?",
    "How many km does {N} go in all?",
    "How far does {s} go in total?",
)
ASK_KM_FRIEND = (
    "How many km does {F} go?",
    "How far does {F} go?",
    "How many km is that for {F}?",
)
MOVES = ("walks", "runs", "rides", "drives", "swims")

ABOARD = (
    "There are {n} people on a {bus}.",
    "A {bus} has {n} people on it.",
    "A {bus} starts with {n} people.",
    "{n} people sit on a {bus}.",
)
GET_ON = (
    "{n} people get on.",
    "Then {n} more people get on.",
    "At the next stop {n} people get on.",
    "{n} more get on at the {place}.",
)
GET_OFF = (
    "{n} people get off.",
    "Then {n} people get off.",
    "At the next stop {n} people get off.",
    "{n} get off at the {place}.",
)
HALF_OFF = (
    "Half of the people get off.",
    "Then half of them get off.",
    "At the next stop half of the people get off.",
    "Half of them get off at the {place}.",
)
ASK_ABOARD = (
    "How many people are on the {bus} now?",
    "How many people are on the {bus}?",
    "How many people are there now?",
    "How many people does the {bus} have now?",
)
VEHICLES = ("bus", "train", "boat", "tram")

BOOK = (
    "A book has {n} pages.",
    "{N} has a book with {n} pages.",
    "{N}'s new book has {n} pages.",
    "{N} starts a book of {n} pages.",
)
READ = (
    "{N} reads {n} pages.",
    "{N} reads {n} pages of it.",
    "On Monday {N} reads {n} pages.",
    "In the morning {N} reads {n} pages.",
)
READ_DAYS = (
    "{N} reads {a} pages every day for {b} days.",
    "{N} reads {a} pages a day for {b} days.",
    "For {a} days {N} reads {b} pages every day.",
    "Each day {N} reads {a} pages for {b} days.",
)
READ_MORE = (
    "Then {s} reads {n} more pages.",
    "{S} reads {n} more pages.",
    "After that {s} reads {n} pages.",
    "In the evening {s} reads {n} more pages.",
)
ASK_PAGES = (
    "How many pages are left?",
    "How many pages are left to read?",
    "How many pages does {s} still have to read?",
    "How many pages must {s} still read?",
)
