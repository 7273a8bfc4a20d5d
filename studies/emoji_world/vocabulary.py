"""What the embedded world contains: its styles, its objects and the splits, chosen by eye and written down once.

Every object is a CLDR short name (as in ``emojibase-data``). A name appears in one split only:

* ``TRAINED``  the generator and the judges see it in the eight known styles;
* ``HELD_OUT`` the generator never sees it in any set; the judges do (unseen subjects, for personalization);
* ``FOLD``     neither the generator nor any judge ever sees it (scores the style judge and the self-supervised
encoder).

The set ``fxemoji`` is seen by nobody: it scores the judges on a style that they do not know. It has no near relative
among the others (``noto``/``noto-v1``, ``emojione``/``emojione-v1`` and ``fluent-emoji``/``fluent-emoji-flat`` are
pairs, each kept on one side).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Style:
    """One vendor's set: the name in captions, the npm package that holds it, its pinned version and its licence."""

    name: str
    package: str
    version: str
    author: str
    licence: str
    source: str


FAMILIES = {
    "noto": "noto",
    "blob": "noto",
    "fluent": "fluent",
    "fluent flat": "fluent",
    "emojione": "emojione",
    "emojione v1": "emojione",
}
"""Styles of one vendor at two times: much of what one drew the other has nearly copied."""

STYLES: tuple[Style, ...] = (
    Style(
        name="noto",
        package="noto",
        version="1.2.9",
        author="Google",
        licence="Apache-2.0",
        source="github.com/googlefonts/noto-emoji",
    ),
    Style(
        name="blob",
        package="noto-v1",
        version="1.2.5",
        author="Google",
        licence="Apache-2.0",
        source="github.com/googlefonts/noto-emoji",
    ),
    Style(
        name="fluent",
        package="fluent-emoji",
        version="1.2.7",
        author="Microsoft",
        licence="MIT",
        source="github.com/microsoft/fluentui-emoji",
    ),
    Style(
        name="fluent flat",
        package="fluent-emoji-flat",
        version="1.2.6",
        author="Microsoft",
        licence="MIT",
        source="github.com/microsoft/fluentui-emoji",
    ),
    Style(
        name="twemoji",
        package="twemoji",
        version="1.2.5",
        author="Twitter and contributors",
        licence="CC-BY-4.0",
        source="github.com/jdecked/twemoji",
    ),
    Style(
        name="emojione",
        package="emojione",
        version="1.2.3",
        author="Emoji One",
        licence="CC-BY-4.0",
        source="github.com/EmojiTwo/emojitwo",
    ),
    Style(
        name="emojione v1",
        package="emojione-v1",
        version="1.2.3",
        author="Emoji One",
        licence="CC-BY-SA-4.0",
        source="github.com/joypixels/emojione-legacy",
    ),
    Style(
        name="openmoji",
        package="openmoji",
        version="1.2.29",
        author="OpenMoji",
        licence="CC-BY-SA-4.0",
        source="github.com/hfg-gmuend/openmoji",
    ),
)
HELD_OUT_STYLE = Style(
    name="firefox",
    package="fxemoji",
    version="1.2.2",
    author="Mozilla",
    licence="Apache-2.0",
    source="github.com/mozilla/fxemoji",
)
EMOJIBASE_VERSION = "17.0.0"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(";") if name.strip())


TRAINED = _names("""
monkey face; dog face; cat face; tiger face; cow face; pig; elephant; mouse face; rabbit face; bear; panda; wolf;
chicken; baby chick; bird; penguin; frog; snake; spouting whale; dolphin; tropical fish; blowfish; spiral shell;
snail; ant; honeybee; lady beetle; spider; bouquet; rose; hibiscus; sunflower; tulip; seedling; evergreen tree;
palm tree; cactus; four leaf clover; maple leaf; mushroom; cherry blossom; grapes; watermelon; lemon; banana;
red apple; pear; peach; cherries; strawberry; tomato; eggplant; ear of corn; bread; meat on bone; poultry leg;
hamburger; french fries; pizza; cooking; rice ball; sushi; fried shrimp; soft ice cream; doughnut; cookie;
birthday cake; shortcake; chocolate bar; candy; lollipop; wine glass; cocktail glass; beer mug; hot beverage;
fork and knife; volcano; mount fuji; classical building; house; hospital; factory; castle; church; Tokyo tower;
Statue of Liberty; fountain; tent; roller coaster; carousel horse; barber pole; locomotive; bullet train; tram; bus;
ambulance; fire engine; police car; taxi; automobile; delivery truck; tractor; bicycle; fuel pump;
vertical traffic light; anchor; sailboat; speedboat; airplane; rocket; crescent moon; star; cloud; rainbow;
umbrella with rain drops; snowflake; snowman without snow; fire; droplet; sun with face; jack-o-lantern;
Christmas tree; balloon; wrapped gift; trophy; soccer ball; basketball; american football; flag in hole; pool 8 ball;
crystal ball; game die; performing arts; artist palette; running shirt; glasses; necktie; t-shirt; jeans; dress;
kimono; bikini; handbag; high-heeled shoe; crown; top hat; lipstick; ring; gem stone; running shoe; megaphone; bell;
musical note; microphone; radio; trumpet; guitar; violin; musical keyboard; battery; laptop; printer; floppy disk;
movie camera; television; magnifying glass tilted left; candle; light bulb; red paper lantern; open book; books;
telephone; newspaper; money bag; credit card; envelope; package; postbox; pencil; paintbrush; briefcase; scissors;
locked; key; hammer; bomb; nut and bolt; microscope; satellite antenna; syringe; pill; door; bed; toilet;
hourglass done; alarm clock; moai; dagger; shield; slot machine
""")

