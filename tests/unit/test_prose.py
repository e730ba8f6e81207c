"""Rules of prose that a program can hold: docstrings begin plainly, one word per thing, short pages.

Run `python tests/unit/test_prose.py fedh2l_mpi/ROOM...` to list every place that breaks a rule.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fedh2l_mpi"
# A docstring begins with a verb or with the name of the thing.
QUESTIONS = {"what", "whether", "who", "whom", "whose", "how", "which", "where", "when", "why"}
# A sentence that begins with one of these has no subject yet.
HEADLESS = {"Of", "For", "With", "Not", "But"}
# One standard word per thing; on the right is what to write instead.
WORDS = {
    r"gon?e? on with|goes on with|going on with|went on with|go on from|goes on from": "resume",
    r"\btold\b|\btell(s|ing)?\b": "print, report, say or record",
    r"\bbeside\b": "next to, also",
    r"\bbesides\b": "also, as well",
    r"\bwho(so)?ever\b": "the user, any process, rank 0",
    r"\banew\b": "again",
    r"\bso many\b": "n, this many",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbe it\b": "either ... or",
    r"\bbut for\b": "except",
}
README_LINES, COLUMNS, PARAGRAPH_LINES = 150, 100, 5


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of everything in a file that people read: docstrings, comments, messages."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        if token.type in kinds:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def broken_docstrings(path: Path) -> list[str]:
    """Docstrings that begin with a question word, or have a sentence without a subject."""
    found = []
    for line, text in docstrings(path):
        first = re.match(r"\W*(\w+)", text)
        if first and first[1].lower() in QUESTIONS:
            found.append(f"{path.relative_to(ROOT)}:{line}: begins with {first[1]!r}: {text.splitlines()[0]}")
        for sentence in re.split(r"(?<=[.:;])\s+|\n\n", text):
            start = sentence.split(maxsplit=1)[:1]
            if start and start[0] in HEADLESS:
                found.append(f"{path.relative_to(ROOT)}:{line}: a sentence begins with {start[0]!r}: {sentence[:60]}")
    return found


def broken_words(path: Path) -> list[str]:
    """Words for which there is a standard one."""
    return [
        f"{path.relative_to(ROOT)}:{line}: write {better!r} instead: {text.strip()[:100]}"
        for line, text in prose(path)
        for pattern, better in WORDS.items()
        if re.search(pattern, text, re.IGNORECASE)
    ]


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.js")])


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def paragraphs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and lines of every paragraph of running text: no code, table, list or heading."""
    block: list[str] = []
    is_code, start = False, 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        marks = r"\||#|[-*] |\*\*|!|<|```|>|\d+\. "
        if is_code or not line.strip() or re.match(marks, line.lstrip()):
            if block:
                yield start, block
            block = []
        elif not is_code:
            start = start if block else number
            block.append(line)


def test_every_docstring_begins_with_a_verb_or_a_name():
    assert not [row for path in sources() if path.suffix == ".py" for row in broken_docstrings(path)]


def test_there_is_one_word_for_each_thing():
    assert not [row for path in (*sources(), *pages()) for row in broken_words(path)]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_a_page_has_short_lines_and_short_paragraphs(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    # A table's row and a long address cannot be broken.
    wide = [
        f"{n}: {line}"
        for n, line in enumerate(lines, 1)
        if len(line) > COLUMNS and line[0] not in "|!<[" and "http" not in line
    ]
    assert not wide
    assert not [f"{start}: {len(block)} lines" for start, block in paragraphs(page) if len(block) > PARAGRAPH_LINES]


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["fedh2l_mpi"]:
        root = ROOT / argument
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            for row in (*broken_docstrings(file), *broken_words(file)):
                print(row)
