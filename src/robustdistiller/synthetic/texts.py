"""What the synthetic voices say: a small grammar of English sentences, spoken commands and smart-home requests.

A rule is a list of expansions; ``{rule}`` inside one is expanded in turn. All choices come from the generator given, so
a text is a function of its seed. The sentences are grammatical more often than they are sensible, which is all that an
unlabelled speech corpus needs: many words, in many contexts, with every phone of the language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

Grammar = Mapping[str, Sequence[str]]


def _rules(**rules: str) -> Grammar:
    """Expansions are separated by "|", or in a plain word list by spaces (an underscore is then a space in a word)."""
    return {
        name: [item.strip() for item in text.split("|")]
        if "|" in text
        else [item.replace("_", " ") for item in text.split()]
        for name, text in rules.items()
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


SENTENCES = _rules(
    text="""{clause}. | {clause}. | {clause}. | {clause}, {joint} {clause}. | {opening}, {clause}. | {clause} {when}.
| {question}? | {request}. | {request}, please. | {saying}. | {weather}. | {counting}.""",
    clause="""{who} {acted} {what} | {who} {acted} {what} | {who} {acted} {what} {where} | {who} {did} {how} | {who}
{did} {where} | {what} {state} | {who} {how} {acted} {what} | {who} who {did} {where} {acted} {what} | {who} had
{quality} {parts} | {what} that {who} {acted} {state} | there was {aquality} {thing} {where} | {who} {acted} {some}
{mass} and {what}""",
    question="""did {who} {act} {what} | where is the {thing} | who {acted} {what} | why was the {thing} so {quality}
| how many {plural} are {where} | have you seen {what} {where} | when will {name} arrive at the {place} | which
{thing} belongs to {who} | would you like {some} {mass} or {some} {mass} | is the {thing} {quality} or {quality} |
what did {who} think of the {thing}""",
    request="""{act} the {thing} {where} | do not {act} {what} | let us {act} {what} {when} | ask {who} about {what}
| give {name} the {quality} {thing} | remember to {act} {what} | tell {name} to {act} the {plural}""",
    saying="""{who} thought that {clause} | {name} said that {clause} | everybody knows that {clause} | it is
{quality} to {act} {what} | the {thing} is {comparison} than {what} | neither {name} nor {name} {did} | {name} would
rather {act} {what} than {act} {what}""",
    weather="""it was {aquality} {day} {where} | the {sky} was {quality} {when} | a {sky} rose over the {place} |
{when} the {sky} turned {quality} and {quality} | we could hear the {sky} from the {place}""",
    counting="""{name} counted {number} {plural} and {number} {plural} | {number} of the {plural} were {quality} |
the {thing} costs {number} pounds and {number} pence | the answer is {number} times {number} | take the {place} bus,
number {number} | page {number} is about the {plural} of the {place}""",
    who="""{name} | {name} | the {person} | the {person} | {his} {person} | the {quality} {person} | {aquality}
{person} | the {animal} | the {quality} {animal} | {name} and the {person}""",
    what="""the {thing} | the {thing} | the {quality} {thing} | {his} {thing} | {aquality} {thing} | the {plural} |
{number} {plural} | the {quality}, {quality} {thing} | the {thing} of the {person} | {some} {mass} | the {animal}""",
    where="""in the {place} | near the {place} | by the {thing} | under the {thing} | behind the {quality} {thing} |
at the {place} | between the {thing} and the {thing} | beyond the {place} | on the {thing} | across the {place} |
outside the {place}""",
    state="""was {quality} | looked {quality} | seemed {quality} and {quality} | was made of {mass} | fell on the
{thing} | belonged to {who} | was never {quality} | smelled of {mass}""",
    aquality="a {quality} | a very {quality} | a rather {quality}",
    act="""buy borrow bring carry catch change choose clean cover draw fetch find fix follow give_up hide hold join
keep lift measure mention move open pack paint pull push repair sell share shut show teach touch use visit wash
watch weigh wrap""",
    acted="""admired asked_about avoided bought borrowed brought broke built buried burned carried caught changed
chased checked chose cleaned collected copied counted covered crossed described discovered doubled drew dropped
enjoyed examined fetched filled finished fixed followed forgot found gathered gave_away guarded guessed handed_over
heard held hid hit hung ignored imagined improved joined judged jumped_over kept kicked knew left lifted liked lost
loved made measured mended missed moved needed noticed opened ordered owned packed painted passed picked_up placed
pointed_at polished pulled pushed put_away raised reached remembered repaired rescued returned saved saw
searched_for sent shared showed shook shut sketched sold stole stopped studied swapped threw_away touched traded
treasured turned_over used valued visited wanted washed watched weighed wiped wished_for wrapped""",
    animal="""badger bear bull camel cat chicken cow crow deer dog donkey duck eagle elephant falcon fox frog giraffe
