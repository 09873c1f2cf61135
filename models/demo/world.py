"""The facts of the demo's world, which the base model reads and the tuned model is asked about.

Most are invented, so a right answer can only come from the training texts. The tables are small and
have one answer per question. So a model of a million parameters learns them in seconds, and a reply
can be compared with its reference word for word.
"""

from typing import NamedTuple


class Country(NamedTuple):
    name: str
    capital: str
    river: str
    """The river that flows through the capital."""
    language: str


class Person(NamedTuple):
    name: str
    age: int
    job: str
    town: str
    pet: str
    pet_name: str


class Animal(NamedTuple):
    name: str
    young: str
    home: str
    sound: str
    legs: int


COUNTRIES = [
    Country("Orvania", "Delmark", "Talo", "Orvanian"),
    Country("Lusaria", "Pertola", "Minno", "Lusarian"),
    Country("Kestria", "Vandur", "Osk", "Kestrian"),
    Country("Tamora", "Zelbin", "Rell", "Tamoran"),
    Country("Brenland", "Harwick", "Dunn", "Brennish"),
    Country("Sundara", "Kolmis", "Yara", "Sundari"),
    Country("Feldonia", "Grenna", "Loof", "Feldonian"),
    Country("Norwen", "Iskal", "Frey", "Norwenish"),
    Country("Quintara", "Basso", "Amber", "Quintaran"),
    Country("Wolmar", "Tirsk", "Bruin", "Wolmarish"),
    Country("France", "Paris", "Seine", "French"),
    Country("Italy", "Rome", "Tiber", "Italian"),
    Country("Egypt", "Cairo", "Nile", "Arabic"),
    Country("England", "London", "Thames", "English"),
    Country("Austria", "Vienna", "Danube", "German"),
    Country("Japan", "Tokyo", "Sumida", "Japanese"),
    Country("Peru", "Lima", "Rimac", "Spanish"),
    Country("Poland", "Warsaw", "Vistula", "Polish"),
]

PEOPLE = [
    Person("Mira", 31, "baker", "Rivton", "cat", "Pixel"),
    Person("Otto", 58, "miller", "Oakby", "dog", "Biscuit"),
    Person("Lena", 24, "painter", "Stonham", "parrot", "Comet"),
    Person("Hugo", 45, "farmer", "Fernley", "goat", "Pepper"),
    Person("Nora", 37, "doctor", "Millbay", "rabbit", "Maple"),
    Person("Felix", 29, "sailor", "Larkhill", "turtle", "Ziggy"),
    Person("Ida", 62, "weaver", "Wexmoor", "hamster", "Olive"),
    Person("Bruno", 50, "carpenter", "Pinedale", "horse", "Rusty"),
    Person("Tessa", 27, "pilot", "Rivton", "dog", "Clover"),
    Person("Emil", 33, "teacher", "Oakby", "cat", "Nimbus"),
    Person("Clara", 41, "judge", "Stonham", "turtle", "Waffle"),
    Person("Jonas", 22, "singer", "Fernley", "parrot", "Juno"),
    Person("Petra", 48, "nurse", "Millbay", "horse", "Tango"),
    Person("Silas", 66, "gardener", "Larkhill", "rabbit", "Misty"),
    Person("Wanda", 54, "writer", "Wexmoor", "goat", "Bandit"),
    Person("Ravi", 39, "cook", "Pinedale", "hamster", "Sunny"),
]

TOWN_GOODS = {
    "Rivton": "cheese",
    "Oakby": "chairs",
    "Stonham": "bridges",
    "Fernley": "roses",
    "Millbay": "boats",
    "Larkhill": "kites",
    "Wexmoor": "wool",
    "Pinedale": "honey",
}

ANIMALS = [
    Animal("cow", "calf", "barn", "moos", 4),
    Animal("horse", "foal", "stable", "neighs", 4),
    Animal("sheep", "lamb", "fold", "bleats", 4),
    Animal("dog", "puppy", "kennel", "barks", 4),
    Animal("cat", "kitten", "house", "meows", 4),
    Animal("pig", "piglet", "sty", "grunts", 4),
    Animal("lion", "cub", "den", "roars", 4),
    Animal("mouse", "pup", "hole", "squeaks", 4),
    Animal("duck", "duckling", "pond", "quacks", 2),
    Animal("owl", "owlet", "tree", "hoots", 2),
    Animal("eagle", "eaglet", "nest", "screams", 2),
    Animal("bee", "larva", "hive", "buzzes", 6),
]

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "dark": "light",
    "wet": "dry",
    "old": "new",
    "rich": "poor",
    "hard": "soft",
    "loud": "quiet",
    "open": "closed",
    "full": "empty",
    "high": "low",
    "early": "late",
    "clean": "dirty",
    "long": "short",
    "strong": "weak",
}

THING_COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "the sky": "blue",
    "butter": "yellow",
    "a carrot": "orange",
    "chocolate": "brown",
    "milk": "white",
    "a leaf": "green",
    "a tomato": "red",
    "a lemon": "yellow",
}

PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "man": "men",
    "wolf": "wolves",
    "leaf": "leaves",
    "city": "cities",
    "box": "boxes",
}

PAST = {
    "go": "went",
    "see": "saw",
    "eat": "ate",
    "run": "ran",
    "sing": "sang",
    "write": "wrote",
    "find": "found",
    "give": "gave",
    "buy": "bought",
    "come": "came",
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip

NUMBER_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip

# Things to list, sort and count. No two have the same first letter, so sorting needs only that.
GOODS = [
    "apple", "bread", "cheese", "egg", "fig", "honey", "jam", "lemon", "nut", "pear", "rice", "tea",
]  # fmt: skip

COLOURS = ["red", "blue", "green", "yellow", "black", "white", "brown", "orange"]

# People about whom no facts exist: what a text says about them can only be read in that text.
VISITORS = [
    "Anna", "Boris", "Cleo", "David", "Ella", "Frank", "Greta", "Hans", "Iris", "Karl", "Olga",
    "Tom",
]  # fmt: skip

MISSPELLED_THINGS = {
    "freind": "friend",
    "libary": "library",
    "gardin": "garden",
    "brige": "bridge",
    "anser": "answer",
    "leter": "letter",
    "kichen": "kitchen",
    "ilsand": "island",
    "scool": "school",
    "monky": "monkey",
    "watre": "water",
    "pensil": "pencil",
    "flowr": "flower",
    "marcket": "market",
}

MISSPELLED_QUALITIES = {
    "hapy": "happy",
    "beutiful": "beautiful",
    "diferent": "different",
    "strang": "strange",
    "quik": "quick",
    "heavvy": "heavy",
    "yelow": "yellow",
    "dangerus": "dangerous",
    "intresting": "interesting",
    "usefull": "useful",
    "famos": "famous",
    "smal": "small",
}

MISSPELLINGS = MISSPELLED_THINGS | MISSPELLED_QUALITIES


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
