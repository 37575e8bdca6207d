"""A scene: up to five coloured shapes on a three by three grid and, on some, a sign with a short word.

A scene is a value, and `draw` is a function of it: whatever is asked about a picture is answered from the value that
it was drawn from. Scenes are split in two by a hash of their content. Those of one part are the bundled samples and
all measurements; training takes only the other part, so no scene is ever in both, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vlmamba_eval.tasks.samples import glyphs

SIDE = 192
"""Pictures are squares of this many pixels."""

GRID = 3
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 70, 220),
    "yellow": (245, 210, 0),
    "orange": (245, 125, 0),
    "purple": (130, 40, 170),
    "brown": (120, 70, 30),
    "black": (20, 20, 20),
}
BACKGROUNDS = {"white": (250, 250, 250), "gray": (175, 175, 175), "pink": (255, 195, 215), "cyan": (170, 235, 240)}
RADII = {"large": 28, "small": 16}
WORDS = ("CAT", "DOG", "SUN", "BUS", "CUP", "MAP", "KEY", "BOX", "STOP", "EXIT", "OPEN", "SALE")
SPANISH = {"GATO": "cat", "SOL": "sun", "PAN": "bread", "ROJO": "red", "CASA": "house", "AGUA": "water"}
DIGITS = (1, 2, 3, 4, 5)

REGIONS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)

_CELL = SIDE // GRID
_SUPERSAMPLING = 2
_DOT = 6
PITCH = (glyphs.WIDTH + 1) * _DOT
_HELD_OUT_PARTS = 8


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape in a cell of the grid. `shift` moves it off the cell's middle, `tint` changes its colour a little."""

    shape: str
    color: str
    size: str
    row: int
    column: int
    shift: tuple[int, int] = (0, 0)
    tint: tuple[int, int, int] = (0, 0, 0)

    @property
    def region(self) -> str:
        return REGIONS[self.row][self.column]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, in pixels."""
        x = self.column * _CELL + _CELL // 2 + self.shift[0]
        y = self.row * _CELL + _CELL // 2 + self.shift[1]
        r = RADII[self.size]
        return x - r, y - r, x + r, y + r


@dataclass(frozen=True, slots=True)
class Sign:
    """A word, a sum (`2+3`) or a comparison (`4>1`) on a white plate that fills one row of the grid."""

    text: str
    row: int

    @property
    def kind(self) -> str:
        if "+" in self.text:
            return "sum"
        if ">" in self.text:
            return "comparison"
        return "spanish" if self.text in SPANISH else "word"

    @property
    def numbers(self) -> tuple[int, int]:
        """The two numbers of a sum or comparison."""
        left, right = self.text.replace(">", "+").split("+")
        return int(left), int(right)

    @property
    def box(self) -> tuple[int, int, int, int]:
        return 6, self.row * _CELL + 5, SIDE - 6, (self.row + 1) * _CELL - 5

    @property
    def text_left(self) -> int:
        """Where the first character begins, in pixels; each takes `PITCH`."""
        left, _, right, _ = self.box
        return (left + right - len(self.text) * PITCH + _DOT) // 2

    def character_at(self, x: float) -> str:
        """The character at a horizontal place in pixels; empty beside the text."""
        place = int((x - self.text_left) // PITCH)
        return self.text[place] if 0 <= place < len(self.text) else ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. `things` are in reading order, one a cell, none in the sign's row."""

    background: str
    things: tuple[Thing, ...]
    sign: Sign | None = None

    def content(self) -> str:
        """What can be seen, without shifts and tints: scenes of equal content are the same scene."""
        things = ",".join(f"{t.size} {t.color} {t.shape}@{t.row}{t.column}" for t in self.things)
        sign = f"{self.sign.text}@{self.sign.row}" if self.sign else ""
        return f"{self.background}|{things}|{sign}"

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to the samples and measurements (one in eight) and never to training."""
        return hashlib.sha256(self.content().encode()).digest()[0] % _HELD_OUT_PARTS == 0


def random_scene(rng: random.Random) -> Scene:
    """Draw a scene of either part."""
    sign = None
    if rng.random() < 0.35:
        sign = Sign(_random_text(rng), rng.choice((0, 2)))
    cells = [(row, column) for row in range(GRID) for column in range(GRID) if not sign or row != sign.row]
    n = rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5))
    # Few kinds of shape or colour make repetitions, which counting needs; many make things that can be told apart.
    shapes = rng.sample(SHAPES, rng.choice((1, 2, 3, 6, 6)))
    colors = rng.sample(list(COLORS), rng.choice((1, 2, 8, 8)))
    things = [_random_thing(rng, shapes, colors, cell) for cell in sorted(rng.sample(cells, n))]
    return Scene(rng.choice(list(BACKGROUNDS)), tuple(things), sign)


def scenes(seed: str, held_out: bool) -> Iterator[Scene]:
    """All scenes of one part that `seed` draws, without end."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        if scene.held_out == held_out:
            yield scene


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, `SIDE` pixels square."""
    scale = _SUPERSAMPLING
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        _draw_thing(pen, thing, BACKGROUNDS[scene.background], scale)
    if scene.sign:
        _draw_sign(pen, scene.sign, scale)
    return picture.reduce(scale)


def _random_text(rng: random.Random) -> str:
    kind = rng.choice(("word", "word", "spanish", "sum", "comparison"))
    if kind == "word":
        return rng.choice(WORDS)
    if kind == "spanish":
        return rng.choice(list(SPANISH))
    left, right = rng.choice(DIGITS), rng.choice(DIGITS)
    return f"{left}+{right}" if kind == "sum" else f"{left}>{right}"


def _random_thing(rng: random.Random, shapes: list[str], colors: list[str], cell: tuple[int, int]) -> Thing:
    size = rng.choice(list(RADII))
    reach = 3 if size == "large" else 10
    shift = (rng.randint(-reach, reach), rng.randint(-reach, reach))
    tint = (rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8))
    return Thing(rng.choice(shapes), rng.choice(colors), size, *cell, shift, tint)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, int, int], scale: int) -> None:
    color = tuple(max(0, min(255, base + tint)) for base, tint in zip(COLORS[thing.color], thing.tint, strict=True))
    left, top, right, bottom = (edge * scale for edge in thing.box)
    x, y, r = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    if thing.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=color)
    elif thing.shape == "ring":
        pen.ellipse((left, top, right, bottom), fill=color)
        pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=background)
    elif thing.shape == "square":
        pen.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), fill=color)
    elif thing.shape == "triangle":
        pen.polygon([(x, top), (right, bottom - r * 0.2), (left, bottom - r * 0.2)], fill=color)
    elif thing.shape == "cross":
        pen.rectangle((x - r * 0.3, top, x + r * 0.3, bottom), fill=color)
        pen.rectangle((left, y - r * 0.3, right, y + r * 0.3), fill=color)
    else:
        corners = [(r if i % 2 == 0 else r * 0.42, math.pi * (i / 5 - 0.5)) for i in range(10)]
        pen.polygon([(x + length * math.cos(a), y + length * math.sin(a)) for length, a in corners], fill=color)


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign, scale: int) -> None:
    frame = tuple(edge * scale for edge in sign.box)
    pen.rectangle(frame, fill=(255, 255, 255), outline=(60, 60, 60), width=2 * scale)
    _, top, _, bottom = sign.box
    y0 = (top + bottom - glyphs.HEIGHT * _DOT) // 2
    for place, character in enumerate(sign.text):
        for column, row in glyphs.dots(character):
            x, y = sign.text_left + place * PITCH + column * _DOT, y0 + row * _DOT
            pen.rectangle((x * scale, y * scale, (x + _DOT) * scale - 1, (y + _DOT) * scale - 1), fill=(20, 20, 20))
