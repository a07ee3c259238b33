"""Small talk of a user and an assistant, and facts that a user states: about themselves, or in passing about
others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rmat.data.documents import Turn
from rmat.tasks.words import ADJECTIVES, ANIMALS, CITIES, COLORS, DISHES, NAMES, NOUNS

Exchange = tuple[Turn, ...]
"""A turn, or one of the user and the assistant's reply: nothing is put between the two."""

TALK = "talk"
"""The filler that is made here."""

ABOUT_OTHERS = 0.35
"""Share of the exchanges in which the user tells of other people what `KINDS` tell of the user."""

OTHERS = (
    "neighbor",
    "cousin",
    "uncle",
    "aunt",
    "friend",
    "colleague",
    "teacher",
    "dentist",
    "landlord",
    "grandmother",
)

ACKNOWLEDGED = (
    "Noted.",
    "Good to know.",
    "Thank you for telling me.",
    "I will keep that in mind.",
    "All right, I have that.",
    "Understood.",
)
"""What the assistant says to a fact, about whom it may be."""

_Of = TypeVar("_Of")


def pick(random: np.random.Generator, items: tuple[_Of, ...]) -> _Of:
    """One of the items, all equally likely."""
    return items[int(random.integers(len(items)))]


def _word(words: tuple[str, ...]) -> Callable[[np.random.Generator], str]:
    return lambda random: pick(random, words)


def _number(random: np.random.Generator) -> str:
    """A number of 2 to 5 digits, every count of digits equally likely."""
    digits = int(random.integers(2, 6))
    return str(random.integers(10 ** (digits - 1), 10**digits))


def _two_words(random: np.random.Generator) -> str:
    return f"{pick(random, ADJECTIVES)} {pick(random, NOUNS)}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fact. `{}` stands for the value, `{who}` for a person."""

    name: str
    statements: tuple[str, ...]
    """What the user may say; the words before the value occur nowhere in filler."""
    questions: tuple[str, ...]
    """What the user may ask."""
    answer: str
    """What the assistant answers."""
    others: tuple[str, ...]
    """The same said of another person."""
    draw: Callable[[np.random.Generator], str]
    """A value."""


def _thing(
    name: str, thing: str, draw: Callable[[np.random.Generator], str], *statements: str, be: str = "is"
) -> Kind:
    """A fact of the form "my thing is value"."""
    return Kind(
        name=name,
        statements=(f"My {thing} {be} {{}}.", f"By the way, my {thing} {be} {{}}.", *statements),
        questions=(f"What {be} my {thing}?", f"Do you remember my {thing}?", f"Please tell me my {thing}."),
        answer=f"Your {thing} {be} {{}}.",
        others=(f"My {{who}}'s {thing} {be} {{}}.", f"The {thing} of my {{who}} {be} {{}}."),
        draw=draw,
    )


def _named(name: str) -> Kind:
    """A fact of the form "my dog is called Rex"."""
    return Kind(
        name=name,
        statements=(
            f"My {name} is called {{}}.",
            f"The name of my {name} is {{}}.",
            f"I have a {name} called {{}}.",
        ),
        questions=(
            f"What is my {name} called?",
            f"What is the name of my {name}?",
            f"Do you remember what my {name} is called?",
        ),
        answer=f"Your {name} is called {{}}.",
        others=(f"My {{who}}'s {name} is called {{}}.", f"My {{who}} has a {name} called {{}}."),
        draw=_word(NAMES),
    )


def _place(name: str, me: str, other: str, asked: str) -> Kind:
    """A fact of the form "I live in Lisbon"."""
    return Kind(
        name=name,
        statements=(f"I {me} {{}}.", f"You should know that I {me} {{}}.", f"As it happens, I {me} {{}}."),
        questions=(f"Where {asked}?", f"Do you remember where {_turned(asked)}?", f"In which city {asked}?"),
        answer=f"You {me.replace('was', 'were')} {{}}.",
        others=(f"My {{who}} {other} {{}}.", f"You should know that my {{who}} {other} {{}}."),
        draw=_word(CITIES),
    )


def _turned(asked: str) -> str:
    """A question's words in the order of a clause: "do I live" becomes "I live", "was I born" "I was
    born"."""
    verb, _, rest = asked.partition(" I ")
    return f"I {rest}" if verb == "do" else f"I {verb} {rest}"


