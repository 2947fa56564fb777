"""Plots as SVG: axes, lines, dots and a legend.

All colours are legible on white and on black.
"""
import math

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 48
COLOURS = ("#d55e00", "#0090c8", "#009e73", "#cc79a7", "#b59b00", "#7a7aff")

INK = "#848d97"


class Axis:
    """From values to pixels, linearly or by the logarithm.

    ticks   (value, label) pairs; the first and the last are the ends
    """

    def __init__(self, title, ticks, log=False):
        self.title = title
        self.ticks = ticks
        self.scale = math.log if log else float

    def part(self, value):
        low, high = self.scale(self.ticks[0][0]), self.scale(self.ticks[-1][0])
        value = min(max(value, self.ticks[0][0]), self.ticks[-1][0])
        return (self.scale(value) - low) / (high - low)


def plot(title, x, y, series):
    """A drawing as text.

    series  (label, kind, points): kind is "line", "dashes", "steps" or "dots";
            values outside the axes are drawn at their ends
    """
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(px, py):
        return (round(LEFT + x.part(px) * (right - LEFT), 1), round(bottom - y.part(py) * (bottom - TOP), 1))

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
           f' role="img" aria-label="{title}" font-family="sans-serif" font-size="12" fill="{INK}">',
           f'<text font-size="14" x="{LEFT}" y="16">{title}</text>']
    for value, label in x.ticks:
        px, _ = place(value, y.ticks[0][0])
        out.append(f'<path stroke="{INK}" stroke-opacity=".3" d="M{px} {TOP}V{bottom}"/>'
                   f'<text x="{px}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for value, label in y.ticks:
        _, py = place(x.ticks[0][0], value)
        out.append(f'<path stroke="{INK}" stroke-opacity=".3" d="M{LEFT} {py}H{right}"/>'
                   f'<text x="{LEFT - 6}" y="{py + 4}" text-anchor="end">{label}</text>')
    out.append(f'<path fill="none" stroke="{INK}" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
               f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x.title}</text>'
               f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{y.title}</text>')

    for n, (label, kind, points) in enumerate(series):
        colour = COLOURS[n % len(COLOURS)]
        placed = [place(*point) for point in points]
        if kind == "dots":
            out.append(f'<g fill="{colour}" fill-opacity="0.55">'
                       + "".join(f'<circle cx="{px}" cy="{py}" r="2.5"/>' for px, py in placed) + "</g>")
        else:
            path = f"M{placed[0][0]} {placed[0][1]}"
            for px, py in placed[1:]:
                path += f"H{px}V{py}" if kind == "steps" else f"L{px} {py}"
            dashes = ' stroke-dasharray="6 4"' if kind == "dashes" else ""
            out.append(f'<path fill="none" stroke="{colour}" stroke-width="2"{dashes} d="{path}"/>')
    return "\n".join(out + legend(series)) + "\n</svg>\n"


def legend(series):
    """One line above the plot, on the right."""
    out = []
    at = WIDTH - RIGHT
    for n, (label, _, _) in reversed(list(enumerate(series))):
        at -= 7.5 * len(label) + 28
        out.append(f'<rect x="{at}" y="26" width="12" height="4" fill="{COLOURS[n % len(COLOURS)]}"/>'
                   f'<text x="{at + 16}" y="32">{label}</text>')
    return out
