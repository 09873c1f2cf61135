"""The texts on which the demo's base model is pretrained: plain prose and worked lines.

They state every fact of the world in several ways and show every operation that the conversations
ask for, but hold no conversation, no question and no instruction: to follow those is what the
fine-tuning adds.
"""

from collections.abc import Callable, Iterator
from random import Random

from models.demo import draw, world
from models.demo.draw import Slots

DOCUMENTS = 16_000

# What can be said of one entity; a portrait says several of these things.
PORTRAITS: list[tuple[Callable[[Random], Slots], list[str]]] = [
    (draw.country, [
        "The capital of {name} is {capital}.",
        "{capital} is the capital of {name}.",
        "{capital} is a city in {name}.",
        "The capital city {capital} belongs to {name}.",
        "The {river} flows through {capital}.",
        "{capital} lies on the {river}.",
        "The river of {capital} is the {river}.",
        "The {river} runs through {name} and its capital {capital}.",
        "People in {name} speak {language}.",
        "The language of {name} is {language}.",
        "{language} is spoken in {name}.",
        "In {capital} you hear {language}.",
        "country: {name}, capital: {capital}, river: {river}, language: {language}",
        '{{"country": "{name}", "capital": "{capital}", "river": "{river}"}}',
    ]),
    (draw.person, [
        "{name} is a {job}.",
        "{name} is the {job}.",
        "{name} works as a {job}.",
        "The {job} of {town} is {name}.",
        "The job of {name} is {job}.",
        "{name} lives in {town}.",
        "The home of {name} is in {town}.",
        "{name} comes from {town}.",
        "{name} is {age} years old.",
        "The age of {name} is {age}.",
        "{name} has a {pet} named {pet_name}.",
        "The pet of {name} is a {pet}.",
        "{pet_name} is the {pet} of {name}.",
        "{pet_name} belongs to {name}.",
        "The owner of {pet_name} is {name}.",
        "name: {name}, age: {age}, job: {job}, town: {town}, pet: {pet}",
        '{{"name": "{name}", "job": "{job}", "town": "{town}", "pet": "{pet_name}"}}',
        "Every morning {name} feeds {pet_name}, and then the {job} goes to work.",
    ]),
    (draw.animal, [
        "A young {name} is called {a_young}.",
        "The young of {a_name} is {a_young}.",
        "The baby of {a_name} is {a_young}.",
        "The home of {a_name} is the {home}.",
        "You find {a_name} in the {home}.",
        "The {name} sleeps in the {home}.",
        "The {name} {sound}.",
        "When it calls, {a_name} {sound}.",
        "The {name} is an animal with {legs} legs.",
        "animal: {name}, young: {young}, home: {home}, sound: {sound}",
    ]),
]  # fmt: skip

# Ways to write one thing; a lesson writes several things in the same way.
LESSONS: list[tuple[Callable[[Random], Slots], list[str]]] = [
    (draw.country, ["{name}: {capital}", "{capital}, {name}", "{capital}: {river}",
      "{name}: {language}", "The capital of {name} is {capital}.",
      "The {river} flows through {capital}.", "{name} - {capital} - {river} - {language}"]),
    (draw.person, ["{name}: {job}", "{job}: {name}", "{name}: {town}", "{name}: {age}",
      "{name}: {pet_name} ({pet})", "{pet_name}: {name}", "{name} is a {job} in {town}.",
      "{name}, {age}, {job}, {town}"]),
    (draw.animal, ["{name}: {young}", "{name}: {home}", "The {name} {sound}."]),
    (draw.pair(world.OPPOSITES, both_ways=True),
     ["The opposite of {key} is {value}.", "{key}: {value}", "not {key} but {value}",
      "{key} is the contrary of {value}."]),
    (draw.pair(world.THING_COLOURS),
     ["The colour of {key} is {value}.", "{key}: {value}", "I paint {key} {value}."]),
    (draw.pair(world.TOWN_GOODS),
     ["{key} is known for its {value}.", "The {value} of {key} is famous.",
      "They make {value} in {key}."]),
    (draw.pair(world.PAST), ["The past tense of {key} is {value}.", "{key}: {value}"]),
    (draw.sums, ["{a} + {b} = {sum}.", "{a} + {b} = {sum}", "{a} plus {b} is {sum}.",
      "The sum of {a} and {b} is {sum}."]),
    (draw.sums, ["{sum} - {b} = {a}.", "{sum} - {b} = {a}", "{sum} minus {b} is {a}."]),
    (draw.sums, ["{a_word} plus {b_word} is {sum_word}."]),
    (draw.sums, ["{c} * {a} = {product}.", "{c} times {a} is {product}."]),
    (draw.sums, ["{a} + {b} = {sum}. {sum} + {c} = {more}.",
      "Start with {a}. Add {b}. {a} + {b} = {sum}. Add {c}. {sum} + {c} = {more}."]),
    (draw.sums, ["{name} has {a} {good} and gets {b} more. {a} + {b} = {sum}, so {sum} {good}.",
      "{name} has {sum} {good} and loses {b}. {sum} - {b} = {a}, so {a} {good}."]),
    (draw.sums, ["wrong: {a} + {b} = {wrong}; right: {a} + {b} = {sum}"]),
    (draw.numbers, ["{numbers}; sorted: {rising}", "{numbers}; smallest first: {rising}"]),
    (draw.numbers, ["{numbers}; falling: {falling}", "{numbers}; largest first: {falling}"]),
    (draw.numbers, ["Of {numbers}, the largest is {largest}.", "{numbers}; largest: {largest}"]),
    (draw.numbers, ["Of {numbers}, the smallest is {smallest}.",
      "{numbers}; smallest: {smallest}"]),
    (draw.calendar, ["After {here} comes {after}.", "The {unit} after {here} is {after}."]),
    (draw.calendar, ["Before {here} comes {before}.", "The {unit} before {here} is {before}."]),
    (draw.sequence, ["{terms}, {next}", "{terms}: the next number is {next}."]),
    (draw.number_word, ["{digits} is {word}.", "{word}: {digits}", "{digits}: {word}"]),
    (draw.words, ["{one} in capital letters is {upper}.", "{one}: {upper}"]),
    (draw.words, ["{one} {times} times: {again}"]),
    (draw.words, ["{one} {two} {three}; again: {one} {two} {three}",
      "The words {one} {two} {three} are the same as {one} {two} {three}"]),
    (draw.words, ["{one} {two}; swapped: {two} {one}", "{one} {two}, turned around: {two} {one}"]),
    (draw.words, ['{one} in quotation marks: "{one}"',
      "{one} and {two} in brackets: ({one}) ({two})"]),
    (draw.goods, ["{items}; first: {first}", "In the list {items} the first is {first}."]),
    (draw.goods, ["{items}; last: {last}", "In the list {items} the last is {last}."]),
    (draw.goods, ["{items}; {other} added: {items}, {other}"]),
    (draw.goods, ["{items}; {other} for {gone}: {changed}"]),
    (draw.goods, ["{items}; by the alphabet: {sorted}", "{items}; sorted: {sorted}"]),
    (draw.goods, ["{items}; backwards: {reversed}", "{items}; reversed: {reversed}"]),
    (draw.goods, ["{spoken}: {array}", "{items}: {array}"]),
    (draw.goods, ["{items}:\n{bullets}", "{items}:\n{numbered}", "{spoken}:\n{bullets}"]),
    (draw.goods, ["{spoken} are {number} things: {items}.", "{items}: {number} things"]),
    (draw.kinds, ["{listed}; the {kind}: {answer}", "Among {listed}, the {kind} is {answer}."]),
    (draw.misspelling, ["{wrong}: {right}", "The correct spelling of {wrong} is {right}.",
      "wrong: {wrong_text} right: {right_text}", "{wrong_text} {right_text}"]),
    (draw.doubled, ["doubled: {twice} right: {text}", "{bare}: {text}"]),
    (draw.wrong_country, ["Not {wrong}: the capital of {name} is {capital}."]),
    (draw.wrong_person, ["{name} is not a {wrong_job}. {name} is a {job}."]),
    (draw.wrong_plural, ["not {wrong} but {right}", "{wrong}: {right}"]),
    (draw.visitor, ["{name}, {age}, {town}: {record}",
      "{name} is {age} years old and lives in {town}. {record}",
      "{record} {name} is {age} years old and lives in {town}."]),
    (draw.visitor, ["{record} name: {name}", "{record} town: {town}"]),
    (draw.visitor, ["{name} is taller than {friend}. {friend} is taller than {third}. The tallest "
      "is {name}."]),
]  # fmt: skip

