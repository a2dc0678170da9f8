"""Figures -> drawings inside a page: text is text, colours follow the page's theme, and every point says what it is.

What a point says is fixed where it is drawn, by `speak`; files of figures do not change by it.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# Of a drawing on white -> the page's own colours, which are others in the dark.
THEME = {"#000000": "var(--ink)", "#ffffff": "var(--paper)", "#b0b0b0": "var(--soft)", "#777777": "var(--soft)"}
THEME |= {"#0072b2": "var(--blue)", "#d55e00": "var(--orange)"}
FONT = re.compile(r"font-family: [^;\"]*;?")


def speak(artist: Any, texts: Sequence[str]) -> None:
    """Have the points of an artist, in the order in which they are drawn, say `texts` to those who point at them.

    Args:
        artist: One that draws a marker for each point, such as a scatter or a line with markers.
    """
    artist.spoken = list(texts)


def living_svg(figure: Figure, salt: str) -> str:
    """The figure as an element for the inside of an HTML page; empty where no artist of it speaks.

    Each point that speaks is a `use` with tabindex, role, aria-label and a title.

    Args:
        salt: Keeps identifiers apart from those of other drawings on the page.
    """
    found: list[Any] = figure.findobj(lambda artist: hasattr(artist, "spoken"))
    speakers = {f"spoken-{number}": artist for number, artist in enumerate(found)}
    if not speakers:
        return ""
    for gid, artist in speakers.items():
        artist.set_gid(gid)
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    groups = {group.get("id"): group for group in root.iter(f"{SVG}g")}
    for gid, artist in speakers.items():
        for point, text in zip(_points(groups[gid]), artist.spoken, strict=True):
            _say(point, text)
    return _embeddable(root)


def _points(group: ElementTree.Element) -> Iterator[ElementTree.Element]:
    return group.iter(f"{SVG}use")


def _say(point: ElementTree.Element, text: str) -> None:
    point.attrib |= {"class": "point", "tabindex": "0", "role": "img", "aria-label": text}
    ElementTree.SubElement(point, f"{SVG}title").text = text


def _embeddable(root: ElementTree.Element) -> str:
    """Without what only a file needs: namespaces, metadata, style sheets, its size and names of groups."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}metadata" or (parent.tag == f"{SVG}defs" and child.tag == f"{SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.attrib = {name.removeprefix(XLINK): value for name, value in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"]))
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "drawing"}
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    """A style whose colours follow the theme, in the page's font."""
    style = FONT.sub("", style)
    for fixed, variable in THEME.items():
        style = style.replace(fixed, variable)
    return style.strip()
