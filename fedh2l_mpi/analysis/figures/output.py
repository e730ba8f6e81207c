"""Write figures to files, or into a page."""

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

# Without a date, the same run gives the same file.
METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
ENDINGS = tuple(METADATA)
DPI = 300


def save(figure: "Figure", out: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the ending of `out`. PDF embeds fonts; SVG draws letters as paths.

    Raises
    ------
    UserError
        If the ending is different, or the file cannot be written.
    """
    ending = checked_ending(out.suffix.removeprefix("."), str(out))
    # The picture is made in memory first, so that a failure to draw does not destroy a file of the same name.
    picture = io.BytesIO()
    with house_style():
        figure.savefig(picture, format=ending, dpi=DPI, metadata=METADATA[ending])
    try:
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot write the figure: {error.strerror}.") from None


def checked_ending(ending: str, where: str) -> str:
    """Return the ending in lower case; raise a UserError if a figure cannot have it."""
    if ending.lower() not in ENDINGS:
        raise UserError(f"{where}: cannot write a figure with the ending {ending!r}. Allowed: {', '.join(ENDINGS)}.")
    return ending.lower()


def inline_svg(figure: "Figure", title: str) -> str:
    """Return a figure as an <svg> element of an HTML page, which scales and uses the page's font.

    Everything black gets the page's text colour. The same figure gives the same text, and no two figures share an id.
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
    # This style would apply to the whole page, so the svg element carries it instead.
    inner = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\n?", "", inner, flags=re.DOTALL)
    inner = inner.replace("xlink:href", "href")
    inner = re.sub(r'(?<=base64,)[^"]*', lambda data: re.sub(r"\s", "", data.group()), inner)
    inner = re.sub(r"(stroke|fill): ?#000000", r"\1: currentColor", inner)
    inner = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", _page_font, inner)
    inner = re.sub(r"; font-family: [^;\"]*", "", inner)
    # Paths of a thousand rounds are long, and a hundredth of a point is invisible, so numbers are rounded.
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
