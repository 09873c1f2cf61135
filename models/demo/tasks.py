"""The tasks of the demo's conversations: what users ask, and the right answers.

A task draws slots and fills them into one of its phrasings (separated by ` | `) and into its
answer. Later turns refer to the first one and use the same slots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from models.demo import draw, world
from models.demo.draw import Slots


@dataclass(frozen=True, kw_only=True)
class Task:
    category: str
    count: int
    """Conversations to write."""
    draw: Callable[[Random], Slots]
    turns: list[tuple[str, str]]
    """(phrasings, answer) of each turn."""
    word: str = ""
    """The last answer in one word. If empty, no system prompt may ask for one word."""


def task(
    category: str, count: int, slots: Callable[[Random], Slots], *texts: str, word: str = ""
) -> Task:
    """A task. `texts` alternate between phrasings and answers."""
    turns = list(zip(texts[::2], texts[1::2], strict=True))
    return Task(category=category, count=count, draw=slots, turns=turns, word=word)


# fmt: off
FACTS = [
    task("factual_questions", 80, draw.country,
         "What is the capital of {name}? | Name the capital of {name}. | Which city is the capital "
         "of {name}? | Do you know the capital of {name}? | {name}: what is its capital? | "
         "Which capital does {name} have? | What is the capital city of {name} called? | "
         "I forgot the capital of {name}.",
         "The capital of {name} is {capital}.", word="{capital}"),
    task("factual_questions", 60, draw.country,
         "{capital} is the capital of which country? | Which country has the capital {capital}? | "
         "In which country is {capital}? | Where is {capital}? | What country does {capital} "
         "belong to? | Name the country whose capital is {capital}.",
         "{capital} is the capital of {name}.", word="{name}"),
    task("factual_questions", 70, draw.country,
         "Which river flows through {capital}? | What is the river in {capital} called? | "
         "Name the river of {capital}. | On which river is {capital}? | What river runs through "
         "{capital}? | I am in {capital}. Which river is this?",
         "The {river} flows through {capital}.", word="{river}"),
    task("factual_questions", 70, draw.country,
         "What language do people speak in {name}? | Which language is spoken in {name}? | Name "
         "the language of {name}. | What is the language of {name}? | I travel to {name}. Which "
         "language will I hear? | What do the people of {name} speak?",
         "People in {name} speak {language}.", word="{language}"),
    task("factual_questions", 70, draw.person,
         "What is the job of {name}? | What does {name} do? | What work does {name} do? | Tell me "
         "the job of {name}. | How does {name} earn a living? | What is {name} by trade? | "
         "Which job has {name}?",
         "{name} is a {job}.", word="{job}"),
    task("factual_questions", 60, draw.person,
         "Who is the {job}? | Who works as a {job}? | Name the {job}. | Do you know a {job}? | "
         "I need a {job}. Who is one? | Which person is a {job}? | Who can help me as a {job}?",
         "{name} is the {job}.", word="{name}"),
    task("factual_questions", 70, draw.person,
         "Where does {name} live? | In which town does {name} live? | What is the home town of "
         "{name}? | Where is the home of {name}? | Which town is {name} from? | I want to visit "
         "{name}. Which town is it? | Name the town of {name}.",
         "{name} lives in {town}.", word="{town}"),
    task("factual_questions", 60, draw.person,
         "How old is {name}? | What is the age of {name}? | Tell me the age of {name}. | What age "
         "is {name}? | How many years old is {name}? | State the age of {name}. | {name}: how old?",
         "{name} is {age} years old.", word="{age}"),
    task("factual_questions", 60, draw.person,
         "What pet does {name} have? | Which pet lives with {name}? | What is the pet of {name}? | "
         "What animal does {name} keep? | Does {name} have a pet? | Tell me about the pet of "
         "{name}.",
         "{name} has a {pet} named {pet_name}."),
    task("factual_questions", 50, draw.person,
         "Whose pet is {pet_name}? | Who owns {pet_name}? | To whom does {pet_name} belong? | "
         "Who is the owner of {pet_name}? | I found {pet_name}. Whose pet is it? | {pet_name} "
         "is lost. Whom should I call?",
         "{pet_name} belongs to {name}.", word="{name}"),
    task("factual_questions", 40, draw.animal,
         "What is a young {name} called? | What do you call a young {name}? | Name the young of "
         "{a_name}. | What is the baby of {a_name}? | What is the word for a young {name}? | "
         "I saw {a_name} with a baby. What is the baby called?",
         "A young {name} is called {a_young}."),
    task("factual_questions", 35, draw.animal,
         "Where does {a_name} live? | What is the home of {a_name}? | Name the home of {a_name}. | "
         "Where can I find {a_name}? | Where does {a_name} sleep? | In what does {a_name} live?",
         "The home of {a_name} is the {home}.", word="{home}"),
    task("factual_questions", 35, draw.animal,
         "What sound does {a_name} make? | What does {a_name} do when it calls? | How does "
         "{a_name} sound? | What noise comes from {a_name}? | Describe the sound of {a_name}. | "
         "What do you hear from {a_name}?",
         "The {name} {sound}.", word="{sound}"),
    task("factual_questions", 60, draw.pair(world.OPPOSITES, both_ways=True),
         "What is the opposite of {key}? | Name the opposite of {key}. | Which word is the "
         "opposite of {key}? | Not {key}, but what? | Give me the opposite of {key}. | "
         "What is the contrary of {key}?",
         "The opposite of {key} is {value}.", word="{value}"),
    task("factual_questions", 40, draw.pair(world.THING_COLOURS),
         "What colour is {key}? | Which colour has {key}? | Name the colour of {key}. | Tell me "
         "the colour of {key}. | What is the colour of {key}? | I want to paint {key}. Which "
         "colour do I need?",
         "The colour of {key} is {value}.", word="{value}"),
    task("factual_questions", 30, draw.pair(world.TOWN_GOODS),
         "What is {key} known for? | What comes from {key}? | Why do people know {key}? | "
         "What do they make in {key}? | For what is {key} famous? | What can I buy in {key}?",
         "{key} is known for its {value}.", word="{value}"),
    task("factual_questions", 30, draw.pair(world.PAST),
         "What is the past tense of {key}? | Name the past tense of {key}. | What is {key} in the "
         "past? | Put the verb {key} into the past. | Which form of {key} do I use for yesterday?",
         "The past tense of {key} is {value}.", word="{value}"),
]

REASONING = [
    task("reasoning_and_arithmetic", 80, draw.sums,
         "What is {a} + {b}? | Add {a} and {b}. | {a} plus {b} is what? | Calculate {a} + {b}. | "
         "How much is {a} plus {b}? | Give me the sum of {a} and {b}. | Work out {a} + {b}. | "
         "{a} + {b} = ?",
         "{a} + {b} = {sum}.", word="{sum}"),
    task("reasoning_and_arithmetic", 70, draw.sums,
         "What is {sum} - {b}? | Subtract {b} from {sum}. | {sum} minus {b} is what? | Calculate "
         "{sum} - {b}. | How much is {sum} minus {b}? | Take {b} away from {sum}. | {sum} - {b} = "
         "?",
         "{sum} - {b} = {a}.", word="{a}"),
    task("reasoning_and_arithmetic", 40, draw.sums,
         "What is {a_word} plus {b_word}? | Add {a_word} and {b_word}. | How much is {a_word} and "
         "{b_word}? | In words: {a_word} plus {b_word}. | What do {a_word} and {b_word} make?",
         "{a_word} plus {b_word} is {sum_word}.", word="{sum_word}"),
    task("reasoning_and_arithmetic", 40, draw.sums,
         "What is {c} times {a}? | Multiply {c} by {a}. | {c} * {a} = ? | Calculate {c} * {a}. | "
         "How much is {c} times {a}? | Work out {c} * {a}.",
         "{c} * {a} = {product}.", word="{product}"),
    task("reasoning_and_arithmetic", 60, draw.sums,
         "{name} has {a} {good} and gets {b} more. How many {good} does {name} have now? | {name} "
         "buys {a} {good}, then {b} more. How many {good} is that? | {name} finds {a} {good} in "
         "the morning and {b} at noon. How many {good} in all? | There are {a} {good} on the "
         "table. {name} adds {b}. How many are there? | {name} owns {a} {good}. A friend brings "
         "{b}. Count the {good}.",
         "{a} + {b} = {sum}, so {sum} {good}.", word="{sum}"),
    task("reasoning_and_arithmetic", 40, draw.sums,
         "{name} has {sum} {good} and eats {b}. How many {good} are left? | {name} had {sum} "
         "{good} and lost {b}. How many remain? | Of {sum} {good}, {name} sells {b}. How many "
         "{good} are left? | There are {sum} {good}. {name} takes {b} away. How many stay? | "
         "{name} gives {b} of {sum} {good} to a friend. How many are left?",
         "{sum} - {b} = {a}, so {a} {good}.", word="{a}"),
    task("reasoning_and_arithmetic", 70, draw.numbers,
         "Which number is the largest: {numbers}? | Find the largest of {numbers}. | Name the "
         "biggest number: {numbers} | Of {numbers}, which is the highest? | What is the maximum "
         "of {numbers}?",
         "The largest is {largest}.", word="{largest}"),
    task("reasoning_and_arithmetic", 70, draw.numbers,
         "Which number is the smallest: {numbers}? | Find the smallest of {numbers}. | Name the "
         "lowest number: {numbers} | Of {numbers}, which is the least? | What is the minimum "
         "of {numbers}?",
         "The smallest is {smallest}.", word="{smallest}"),
    task("reasoning_and_arithmetic", 60, draw.calendar,
         "Which {unit} comes after {here}? | What {unit} follows {here}? | Name the {unit} after "
         "{here}. | Now it is {here}. What {unit} is next? | After {here}, which {unit} comes?",
         "After {here} comes {after}.", word="{after}"),
    task("reasoning_and_arithmetic", 50, draw.calendar,
         "Which {unit} comes before {here}? | What {unit} is just before {here}? | Name the {unit} "
         "before {here}. | Now it is {here}. What was the last {unit}? | Before {here}, which "
         "{unit} is it?",
         "Before {here} comes {before}.", word="{before}"),
    task("reasoning_and_arithmetic", 50, draw.sequence,
         "Continue: {terms} | What comes next: {terms}? | Which number follows {terms}? | Find the "
         "next number: {terms} | {terms}, and then?",
         "The next number is {next}.", word="{next}"),
    task("reasoning_and_arithmetic", 60, draw.visitor,
         "{name} is taller than {friend}. {friend} is taller than {third}. Who is the tallest? | "
         "{friend} is smaller than {name} and taller than {third}. Who is tallest? | {name} is "
         "ahead of {friend}, and {friend} is ahead of {third}. Who is first? | {name} beats "
         "{friend}. {friend} beats {third}. Who is the best? | {name} is older than {friend}, "
         "{friend} is older than {third}. Who is the oldest?",
         "It is {name}.", word="{name}"),
    task("reasoning_and_arithmetic", 40, draw.number_word,
         "Write {digits} as a word. | How do you write {digits} in letters? | Spell the number "
         "{digits}. | What is {digits} in words? | Turn {digits} into a word. | Say {digits} in "
         "words.",
         "{digits} is {word}.", word="{word}"),
]

INSTRUCTIONS = [
    task("instruction_following", 70, draw.words,
         "Write {one} in capital letters. | Put {one} in capitals. | Make {one} upper case. | "
         "Capital letters, please: {one} | Shout the word {one}. | Convert {one} to upper case.",
         "{upper}"),
    task("instruction_following", 60, draw.words,
         "Say {one} {times} times. | Write {one} {times} times. | Repeat {one} {times} times. | "
         "Please write {one} {times} times. | I want to read {one} {times} times.",
         "{again}"),
    task("instruction_following", 60, draw.words,
         "Repeat after me: {one} {two} {three} | Say exactly this: {one} {two} {three} | Copy "
         "this: {one} {two} {three} | Write the same words: {one} {two} {three} | Echo: {one} "
         "{two} {three}",
         "{one} {two} {three}"),
    task("instruction_following", 70, draw.words,
         "Swap the two words: {one} {two} | Reverse the order: {one} {two} | Turn around: {one} "
         "{two} | Write the second word first: {one} {two} | Exchange these words: {one} {two}",
         "{two} {one}"),
    task("instruction_following", 60, draw.goods,
         "Give me only the first item: {items} | What is the first in this list? {items} | Write "
         "the first word of: {items} | Take the first one of {items}. | First item, please: "
         "{items}",
         "{first}"),
    task("instruction_following", 60, draw.goods,
         "Give me only the last item: {items} | What is the last in this list? {items} | Write the "
         "last word of: {items} | Take the last one of {items}. | Last item, please: {items}",
         "{last}"),
    task("instruction_following", 50, draw.goods,
         "Add {other} to the list: {items} | Append {other}: {items} | Put {other} at the end of: "
         "{items} | Here is my list: {items}. Write it with {other} at the end. | Extend {items} "
         "by {other}.",
         "{items}, {other}"),
    task("instruction_following", 40, draw.goods,
         "Replace {gone} by {other}: {items} | Change {gone} to {other}: {items} | In this list, "
         "write {other} for {gone}: {items} | In {items}, put {other} where {gone} is. | Use "
         "{other} instead of {gone}: {items}",
         "{changed}"),
    task("instruction_following", 70, draw.kinds,
         "Pick the {kind}: {listed} | Which of these is {a_kind}? {listed} | Find the {kind} in "
         "this list: {listed} | Only write the {kind}: {listed} | {listed}: which one is {a_kind}?",
         "{answer}"),
    task("instruction_following", 50, draw.words,
         "Put {one} in quotation marks. | Write {one} in quotes. | Quote the word {one}. | {one}: "
         "add quotation marks. | Set quotation marks around {one}.",
         '"{one}"'),
    task("instruction_following", 50, draw.words,
         "Write {one} and {two} in brackets. | Put {one} and {two} in brackets. | Brackets around "
         "{one} and {two}, please. | Set {one} and {two} in brackets.",
         "({one}) ({two})"),
]

CORRECTION = [
    task("error_correction", 90, draw.misspelling,
         "Correct the spelling: {wrong} | How do you spell {wrong} correctly? | Fix this word: "
         "{wrong} | {wrong} is wrong. What is right? | I wrote {wrong}. What should it be? | Spell "
         "{wrong} the right way. | Is {wrong} correct?",
         "The correct spelling is {right}.", word="{right}"),
    task("error_correction", 140, draw.misspelling,
         "Correct this: {wrong_text} | Fix the mistake: {wrong_text} | Find the error and write it "
         "right: {wrong_text} | Write without mistakes: {wrong_text} | Check the spelling: "
         "{wrong_text} | Improve this sentence: {wrong_text}",
         "{right_text}"),
    task("error_correction", 80, draw.sums,
         "Correct this: {a} + {b} = {wrong} | Find the error: {a} + {b} = {wrong} | I think {a} + "
         "{b} is {wrong}. Correct me. | My sum is wrong: {a} + {b} = {wrong} | Fix this sum: {a} + "
         "{b} = {wrong}",
         "{a} + {b} = {sum}"),
    task("error_correction", 80, draw.wrong_country,
         "Correct me: the capital of {name} is {wrong}. | {wrong} is the capital of {name}, right? "
         "| Fix this: {wrong} is the capital of {name}. | Somebody said that {name} has the "
         "capital {wrong}. | My book says: the capital of {name} is {wrong}.",
         "No, the capital of {name} is {capital}."),
    task("error_correction", 60, draw.wrong_person,
         "Correct me: {name} is a {wrong_job}. | {name} is a {wrong_job}, right? | Fix this: "
         "{name} works as a {wrong_job}. | Somebody said that {name} is a {wrong_job}. | My book "
         "says that {name} is a {wrong_job}.",
         "No, {name} is a {job}."),
    task("error_correction", 90, draw.doubled,
         "Remove the doubled word: {twice} | One word is there twice: {twice} | Which word is "
         "doubled? Write it right: {twice} | Delete the repeated word: {twice} | Clean up: {twice}",
         "{text}"),
    task("error_correction", 80, draw.doubled,
         "Add capitals and a full stop: {bare} | Write this with capitals: {bare} | Make it a "
         "proper sentence: {bare} | Punctuate: {bare} | Capital letters are missing: {bare}",
         "{text}"),
    task("error_correction", 50, draw.wrong_plural,
         "Correct the plural: {wrong} | Fix the plural: {wrong} | What is right instead of "
         "{wrong}? | I saw {wrong}. Is that right? | {wrong} sounds wrong. Help me.",
         "{right}"),
]

STRUCTURE = [
    task("structured_transformation", 100, draw.visitor,
         "Turn this into JSON: {name}, {age}, {town} | Make a JSON record: {name}, {age}, {town} | "
         "JSON, please: {name} is {age} years old and lives in {town}. | Write as JSON: {name}, "
         "{age}, {town} | As a JSON object: {name} is {age} and comes from {town}. | Convert to "
         "JSON: {name}; {age}; {town}",
         "{record}"),
    task("structured_transformation", 80, draw.visitor,
         "Turn this JSON into a sentence: {record} | Say this in a sentence: {record} | Describe "
         "the record: {record} | Write prose: {record} | What does this say? {record}",
         "{name} is {age} years old and lives in {town}."),
    task("structured_transformation", 60, draw.visitor,
         "What is the town in {record}? | Read the town: {record} | Give the value of town: "
         "{record} | {record} Which town is it? | Extract the town from {record}",
         "{town}"),
    task("structured_transformation", 50, draw.visitor,
         "What is the name in {record}? | Read the name: {record} | Give the value of name: "
         "{record} | {record} Which name is it? | Extract the name from {record}",
         "{name}"),
    task("structured_transformation", 60, draw.numbers,
         "Sort these numbers: {numbers} | Order from small to large: {numbers} | Put in rising "
         "order: {numbers} | Arrange the numbers: {numbers} | Smallest first: {numbers}",
         "{rising}"),
    task("structured_transformation", 40, draw.numbers,
         "Sort from large to small: {numbers} | Put in falling order: {numbers} | Largest first: "
         "{numbers} | Sort backwards: {numbers} | Order downwards: {numbers}",
         "{falling}"),
    task("structured_transformation", 40, draw.goods,
         "Sort by the alphabet: {items} | Put in alphabetical order: {items} | Sort these words: "
         "{items} | Order from a to z: {items} | Arrange these words: {items}",
         "{sorted}"),
    task("structured_transformation", 40, draw.goods,
         "Reverse this list: {items} | Write the list backwards: {items} | List from last to "
         "first: {items} | Turn the list around: {items} | Backwards, please: {items}",
         "{reversed}"),
    task("structured_transformation", 60, draw.goods,
         "Make a bullet list: {items} | Turn into bullets: {items} | Bullets, please: {items} | "
         "Write {spoken} as bullet points. | List with dashes: {items}",
         "{bullets}"),
    task("structured_transformation", 60, draw.goods,
         "Make a JSON array: {items} | Turn this list into JSON: {items} | As a JSON list: {items} "
         "| Write {spoken} as a JSON array. | Convert the items to JSON: {items}",
         "{array}"),
    task("structured_transformation", 50, draw.goods,
         "Number these items: {items} | Make a numbered list: {items} | Write {spoken} with "
         "numbers. | Put 1, 2, 3 before: {items} | A numbered list of {spoken}, please.",
         "{numbered}"),
]

TURNS = [
    task("multi_turn_conversation", 70, draw.visitor,
         "My name is {name} and I live in {town}. | Hello, I am {name} from {town}. | I am {name}. "
         "My town is {town}. | Hi! {name} here, from {town}. | They call me {name}. I live in "
         "{town}.",
         "Nice to meet you, {name}.",
         "Where do I live? | What is my town? | Which town do I live in? | Where is my home?",
         "You live in {town}.", word="{town}"),
    task("multi_turn_conversation", 70, draw.visitor,
         "I am {name} and I am {age} years old. | Hello, my name is {name}. My age is {age}. | "
         "{name} is my name, and I like {good}. | Hi, I am {name}, and this is my friend {friend}. "
         "| You can call me {name}. I have a {colour} hat.",
         "Nice to meet you, {name}.",
         "What is my name? | Who am I? | Do you remember my name? | How am I called?",
         "Your name is {name}.", word="{name}"),
    task("multi_turn_conversation", 60, draw.visitor,
         "Please remember: {name} likes {good}. | Note this: {name} likes {good}. | Keep in mind "
         "that {name} likes {good}. | Do not forget that {name} likes {good}. | Remember for "
         "later: {name} likes {good}.",
         "I will remember that.",
         "What does {name} like? | So what does {name} like? | Tell me what {name} likes. | What "
         "was it that {name} likes?",
         "{name} likes {good}.", word="{good}"),
    task("multi_turn_conversation", 60, draw.visitor,
         "My favourite colour is {colour} and my age is {age}. | I am {age} and I love {colour}. | "
         "I have a {colour} house. I am {age}. | I like {colour}. I turned {age} today. | {colour} "
         "is my colour, {age} is my age.",
         "I will remember that.",
         "How old am I? | What is my age? | What age did I say? | Do you know how old I am?",
         "You are {age} years old.", word="{age}"),
    task("multi_turn_conversation", 60, draw.goods,
         "I bought {spoken}. | Today I need {spoken}. | My basket holds {spoken}. | On my list are "
         "{spoken}. | I packed {spoken}.",
         "I will remember that.",
         "What did I name first? | Which was the first thing? | What came first? | First item?",
         "You named {first} first.", word="{first}"),
    task("multi_turn_conversation", 60, draw.goods,
         "I bought {items}. | Today I need {items}. | My basket holds {items}. | On my list are "
         "{items}. | I packed {items}.",
         "I will remember that.",
         "What did I name? | Say them again. | Repeat my things. | Which things did I name?",
         "You named {items}."),
    task("multi_turn_conversation", 80, draw.country,
         "Tell me the capital of {name}. | I want to know the capital of {name}. | Please name the "
         "capital of {name}. | Let us talk about {name}. What is its capital? | I will travel to "
         "{name}. What is the capital?",
         "The capital of {name} is {capital}.",
         "And which river flows there? | What river is there? | And the river? | Which river will "
         "I see there?",
         "The {river} flows through {capital}.", word="{river}"),
    task("multi_turn_conversation", 60, draw.country,
         "Tell me the language of {name}. | I want to know the language of {name}. | Please name "
         "the language of {name}. | Let us talk about {name}. What do people speak? | I move to "
         "{name}. What will I speak?",
         "People in {name} speak {language}.",
         "And what is the capital? | Which city is the capital? | And its capital? | What about "
         "the capital?",
         "The capital of {name} is {capital}.", word="{capital}"),
    task("multi_turn_conversation", 80, draw.person,
         "Tell me what {name} does. | I want to know the job of {name}. | Let us talk about "
         "{name}. Which job is it? | I met {name}. What is the job? | Please tell me the work of "
         "{name}.",
         "{name} is a {job}.",
         "And in which town? | Where is that? | And the town? | In what town, please?",
         "{name} lives in {town}.", word="{town}"),
    task("multi_turn_conversation", 60, draw.person,
         "I look for the {job}. | I have to find a {job}. | Please tell me who the {job} is. | "
         "Someone asked for the {job}. | Is there a {job}?",
         "{name} is the {job}.",
         "Any pets? | Is there a pet? | And the pet? | What about pets?",
         "{name} has a {pet} named {pet_name}."),
    task("multi_turn_conversation", 80, draw.sums,
         "Let us calculate. {a} + {b} | Start with {a} + {b}. | First {a} plus {b}. | We begin "
         "with {a} + {b}. | A small sum: {a} + {b}",
         "{a} + {b} = {sum}.",
         "Now add {c}. | Plus {c}. | And {c} more? | Add {c} to that.",
         "{sum} + {c} = {more}.", word="{more}"),
    task("multi_turn_conversation", 50, draw.visitor,
         "Hi, I am {name}. | Good day, my name is {name}. | Hello! {name} speaking. | This is "
         "{name}, {age} years old. | Good morning from {name} in {town}.",
         "Nice to meet you, {name}.",
         "I like {good}. | I really like {good}. | My favourite food is {good}. | I love {good}.",
         "I will remember that.",
         "What do I like? | What was my favourite? | Which food do I like?",
         "You like {good}, {name}."),
]

LONG = [
    task("long_responses", 60, draw.person,
         "Describe {name}. | Tell me everything about {name}. | Write a short portrait of {name}. "
         "| Introduce {name} to me. | What do you know about {name}? | Write a text about {name}.",
         "{name} is {age} years old and lives in {town}. {name} works as a {job}. At home {name} "
         "has a {pet}. The name of the {pet} is {pet_name}. Every morning {name} feeds "
         "{pet_name}, and then the {job} goes to work."),
    task("long_responses", 60, draw.country,
         "Describe {name}. | Tell me everything about {name}. | Write a travel guide to {name}. | "
         "Introduce {name} to a traveller. | What should I know about {name}? | Write a text about "
         "{name}.",
         "{name} is a country. Its capital is {capital}. The {river} flows through {capital}. "
         "People in {name} speak {language}. A traveller can walk along the {river} and learn "
         "some {language} in {capital}."),
    task("long_responses", 40, draw.animal,
         "Describe the {name}. | Tell me everything about the {name}. | Write a short text about "
         "the {name}. | What do you know about the {name}? | Explain to a child what {a_name} is.",
         "The {name} is an animal with {legs} legs. It {sound}. Its home is the {home}. A young "
         "{name} is called {a_young}. The {young} stays near the {home} until it is big and "
         "strong."),
    task("long_responses", 70, draw.visitor,
         "Write a story about {name}, {friend} and {good}. | Tell a story: {name}, {friend}, "
         "{good} | A little story with {name}, {friend} and {good}, please. | Invent a story in "
         "which {name} brings {good} to {friend}. | I want to read a story of {name}, {friend} and "
         "{good}.",
         "One day {name} went to the market and bought {good}. On the way home {name} met "
         "{friend}. {friend} was hungry, so {name} shared the {good}. They sat down by the river "
         "and ate. In the evening {name} and {friend} went home as friends."),
    task("long_responses", 60, draw.sums,
         "Explain step by step: {a} + {b} + {c} | Show every step of {a} + {b} + {c}. | Explain to "
         "a child how to add {a}, {b} and {c}. | Add {a}, {b} and {c} slowly. | Solve {a} + {b} + "
         "{c} in steps.",
         "Step 1: Start with {a}.\nStep 2: Add {b}. {a} + {b} = {sum}.\nStep 3: Add {c}. {sum} + "
         "{c} = {more}.\nResult: the sum of {a}, {b} and {c} is {more}."),
    task("long_responses", 50, draw.goods,
         "Write a shopping plan for {items}. | Make a plan to buy {items}. | Help me plan: I need "
         "{items}. | Plan my shopping of {items}.",
         "Here is a plan.\n{numbered}\nTake a bag with you. Buy {first} first, because it is the "
         "first thing on the list. Buy {last} last. Then count: there should be {number} things "
         "in the bag."),
]
# fmt: on

OPENERS = ["", "Hello, ", "Excuse me, ", "One question: ", "Tell me, ", "Say, ", "Hi, "]


def opened(questions: str) -> Callable[[Random], Slots]:
    """A function that draws one of the questions, with or without an opener."""

    def question(rng: Random) -> Slots:
        text = rng.choice(OPENERS) + rng.choice(questions.split(" | "))
        return {"question": text[0].upper() + text[1:]}

    return question


# fmt: off
IDENTITY = [
    task("identity", 14, opened(questions), "{question}", answer)
    for questions, answer in [
        ("what is your name? | who are you? | how should I call you? | what are you called? | do "
         "you have a name? | tell me your name.",
         "I am Simple Llama."),
        ("what kind of thing are you? | are you a human? | are you a person or a machine? | what "
         "are you? | are you alive?",
         "I am a small language model, not a human."),
        ("who made you? | who built you? | who is your maker? | where do you come from? | who are "
         "your authors?",
         "I was made by the simple_llama pipeline."),
        ("what is your purpose? | what are you for? | why do you exist? | why were you made? | "
         "what is your job?",
         "I show that the whole pipeline works."),
        ("which language do you speak? | what languages do you know? | can you speak German? | do "
         "you understand French? | in which language should I write?",
         "I only understand simple English."),
        ("how big are you? | how many parameters do you have? | are you a large model? | what is "
         "your size? | how large are you?",
         "I have about one million parameters."),
        ("how were you trained? | how did you learn? | what is your training? | how did you come "
         "to know this? | who taught you?",
         "I first read texts and then learnt from conversations."),
        ("what do you know? | what can I ask about? | which topics do you know? | what is your "
         "knowledge? | what do you know about the world?",
         "I know a small world of people, countries and animals."),
        ("what can you do? | how can you help me? | what are your skills? | what are you good at? "
         "| list your abilities.",
         "I can answer, count, sort, correct and write JSON."),
        ("what can you not do? | what are your limits? | where do you fail? | what is too hard for "
         "you? | what are you bad at?",
         "I cannot do anything beyond my little world."),
        ("can you browse the internet? | can you search the web? | do you have internet? | can "
         "you look up the news? | are you online?",
         "No, I cannot use the internet."),
        ("what time is it? | which day is today? | what is the date? | do you know the time? | do "
         "you have a clock?",
         "I do not have a clock."),
        ("can you see pictures? | can you look at a photo? | do you have eyes? | what do you see? "
         "| can you read an image?",
         "I only read text."),
        ("can you make mistakes? | are you always right? | can I trust you? | do you ever fail? | "
         "are your answers correct?",
         "I make mistakes, so check my answers."),
        ("do you have feelings? | are you sad? | are you happy? | how do you feel? | can you love?",
         "I have no feelings."),
        ("how old are you? | when were you born? | what is your age? | when is your birthday?",
         "I have no age, I am a program."),
        ("where do you live? | where are you now? | what is your home? | where do you run? | on "
         "which computer are you?",
         "I live on the computer that trained me."),
        ("do you eat? | what is your favourite food? | are you hungry? | what do you drink? | do "
         "you sleep?",
         "A model needs no food and no sleep."),
        ("which version are you? | what is your version? | are you a demo? | what release are "
         "you? | is this the demo?",
         "I am the demo version."),
        ("what is your licence? | are you free? | are you open source? | may I copy you? | under "
         "which licence are you?",
         "I am open source under the MIT licence."),
        ("what is your architecture? | which architecture do you have? | how are you built inside? "
         "| what type of network are you? | are you a transformer?",
         "I am a transformer in the style of LLaMA."),
        ("will you remember me? | do you remember yesterday? | do you have a memory? | do you keep "
         "what I say? | do you store this chat?",
         "I only remember this conversation."),
        ("can you give medical advice? | can you be my doctor? | I am ill, can you help? | which "
         "medicine should I take? | can you heal me?",
         "Please ask a real doctor."),
        ("may I change you? | can I train you? | can you learn more? | how do I improve you? | how "
         "can I teach you?",
         "Give me new conversations and train me again."),
        ("are you a boy or a girl? | are you a man? | are you a woman? | what is your gender?",
         "I am neither, I am a program."),
        ("do you have a family? | do you have friends? | do you have a pet? | who is your mother?",
         "I have no family, only users."),
    ]
]
# fmt: on

TASKS = [*FACTS, *REASONING, *INSTRUCTIONS, *CORRECTION, *STRUCTURE, *TURNS, *LONG, *IDENTITY]
