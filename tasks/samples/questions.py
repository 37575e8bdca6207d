"""What can be asked about a scene, with the answer that follows from it.

Two kinds of topic: those of `YES_NO` are asked so that the wanted answer is right, those of `OPEN` have a short answer
and other answers of the same kind to choose from. A topic that a scene doesn't support gives None. Questions name a
thing by the shortest of "the circle", "the red circle", "the large red circle" that fits one thing alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vlmamba_eval.tasks.samples.scene import BACKGROUNDS, COLORS, REGIONS, SHAPES, SPANISH, WORDS, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ALL_REGIONS = tuple(region for row in REGIONS for region in row)
SIDES = {"to the left of": "to the right of", "above": "below", "to the right of": "to the left of", "below": "above"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a question's program, in GQA's notation; `needs` are the steps that it works on."""

    operation: str
    argument: str
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer: `"yes"`, `"no"`, or one short answer; `others` are wrong answers of the same kind."""

    topic: str
    question: str
    answer: str
    sentence: str
    program: tuple[Step, ...] = ()
    others: tuple[str, ...] = ()


# =============================================================================
# Names of things
# =============================================================================


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str, n: int) -> str:
    if n == 1:
        return noun
    return noun + ("es" if noun.endswith("s") else "s")


def matches(thing: Thing, noun: str) -> bool:
    """Whether a noun such as `circle`, `red circle` or `large red circle` fits the thing. `object` fits all."""
    *adjectives, kind = noun.split()
    return kind in (thing.shape, "object") and all(word in (thing.color, thing.size) for word in adjectives)


def number_of(scene: Scene, noun: str) -> int:
    return sum(matches(thing, noun) for thing in scene.things)


def name(scene: Scene, thing: Thing, hide: str = "") -> str | None:
    """The shortest noun for this thing alone; None if there is none. `hide` is the property that is asked about."""
    nouns = {
        "": (thing.shape, f"{thing.color} {thing.shape}", f"{thing.size} {thing.color} {thing.shape}"),
        "color": (thing.shape, f"{thing.size} {thing.shape}"),
        "size": (thing.shape, f"{thing.color} {thing.shape}"),
        "shape": (f"{thing.color} object",),
    }[hide]
    return next((noun for noun in nouns if number_of(scene, noun) == 1), None)


def named(scene: Scene, rng: random.Random, hide: str = "") -> list[tuple[Thing, str]]:
    """The things that have a name, shuffled."""
    pairs = [(thing, noun) for thing in scene.things if (noun := name(scene, thing, hide))]
    rng.shuffle(pairs)
    return pairs


def is_side(first: Thing, side: str, second: Thing) -> bool:
    return {
        "to the left of": first.column < second.column,
        "to the right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[side]


def places(thing: Thing) -> tuple[str, ...]:
    """The parts of the image, of the six that questions name, which the thing is in."""
    rows = ("at the top of", "in the middle row of", "at the bottom of")
    columns = ("on the left side of", "in the middle column of", "on the right side of")
    return rows[thing.row], columns[thing.column]


ALL_PLACES = (
    "at the top of", "in the middle row of", "at the bottom of",
    "on the left side of", "in the middle column of", "on the right side of",
)  # fmt: skip


def _select(scene: Scene, noun: str) -> tuple[Step, ...]:
    """The steps that pick the thing or things of a noun."""
    *adjectives, kind = noun.split()
    indices = [str(i) for i, thing in enumerate(scene.things) if matches(thing, noun)]
    steps = [Step("select", f"{kind} ({','.join(indices) or '-'})")]
    for adjective in adjectives:
        filtered = "color" if adjective in COLORS else "size"
        steps.append(Step(f"filter {filtered}", adjective, (len(steps) - 1,)))
    return tuple(steps)


def _after(steps: tuple[Step, ...], operation: str, argument: str) -> tuple[Step, ...]:
    return (*steps, Step(operation, argument, (len(steps) - 1,)))


def _joined(first: tuple[Step, ...], second: tuple[Step, ...], operation: str, argument: str = "") -> tuple[Step, ...]:
    moved = tuple(Step(s.operation, s.argument, tuple(n + len(first) for n in s.needs)) for s in second)
    return (*first, *moved, Step(operation, argument, (len(first) - 1, len(first) + len(second) - 1)))


def _said(truth: bool) -> str:
    return "yes" if truth else "no"


# =============================================================================
# Yes or no
# =============================================================================


def is_there(scene: Scene, noun: str, place: str = "the image") -> Asked:
    """POPE's question about one noun."""
    truth = number_of(scene, noun) > 0
    return Asked(
        "exist",
        f"Is there {a(noun)} in {place}?",
        _said(truth),
        f"Yes, there is {a(noun)}." if truth else f"No, there is no {noun}.",
        _after(_select(scene, noun), "exist", "?"),
    )


