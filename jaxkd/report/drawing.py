"""Pictures of environments from what a policy sees, of mazes from their state: Pillow alone.

An environment's picture is a function (obs, state) -> Image of SIZE x SIZE, drawn at twice the size
and made smaller, which smooths its lines. Numpy arrays in, of ONE environment.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE, _SCALE = 200, 2  # pixels of a picture; how much larger it is drawn
PAPER, INK, LIGHT = "#fbfaf7", "#33363b", "#c9c6be"
ACCENT, GOAL = "#d1603d", "#7d8a5c"
# Of the channels of a grid, the first that is set: in MinAtar the player, then what it meets.
COLOURS = (
    *("#2f6db5", "#d1603d", "#e3b7a6", "#7d8a5c", "#b08a2e", "#8a5a9c"),
    *("#4a9a94", "#9aa0a6", "#c06c84", "#5b7db1"),
)
_FOUR_ROOMS = """
xxxxxxxxxxxxx
x     x     x
x     x     x
x           x
x     x     x
x     x     x
xx xxxx     x
x     xxx xxx
x     x     x
x     x     x
x           x
x     x     x
xxxxxxxxxxxxx""".split("\n")[1:]
_META_MAZE = ["x" * 11, *["x" + " " * 9 + "x", "x" + " x" * 5] * 4, "x" + " " * 9 + "x", "x" * 11]

Draw = Callable[[Any, Any], Image.Image]


def painter(env: str, obs: Any) -> Draw | None:
    """The function that draws an environment, by its id and an observation; None where none can.

    >>> painter("CartPole-v1", np.zeros(4))(np.zeros(4), None).size
    (200, 200)
    >>> painter("BernoulliBandit-misc", np.zeros(4)) is None
    True
    """
    if env in _PAINTERS:
        return _PAINTERS[env]
    shape = [*getattr(obs, "shape", ())]
    few_channels = len(shape) == 3 and shape[2] <= len(COLOURS)
    return _grid if len(shape) == 2 or few_channels else None


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    side = SIZE * _SCALE
    image = Image.new("RGB", (side, side), PAPER)
    return image, ImageDraw.Draw(image), side


def _done(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: str) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _rod(draw: ImageDraw.ImageDraw, start: tuple, end: tuple, width: float, colour: str) -> None:
    """A line with round ends."""
    draw.line((*start, *end), fill=colour, width=round(width))
    for x, y in (start, end):
        _disc(draw, x, y, width / 2, colour)


# --- classic control ----------------------------------------------------------------------------


def _cart_pole(obs: Any, state: Any) -> Image.Image:
    image, draw, side = _canvas()
    x, angle = float(obs[0]), float(obs[2])
    middle, floor = side * (0.5 + x / 2.4 * 0.42), side * 0.74
    draw.line((0, floor, side, floor), fill=LIGHT, width=3)
    wide, high, length = side * 0.11, side * 0.055, side * 0.42
    draw.rounded_rectangle((middle - wide, floor - high, middle + wide, floor + high), 8, fill=INK)
    top = (middle + length * math.sin(angle), floor - high - length * math.cos(angle))
    _rod(draw, (middle, floor - high), top, side * 0.035, ACCENT)
    return _done(image)


def _acrobot(obs: Any, state: Any) -> Image.Image:
    image, draw, side = _canvas()
    first = math.atan2(float(obs[1]), float(obs[0]))
    second = first + math.atan2(float(obs[3]), float(obs[2]))
    hang, length = (side * 0.5, side * 0.5), side * 0.21
    elbow = (hang[0] + length * math.sin(first), hang[1] + length * math.cos(first))
    hand = (elbow[0] + length * math.sin(second), elbow[1] + length * math.cos(second))
    goal = hang[1] - length
    draw.line((0, goal, side, goal), fill=LIGHT, width=3)
    _rod(draw, hang, elbow, side * 0.04, INK)
    _rod(draw, elbow, hand, side * 0.04, ACCENT)
    return _done(image)


def _pendulum(obs: Any, state: Any) -> Image.Image:
    image, draw, side = _canvas()
    middle, length = side * 0.5, side * 0.36
    end = (middle - length * float(obs[1]), middle - length * float(obs[0]))
    _rod(draw, (middle, middle), end, side * 0.06, ACCENT)
    _disc(draw, middle, middle, side * 0.02, INK)
    return _done(image)


def _mountain_car(obs: Any, state: Any) -> Image.Image:
    image, draw, side = _canvas()

    def place(x: float) -> tuple[float, float]:
        return side * (x + 1.2) / 1.8, side * (0.6 - 0.22 * math.sin(3 * x))

    draw.line([place(x) for x in np.linspace(-1.2, 0.6, 90)], fill=INK, width=4, joint="curve")
    foot, top = place(0.5), side * 0.14
    draw.line((*foot, foot[0], foot[1] - top), fill=LIGHT, width=4)
    tip = (foot[0] + side * 0.06, foot[1] - 0.82 * top)
    draw.polygon([(foot[0], foot[1] - top), tip, (foot[0], foot[1] - 0.64 * top)], fill=GOAL)
    x, y = place(float(obs[0]))
    _disc(draw, x, y - side * 0.035, side * 0.035, ACCENT)
    return _done(image)


# --- grids --------------------------------------------------------------------------------------


def _cells(colours: list[list[str]]) -> Image.Image:
    """One square a cell, as large as fit, in the middle."""
    image, draw, side = _canvas()
    rows, columns = len(colours), len(colours[0])
    cell = side / max(rows, columns)
    left, top = (side - columns * cell) / 2, (side - rows * cell) / 2
    draw.rectangle((left, top, left + columns * cell - 1, top + rows * cell - 1), fill="#f0eee8")
    for row, line in enumerate(colours):
        for column, colour in enumerate(line):
            if colour:
                x, y = left + column * cell, top + row * cell
                box = (round(x + 1), round(y + 1), round(x + cell - 1), round(y + cell - 1))
                draw.rectangle(box, fill=colour)
    return _done(image)


def _grid(obs: Any, state: Any) -> Image.Image:
    """Of [rows, columns] or [rows, columns, channels]: the first channel that is set, on top."""
    obs = np.asarray(obs)
    layers = obs[..., None] if obs.ndim == 2 else obs
    first = np.argmax(layers != 0, axis=-1)
    colours = np.where((layers != 0).any(-1), np.array(COLOURS)[first], "")
    return _cells(colours.tolist())


def _maze(rows: Sequence[str]) -> Draw:
    """Of a state with `pos` and `goal`, (row, column)."""

    def draw(obs: Any, state: Any) -> Image.Image:
        cells = [[LIGHT if place == "x" else "" for place in row] for row in rows]
        while hasattr(state, "inner"):  # of what counts steps, or repeats actions
            state = state.inner
        for (row, column), colour in ((state.goal, GOAL), (state.pos, ACCENT)):
            cells[int(row)][int(column)] = colour
        return _cells(cells)

    return draw


_PAINTERS: dict[str, Draw] = {
    "CartPole-v1": _cart_pole,
    "Acrobot-v1": _acrobot,
    "Pendulum-v1": _pendulum,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "FourRooms-misc": _maze(_FOUR_ROOMS),
    "MetaMaze-misc": _maze(_META_MAZE),
}
