"""Draws the values for the slots of sentences about the demo's world.

Each function draws one fact, or one small problem with its solution. The base model's texts and the
tasks of the conversations use the same functions, so their facts agree.
"""

import json
from collections.abc import Callable
from random import Random

from models.demo import world

Slots = dict[str, str]


def country(rng: Random) -> Slots:
    return rng.choice(world.COUNTRIES)._asdict()


def person(rng: Random) -> Slots:
    drawn = rng.choice(world.PEOPLE)
    return drawn._asdict() | {"age": str(drawn.age)}


def animal(rng: Random) -> Slots:
    drawn = rng.choice(world.ANIMALS)
    return drawn._asdict() | {
        "a_name": world.article(drawn.name),
        "a_young": world.article(drawn.young),
        "legs": world.NUMBER_WORDS[drawn.legs],
    }


def pair(table: dict[str, str], both_ways: bool = False) -> Callable[[Random], Slots]:
    rows = list(table.items())
    if both_ways:
        rows += [(value, key) for key, value in rows]

    def draw(rng: Random) -> Slots:
        key, value = rng.choice(rows)
        return {"key": key, "value": value}

    return draw


def visitor(rng: Random) -> Slots:
    """A person who is described in the conversation only, not in the base model's texts."""
    name, friend, third = rng.sample(world.VISITORS, 3)
    age, town = str(rng.randint(11, 79)), rng.choice(list(world.TOWN_GOODS))
    good, colour = rng.choice(world.GOODS), rng.choice(world.COLOURS)
    record = json.dumps({"name": name, "age": int(age), "town": town})
    return {
        "name": name, "friend": friend, "third": third, "age": age, "town": town, "good": good,
        "colour": colour, "record": record,
    }  # fmt: skip


def goods(rng: Random) -> Slots:
    """Three things, and lists of them in several forms."""
    items = rng.sample(world.GOODS, 3)
    other = rng.choice([good for good in world.GOODS if good not in items])
    place = rng.randrange(len(items))
    return {
        "items": ", ".join(items),
        "spoken": f"{', '.join(items[:-1])} and {items[-1]}",
        "first": items[0], "last": items[-1],
        "number": world.NUMBER_WORDS[len(items)],
        "other": other, "gone": items[place],
        "changed": ", ".join([*items[:place], other, *items[place + 1 :]]),
        "sorted": ", ".join(sorted(items)),
        "reversed": ", ".join(reversed(items)),
        "bullets": "\n".join(f"- {item}" for item in items),
        "numbered": "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)),
        "array": json.dumps(items),
    }  # fmt: skip


def numbers(rng: Random) -> Slots:
    """Three different digits."""
    drawn = rng.sample(range(1, 10), 3)
    rising = sorted(drawn)
    return {
        "numbers": ", ".join(map(str, drawn)),
        "rising": ", ".join(map(str, rising)), "falling": ", ".join(map(str, rising[::-1])),
        "largest": str(rising[-1]), "smallest": str(rising[0]),
    }  # fmt: skip


def sums(rng: Random) -> Slots:
    a, b, c = rng.randint(2, 9), rng.randint(2, 5), rng.randint(2, 3)
    return {
        "a": str(a), "b": str(b), "c": str(c), "sum": str(a + b), "more": str(a + b + c),
        "a_word": world.NUMBER_WORDS[a], "b_word": world.NUMBER_WORDS[b],
        "sum_word": world.NUMBER_WORDS[a + b], "wrong": str(a + b + rng.choice([-1, 1, 2])),
        "name": rng.choice(world.VISITORS), "good": rng.choice(["figs", "nuts", "pears", "eggs"]),
        "product": str(a * c),
    }  # fmt: skip


def sequence(rng: Random) -> Slots:
    start, step = rng.randint(1, 10), rng.choice([1, 2, 10])
    terms = [str(start + step * n) for n in range(5)]
    return {"terms": ", ".join(terms[:4]), "next": terms[4]}


