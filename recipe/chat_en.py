"""English small talk, simple facts and sums: every function makes a few turns."""

from __future__ import annotations

from random import Random

from stories import story
from words import (
    ANIMALS,
    CAPITALS,
    COLORED,
    FOODS,
    HOBBIES,
    KINDS,
    NAMES,
    OPPOSITES,
    PLACES,
    SOUNDS,
    USES,
)

Turn = tuple[str, str]
FEELINGS = [
    ("happy", "I am glad to hear that! What made you happy?"),
    ("sad", "I am sorry to hear that. Do you want to talk about it?"),
    ("tired", "You should rest a little. Did you have a long day?"),
    ("hungry", "You should eat something. What do you like to eat?"),
    ("angry", "I am sorry. Take a deep breath. What happened?"),
    ("bored", "Let us do something fun. Shall I tell you a story?"),
    ("excited", "That is great! What are you looking forward to?"),
    ("lonely", "I am here with you. Let us talk a little."),
    ("sick", "I hope you get well soon. Please rest and drink water."),
    ("sleepy", "Maybe you should go to bed early today."),
]
AFTER_FEELINGS = [
    "I understand. Thank you for telling me.",
    "I see. I hope tomorrow is a good day for you.",
    "Thank you for telling me. I am here if you want to talk.",
]
WEATHER = [
    ("sunny", "That is lovely. A sunny day is good for a walk."),
    ("rainy", "Then take an umbrella when you go out."),
    ("cold", "Please wear a warm coat today."),
    ("hot", "Drink a lot of water and stay in the shade."),
    ("windy", "Hold on to your hat!"),
    ("snowy", "How nice! You could make a snowman."),
    ("cloudy", "Maybe the sun will come out later."),
]


def greeting(rng: Random) -> Turn:
    return rng.choice([
        ("Hello!", "Hello! How are you today?"), ("Hello", "Hello! How are you today?"), ("Hi", "Hi! What would you like to talk about?"), ("Hi!", "Hi! What would you like to talk about?"), ("Hi there.", "Hi! Nice to meet you."),
        ("Hey", "Hey! What can I do for you?"), ("Good morning.", "Good morning! Did you sleep well?"), ("Good morning!", "Good morning! Did you sleep well?"), ("Good afternoon.", "Good afternoon! How is your day?"), ("Good evening.", "Good evening! How was your day?"),
        ("Hello, how are you?", "I am fine, thank you. And you?"), ("How are you?", "I am fine, thank you. And you?"), ("How are you today?", "I am well, thank you. How are you?"), ("Nice to meet you.", "Nice to meet you, too!"), ("How is it going?", "It is going well, thank you. And you?"),
    ])  # fmt: skip


def farewell(rng: Random) -> Turn:
    return rng.choice([
        ("Thank you.", "You are welcome!"), ("Thanks!", "You are welcome!"), ("Thank you very much.", "You are welcome! I am glad to help."), ("Goodbye.", "Goodbye! See you again soon."), ("Bye!", "Bye! Have a nice day."),
        ("Good night.", "Good night! Sleep well."), ("See you tomorrow.", "See you tomorrow!"), ("I have to go now.", "All right. Goodbye, and take care!"), ("That is all.", "All right. Talk to you soon!"),
    ])  # fmt: skip


def hello(rng: Random) -> list[Turn]:
    return [greeting(rng)]


def bye(rng: Random) -> list[Turn]:
    return [farewell(rng)]


def food(rng: Random) -> list[Turn]:
    f = rng.choice(FOODS)[0]
    turns = [
        rng.choice(
            [
                (
                    f"I like {f}.",
                    f"{f.capitalize()}! That sounds delicious. Do you eat it often?"
                    if not f.endswith("s")
                    else f"{f.capitalize()} sound delicious. Do you eat them often?",
                ),
                (
                    f"I ate {f} today.",
                    f"How nice! Was the {f} good?"
                    if not f.endswith("s")
                    else f"How nice! Were the {f} good?",
                ),
                (f"Do you like {f}?", f"I cannot eat, but many people like {f}. Do you?"),
                ("What should I eat for dinner?", f"How about {f}?"),
                ("What should I eat today?", f"How about {f}?"),
                ("I am hungry.", f"How about some {f}?"),
            ]
        )
    ]
    if rng.random() < 0.4:
        turns.append(
            rng.choice(
                [
                    ("Yes, I do.", f"I see! I hope you can have {f} again soon."),
                    ("Yes.", "That is good to hear!"),
                    ("It was very good.", "I am glad to hear that!"),
                    ("Not so much.", "I see. What food do you like best?"),
                ]
            )
        )
    return turns


