"""Figures as files, and as part of a page."""

import hashlib
import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedh2l_mpi.analysis.figures.style import house_style
from fedh2l_mpi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without the time of day, the same run gives the same file.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
ENDINGS = tuple(METADATA)
DPI = 300


def save(figure: "Figure", out: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by `out`'s ending; fonts are in the PDF, and letters are paths in the SVG.

    Raises
    ------
    UserError
        If the ending is another, or the file cannot be written.
    """
    ending = checked_ending(out.suffix.removeprefix("."), str(out))
    # In memory first, so that a disk that is full is told as one, and a picture of the same name is not lost before.
    picture = io.BytesIO()
    with house_style():
        figure.savefig(picture, format=ending, dpi=DPI, metadata=METADATA[ending])
    try:
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot write the figure: {error.strerror}") from None


def checked_ending(ending: str, where: str) -> str:
    """An ending in small letters, if a figure can have it."""
    if ending.lower() not in ENDINGS:
        raise UserError(f"{where}: cannot write the figure: got ending {ending!r}, must be {', '.join(ENDINGS)}")
    return ending.lower()


def inline_svg(figure: "Figure", title: str) -> str:
    """A figure as an <svg> element of an HTML page: it scales, and takes the page's font and text colour.

    Whatever is black becomes the page's text colour. The same figure is the same text, and two figures have no id in
    common.
    """
    text = io.StringIO()
    with house_style():
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure.savefig(text, format="svg", dpi=DPI, transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    box, _, rest = svg.partition('viewBox="')[2].partition('"')
    inner = rest[rest.index(">") + 1 : rest.rindex("</svg>")]
    inner = re.sub(r"<!--.*?-->\n?", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<metadata>.*?</metadata>\n?", "", inner, flags=re.DOTALL)
    # It would hold for the whole page; what it says is said once at the top instead.
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\n?", "", inner, flags=re.DOTALL)
    inner = inner.replace("xlink:href", "href")
    inner = re.sub(r'(?<=base64,)[^"]*', lambda data: re.sub(r"\s", "", data.group()), inner)
    inner = re.sub(r"(stroke|fill): ?#000000", r"\1: currentColor", inner)
    inner = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", _page_font, inner)
    inner = re.sub(r"; font-family: [^;\"]*", "", inner)
    # A hundredth of a point is not seen, and a thousand rounds make long paths.
    inner = re.sub(r'\b(d|x|y)="[^"]*"|translate\([^)]*\)', _rounded, inner)
    name = f"f{hashlib.sha256((title + inner).encode()).hexdigest()[:8]}-"
    inner = re.sub(r'\bid="', f'id="{name}', inner)
    inner = re.sub(r'href="#', f'href="#{name}', inner)
    inner = inner.replace("url(#", f"url(#{name}")
    return (
        f'<svg viewBox="{box}" role="img" aria-label="{html.escape(title)}" fill="currentColor" '
        f'stroke-linejoin="round" stroke-linecap="butt">{inner}</svg>'
    )


def _rounded(found: "re.Match[str]") -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", found.group())


def _page_font(found: "re.Match[str]") -> str:
    weight = found.group(1).strip()
    return f"font-size: {found.group(2)}" + (f"; font-weight: {weight}" if weight else "")