HELD_OUT = _names("""
koala; octopus; turtle; goat; camel; boar; hatching chick; rooster; poodle; crocodile; fish; paw prints; chipmunk;
dragon face; pineapple; melon; hot pepper; chestnut; blossom; herb; sheaf of rice; honey pot; custard; spaghetti;
bento box; dango; baby bottle; tropical drink; popcorn; shaved ice; oden; helicopter; ship; motorcycle;
aerial tramway; ferris wheel; circus tent; stadium; Japanese castle; bridge at night; desert island; hot springs;
snow-capped mountain; saxophone; headphone; camera; telescope; fax machine; joystick; electric plug; trackball;
film projector; graduation cap; sunglasses; purse; woman's hat; man's shoe; woman's boot; fishing pole; tennis;
baseball; party popper; ribbon; admission tickets; wrench; toothbrush; shower; bathtub; crayon; straight ruler;
wastebasket; money with wings; level slider; thermometer
""")

FOLD = _names("""
love hotel; water wave; military medal; deciduous tree; wind chime; carp streamer; ram; horse face; bus stop;
optical disk; rat; ox; rabbit; hamster; dove; dragon; whale; white flower; rosette; green apple; roasted sweet potato;
rice cracker; cooked rice; steaming bowl; ice cream; teacup without handle; sake; clinking beer mugs; world map;
camping; bank; hotel; wedding; monorail; mountain railway; articulated lorry; small airplane; seat;
suspension railway; station; construction; passenger ship; satellite; bellhop bell; watch; tornado; milky way;
confetti ball; tanabata tree; pine decoration; moon viewing ceremony; rugby football; skis; loudspeaker; postal horn;
musical score; studio microphone; control knobs; pager; keyboard; dvd; clapper board; flashlight; bookmark; label;
memo; black nib; clipboard; card file box; file cabinet
""")

# Candidates for the published studies, shown more often in training; every one is in TRAINED. The studies use
# those that are then drawn well (`ship.STUDY_ACCURACY`).
STUDY_OBJECTS = _names("""
church; castle; dog face; pizza; rocket; guitar; penguin; sunflower; bicycle; hamburger; strawberry; fire engine;
cactus; snail
""")

# A plural or a mass noun takes no article in a caption.
NO_ARTICLE = frozenset(
    _names("""
grapes; cherries; french fries; sushi; glasses; jeans; books; scissors; bowling; performing arts; sunglasses;
paw prints; oden; hot springs; popcorn; shaved ice; admission tickets; spaghetti; mount fuji; cooking; tennis; fire;
bread; money with wings; dango; sheaf of rice; skis; sake; construction; control knobs; cooked rice
""")
)

# fxemoji names its icons in its own way; where removing the hyphens is not enough, this says which icon it is.
FXEMOJI_NAMES = {
    "bread": "bread",
    "mouse face": "mouse",
    "rabbit face": "bunny",
    "cat face": "cat",
    "dog face": "dog",
    "tiger face": "tiger",
    "cow face": "cow",
    "horse face": "horse",
    "pig": "pigside",
    "panda": "pandaface",
    "wolf": "wolfface",
    "pizza": "sliceofpizza",
    "spouting whale": "spurtingwhale",
    "ear of corn": "earofmaize",
    "eggplant": "aubergine",
    "evergreen tree": "evergreen",
    "Tokyo tower": "toykotower",
    "house": "housebuilding",
    "castle": "europeancastle",
    "locomotive": "steamlocomotive",
    "bullet train": "highspeedtrainbulletnose",
    "fire engine": "fireengine",
    "wrapped gift": "present",
    "star": "whitemediumstar",
    "sun with face": "sunwithface",
    "cloud with lightning": "lightningmood",
    "full moon face": "fullmoonwithface",
    "jack-o-lantern": "jackolantern",
    "basketball": "basketballandhoop",
    "pool 8 ball": "billiards",
    "game die": "gamedie",
    "necktie": "tie",
    "t-shirt": "mansshirt",
    "high-heeled shoe": "heels",
    "gem stone": "gem",
    "megaphone": "megaphone",
    "mobile phone": "cellphone",
    "telephone": "blacktelephone",
    "laptop": "personalcomputer",
    "floppy disk": "softshellfloppy",
    "optical disk": "opticaldisc",
    "magnifying glass tilted left": "leftmagnifyingglass",
    "red paper lantern": "izakayalantern",
    "paintbrush": "lowerleftpaintbrush",
    "scissors": "blackscissors",
    "locked": "lock",
    "hourglass done": "hourglass",
    "moai": "moyai",
    "dagger": "daggerknife",
    "fork and knife": "forkknife",
    "bus stop": "busstop",
    "soft ice cream": "softicecream",
    "carousel horse": "carouselhorse",
    "flag in hole": "flaginhole",
    "musical note": "musicalnote",
    "microphone": "microphone",
    "cocktail glass": "cocktailglass",
    "camel": "bactriancamel",
    "hot pepper": "chilipepper",
    "tennis": "tennisball",
    "joystick": "joystick",
    "sunglasses": "darksunglasses",
    "man's shoe": "mensshoe",
    "woman's hat": "womanshat",
    "woman's boot": "boot",
    "fishing pole": "fishingpoleandfish",
    "crayon": "lowerleftcrayon",
    "ribbon": "heartribbon",
    "dragon face": "dragonhead",
    "snow-capped mountain": "snowmountains",
    "police car": "policecar",
    "umbrella with rain drops": "umbrellawithraindrops",
    "snowman without snow": "snowmanwithoutsnow",
    "purse": "pinkwallet",
}