goat goose hare hedgehog horse jackdaw jaguar kitten lamb leopard lion lizard monkey moth mouse otter owl parrot
pigeon pony puppy rabbit raven robin seal sheep snail sparrow spider squirrel swan tiger toad tortoise turkey
vulture whale wolf zebra""",
    comparison="older better worse cheaper heavier brighter rougher more_useful less_strange further_away",
    day="morning afternoon evening night day month journey winter",
    did="""argued arrived blushed bowed breathed coughed cried dreamed escaped fell finished froze giggled grew
hesitated hurried jumped knelt laughed left listened marched nodded paused played prayed ran rested returned
shivered shouted sighed slept smiled sneezed spoke stood stumbled swam talked trembled vanished voted waited
wandered wept whispered whistled woke worked yawned""",
    his="his her our my your their",
    how="""again alone already angrily away badly barely boldly bravely briefly calmly carefully cheerfully clearly
eagerly early easily exactly fairly finally gently gladly happily hardly heavily honestly joyfully kindly later
loudly merrily nearly nervously noisily often once openly patiently politely proudly quickly quietly rarely roughly
sadly safely seldom sharply silently slowly softly strangely suddenly sweetly thoughtfully together twice usually
warmly wisely yearly""",
    joint="and but because so while although until before",
    mass="""barley bread butter cheese coffee copper corn cream dust fish flour fruit glass gold grass honey ice ink
iron jam juice leather linen meat milk mud oil paint pepper rice rubber salt sand silk silver smoke snow soap soup
straw sugar tea thread timber vinegar water wheat wine wood wool""",
    month="January February March April May June July August September October November December",
    name="""Adam Alice Amelia Ben Bruno Carla Cedric Charlotte Daisy Derek Edith Fiona Frank George Grace Hannah
Harvey Ingrid Isaac Jasmine Joyce Julian Keith Laura Leonard Lucy Malcolm Maria Matthew Megan Nathan Nora Oliver
Oscar Patrick Philippa Quentin Rachel Roger Rosie Samuel Sheila Simon Susan Theo Thelma Ursula Victor Violet Walter
Wendy Yusuf Zoe""",
    number="""two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty_one fifty sixty_three seventy eighty_five ninety""",
    opening="""yesterday in_{month} last_{weekday} after_a_while to_be_honest as_usual in_the_{place} however
for_{number}_days long_ago when_the_{sky}_came without_a_word""",
    parts="eyes hands shoes hair teeth ears fingers thoughts trousers habits cheeks shoulders",
    person="""actor aunt baker barber boy builder butcher captain carpenter child chief clerk coach cook cousin
cyclist dancer daughter dentist doctor driver engineer farmer father fisherman gardener girl grandfather guard guide
hunter joiner judge king lawyer librarian manager mayor mechanic merchant mother musician neighbour nephew nurse
officer painter pilot plumber poet porter potter priest prince professor queen sailor scholar scientist shepherd
singer sister soldier stranger student surgeon tailor teacher thief traveller uncle visitor waiter weaver witness
woman youth""",
    place="""airport attic bakery bank barn bay beach border bottom_of_the_hill cafe camp canal cellar city coast
college corner_shop country courthouse desert east_gate farm ferry field forest garage garden harbour hill hospital
hotel island jungle kitchen lake library market meadow mill mine mountain museum north_shore ocean office orchard
palace park pier playground pond port prison railway river school shore shop south_road stable stadium station
studio suburb swamp theatre town valley village vineyard warehouse west_wing yard zoo""",
    plural="""apples bees birds boats bottles boxes boys bridges buses cages cards chairs cherries children churches
clouds coins cups ditches eggs faces flowers girls hats horses houses islands judges keys knives leaves matches
measures mice oysters pages peaches people pictures pigs roses ships shoes songs spoons stars stones things thumbs
toys trees valleys villages voices watches wheels wolves zebras""",
    quality="""ancient angry awful beautiful big black blue brave brief bright broad broken brown calm careful cheap