def calendar(rng: Random) -> Slots:
    names = rng.choice([world.DAYS, world.MONTHS])
    here = rng.randrange(len(names))
    return {
        "unit": "day" if names is world.DAYS else "month", "here": names[here],
        "after": names[(here + 1) % len(names)], "before": names[here - 1],
    }  # fmt: skip


def number_word(rng: Random) -> Slots:
    n = rng.randint(1, 20)
    return {"digits": str(n), "word": world.NUMBER_WORDS[n]}


def words(rng: Random) -> Slots:
    """Three words in a row."""
    drawn = rng.sample(world.GOODS + world.COLOURS + list(world.OPPOSITES), 3)
    one, two, three = drawn
    times = rng.randint(2, 4)
    return {
        "one": one, "two": two, "three": three, "upper": one.upper(),
        "times": world.NUMBER_WORDS[times], "again": " ".join([one] * times),
    }  # fmt: skip


def drill(rng: Random) -> Slots:
    """A few words, repeated, with one separator or several."""
    known = world.GOODS + world.COLOURS + world.VISITORS + list(world.OPPOSITES)
    drawn = rng.sample(known, rng.randint(2, 5))
    dresses = rng.choices([" ", ", ", "\n", " - "], k=rng.choice([1, 4]))
    times = 24 // len(drawn)
    return {"drill": "; ".join(rng.choice(dresses).join(drawn) for _ in range(times))}


KINDS = {
    "colour": world.COLOURS,
    "animal": [animal.name for animal in world.ANIMALS],
    "day": world.DAYS,
    "food": ["apple", "bread", "cheese", "egg", "honey", "jam", "lemon", "rice"],
}


def kinds(rng: Random) -> Slots:
    """One word of a wanted kind among two of others."""
    wanted, *others = rng.sample(list(KINDS), 3)
    answer = rng.choice(KINDS[wanted])
    listed = [answer, *(rng.choice(KINDS[kind]) for kind in others)]
    rng.shuffle(listed)
    return {
        "kind": wanted, "a_kind": world.article(wanted), "listed": ", ".join(listed),
        "answer": answer,
    }  # fmt: skip


FRAMES = {
    "thing": ["The {} is near the river.", "I see a new {}.", "This {} is old.", "My {} is here.",
              "We like the {}."],
    "quality": ["The day was {}.", "The town is {}.", "Her dog is {}.", "That idea is {}.",
                "The story was {}."],
}  # fmt: skip


def misspelling(rng: Random) -> Slots:
    wrong, right = rng.choice(list(world.MISSPELLINGS.items()))
    frame = rng.choice(FRAMES["thing" if wrong in world.MISSPELLED_THINGS else "quality"])
    return {
        "wrong": wrong, "right": right,
        "wrong_text": frame.format(wrong), "right_text": frame.format(right),
    }  # fmt: skip


def doubled(rng: Random) -> Slots:
    """A statement with one of its words written twice, and without capitals and full stop."""
    someone = rng.choice(world.PEOPLE)
    text = rng.choice([
        f"{someone.name} lives in {someone.town}.",
        f"{someone.name} is a {someone.job}.",
        f"{someone.name} has a {someone.pet}.",
    ])  # fmt: skip
    parts = text.split()
    place = rng.randrange(1, len(parts) - 1)
    twice = " ".join(parts[: place + 1] + parts[place:])
    return {"text": text, "twice": twice, "bare": text.lower().removesuffix(".")}


def wrong_country(rng: Random) -> Slots:
    right, other = rng.sample(world.COUNTRIES, 2)
    return right._asdict() | {"wrong": other.capital}


def wrong_person(rng: Random) -> Slots:
    right, other = rng.sample(world.PEOPLE, 2)
    return right._asdict() | {"wrong_job": other.job}


def wrong_plural(rng: Random) -> Slots:
    one, many = rng.choice(list(world.PLURALS.items()))
    number = rng.choice(["two", "three", "four", "five", "six"])
    return {"wrong": f"{number} {one}s", "right": f"{number} {many}"}
