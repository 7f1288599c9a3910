"""Teacher and student side by side, as a moving picture and as a still one.

Legend of shapes: `T` steps.
"""

import io
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxkd.base import Env, Policy
from jaxkd.report.drawing import INK, LIGHT, PAPER, SIZE, Draw, painter

_FRAMES, _COLOURS = 120, 40  # of a moving picture: what keeps it under 300 kB
_BAR, _GAP, _MARGIN = 22, 12, 8  # pixels: below a picture, between two, around all
_STILLS = 3


class Played(NamedTuple):
    """One episode, as far as it was watched; numpy arrays."""

    obs: Any  # [T, ...]
    states: Any  # [T, ...]
    rewards: np.ndarray  # [T]
    ended: bool  # within these steps


class Film(NamedTuple):
    """What is shown."""

    gif: bytes
    png: bytes  # a few moments of it, side by side
    size: tuple[int, int]  # pixels of the gif
    still_size: tuple[int, int]
    returns: dict[str, float]  # of the steps shown, by policy
    steps: dict[str, int]
    cut: bool  # an episode goes on after what is shown


def film(env: Env, policies: dict[str, tuple[Policy, Any]], key: jax.Array) -> Film | None:
    """Plays one episode of each policy from the same beginning; None where nothing can be drawn.

    Args:
        env: a batch of ONE environment.
        policies: (policy, params of one seed) by the name they are shown with.
    """
    draw = painter(env.name, env.obs_spec)
    if draw is None:
        return None
    stride = 1 if len(getattr(env.obs_spec, "shape", ())) > 1 else 2  # grids: all
    length = min(env.max_steps or 1000, _FRAMES * stride)
    played = {name: play(env, *each, key, length=length) for name, each in policies.items()}
    frames = _frames(played, draw, stride)
    returns = {name: float(each.rewards.sum()) for name, each in played.items()}
    steps = {name: len(each.rewards) for name, each in played.items()}
    stills = [frames[i] for i in np.linspace(0, len(frames) - 1, _STILLS).astype(int)]
    strip = _beside(stills)
    return Film(
        _gif(frames, 40 * stride),
        _png(strip),
        frames[0].size,
        strip.size,
        returns,
        steps,
        not all(each.ended for each in played.values()),
    )


def play(env: Env, policy: Policy, params: Any, key: jax.Array, *, length: int) -> Played:
    """The first episode of a greedy policy in ONE environment, at most `length` steps of it."""

    @jax.jit
    def steps(params, key):
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = env.reset(key_reset)
        carry, reset = policy.initial_carry(1), jax.numpy.ones(1, jax.numpy.float32)

        def one(now, step):
            env_state, obs, carry, reset = now
            carry, out = policy.step(params, carry, obs, reset)
            after, seen = env.step(
                jax.random.fold_in(key_steps, step), env_state, out.policy.mode()
            )
            done = seen.terminated + seen.truncated
            shown = jax.tree.map(lambda x: x[0], (obs, env_state, seen.reward, done))
            return (after, seen.obs, carry, done), shown

        return jax.lax.scan(one, (env_state, obs, carry, reset), jax.numpy.arange(length))[1]

    obs, states, rewards, done = jax.device_get(steps(params, key))
    ends = np.flatnonzero(done)
    size = int(ends[0]) + 1 if ends.size else length
    first = lambda tree: jax.tree.map(lambda x: x[:size], tree)
    return Played(first(obs), first(states), rewards[:size], bool(ends.size))


def _frames(played: dict[str, Played], draw: Draw, stride: int) -> list[Image.Image]:
    """Every so many steps, until the last episode has ended; who ended earlier stands still."""
    longest = max(len(each.rewards) for each in played.values())
    return [_frame(played, draw, step) for step in [*range(0, longest, stride), longest - 1]]


def _frame(played: dict[str, Played], draw: Draw, step: int) -> Image.Image:
    width = len(played) * (SIZE + _GAP) - _GAP + 2 * _MARGIN
    frame = Image.new("RGB", (width, SIZE + _BAR + 2 * _MARGIN), PAPER)
    pen, font = ImageDraw.Draw(frame), ImageFont.load_default(13)
    for column, (name, each) in enumerate(played.items()):
        left, now = _MARGIN + column * (SIZE + _GAP), min(step, len(each.rewards) - 1)
        at = lambda tree, now=now: jax.tree.map(lambda x: x[now], tree)
        frame.paste(draw(at(each.obs), at(each.states)), (left, _MARGIN))
        box = (left - 1, _MARGIN - 1, left + SIZE, _MARGIN + SIZE)
        pen.rectangle(box, outline=LIGHT)
        earned = f"{each.rewards[: now + 1].sum():.4g}"
        over = each.ended and step >= len(each.rewards) - 1
        line = _MARGIN + SIZE + 5
        pen.text((left + 2, line), name, fill=INK, font=font)
        said = f"{earned}{', ended' if over else ''}"
        pen.text((left + SIZE - 2, line), said, fill=INK, font=font, anchor="ra")
    return frame


def _gif(frames: list[Image.Image], milliseconds: int) -> bytes:
    """With one palette for all frames, so that what stands still costs nothing."""
    palette = _beside(frames[:: max(1, len(frames) // 8)]).quantize(_COLOURS)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * (len(few) - 1) + [1500]  # the end is looked at for longer
    kept = io.BytesIO()
    few[0].save(
        kept, "GIF", save_all=True, append_images=few[1:], duration=times, loop=0, optimize=True
    )
    return kept.getvalue()


def _png(image: Image.Image) -> bytes:
    kept = io.BytesIO()
    image.quantize(64).save(kept, "PNG", optimize=True)
    return kept.getvalue()


def _beside(images: list[Image.Image]) -> Image.Image:
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height), PAPER)
    for column, image in enumerate(images):
        strip.paste(image, (column * width, 0))
    return strip