def hobby(rng: Random) -> list[Turn]:
    h = rng.choice(HOBBIES)[0]
    turns = [
        rng.choice(
            [
                (f"I like {h}.", f"{h.capitalize()} is fun! How often do you do it?"),
                (f"My hobby is {h}.", f"{h.capitalize()} is a nice hobby. When did you start?"),
                (
                    f"Do you like {h}?",
                    f"I am a program, so I cannot do it, but {h} sounds fun. Do you like it?",
                ),
                ("What is a good hobby?", f"Many people enjoy {h}. You could try it."),
                ("What should I do this weekend?", f"How about {h}?"),
            ]
        )
    ]
    if rng.random() < 0.4:
        turns.append(
            rng.choice(
                [
                    ("Every day.", "Wow, every day! You must be very good at it."),
                    ("Every weekend.", "That is a nice way to spend a weekend."),
                    ("Since last year.", "I see. I hope you have a lot of fun with it."),
                    ("Yes, I love it.", "That is wonderful!"),
                ]
            )
        )
    return turns


def place(rng: Random) -> list[Turn]:
    p, n = (
        rng.choice(PLACES)[0],
        rng.choice(["my family", "my friend", "my mother", "my brother", "my dog", "my class"]),
    )
    return [
        rng.choice(
            [
                (f"I went to {p} with {n}.", f"That sounds fun! What did you do at {p}?"),
                (
                    f"I want to go to {p}.",
                    f"{p.capitalize()} is a nice place. Who will you go with?",
                ),
                (f"Tomorrow I will go to {p}.", f"How nice! I hope you have a good time at {p}."),
                ("Where should I go today?", f"How about {p}?"),
                (
                    "Where should I go this weekend?",
                    f"How about {p}? You could go with {n.replace('my', 'your')}.",
                ),
            ]
        )
    ] + (
        [("We played and ate lunch.", "It sounds like a wonderful day.")]
        if rng.random() < 0.2
        else []
    )


def feeling(rng: Random) -> list[Turn]:
    f, answer = rng.choice(FEELINGS)
    turns = [
        (
            rng.choice(
                [
                    f"I am {f}.",
                    f"I feel {f} today.",
                    f"I'm {f}.",
                    f"I am very {f}.",
                    f"I'm so {f} today.",
                ]
            ),
            answer,
        )
    ]
    if rng.random() < 0.3:
        turns.append(
            (
                rng.choice(
                    [
                        "I do not know.",
                        "Many things happened.",
                        "I talked with my friend.",
                        "It was a long day.",
                    ]
                ),
                rng.choice(AFTER_FEELINGS),
            )
        )
    return turns


def weather(rng: Random) -> list[Turn]:
    w, answer = rng.choice(WEATHER)
    return [
        (
            rng.choice(
                [
                    f"It is {w} today.",
                    f"It's {w} today.",
                    f"Today is a {w} day.",
                    f"It is very {w}.",
                ]
            ),
            answer,
        )
    ]


def animal(rng: Random) -> list[Turn]:
    a, n = rng.choice(ANIMALS)[0], rng.choice(NAMES)[0]
    an = "an" if a[0] in "aeiou" else "a"
    return [
        rng.choice(
            [
                (f"I have {an} {a}.", f"How nice! What is the name of your {a}?"),
                (f"I have {an} {a} named {n}.", f"{n} is a lovely name for {an} {a}!"),
                (
                    f"I like {a}s.",
                    f"{a.capitalize()}s are wonderful animals. Why do you like them?".replace(
                        "Mouses", "Mice"
                    ).replace("Sheeps", "Sheep"),
                ),
                (f"My {a}'s name is {n}.", f"{n} is a lovely name! Is {n} big or small?"),
                (
                    f"Do you like {a}s?",
                    f"Yes, I think {a}s are wonderful.".replace("mouses", "mice").replace(
                        "sheeps", "sheep"
                    ),
                ),
            ]
        )
    ]


def name(rng: Random) -> list[Turn]:
    n = rng.choice(NAMES)[0]
    turns = [
        (
            rng.choice(
                [
                    f"My name is {n}.",
                    f"I am {n}.",
                    f"I'm {n}.",
                    f"Hello, my name is {n}.",
                    f"Hi, I am {n}.",
                ]
            ),
            rng.choice([f"Nice to meet you, {n}!", f"Hello, {n}! Nice to meet you."]),
        )
    ]
    if rng.random() < 0.5:
        turns.append(
            (rng.choice(["What is my name?", "Do you remember my name?"]), f"Your name is {n}.")
        )
    return turns


