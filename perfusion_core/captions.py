"""Captions from which the covariance of a text encoder is estimated: varied ones, and those of a user."""

import random
from collections.abc import Iterable
from pathlib import Path

from . import PerfusionError
from .safe_files import shown, stays_inside

MAX_BYTES = 8 * 2**20
"""Maximum size of a file of captions."""
MOST, LONGEST = 100_000, 2000
"""Maximum number of lines of captions, and of characters in one."""

# fmt: off
THINGS = """
apple arm armchair arrow baby backpack bag ball balloon banana band bank barn barrel basket bat bath battery beach bear beard bed
bee beetle bell belt bench bicycle bird blanket blossom board boat bone book boot bottle bowl box boy bracelet branch bread brick
bridge broom brush bucket building bulb bull bus bush butter butterfly button cabbage cabin cable cactus cafe cage cake camel
camera camp candle candy canoe canyon cap cape car card carpet carrot castle cat cave chain chair chalk cheese cherry chess
chicken child chimney chocolate church circle city clay cliff clock cloth cloud clown coat coconut coffee coin collar comb
computer cook corn corner couch cow crab crane crayon crib crow crown cup curtain cushion dancer deer desert desk diamond dice
dinner dinosaur doctor dog doll dolphin donkey door dragon dragonfly drawer dress drink driver drum duck eagle ear earth egg
elbow elephant engine envelope eye face factory family fan farm farmer feather fence field figure finger fire fish flag flame
flamingo flashlight flower flute fly forest fork fountain fox frame friend frog fruit garage garden gate ghost giant gift giraffe
girl glass glove goat gold goose grandmother grape grass guitar gull hair hall hammer hamster hand harbour hat hawk head heart
hedgehog helicopter helmet hen hero hill hippo hole honey hook horn horse hospital hotel house hut ice insect island jacket jar
jeans jelly jewel judge jug juice jungle kangaroo kettle key keyboard king kitchen kite kitten knife knight knot ladder lady lake
lamb lamp lantern laptop leaf leather leg lemon leopard letter library light lighthouse lily lion lip lizard llama lobster lock
log lunch machine magazine magnet mailbox man map market mask match meadow meat mermaid metal microphone milk mirror money monkey
monster moon mop moth mother motorcycle mountain mouse mouth mud mug muscle museum mushroom music nail neck necklace needle nest
net newspaper noodle nose notebook nurse nut oak ocean octopus office oil olive onion orange orchid ostrich oven owl ox page paint
painter palace palm pan panda paper parachute park parrot path peach peacock pear pen pencil penguin people pepper piano pie pig
pigeon pillow pilot pineapple pipe pirate pizza plane planet plant plate player plum pocket police pond pony pool popcorn portrait
pot potato priest prince princess pumpkin puppet puppy purse puzzle queen rabbit radio railway rain rat razor ribbon rice ring
river road robot rock rocket roof room rope rose rug ruler sailor salad sand sandwich saw scarf school scissors screen sculpture
sea seal seed shadow shark sheep shell ship shirt shoe shop shoulder shovel singer skateboard skeleton ski skirt skull sky slipper
smoke snail snake snow soap sock sofa soldier soup spider spoon squirrel stairs star station statue stick stone stool store storm
stove strawberry street student suit suitcase sun sunflower swan sweater swing sword table tail tank taxi tea teacher teapot teddy
telephone temple tent theatre thumb tiger toast toilet tomato tool tooth toothbrush tower town toy tractor train tree triangle
truck trumpet trunk turkey turtle umbrella unicorn vase vegetable village violin volcano waiter wall wallet walnut warrior watch
water waterfall watermelon wave whale wheat wheel whistle wig window wine wing witch wizard wolf woman wood worm yacht zebra
""".split()


QUALITIES = """
ancient angry big bitter black blue blurry bold bright brilliant broken brown busy calm careful cheap clean clear clever cold
colourful cool crooked curly cute dark deep delicate dirty dry dusty elegant empty enormous expensive fancy fast fat flat fluffy
fresh frozen full funny furry gentle giant glossy golden gray greasy green hairy happy hard heavy hollow hot huge hungry icy large
lazy light little lonely long loud lucky messy metallic modern muddy mysterious narrow neat new noisy old open orange pale pink
plain plastic polished poor pretty proud purple quick quiet rainy rare red rich rough round rusty sad scary shallow sharp shiny
short silent silver simple sleepy slow small smooth soft sour square sticky strange striped strong sunny sweet tall tasty thick
thin tiny tired tough transparent ugly violet warm weak wet white wide wild wise wooden yellow young
""".split()


