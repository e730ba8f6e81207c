"""Read files that a user names, without waiting and without end, and the fields of their lines."""

import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
QUOTES = "\"'"


def read_text(path: Path, most_bytes: int) -> str:
    """Return the text of a file.

    Raises
    ------
    OSError, ValueError
        As `read_bytes`, or if it is not UTF-8 text.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file.

    Raises
    ------
    OSError
        If the system cannot read it.
    ValueError
        If it is a pipe or a device, which may have no end, or has more than `most_bytes`. The message continues a
        sentence that names the file.
    """
    kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        raise ValueError(f"it is {kind}, not a file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return content


def fields_of(line: str) -> list[str]:
    """Return the fields of a line of numbers, which a comma, a semicolon, a tab or blanks separate; quotes are removed.

    A byte order mark, as spreadsheets write, and a comment from `#` on are left out; a blank line has no fields.
    """
    text = line.removeprefix("\ufeff").partition("#")[0].strip(" \r\n")
    for separator in ",;\t":
        if separator in text:
            return [field.strip().strip(QUOTES) for field in text.split(separator)]
    return [field.strip(QUOTES) for field in text.split()]