def absent_nouns(scene: Scene, adversarial: bool) -> list[str]:
    """Nouns that fit nothing in the scene; adversarial ones mix a colour and a shape that are both there."""
    shapes, colors = {t.shape for t in scene.things}, {t.color for t in scene.things}
    if adversarial:
        nouns = [f"{color} {shape}" for color in COLORS for shape in SHAPES if color in colors and shape in shapes]
    else:
        nouns = [*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES)]
    return [noun for noun in nouns if number_of(scene, noun) == 0]


def exist(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if want:
        thing = rng.choice(scene.things)
        noun = rng.choice((thing.shape, f"{thing.color} {thing.shape}"))
    elif rng.random() < 0.4:
        noun = rng.choice([shape for shape in SHAPES if number_of(scene, shape) == 0])
    else:
        nouns = (rng.random() < 0.6 and absent_nouns(scene, adversarial=True)) or absent_nouns(scene, adversarial=False)
        noun = rng.choice(nouns)
    return is_there(scene, noun, rng.choice(("the image", "this image")))


# How often a wrong number is asked for, so that the words alone don't tell the answer: about as often as it is right.
_WRONG_COUNTS = {"shape": (0.25, 2.0, 0.25, 0.12, 0.05), "object": (0.03, 0.5, 0.5, 0.2, 0.07)}


def _counted(scene: Scene, rng: random.Random) -> str:
    """What to count: shapes that occur repeatedly and all objects are preferred to shapes that occur once."""
    repeated = sorted({thing.shape for thing in scene.things if number_of(scene, thing.shape) > 1})
    if repeated and rng.random() < 0.6:
        return rng.choice(repeated)
    return "object" if rng.random() < 0.5 else rng.choice(scene.things).shape


def count_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    noun = _counted(scene, rng)
    right = number_of(scene, noun)
    weights = list(_WRONG_COUNTS["object" if noun == "object" else "shape"])
    weights[right - 1] = 0
    n = right if want else rng.choices((1, 2, 3, 4, 5), weights)[0]
    if n == 1:
        question = f"Is there only one {noun} in the image?"
    else:
        question = f"Are there {NUMBERS[n]} {plural(noun, n)} in the image?"
    sentence = f"There {'is' if right == 1 else 'are'} {NUMBERS[right]} {plural(noun, right)}."
    return Asked("count_is", question, _said(want), sentence, _after(_select(scene, noun), "verify count", str(n)))


def color_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    for thing, noun in named(scene, rng, "color"):
        # Half of the wrong colours are another thing's: a model must bind colour to shape, not only see both.
        elsewhere = [t.color for t in scene.things if t.color != thing.color]
        wrong = elsewhere if elsewhere and rng.random() < 0.5 else [c for c in COLORS if c != thing.color]
        color = thing.color if want else rng.choice(wrong)
        sentence = f"{'Yes' if want else 'No'}, the {noun} is {thing.color}."
        program = _after(_select(scene, noun), "verify color", color)
        return Asked("color_is", f"Is the {noun} {color}?", _said(want), sentence, program)
    return None


def shape_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    for thing, noun in named(scene, rng, "shape"):
        elsewhere = [t.shape for t in scene.things if t.shape != thing.shape]
        wrong = elsewhere if elsewhere and rng.random() < 0.5 else _rest(SHAPES, thing.shape)
        shape = thing.shape if want else rng.choice(wrong)
        sentence = f"{'Yes' if want else 'No'}, the {noun} is {a(thing.shape)}."
        program = _after(_select(scene, noun), "verify shape", shape)
        return Asked("shape_is", f"Is the {noun} {a(shape)}?", _said(want), sentence, program)
    return None


def size_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    for thing, noun in named(scene, rng, "size"):
        size = thing.size if want else next(s for s in ("large", "small") if s != thing.size)
        sentence = f"{'Yes' if want else 'No'}, the {noun} is {thing.size}."
        program = _after(_select(scene, noun), "verify size", size)
        return Asked("size_is", f"Is the {noun} {size}?", _said(want), sentence, program)
    return None


def place_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    for thing, noun in named(scene, rng):
        place = rng.choice([p for p in ALL_PLACES if (p in places(thing)) == want])
        sentence = f"{'Yes' if want else 'No'}, the {noun} is {' and '.join(places(thing))} the image."
        program = _after(_select(scene, noun), "verify position", place)
        return Asked("place_is", f"Is the {noun} {place} the image?", _said(want), sentence, program)
    return None


def relation_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    pairs = named(scene, rng)
    sides = list(SIDES)
    rng.shuffle(sides)
    for first, noun in pairs:
        for second, other in pairs:
            for side in sides:
                if is_side(first, side, second):
                    asked = side if want else SIDES[side]
                    sentence = f"{'Yes' if want else 'No'}, the {noun} is {side} the {other}."
                    program = _joined(_select(scene, noun), _select(scene, other), "verify rel", f"{asked},s")
                    return Asked("relation_is", f"Is the {noun} {asked} the {other}?", _said(want), sentence, program)
    return None


def background_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    color = scene.background if want else rng.choice([b for b in BACKGROUNDS if b != scene.background])
    sentence = f"{'Yes' if want else 'No'}, the background is {scene.background}."
    program = _after((Step("select", "scene"),), "verify background", color)
    return Asked("background_is", f"Is the background {color}?", _said(want), sentence, program)


def sign_says(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if not scene.sign or scene.sign.kind not in ("word", "spanish"):
        return None
    text = scene.sign.text
    word = text if want else rng.choice([w for w in (*WORDS, *SPANISH) if w != text])
    program = _after((Step("select", "sign"),), "verify text", word)
    return Asked("sign_says", f'Does the sign say "{word}"?', _said(want), f'The sign says "{text}".', program)


def sum_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if not scene.sign or scene.sign.kind != "sum":
        return None
    right = sum(scene.sign.numbers)
    n = right if want else rng.choice([n for n in range(2, 11) if 0 < abs(n - right) <= 3])
    program = _after((Step("select", "sign"),), "verify sum", str(n))
    question = f"Is the answer to the arithmetic question in the image {n}?"
    return Asked("sum_is", question, _said(want), f"{scene.sign.text} is {right}.", program)


def comparison_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if not scene.sign or scene.sign.kind != "comparison":
        return None
    left, right = scene.sign.numbers
    value = (left > right) == want
    program = _after((Step("select", "sign"),), "verify value", str(value))
    question = f"Is the value of the Python expression in the image {value}?"
    return Asked("comparison_is", question, _said(want), f"The value of {scene.sign.text} is {left > right}.", program)


def translation_is(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if not scene.sign or scene.sign.kind != "spanish":
        return None
    right = SPANISH[scene.sign.text]
    word = right if want else rng.choice([w for w in SPANISH.values() if w != right])
    program = _after((Step("select", "sign"),), "verify meaning", word)
    question = f'Is it right to translate the Spanish word in the image as "{word}"?'
    return Asked("translation_is", question, _said(want), f'{scene.sign.text} means "{right}".', program)


def same_color(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    pairs = named(scene, rng, "color")
    for first, noun in pairs:
        for second, other in pairs:
            if first is not second and (first.color == second.color) == want:
                program = _joined(_select(scene, noun), _select(scene, other), "same color")
                sentence = f"The {noun} is {first.color} and the {other} is {second.color}."
                question = f"Do the {noun} and the {other} have the same color?"
                return Asked("same_color", question, _said(want), sentence, program)
    return None


def same_shape(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    if len(scene.things) < 2 or (len({thing.shape for thing in scene.things}) == 1) != want:
        return None
    program = _after(_select(scene, "object"), "same shape", "")
    sentence = "Yes, they are." if want else "No, they are not."
    return Asked("same_shape", "Are all objects of the same shape?", _said(want), sentence, program)


def both(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    present = sorted({thing.shape for thing in scene.things})
    if not want:
        pair = [rng.choice(present), rng.choice(_absent_shapes(scene))]
        rng.shuffle(pair)
    elif len(present) > 1:
        pair = rng.sample(present, 2)
    else:
        return None
    return _of_two(scene, "both", "and", pair, want)


def either(scene: Scene, rng: random.Random, want: bool) -> Asked | None:
    absent = _absent_shapes(scene)
    if want:
        pair = [rng.choice(scene.things).shape, rng.choice(absent)]
        rng.shuffle(pair)
    elif len(absent) > 1:
        pair = rng.sample(absent, 2)
    else:
        return None
    return _of_two(scene, "either", "or", pair, want)


def _absent_shapes(scene: Scene) -> list[str]:
    return [shape for shape in SHAPES if number_of(scene, shape) == 0]


def _of_two(scene: Scene, topic: str, word: str, pair: list[str], truth: bool) -> Asked:
    first, second = pair
    programs = [_after(_select(scene, shape), "exist", "?") for shape in pair]
    start = "Are there both" if topic == "both" else "Is there"
    counts = [f"{number_of(scene, shape)} {plural(shape, 2)}" for shape in pair]
    question = f"{start} {a(first)} {word} {a(second)} in the image?"
    program = _joined(programs[0], programs[1], word)
    return Asked(topic, question, _said(truth), f"There are {' and '.join(counts)}.", program)


# =============================================================================
# Short answers
# =============================================================================


def _rest(kinds: tuple[str, ...] | list[str], answer: str) -> tuple[str, ...]:
    return tuple(kind for kind in kinds if kind != answer)


def color(scene: Scene, rng: random.Random) -> Asked | None:
    for thing, noun in named(scene, rng, "color"):
        program = _after(_select(scene, noun), "query", "color")
        sentence = f"The {noun} is {thing.color}."
        others = _rest(list(COLORS), thing.color)
        return Asked("color", f"What color is the {noun}?", thing.color, sentence, program, others)
    return None


def shape(scene: Scene, rng: random.Random) -> Asked | None:
    for thing, noun in named(scene, rng, "shape"):
        program = _after(_select(scene, noun), "query", "shape")
        sentence = f"The {noun} is {a(thing.shape)}."
        return Asked("shape", f"What shape is the {noun}?", thing.shape, sentence, program, _rest(SHAPES, thing.shape))
    return None


def size(scene: Scene, rng: random.Random) -> Asked | None:
    for thing, noun in named(scene, rng, "size"):
        program = _after(_select(scene, noun), "query", "size")
        sentence = f"The {noun} is {thing.size}."
        others = _rest(("large", "small"), thing.size)
        return Asked("size", f"What size is the {noun}?", thing.size, sentence, program, others)
    return None


def where(scene: Scene, rng: random.Random) -> Asked | None:
    for thing, noun in named(scene, rng):
        program = _after(_select(scene, noun), "query", "position")
        sentence = f"The {noun} is at the {thing.region}."
        others = _rest(ALL_REGIONS, thing.region)
        return Asked("where", f"Where in the image is the {noun}?", thing.region, sentence, program, others)
    return None


def at_region(scene: Scene, rng: random.Random) -> Asked | None:
    thing = rng.choice(scene.things)
    program = _after(_select(scene, "object"), f"filter position {thing.region}", "shape")
    question = f"What shape is at the {thing.region} of the image?"
    sentence = f"At the {thing.region} is {a(thing.shape)}."
    return Asked("at_region", question, thing.shape, sentence, program, _rest(SHAPES, thing.shape))


def relation(scene: Scene, rng: random.Random) -> Asked | None:
    sides = list(SIDES)
    rng.shuffle(sides)
    for anchor, noun in named(scene, rng):
        for side in sides:
            found = [thing for thing in scene.things if is_side(thing, side, anchor)]
            if len(found) == 1:
                answer = found[0].shape
                program = _after(_after(_select(scene, noun), "relate", f"_,{side},s"), "query", "shape")
                sentence = f"{a(answer).capitalize()} is {side} the {noun}."
                question = f"What shape is {side} the {noun}?"
                return Asked("relation", question, answer, sentence, program, _rest(SHAPES, answer))
    return None


def count(scene: Scene, rng: random.Random) -> Asked | None:
    noun = rng.choice((_counted(scene, rng), rng.choice(SHAPES)))
    n = number_of(scene, noun)
    others = tuple(str(k) for k in range(6) if k != n)
    sentence = f"There {'is' if n == 1 else 'are'} {NUMBERS[n]} {plural(noun, n)}."
    program = _after(_select(scene, noun), "query", "count")
    return Asked("count", f"How many {plural(noun, 2)} are in the image?", str(n), sentence, program, others)


def background(scene: Scene, rng: random.Random) -> Asked | None:
    sentence = f"The background is {scene.background}."
    others = _rest(list(BACKGROUNDS), scene.background)
    program = _after((Step("select", "scene"),), "query", "background")
    return Asked("background", "What color is the background?", scene.background, sentence, program, others)


def choose_color(scene: Scene, rng: random.Random) -> Asked | None:
    asked = color(scene, rng)
    if asked is None:
        return None
    options = [asked.answer, rng.choice(asked.others)]
    rng.shuffle(options)
    noun = asked.question.removeprefix("What color is the ").removesuffix("?")
    program = _after(asked.program[:-1], "choose color", "|".join(options))
    question = f"Is the {noun} {options[0]} or {options[1]}?"
    return Asked("choose_color", question, asked.answer, asked.sentence, program, asked.others)


def choose_side(scene: Scene, rng: random.Random) -> Asked | None:
    asked = relation_is(scene, rng, want=rng.random() < 0.5)
    if asked is None:
        return None
    argument = asked.program[-1].argument.removesuffix(",s")
    right = argument if asked.answer == "yes" else SIDES[argument]
    options = [("to the left of", "to the right of"), ("above", "below")]["above" in (right, SIDES[right])]
    first, second = asked.question.removeprefix("Is the ").removesuffix("?").split(f" {argument} the ")
    answer = right.removeprefix("to the ").removesuffix(" of")
    short = " or ".join(options) if options[0] == "above" else "to the left or to the right of"
    sentence = f"The {first} is {right} the {second}."
    last = Step("choose rel", "|".join(options), asked.program[-1].needs)
    others = _rest(("left", "right", "above", "below"), answer)
    question = f"Is the {first} {short} the {second}?"
    return Asked("choose_side", question, answer, sentence, (*asked.program[:-1], last), others)


def larger(scene: Scene, rng: random.Random) -> Asked | None:
    things = [thing for thing in scene.things if number_of(scene, thing.shape) == 1]
    rng.shuffle(things)
    for first in things:
        for second in things:
            if first.size != second.size:
                answer = (first if first.size == "large" else second).shape
                program = _joined(_select(scene, first.shape), _select(scene, second.shape), "choose larger")
                question = f"Which is larger, the {first.shape} or the {second.shape}?"
                others = _rest(SHAPES, answer)
                return Asked("larger", question, answer, f"The {answer} is larger.", program, others)
    return None


def sign_word(scene: Scene, rng: random.Random) -> Asked | None:
    if not scene.sign or scene.sign.kind not in ("word", "spanish"):
        return None
    word = scene.sign.text.lower()
    others = _rest([w.lower() for w in (*WORDS, *SPANISH)], word)
    program = _after((Step("select", "sign"),), "query", "text")
    return Asked("sign_word", "What does the sign say?", word, f'The sign says "{word}".', program, others)


def meaning(scene: Scene, rng: random.Random) -> Asked | None:
    if not scene.sign or scene.sign.kind != "spanish":
        return None
    answer = SPANISH[scene.sign.text]
    program = _after((Step("select", "sign"),), "query", "meaning")
    question = "What does the Spanish word on the sign mean in English?"
    sentence = f'{scene.sign.text} means "{answer}".'
    return Asked("meaning", question, answer, sentence, program, _rest(list(SPANISH.values()), answer))


def total(scene: Scene, rng: random.Random) -> Asked | None:
    if not scene.sign or scene.sign.kind != "sum":
        return None
    answer = str(sum(scene.sign.numbers))
    others = tuple(str(n) for n in range(2, 11) if str(n) != answer)
    program = _after((Step("select", "sign"),), "query", "sum")
    return Asked("total", "What is the sum on the sign?", answer, f"{scene.sign.text} is {answer}.", program, others)


YES_NO: dict[str, Callable[[Scene, random.Random, bool], Asked | None]] = {
    topic.__name__: topic
    for topic in (
        exist, count_is, color_is, shape_is, size_is, place_is, relation_is, background_is, sign_says, sum_is,
        comparison_is, translation_is, same_color, same_shape, both, either,
    )
}  # fmt: skip

OPEN: dict[str, Callable[[Scene, random.Random], Asked | None]] = {
    topic.__name__: topic
    for topic in (
        color, shape, size, where, at_region, relation, count, background, choose_color, choose_side, larger,
        sign_word, meaning, total,
    )
}  # fmt: skip


def ask(scene: Scene, topic: str, rng: random.Random, want: bool | None = None) -> Asked | None:
    """Ask about one topic; for yes/no topics `want` says which answer shall be right (None: either, evenly)."""
    if topic in OPEN:
        return OPEN[topic](scene, rng)
    return YES_NO[topic](scene, rng, rng.random() < 0.5 if want is None else want)


# =============================================================================
# Descriptions
# =============================================================================


def caption(scene: Scene) -> str:
    """One sentence that says everything: all things in reading order, the sign, the background."""
    things = [f"{a(f'{t.size} {t.color} {t.shape}')} at the {t.region}" for t in scene.things]
    if scene.sign:
        things.append(f'a sign that says "{scene.sign.text}" at the {("top", "", "bottom")[scene.sign.row]}')
    sentence = f"{', '.join(things)}, on a {scene.background} background."
    return sentence[0].upper() + sentence[1:]


def short_captions(scene: Scene) -> list[str]:
    """Ten ways to say what is there, most of them not everything, as ten annotators would."""
    nouns = [f"{t.color} {t.shape}" for t in scene.things]
    listed = " and ".join([", ".join(a(noun) for noun in nouns[:-1]), a(nouns[-1])]) if nouns[1:] else a(nouns[0])
    n = len(nouns)
    sign = f' and a sign that says "{scene.sign.text}"' if scene.sign else ""
    number = f"{NUMBERS[n].capitalize()} {plural('object', n)}"
    first, last = scene.things[0], scene.things[-1]
    return [
        caption(scene),
        f"{listed[0].upper()}{listed[1:]}{sign} on a {scene.background} background.",
        f"{number}{sign} on a {scene.background} background.",
        f"A {scene.background} picture with {listed}{sign}.",
        f"{a(f'{first.size} {first.color} {first.shape}').capitalize()} at the {first.region} of the picture.",
        f"A picture of {listed}{sign}.",
        f"{number}{sign} in front of something {scene.background}.",
        f"A drawing with {a(f'{last.color} {last.shape}')} at the {last.region}{sign}.",
        f"The background is {scene.background}, and there {'is' if n == 1 else 'are'} {listed}{sign}.",
        f"{a(f'{last.size} {last.color} {last.shape}').capitalize()} at the {last.region}{sign}.",
    ]