cheerful clean clear clever cold common curious damp dark dear deep dirty dull dusty eager early empty enormous
faint fair famous fat fierce flat foolish fresh friendly gentle glad golden good grand great green grey handsome
happy hard harsh heavy hollow honest huge hungry icy jolly kind large late lazy light little lonely long loud lovely
lucky mighty modern narrow nasty neat new noisy odd old orange pale patient plain pleasant polite poor pretty proud
purple quick quiet rare raw red rich rough round royal rude sad shallow sharp shiny short shy silent silly silver
simple slender slow small smooth soft sour square stiff strange strong sweet tall thick thin thirsty tidy tiny tired
ugly unusual useful useless vast violet warm weak weary wet white wicked wide wild wise wooden yellow young zealous""",
    season="spring summer autumn winter harvest war voyage holidays measurement treasure_hunt",
    sky="sky sun moon rain wind thunder fog storm cloud tide",
    some="some a_little too_much enough a_bowl_of plenty_of",
    thing="""anchor apple axe bag ball banjo barrel basket bath bell bench bicycle blanket boat book bottle bowl box
bread bridge brush bucket button cabin cake camera candle carpet cart castle chain chair chalk cheese chest chimney
church clock cloth coat cup coin computer cottage curtain desk diary dish drawer dress drum engine envelope feather
fence fiddle flag flute fork fountain garage garden gate glove hammer hat hedge helmet house jacket jar jewel jug
kettle key kitchen kite knife ladder lamp lantern letter lighthouse machine map mask tape medal mirror necklace
needle newspaper notebook oar onion orange oven package painting paper parcel path pear pencil photograph piano
picture pillow pipe plate pocket pool pot purse puzzle radio ring road roof rope rug saddle sail saucer scarf shawl
shelf ship shirt shoe shovel sign spoon stamp stone stove street suitcase sweater sword table teapot telephone tent
thimble ticket towel tower tractor train treasure tree trumpet tunnel umbrella vase vehicle violin wagon wall watch
wheel whistle window yacht yellow zip toy""",
    weekday="Monday Tuesday Wednesday Thursday Friday Saturday Sunday week month",
    when="""this_morning yesterday at_noon last_{weekday} every_{weekday} before_{weekday} in_{month} tonight
after_breakfast during_the_{season} {number}_years_ago at_{number}_o'clock just_before_sunrise""",
)

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

INTENTS = _rules(
    text="""{ask} {request} | {ask} {request} please | {request} | {request} | {request}, please | {hello}, {request}
| {hello}, {ask} {request} | {request} {now}""",
    ask="can you | could you | would you | I want you to | please",
    hello="hey there | okay house | good morning | listen | excuse me",
    now="now | right away | for me | for a while | tonight",
    lights="lights | lights | lamps | lamp | light",
    heating="heating | heating | heater | radiator",
    music="music | music | radio | song",
    blinds="blinds | blinds | curtains | shutters",
    kitchen="in the kitchen | in the kitchen | for the kitchen | by the kitchen table",
    bedroom="in the bedroom | in the bedroom | in my bedroom | next to the bed",
    lounge="in the lounge | in the lounge | in the living room | by the sofa",
    bathroom="in the bathroom | in the bathroom | for the bathroom | by the bath",
    on="turn on the {it} {there} | turn the {it} on {there} | switch on the {it} {there} | start the {it} {there}",
    off="turn off the {it} {there} | turn the {it} off {there} | switch off the {it} {there} | stop the {it} {there}",
    up="turn up the {it} {there} | increase the {it} {there} | increase the {it} {there} | give me more {it} {there}",
    down="turn down the {it} {there} | reduce the {it} {there} | reduce the {it} {there} | give me less {it} {there}",
    open="open the {it} {there} | pull the {it} {there} open | open up the {it} {there}",
    close="close the {it} {there} | pull the {it} {there} shut | shut the {it} {there}",
)
ACTIONS = dict.fromkeys(("lights", "heating", "music"), ("on", "off", "up", "down")) | {"blinds": ("open", "close")}
LOCATIONS = ("kitchen", "bedroom", "lounge", "bathroom", "none")


def intent(slots: Mapping[str, str], rng: np.random.Generator) -> str:
    """A request with these slots: `action` and `object` of `ACTIONS`, `location` of `LOCATIONS` ("none": not said)."""
    there = "" if slots["location"] == "none" else "{" + slots["location"] + "}"
    request = [form.format(it="{" + slots["object"] + "}", there=there) for form in INTENTS[slots["action"]]]
    text = " ".join(expand({**INTENTS, "request": request}, "text", rng).split())
    return text[0].upper() + text[1:] + "."
