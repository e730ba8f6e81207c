"""Reader of texts: each row of a CSV or JSON Lines file is a sequence of token ids, with columns for class and domain.

A text in small letters is cut into words (letters, digits and underscores) and single other signs. Id 0 fills up short
texts, id 1 stands for words without an id, and the others are those of the most frequent words of the training rows,
the most frequent first, in alphabetical order if they are equally frequent.

Every rank holds all token ids.

Shape letters: N rows, L tokens.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.data_files import Text
from fedh2l_mpi.data import statistics
from fedh2l_mpi.data.class_labels import numbered
from fedh2l_mpi.data.sources import ArrayTable, NaturalDomains, Source
from fedh2l_mpi.data.table_file import JSON_LINES, TableFile, find, open_table
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import SampleForm

WANTED = "one CSV or JSON Lines (.jsonl) file, or a folder with train and test files"
PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass
class Words:
    """Numbers of all words in the order in which they come, and the token numbers of texts."""

    length: int
    numbers: dict[str, int] = field(default_factory=dict)

    def read(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Return the numbers of the first `length` tokens of every text, -1 after its end, int32 (N, L)."""
        rows = []
        for text in texts:
            row = np.full(self.length, -1, dtype=np.int32)
            tokens = tokenised(text, self.length)
            row[: len(tokens)] = [self.numbers.setdefault(token, len(self.numbers)) for token in tokens]
            rows.append(row)
        return np.array(rows, dtype=np.int32).reshape(-1, self.length)

    def ids(self, training_NL: NDArray[np.int32], vocabulary: int) -> NDArray[np.int32]:
        """Return the id of every word by its number, and that of -1, padding, at the end."""
        counts = np.bincount(training_NL[training_NL >= 0], minlength=len(self.numbers))
        seen = [(-int(counts[number]), word, number) for word, number in self.numbers.items() if counts[number]]
        ids = np.full(len(self.numbers) + 1, UNKNOWN, dtype=np.int32)
        for place, (_, _, number) in enumerate(sorted(seen)[:vocabulary]):
            ids[number] = FIRST_WORD + place
        ids[-1] = PADDING
        return ids


def tokenised(text: str, length: int) -> list[str]:
    """Return the first `length` tokens of a text."""
    tokens: list[str] = []
    for found in _TOKEN.finditer(text.lower()):
        if len(tokens) == length:
            break
        tokens.append(found[0])
    return tokens


def open_text(data: Text) -> Source:
    """Open the texts at `data.root`.

    Raises
    ------
    UserError
        If there is no such file, or a column or cell does not fit.
    """
    paths = find(data.root, "text", [".csv", ".tsv", *JSON_LINES], WANTED)
    words, parts = Words(data.length), []
    for path in paths:
        if path is not None:
            file = open_table(path)
            file.check_columns([("data.text", data.text), ("data.label", data.label), ("data.domain", data.domain)])
            parts.append(_read(file, words, data))
    names = [str(path or paths[0]) for path in paths]
    columns = (data.label, data.domain or "domain")
    return source_of("text", (names[0], names[1]), columns, words, parts, data.vocabulary, data.share_for_testing)


def source_of(
    name: str,
    what: tuple[str, str],
    columns: tuple[str, str],
    words: Words,
    parts: Sequence[tuple[NDArray[np.int32], list[str], list[str]]],
    vocabulary: int,
    share: float,
) -> Source:
    """Return the source of tokenised texts.

    Parameters
    ----------
    what : tuple of str
        Names of the training and the test part, for messages.
    columns : tuple of str
        Names of the labels and the domains, for messages.
    parts : sequence of (int32 (N, L), list of str, list of str)
        Numbers of tokens, labels and domains of the training part, and of the test part if there is one; the domains
        are empty if the data have none.
    vocabulary : int
        Largest number of words that have an id.
    share : float
        Share that is kept for testing if there is no test part.
    """
    (numbers, labels, domains), *others = parts
    test = others[0] if others else None
    classes = numbered(_columns(what, columns[0]), labels, test[1] if test else None, least=2)
    natural = None
    if domains:
        found = numbered(_columns(what, columns[1]), domains, test[2] if test else None, least=1)
        natural = NaturalDomains(found.names, found.train, found.test)
    rows = statistics.training_rows(classes.train, natural, None if test else share)
    ids = words.ids(numbers[rows], vocabulary)
    known = FIRST_WORD + int((ids >= FIRST_WORD).sum())
    trained = numbers[rows]
    unknown = float((ids[trained[trained >= 0]] == UNKNOWN).mean()) if (trained >= 0).any() else 0.0
    cut = int((numbers[:, -1] >= 0).sum())
    return Source(
        name,
        len(classes.names),
        SampleForm("tokens", (words.length,), known),
        1.0,
        0.0,
        1.0,
        train=ArrayTable(classes.train, ids[numbers]),
        test=ArrayTable(classes.test, ids[test[0]]) if test and classes.test is not None else None,
        domains=natural,
        class_names=classes.class_names,
        details=(
            ("file", what[0]),
            ("words", f"{known - FIRST_WORD} have an id; {unknown:.1%} of the training tokens have none"),
            ("length", f"{words.length} tokens; {cut} of {len(numbers)} texts have as many or more"),
        ),
    )


def _columns(what: tuple[str, str], column: str) -> tuple[str, str]:
    return f"{what[0]}: column {column}", f"{what[1]}: column {column}"


def _read(file: TableFile, words: Words, data: Text) -> tuple[NDArray[np.int32], list[str], list[str]]:
    """Return the numbers of tokens, the labels and the domains of a file."""
    labels: list[str] = []
    domains: list[str] = []
    named = [(data.label, labels)] if data.domain is None else [(data.label, labels), (data.domain, domains)]

    def texts() -> Iterable[str]:
        for line, (text, *others) in file.rows([data.text, *(name for name, _ in named)]):
            for (name, values), cell in zip(named, others, strict=True):
                if not cell.strip():
                    raise UserError(f"{file.path}: line {line}: column {name} is empty. Every row needs it.")
                values.append(cell.strip())
            yield text

    numbers = words.read(texts())
    if not labels:
        raise UserError(f"{file.path}: has no row of text.")
    return numbers, labels, domains
