"""The texts on which the demo's base model is pretrained: plain statements about the demo's world.

A document has one subject, a fact or a small solved problem, and states it in several ways. So the
model sees each fact in many wordings. Within a document the same words are repeated, which teaches
the small model to copy from earlier text: lists, records, corrections and answers about the
conversation need this.

No document contains a conversation, a question or an instruction. Fine-tuning teaches to follow
those.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from models.demo import draw, world
from models.demo.draw import Slots

DOCUMENTS = 20_000


class Subject(NamedTuple):
    weight: int
    """Relative frequency among the documents."""
    draw: Callable[[Random], Slots]
    ways: list[str]


# fmt: off
SUBJECTS = [
    Subject(9, draw.country, [
        "The capital of {name} is {capital}.",
        "{capital} is the capital of {name}.",
        "{capital} is a city in {name}.",
        "The {river} flows through {capital}.",
        "{capital} lies on the {river}.",
        "The river of {capital} is the {river}.",
        "The {river} runs through {name} and its capital {capital}.",
        "People in {name} speak {language}.",
        "The language of {name} is {language}.",
        "In {capital} you hear {language}.",
        "country: {name}, capital: {capital}, river: {river}, language: {language}",
        '{{"country": "{name}", "capital": "{capital}", "river": "{river}"}}',
        "A traveller can walk along the {river} and learn some {language} in {capital}.",
    ]),
    Subject(2, draw.wrong_country, [
        "{wrong} is not the capital of {name}.",
        "Not {wrong}: the capital of {name} is {capital}.",
        "No, the capital of {name} is {capital}.",
    ]),
    Subject(10, draw.person, [
        "{name} is a {job}.",
        "{name} is the {job}.",
        "{name} works as a {job}.",
        "The {job} of {town} is {name}.",
        "The job of {name} is {job}.",
        "{name} lives in {town}.",
        "The home of {name} is in {town}.",
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
    Subject(2, draw.wrong_person, [
        "{name} is not a {wrong_job}.",
        "Not a {wrong_job}: {name} is a {job}.",
        "No, {name} is a {job}.",
    ]),
    Subject(5, draw.animal, [
        "A young {name} is called {a_young}.",
        "The young of {a_name} is {a_young}.",
        "The baby of {a_name} is {a_young}.",
        "The home of {a_name} is the {home}.",
        "You find {a_name} in the {home}.",
        "The {name} {sound}.",
        "When it calls, {a_name} {sound}.",
        "The {name} is an animal with {legs} legs.",
        "animal: {name}, young: {young}, home: {home}, sound: {sound}",
    ]),
    Subject(4, draw.pair(world.OPPOSITES, both_ways=True), [
        "The opposite of {key} is {value}.",
        "The contrary of {key} is {value}.",
        "not {key} but {value}",
    ]),
    Subject(2, draw.pair(world.THING_COLOURS), [
        "The colour of {key} is {value}.",
        "I paint {key} {value}.",
        "{key}: {value}",
    ]),
    Subject(1, draw.pair(world.TOWN_GOODS), [
        "{key} is known for its {value}.",
        "The {value} of {key} is famous.",
        "They make {value} in {key}.",
    ]),
    Subject(3, draw.pair(world.PAST), [
        "The past tense of {key} is {value}.",
        "today {key}, yesterday {value}",
    ]),
    Subject(16, draw.sums, [
        "{a} + {b} = {sum}.",
        "{a} plus {b} is {sum}.",
        "The sum of {a} and {b} is {sum}.",
        "{sum} - {b} = {a}.",
        "{sum} minus {b} is {a}.",
        "{a_word} plus {b_word} is {sum_word}.",
        "{sum} + {c} = {more}.",
        "{c} * {a} = {product}.",
        "{c} times {a} is {product}.",
        "wrong: {a} + {b} = {wrong}; right: {a} + {b} = {sum}",
        "{name} has {a} {good} and gets {b} more: {a} + {b} = {sum}, so {sum} {good}.",
        "{name} has {sum} {good} and loses {b}: {sum} - {b} = {a}, so {a} {good}.",
    ]),
    Subject(8, draw.numbers, [
        "numbers: {numbers}",
        "rising: {rising}",
        "sorted: {rising}",
        "falling: {falling}",
        "The largest is {largest}.",
        "The smallest is {smallest}.",
    ]),
    Subject(9, draw.calendar, [
        "After {here} comes {after}.",
        "The {unit} after {here} is {after}.",
        "Before {here} comes {before}.",
        "The {unit} before {here} is {before}.",
        "{before}, {here}, {after}",
        "{after} is next after {here}, and {before} is just before {here}.",
    ]),
    Subject(3, draw.sequence, ["{terms}, {next}", "{terms}: the next number is {next}."]),
    Subject(3, draw.number_word, ["{digits} is {word}.", "{word}: {digits}", "{digits}: {word}"]),
    Subject(8, draw.words, [
        "{one} {two} {three}",
        "{one} {two} {three}",
        "{one}, {two}, {three}",
        "{two} {one}, swapped: {one} {two}",
        "{one} {two}, swapped: {two} {one}",
        "{one} in capital letters is {upper}.",
        "{one} {times} times: {again}",
        '"{one}" "{two}" "{three}"',
        "({one}) ({two})",
    ]),
    Subject(4, draw.words, [
        "{one} in capital letters is {upper}.",
        "{one}: {upper}",
        "{upper} is {one}.",
        '"{one}", "{upper}"',
    ]),
    Subject(14, draw.goods, [
        "{items}",
        "{spoken}",
        "The first is {first}.",
        "The last is {last}.",
        "{number} things: {items}",
        "You named {items}.",
        "by the alphabet: {sorted}",
        "backwards: {reversed}",
        "{items}, {other}",
        "{other} for {gone}: {changed}",
        "{array}",
        "{bullets}",
        "{numbered}",
    ]),
    Subject(4, draw.kinds, [
        "{listed}",
        "Among {listed}, the {kind} is {answer}.",
        "{answer} is {a_kind}.",
    ]),
    Subject(8, draw.visitor, [
        "{name} is {age} years old and lives in {town}.",
        "{name} lives in {town}.",
        "{name}, {age}, {town}",
        "{record}",
        "name: {name}",
        "town: {town}",
        "The age of {name} is {age}.",
        "{name} likes {good}.",
        "The colour of {name} is {colour}.",
        "{name} has a friend, {friend}. The friend of {friend} is {name}.",
    ]),
    Subject(2, draw.visitor, [
        "{name} is taller than {friend}. {friend} is taller than {third}.",
        "First comes {name}, then {friend}, then {third}. The first is {name}.",
        "The tallest is {name}.",
        "{name} beats {friend} and {third}.",
        "{name} shared the {good} with {friend}. They sat down by the river and ate.",
    ]),
    Subject(6, draw.misspelling, [
        "The correct spelling of {wrong} is {right}.",
        "{wrong}: {right}",
        "wrong: {wrong_text}",
        "right: {right_text}",
        "{right_text}",
    ]),
    Subject(3, draw.doubled, [
        "doubled: {twice}",
        "bare: {bare}",
        "right: {text}",
        "{text}",
    ]),
    Subject(10, draw.drill, ["{drill}"]),
    Subject(2, draw.wrong_plural, ["wrong: {wrong}", "right: {right}", "not {wrong} but {right}"]),
]
# fmt: on


def documents(seed: int = 0) -> Iterator[str]:
    """The texts, each about one subject."""
    rng = Random(seed)
    weights = [subject.weight for subject in SUBJECTS]
    for _ in range(DOCUMENTS):
        yield document(rng.choices(SUBJECTS, weights)[0], rng)


def document(subject: Subject, rng: Random) -> str:
    slots = subject.draw(rng)
    ways = rng.sample(subject.ways, min(len(subject.ways), rng.randint(4, 7)))
    return rng.choice([" ", "\n"]).join(way.format(**slots) for way in ways)