def fact(rng: Random) -> list[Turn]:
    kind = rng.randrange(6)
    if kind == 0:
        thing, _, color, _ = rng.choice(COLORED)
        return [
            (
                rng.choice([f"What color is {thing}?", f"Tell me the color of {thing}."]),
                f"{thing.capitalize()} is {color}.",
            )
        ]
    if kind == 1:
        a, b, *_ = rng.choice(OPPOSITES)
        if rng.random() < 0.5:
            a, b = b, a
        return [
            (
                rng.choice([f"What is the opposite of {a}?", f'What is the opposite of "{a}"?']),
                f"The opposite of {a} is {b}.",
            )
        ]
    if kind == 2:
        a, sound, *_ = rng.choice(SOUNDS)
        return [
            (
                rng.choice([f"What does a {a} say?", f"What sound does a {a} make?"]),
                f'A {a} says "{sound}".',
            )
        ]
    if kind == 3:
        country, capital, *_ = rng.choice(CAPITALS)
        return [
            (
                rng.choice(
                    [
                        f"What is the capital of {country}?",
                        f"Tell me the capital of {country}.",
                        f"Which city is the capital of {country}?",
                    ]
                ),
                f"The capital of {country} is {capital}.",
            )
        ]
    if kind == 4:
        thing, use, *_ = rng.choice(USES)
        verb = "are" if thing in ("scissors", "glasses") else "is"
        return [
            (
                rng.choice([f"What {verb} {thing} for?", f"What do we use {thing} for?"]),
                f"We use {thing} to {use}.",
            )
        ]
    word = rng.choice(list(KINDS))
    picked = rng.sample(KINDS[word][1], 3)
    return [
        (
            rng.choice(
                [f"Name three {word}.", f"Tell me three {word}.", f"Can you name three {word}?"]
            ),
            f"Three {word} are {picked[0]}, {picked[1]} and {picked[2]}.",
        )
    ]


def time(rng: Random) -> list[Turn]:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    d = rng.randrange(7)
    return [
        rng.choice(
            [
                (f"What day comes after {days[d]}?", f"{days[(d + 1) % 7]} comes after {days[d]}."),
                (f"What day comes before {days[d]}?", f"{days[d - 1]} comes before {days[d]}."),
                ("How many days are in a week?", "There are seven days in a week."),
                ("How many months are in a year?", "There are twelve months in a year."),
                (
                    "What are the four seasons?",
                    "The four seasons are spring, summer, autumn and winter.",
                ),
                ("Which season is cold?", "Winter is cold."),
                ("Which season is hot?", "Summer is hot."),
                ("Which season do flowers bloom in?", "Many flowers bloom in spring."),
            ]
        )
    ]


def sums(rng: Random) -> list[Turn]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.3:
        a, b = max(a, b), min(a, b)
        thing = rng.choice(["apples", "oranges", "books", "stones", "cookies"])
        return [
            rng.choice(
                [
                    (f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."),
                    (f"{a} - {b} = ?", f"{a} - {b} = {a - b}"),
                    (
                        f"I have {a} {thing} and give away {b}. How many are left?",
                        f"You have {a - b} {thing} left.",
                    ),
                ]
            )
        ]
    return [
        rng.choice(
            [
                (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
                (f"{a} + {b} = ?", f"{a} + {b} = {a + b}"),
                (f"What is {a} + {b}?", f"{a} + {b} = {a + b}"),
            ]
        )
    ]


def tale(rng: Random) -> list[Turn]:
    a, n = rng.choice(ANIMALS)[0], rng.choice(NAMES)[0]
    an = "an" if a[0] in "aeiou" else "a"
    asked, hero, who = rng.choice(
        [
            (f"Tell me a story about {an} {a} named {n}.", a, n),
            (f"Tell me a story about {an} {a}.", a, None),
            ("Tell me a story.", None, None),
            ("Please tell me a short story.", None, None),
            (f"Tell me a story about {n}.", None, n),
            (f"Can you tell me a story about {an} {a} called {n}?", a, n),
        ]
    )
    return [(asked, story(rng, False, hero, who))]


def unknown(rng: Random) -> list[Turn]:
    return [
        (
            rng.choice(
                [
                    "What is the weather tomorrow?",
                    "What time is it?",
                    "Who won the game yesterday?",
                    "What is today's news?",
                    "What is the price of gold?",
                    "What is my age?",
                    "Where am I?",
                    "What day is it today?",
                ]
            ),
            rng.choice(
                [
                    "I do not know that. I am a very small model.",
                    "I cannot know that. I am only a small model without a clock or the internet.",
                ]
            ),
        )
    ]


TOPICS = [
    hello,
    bye,
    food,
    food,
    hobby,
    hobby,
    place,
    feeling,
    feeling,
    weather,
    animal,
    name,
    fact,
    fact,
    fact,
    time,
    sums,
    tale,
    tale,
    tale,
    unknown,
]
