"""The look of each method: one colour and one marker, the same in every report, whatever else is in it.

A look belongs to a label ('GDD-I') or to a method's registry name ('gdd'). A variant, 'GDD (data)' or 'KD, 898 pairs',
has the hue of its method, darker or lighter, and a marker of its own; teachers are grey; a label that nobody foresaw
has a look by the hash of its name. All colours have a contrast of 3 or more against white and against #16181d.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

# matplotlib's markers, and what Vega-Lite calls them.
SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
}


class Look(NamedTuple):
    """A colour, '#rrggbb', and a marker of matplotlib."""

    colour: str
    marker: str

    @property
    def shape(self) -> str:
        """The marker as Vega-Lite calls it."""
        return SHAPES[self.marker]


class Hue(NamedTuple):
    """One hue in three shades: of methods, and of their variants."""

    plain: str
    dark: str
    light: str


# By kin: to who sees no difference of red and green, hues of one kin look alike.
KIN = {
    "blue": {"blue": Hue("#2376bd", "#1e68a8", "#6f95c8"), "violet": Hue("#7c66d6", "#6956b6", "#9687dc")},
    "pale": {"purple": Hue("#bd5590", "#9e4678", "#c67ca3"), "teal": Hue("#1b8a99", "#146f7c", "#5f9ca8")},
    "warm": {
        "vermilion": Hue("#d8561c", "#ad4314", "#dc765c"),
        "gold": Hue("#a87b00", "#835f00", "#b28d52"),
        "olive": Hue("#6f8a1e", "#576d16", "#869a5b"),
    },
    "deep": {
        "green": Hue("#16915a", "#0f7447", "#5ca179"),
        "crimson": Hue("#d23c5a", "#b7334e", "#d97583"),
        "brown": Hue("#94694f", "#835d45", "#a98d7f"),
    },
}
HUES = {name: hue for kin in KIN.values() for name, hue in kin.items()}
# No marker occurs twice among hues of one kin: whoever cannot tell the colours apart has the markers.
_METHODS = {
    "blue": {"kd": "s", "meanflow": "o", "diff-instruct": "D", "sct": "v"},
    "violet": {"sfddm": "^", "lsd": ">", "sida": "<", "facm": "P"},
    "purple": {"pd": "<", "improved meanflow": "s", "sid": "D", "f-distill": "v"},
    "teal": {"2-flow": "P", "cd": "o", "alpha-flow": "^", "scd": ">"},
    "vermilion": {"gdd": "o", "imm": "s"},
    "gold": {"gdd-i": "D", "shortcut": "v", "tcm": "<"},
    "olive": {"progressive": "P", "soflow": "^", "dmd2": ">"},
    "green": {"slimflow": "^", "drifting": "o", "psd": "P"},
    "crimson": {"2-rf++": "<", "rectified flow": "D"},
    "brown": {"ect": "s", "ict": "v", "ct": ">"},
}
METHODS = {name: Look(HUES[hue].plain, mark) for hue, own in _METHODS.items() for name, mark in own.items()}
_ALIASES = {
    "annealing-reflow": "2-flow",
    "flow-guided-distillation": "slimflow",
    "consistency-distillation": "cd",
    "consistency-training": "ict",
    "easy-consistency-tuning": "ect",
    "truncated-consistency": "tcm",
    "progressive-self-distillation": "psd",
    "score-distillation": "dmd2",
    "meanflow-distillation": "meanflow, distilled",
    "facm-distillation": "facm, distilled",
    "edm": "teacher",
    "ddpm": "teacher",
    "rectified-flow": "teacher",
}
_GREYS = ("#6e6e6e", "#8f8f8f")
_SAMPLERS = {
    "euler": "o", "heun": "s", "dpmpp_2m": "D", "ddim": "^", "ddim-clip": "v", "re-noising": "<", "push-forward": ">",
    "rk45": "P",
}  # fmt: skip
TEACHERS = {f"teacher ({name})": Look(_GREYS[0], marker) for name, marker in _SAMPLERS.items()}
_KNOWN = METHODS | TEACHERS
# What is written behind a method's name to tell its variants apart.
_VARIANT = re.compile(r", | \(| (?:on|from|saw) ")


def colour(label: str) -> str:
    """The colour of a label or method, '#rrggbb'."""
    return look(label).colour


def marker(label: str) -> str:
    """The marker of a label or method, as matplotlib calls it."""
    return look(label).marker


def shape(label: str) -> str:
    """The marker of a label or method, as Vega-Lite calls it."""
    return look(label).shape


def look(label: str) -> Look:
    """The look of a label or method: of methods known here its own; of others that of the hash of its name."""
    return _choices(label)[0]


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """The look of each label of one report, no two alike: `look`, but where two would be, the second takes another.

    Known methods never yield, so that they look the same in all reports.
    """
    found: dict[str, Look] = {}
    for label in sorted(set(labels), key=lambda label: (_name(label) not in _KNOWN, label)):
        free = (one for one in _choices(label) if one not in found.values())
        found[label] = next(free, look(label))
    return found


def _name(label: str) -> str:
    name = label.casefold()
    return _ALIASES.get(name, name)


def _choices(label: str) -> list[Look]:
    """The looks that a label may have, its own first."""
    name = _name(label)
    if name in _KNOWN:
        return [_KNOWN[name]]
    method = _VARIANT.split(name, maxsplit=1)[0]
    if method == "teacher" or name.startswith("teacher"):
        free = [Look(grey, mark) for grey in reversed(_GREYS) for mark in SHAPES]
    elif method != name:
        own = look(method).colour
        shades = next(hue for hue in HUES.values() if own in hue)
        free = [Look(shade, mark) for mark in SHAPES for shade in shades[1:]]
    else:
        free = [Look(hue.plain, mark) for mark in SHAPES for hue in HUES.values()]
    free = [one for one in free if one not in _KNOWN.values()]
    first = crc32(name.encode()) % len(free)
    return free[first:] + free[:first]
