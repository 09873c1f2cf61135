"""From a matplotlib figure to inline SVG that the page's style colours.

An artist's `gid` becomes the class of its group; matplotlib's own colours, fonts, ids and
references are left out. So a drawing follows light, dark and print, several fit into one page, and
the same data gives the same bytes. All lengths are user units of the SVG (about one pixel).
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from simple_llama.pages.template import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT, TOP, BOTTOM = 50, 22, 46
"""Around the axes."""

_SVG = "{http://www.w3.org/2000/svg}"
_CLASS = re.compile(r"([xy]tick)_\d+|([^_]+)")
"""An id that becomes a class: that of a tick, or a gid; matplotlib numbers all its own."""


@dataclass
class Drawing:
    """A figure, and the texts that are put into its SVG.

    They may be any text: matplotlib would take some for formulas, and warn of letters that its font
    lacks.
    """

    figure: Figure
    tips: list[str] = field(default_factory=list)
    """Tooltips of the shapes whose gid has the word `tip`, in the order of drawing."""
    names: list[str] = field(default_factory=list)
    """What stands in place of the texts whose gid is `name`, likewise."""

    def axes(self, x_label: str, y_label: str, right: float = 14) -> Axes:
        """Add axes with horizontal grid lines, `right` away from the right edge."""
        width, height = self.figure.bbox.size
        inside_width, inside_height = width - LEFT - right, height - BOTTOM - TOP
        axes = self.figure.add_axes(
            (LEFT / width, BOTTOM / height, inside_width / width, inside_height / height),
            frameon=False,
        )
        axes.tick_params(left=False, bottom=False, pad=8)
        axes.grid(axis="y", clip_on=False)
        axes.set_axisbelow(True)
        self.figure.text(1 - right / width, 5 / height, x_label, ha="right")
        self.figure.text(LEFT / width, 1 - 12 / height, y_label)
        return axes

    def svg(self, title: str = "", description: str = "") -> Markup:
        """Write the figure. One without a title is decoration: screen readers skip it."""
        written = io.StringIO()
        self.figure.savefig(written, format="svg")
        root = ElementTree.fromstring(written.getvalue())
        shapes = {f"#{one.get('id')}": one.get("d", "") for one in root.iter(f"{_SVG}path")}
        for element in list(root.iter()):
            for unused in ("defs", "metadata"):
                for child in element.findall(f"{_SVG}{unused}"):
                    element.remove(child)
            _simplify(element, shapes)
        tips, names = iter(self.tips), iter(self.names)
        for group in root.iter("g"):
            words = group.get("class", "").split()
            for shape in group.iter("path") if "tip" in words else ():
                ElementTree.SubElement(shape, "title").text = printable(next(tips))
            for text in group.iter("text") if "name" in words else ():
                text.text = printable(next(names))
        width, height = self.figure.bbox.size
        root.attrib = {"viewBox": f"0 0 {width:g} {height:g}"}
        if title:
            root.attrib |= {"role": "img", "aria-label": printable(f"{title}. {description}")}
            root.attrib |= {"class": "wide"} if width > 400 else {}
        else:
            root.attrib["aria-hidden"] = "true"
        return Markup(ElementTree.tostring(root, encoding="unicode"))


def _simplify(element: ElementTree.Element, shapes: dict[str, str]) -> None:
    """Keep what an element shows, with coordinates to a tenth."""
    had, element.attrib = element.attrib, {}
    element.tag = element.tag.removeprefix(_SVG)
    element.text, element.tail = (element.text or "").strip(), ""
    if element.tag == "g":
        if named := _CLASS.fullmatch(had.get("id", "")):
            element.set("class", named[1] or named[2])
    elif element.tag == "path":
        element.set("d", _short(had["d"]))
    elif element.tag == "use":
        element.tag = "path"
        element.set("d", _short(shapes[had["{http://www.w3.org/1999/xlink}href"]]))
        element.set("transform", f"translate({_short(had['x'])} {_short(had['y'])})")
    elif element.tag == "text":
        element.attrib = {key: _short(had[key]) for key in ("x", "y")}
        if anchor := re.search(r"text-anchor: (middle|end)", had["style"]):
            element.set("text-anchor", anchor[1])


def _short(coordinates: str) -> str:
    tenths = re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 1):g}", coordinates)
    return re.sub(r"\s*([A-Za-z]|$)\s*", r"\1", tenths)


@contextmanager
def matplotlib_defaults() -> Iterator[None]:
    """Draw as matplotlib does by default, whatever the user set, and without a word.

    Whoever draws imports matplotlib within this block only.
    """
    # it would say on the terminal that it looks for fonts, or cannot write below the home
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Jupyter's kernels name a backend here that may not be installed; the import would fail
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@contextmanager
def drawing(width: float, height: float) -> Iterator[Drawing]:
    """Open an empty figure."""
    with matplotlib_defaults():
        from matplotlib import rcParams
        from matplotlib.figure import Figure

        rcParams["svg.fonttype"] = "none"
        yield Drawing(Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False))


@cache
def swatch(style: str, marker: str = "") -> Markup:
    """Draw a short piece of a line, to stand beside its name."""
    with drawing(26, 12) as one:
        from matplotlib.lines import Line2D
        from matplotlib.transforms import IdentityTransform

        for x, shape, kind in (([1, 25], "", "line"), ([13], marker, "dot")):
            line = Line2D(
                x, [6] * len(x), transform=IdentityTransform(), marker=shape, markersize=7
            )
            line.set_gid(f"{kind} {style}")
            one.figure.add_artist(line)
        return one.svg()