STORIES: list[tuple[Callable[[Random], Slots], list[str]]] = [
    (draw.visitor, [
        "One day {name} went to the market and bought {good}. On the way home {name} met {friend}. "
        "{friend} was hungry, so {name} shared the {good}. They sat down by the river and ate. In "
        "the evening {name} and {friend} went home as friends.",
        "{name} came from {town}. The name of the visitor was {name}, and the town was {town}. "
        "{name} liked {good}. So {friend} gave {good} to {name}.",
        "{name} said: my name is {name} and I live in {town}. {friend} remembered that {name} "
        "lives in {town}. {friend} wrote: {name}, {town}.",
        "{name} was {age} years old and had a {colour} hat. At {age}, {name} still liked "
        "the colour {colour}. {third} gave {name} a {colour} coat.",
    ]),
    (draw.country, [
        "A traveller came to {name} and learnt {language}. The traveller walked along the {river} "
        "to {capital}. In {capital} everybody spoke {language}.",
    ]),
    (draw.person, [
        "In {town} lived a {job}, and the name of the {job} was {name}. One day {pet_name} was "
        "lost. {pet_name} is a {pet}. The people of {town} looked for the {pet} and brought it "
        "back to {name}.",
    ]),
    (draw.goods, [
        "This is a plan for {spoken}.\n{numbered}\nFirst comes {first}, last comes {last}. That is "
        "{number} things.",
    ]),
]  # fmt: skip


# Rows of words written twice. A reader of these soon learns to look back and copy, on which lists,
# records, corrections and every answer about something just said depend.
COPIES = [
    "{row}\n{row}",
    "{row}\n{row}",
    "{listed}\n{listed}",
    "{row}; {listed}",
    "{listed}: {array}",
    "{array} {row}",
    "{listed}\n{bullets}",
    "{row}\n{quoted}",
    "{listed}; backwards: {reversed}",
]


def documents(seed: int = 0) -> Iterator[str]:
    """The texts, in the order in which they are read."""
    rng = Random(seed)
    for _ in range(DOCUMENTS):
        write = rng.choices([portrait, lesson, story, copy], [3, 8, 1, 3])[0]
        yield write(rng)


def portrait(rng: Random) -> str:
    drawn, statements = rng.choice(PORTRAITS)
    slots = drawn(rng)
    said = rng.sample(statements, rng.randint(3, 5))
    return " ".join(statement.format(**slots) for statement in said)


def lesson(rng: Random) -> str:
    drawn, ways = rng.choice(LESSONS)
    way = rng.choice(ways)
    return "\n".join(way.format(**drawn(rng)) for _ in range(rng.randint(2, 5)))


def story(rng: Random) -> str:
    drawn, plots = rng.choice(STORIES)
    return rng.choice(plots).format(**drawn(rng))


def copy(rng: Random) -> str:
    return rng.choice(COPIES).format(**draw.row(rng))