KINDS = (
    *map(_named, ("dog", "cat", "sister", "brother", "boss", "boat")),
    _place("home", "live in", "lives in", "do I live"),
    _place("birthplace", "was born in", "was born in", "was I born"),
    _place("work", "work in", "works in", "do I work"),
    _thing("locker", "locker number", _number),
    _thing("room", "room number", _number),
    _thing("gate", "gate code", _number, "The code of my gate is {}."),
    _thing("car", "car's color", _word(COLORS), "The color of my car is {}."),
    _thing("animal", "favorite animal", _word(ANIMALS), "The animal I like best is the {}.", be="is the"),
    _thing("food", "favorite food", _word(DISHES), "What I like to eat most is {}."),
    _thing("password", "password", _two_words, "The password I use is {}."),
)
"""What a user may state."""

CORRECTIONS = (
    "I changed my mind: ",
    "That is no longer right: ",
    "I have to correct myself: ",
    "An update: ",
)
"""What stands before a statement that takes the place of an earlier one."""

_SMALL_TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("How are you today?", ("I am fine, thank you.", "Very well. How can I help?")),
    ("I saw a {adjective} {noun} on the way here.", ("That must have been a sight.", "Where was it?")),
    ("The weather in {city} is {adjective} this week.", ("I hope it stays so.", "Then take a coat.")),
    ("My {noun} is broken again.", ("Have you tried to mend it?", "A new {noun} may be cheaper.")),
    (
        "Can you tell me something about the {animal}?",
        ("It is a {adjective} animal.", "It sleeps most of the day."),
    ),
    ("I had {dish} for lunch.", ("I hope it was good.", "With {dish} on the side?")),
    ("What rhymes with {noun}?", ("I would have to think about it.", "Nothing I know.")),
    ("I will take the train to {city} on {day}.", ("Have a good journey.", "It leaves at {number}.")),
    ("{name} told me a {adjective} story.", ("What was it about?", "It was about a {noun}.")),
    ("How far is it from {city} to {city}?", ("About {number} miles.", "That depends on the road.")),
    ("I painted the {noun} {color}.", ("A good choice.", "I would have taken {color}.")),
    ("Remind me to buy {number} {noun}s.", ("I will.", "Is {number} not enough?")),
    ("What should I cook on {day}?", ("How about {dish}?", "You could try {dish} with {dish}.")),
    ("I am reading a book about a {adjective} {animal}.", ("Do you like it?", "How does it end?")),
    ("It is rather late.", ("Shall we go on tomorrow?", "Time flies.")),
    ("Tell me a joke.", ("A {animal} walks into a {noun}.", "I know none about the {noun}.")),
    ("I met {name} and {name} in {city}.", ("How are they?", "I hope you had a good time.")),
    ("Is {number} more than {number}?", ("That is easy to find out.", "Let me think.")),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SLOTS: dict[str, Callable[[np.random.Generator], str]] = {
    "adjective": _word(ADJECTIVES),
    "noun": _word(NOUNS),
    "city": _word(CITIES),
    "animal": _word(ANIMALS),
    "dish": _word(DISHES),
    "name": _word(NAMES),
    "color": _word(COLORS),
    "day": _word(_DAYS),
    "number": _number,
}


class Talk:
    """Exchanges of a user and an assistant without end; a share `ABOUT_OTHERS` is like a fact, but of other
    people."""

    def exchanges(self, random: np.random.Generator) -> Iterator[Exchange]:
        """Exchanges without end. The same numbers make the same ones."""
        while True:
            if random.random() < ABOUT_OTHERS:
                kind = pick(random, KINDS)
                said = pick(random, kind.others).format(kind.draw(random), who=pick(random, OTHERS))
                yield ("user", said), ("assistant", pick(random, ACKNOWLEDGED))
            else:
                said, replies = pick(random, _SMALL_TALK)
                yield ("user", _filled(said, random)), ("assistant", _filled(pick(random, replies), random))


def _filled(text: str, random: np.random.Generator) -> str:
    """The text with a word in every slot, each drawn anew."""
    parts = text.split("{")
    return parts[0] + "".join(
        _SLOTS[slot](random) + rest for slot, _, rest in (part.partition("}") for part in parts[1:])
    )
