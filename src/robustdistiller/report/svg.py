"""A little SVG: shapes and text on a canvas of a phone's width, so that letters stay readable on every screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart (yellow is left out: too pale on white).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3a9bd9", "#444444")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down", "ring")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2", "1 2", "10 4")

Point = tuple[float, float]


class Canvas:
    """Collects shapes in pixel coordinates, y downwards."""

    def __init__(self, width: float, height: float, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def line(self, start: Point, end: Point, css: str = "axis", style: str = "") -> None:
        (x1, y1), (x2, y2) = start, end
        self._add(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"{_style(style)}/>')

    def path(self, points: Sequence[Point], colour: str, dash: str = "") -> None:
        """An open line through `points`."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')

    def band(self, points: Sequence[Point], colour: str) -> None:
        """A translucent area inside `points`."""
        self._add(f'<polygon points="{_points(points)}" fill="{colour}" fill-opacity="0.14"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, title: str = "") -> None:
        hover = f"<title>{escape(title)}</title>" if title else ""
        end = f">{hover}</rect>" if hover else "/>"
        self._add(f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{colour}"{end}')

    def text(
        self, at: Point, words: str, anchor: str = "start", css: str = "", style: str = "", turn: float = 0
    ) -> None:
        x, y = at
        turned = f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"' if turn else ""
        kind = f' class="{css}"' if css else ""
        self._add(
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{kind}{_style(style)}{turned}>{escape(words)}</text>'
        )

    def marker(self, at: Point, index: int, size: float = 4.0, title: str = "") -> None:
        """The marker of model `index` with the "radius" `size`."""
        self._add(marker(at, index, size, title))

    def _add(self, part: str) -> None:
        self.parts.append(part)

    def render(self) -> str:
        """The drawing as an inline element that fills its column."""
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" aria-label="{escape(self.title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def marker(at: Point, index: int, size: float = 4.0, title: str = "") -> str:
    """One marker: its shape and colour tell the model apart, each alone is enough."""
    x, y = at
    colour, shape = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    s = size
    if shape == "circle":
        body = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(s)}" fill="{colour}"'
    elif shape == "ring":
        body = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(s)}" fill="#fff" stroke="{colour}" stroke-width="2"'
    elif shape == "cross":
        points = f"M{_n(x - s)} {_n(y - s)}L{_n(x + s)} {_n(y + s)}M{_n(x - s)} {_n(y + s)}L{_n(x + s)} {_n(y - s)}"
        body = f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="2.5"'
    else:
        outline = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
            "diamond": [(0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)],
            "down": [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
        }[shape]
        body = f'<polygon points="{_points([(x + s * a, y + s * b) for a, b in outline])}" fill="{colour}"'
    return f"{body}><title>{escape(title)}</title></{body[1:].split()[0]}>" if title else f"{body}/>"


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover [low, high], at most `most` or one more."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if span / (power * k) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def shade(share: float) -> tuple[str, str]:
    """A background from white (0) to dark blue (1), and a colour for text on it; monotone in brightness."""
    share = min(max(share, 0.0), 1.0)
    stops = [(247, 251, 255), (158, 202, 225), (33, 113, 181), (8, 48, 107)]
    place = share * (len(stops) - 1)
    k = min(int(place), len(stops) - 2)
    red, green, blue = (round(a + (b - a) * (place - k)) for a, b in zip(stops[k], stops[k + 1], strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if share > 0.62 else "#111111"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _style(style: str) -> str:
    return f' style="{style}"' if style else ""
