"""What the synthetic voices say: a small grammar of English sentences, spoken commands and smart-home requests.

A rule is a list of expansions; ``{rule}`` inside one is expanded in turn. All choices come from the generator given, so
a text is a function of its seed. The sentences are grammatical more often than they are sensible, which is all that an
unlabelled speech corpus needs: many words, in many contexts, with every phone of the language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..files import read_mapping

Grammar = Mapping[str, Sequence[str]]


def _grammar(name: str) -> Grammar:
    rules = read_mapping(Path(__file__).with_name("grammars.yaml"), "grammar")[name]
    return {
        rule: [item.strip() for item in text.split("|")]
        if "|" in text
        else [item.replace("_", " ") for item in text.split()]
        for rule, text in rules.items()
    }


def expand(grammar: Grammar, rule: str, rng: np.random.Generator) -> str:
    """One random expansion of `rule`, every expansion of a rule being equally likely."""
    choices = grammar[rule]
    text = choices[int(rng.integers(len(choices)))]
    return re.sub(r"{(\w+)}", lambda found: expand(grammar, found[1], rng), text)


def sentence(rng: np.random.Generator) -> str:
    """One English sentence of some 4 to 25 words."""
    text = expand(SENTENCES, "text", rng)
    text = re.sub(r"\b([Aa]) (?=[aeiou])(?!use|uni|one|once)", r"\1n ", text)
    return text[0].upper() + text[1:]


SENTENCES, INTENTS = _grammar("sentences"), _grammar("requests")

# The ten words of the classical keyword task, and others to be told from them: some near in sound, some far.
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_OTHERS = """dawn town yet less snow note cup pup lift leaf light rice gone own often cough stock top goal girl though
nine five seven three zero bird house happy follow visual forward marble tree window garden water music pencil yellow
seat help wrong open shut under ten slow"""
OTHER_WORDS = tuple(_OTHERS.split())
CARRIERS = (
    "I said {word} to her.", "The word is {word}, again.", "Please say {word} now.", "Was it {word} or maybe?",
    "We heard {word} twice.", "Now {word} and then more.",
)  # fmt: skip

ACTIONS = dict.fromkeys(("lights", "heating", "music"), ("on", "off", "up", "down")) | {"blinds": ("open", "close")}
LOCATIONS = ("kitchen", "bedroom", "lounge", "bathroom", "none")


def intent(slots: Mapping[str, str], rng: np.random.Generator) -> str:
    """A request with these slots: `action` and `object` of `ACTIONS`, `location` of `LOCATIONS` ("none": not said)."""
    there = "" if slots["location"] == "none" else "{" + slots["location"] + "}"
    request = [form.format(it="{" + slots["object"] + "}", there=there) for form in INTENTS[slots["action"]]]
    text = " ".join(expand({**INTENTS, "request": request}, "text", rng).split())
    return text[0].upper() + text[1:] + "."