DEEDS = """
balancing biting blowing building burning buying carrying catching chasing cleaning climbing cooking crossing cutting dancing
digging drawing dreaming drinking driving eating exploring facing falling feeding fighting filling fishing fixing floating flying
following guarding hiding holding hugging hunting jumping kicking kissing laughing leaning lifting lying melting opening painting
playing pointing pulling pushing reading resting riding running sailing selling singing sitting skating sleeping smiling spinning
standing swimming talking teaching throwing touching walking washing watching waving wearing winning working writing
""".split()


PLACES = """
above among around at behind below beside beyond by inside in|front|of near next|to on on|top|of outside over through under with
""".replace("\n", " ").split()


SETTINGS = """
afternoon airport autumn background balcony bakery ballroom basement bathroom bedroom bookshop cathedral ceiling cinema classroom
coast countryside courtyard darkness dawn dusk evening fairground festival floor fog greenhouse gym hallway harvest heaven horizon
jail laboratory lawn midnight mist morning night noon ocean orchard party pavement playground porch prairie rainbow rooftop ruins
shore sidewalk space spring stadium stage street studio subway summer sunrise sunset supermarket swamp thunderstorm twilight valley
waterfront wedding wilderness winter workshop zoo
""".split()


STYLES = """
a|photo|of a|drawing|of an|oil|painting|of a|sketch|of a|close-up|of a|watercolour|of a|poster|of a|cartoon|of a|statue|of
an|old|photograph|of a|rendering|of a|pencil|drawing|of a|mosaic|of a|stamp|with a|logo|of a|video|of an|illustration|of
a|silhouette|of a|wide|shot|of a|macro|photo|of a|toy|version|of a|story|about a|map|of the|sound|of no
""".split()


NUMBERS = "one two three four five many several some no another every".split()


def phrase(rng: random.Random) -> str:
    """Return a random noun phrase with up to two adjectives, such as "a rusty old bicycle"."""
    words = [*rng.sample(QUALITIES, rng.choice((0, 0, 1, 1, 2))), rng.choice(THINGS)]
    if rng.random() < 0.2:
        return f"{rng.choice(NUMBERS)} {' '.join(words)}s"
    article = rng.choice(("a", "a", "the", "my"))
    return f"{'an' if article == 'a' and words[0][0] in 'aeiou' else article} {' '.join(words)}"


def captions(count: int, seed: int = 0) -> list[str]:
    """Return varied captions, the same for the same seed; words occur about equally often, unlike in real caption data.

    The metric of the edit distinguishes words only along directions that occur in these captions.
    """
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        parts = []
        if rng.random() < 0.6:
            parts.append(rng.choice(STYLES).replace("|", " "))
        parts.append(phrase(rng))
        if rng.random() < 0.5:
            parts.append(rng.choice(DEEDS))
        for _ in range(rng.choice((0, 1, 1, 2))):
            parts += [rng.choice(PLACES).replace("|", " "), phrase(rng)]
        if rng.random() < 0.4:
            parts.append(f"{rng.choice(('in', 'at', 'on'))} the {rng.choice(SETTINGS)}")
        if rng.random() < 0.15:
            parts = [" ".join(rng.sample(THINGS + QUALITIES + DEEDS + SETTINGS, rng.randint(3, 12)))]
        made.append(" ".join(parts))
    return made


def lines_of(texts: Iterable[str]) -> list[str]:
    """Return the captions in texts, one per line, without empty lines.

    Raises:
        PerfusionError: there are more than MOST lines, or one has more than LONGEST characters.
    """
    found = []
    for i, line in enumerate(line for text in texts for line in text.splitlines()):
        if i == MOST:
            raise PerfusionError(f"There are more than {MOST} lines of captions; use fewer.")
        if len(line) > LONGEST:
            raise PerfusionError(f"A caption has {len(line)} characters, more than the limit of {LONGEST}; write one per line.")
        found.append(line.strip())
    return list(filter(None, found))


def in_file(folder: Path, name: str) -> list[str]:
    """Return the captions in a UTF-8 text file of a folder, as `lines_of` does.

    Raises:
        PerfusionError: the name leads out of the folder, or the file is missing, too large or not UTF-8 text.
    """
    path = folder / name
    try:
        # The name is examined first: on Windows, merely looking for a path such as //host/share connects to that host.
        if not (stays_inside(name) and path.is_file() and path.resolve().is_relative_to(folder.resolve())):
            raise PerfusionError(
                f"There is no file {name[:200]!r} in the input folder; put a text file there with one caption per line."
            )
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise PerfusionError(f"{shown(path)} is {size} bytes, more than the limit of {MAX_BYTES} for captions; shorten it.")
        with path.open(encoding="utf-8") as file:
            return lines_of(file)
    except PerfusionError:
        raise
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, or a name that no file can have
        raise PerfusionError(f"{shown(path)} is not a readable UTF-8 text file; save the captions as plain text.") from error
