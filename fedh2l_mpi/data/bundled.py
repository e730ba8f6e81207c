"""Data sets that need no file of the user: three tables inside scikit-learn, and sentences of a grammar.

The tables are read from the installed package's files, because importing scikit-learn is slow.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config.data_files import Bundled
from fedh2l_mpi.data import sources, statistics
from fedh2l_mpi.data.sources import ArrayTable, Source, Table
from fedh2l_mpi.data.text_reader import Words, source_of
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import named_generator
from fedh2l_mpi.runtime import libraries
from fedh2l_mpi.sample_form import SampleForm

TABLES = {"breast_cancer": "breast_cancer.csv", "wine": "wine_data.csv"}

TOPICS = ("food", "sport", "travel", "weather")
DIALECTS = ("north", "south", "east", "west")
SENTENCES_OF_A_TOPIC_AND_DIALECT = 150
LENGTH = 16
# Words of each topic, each in the forms of the four dialects. A form that dialects share stands for all of them.
NOUNS = {
    "food": (
        "soup broth stew potage",
        "bread loaf bap batch",
        "apple pippin codlin pearmain",
        "cook chef baker kitchener",
    ),
    "sport": (
        "ball sphere leather pill",
        "team side squad eleven",
        "goal point score mark",
        "race dash relay heat",
    ),
    "travel": (
        "train rail express local",
        "road lane way track",
        "ticket pass fare token",
        "guest tourist rover hiker",
    ),
    "weather": ("rain shower drizzle wet", "wind breeze gale blow", "cloud haze mist fog", "sun shine light glare"),
}
# Words that several topics use, so that one word alone does not give the topic away.
SHARED = ("plan", "day", "time", "price", "story", "morning")
ADJECTIVES = ("good great grand canny", "bad poor dire naff", "long lengthy drawn lang", "small little wee tiny")
VERBS = ("was", "seemed", "looked", "felt", "became")
OPENINGS = ("the", "a", "this", "that", "our")
# Share of nouns that come from another topic.
CONFUSION = 0.15


def open_bundled(data: Bundled) -> Source:
    """Open one of the data sets that need no file."""
    if data.name == "digits_series":
        return digits_series()
    if data.name == "grammar_text":
        return grammar_text(data.share_for_testing)
    return table(data.name, data.share_for_testing)


def table(name: str, share: float) -> Source:
    """Return a table of scikit-learn: vectors that are standardised by the rows for training.

    Parameters
    ----------
    name : {"breast_cancer", "wine"}
        Breast cancer: Street, Wolberg and Mangasarian, 1993. Wine: Aeberhard and Forina, 1991. Both UCI.
    share : float
        Share of every class that is kept for testing.

    Raises
    ------
    UserError
        If scikit-learn is not installed, or its file is damaged.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            f"data.name: scikit-learn, which ships {name!r}, is not installed. Fix: {libraries.fix('sklearn')}."
        )
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / TABLES[name]
    try:
        header, *lines = path.read_text(encoding="utf-8").split("\n")
        count, features, *names = header.strip().split(",")
        values = np.array([line.split(",") for line in lines if line.strip()], dtype=np.float64)
        values = values.reshape(int(count), int(features) + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: scikit-learn's {name} cannot be read: {error}") from None
    form, labels = SampleForm("vector", (int(features),)), values[:, -1].astype(np.int64)
    train = ArrayTable(labels, values[:, :-1].astype(np.float32))
    mean, std = statistics.of_rows(train, statistics.training_rows(labels, None, share), form)
    return Source(name, len(names), form, 1.0, mean, std, train=train, test=None, class_names=tuple(names))


def digits_series() -> Source:
    """Return scikit-learn's digits as series: the 8 rows of pixels, from the top, are the channels (8, 8)."""
    digits = sources.digits()

    def as_series(table: Table) -> ArrayTable:
        return ArrayTable(table.labels, table.samples(np.arange(len(table.labels)))[:, 0])

    test = None if digits.test is None else as_series(digits.test)
    form = SampleForm("series", (8, 8))
    return replace(digits, name="digits_series", form=form, train=as_series(digits.train), test=test)


def grammar_text(share: float) -> Source:
    """Return 2,400 sentences on 4 topics, the classes, in 4 dialects, the domains; they are the same in every run.

    A sentence is an opening, an adjective, a noun, a verb, an adjective, and one or two nouns. Dialects have words of
    their own for nouns and adjectives. A share CONFUSION of the nouns belongs to another topic, and about a third are
    words that all topics use, so no model is always right.
    """
    draw = named_generator(0, "grammar_text")
    texts, topics, dialects = [], [], []
    for topic in TOPICS:
        for number, dialect in enumerate(DIALECTS):
            picks = draw.random((SENTENCES_OF_A_TOPIC_AND_DIALECT, 24))
            texts += [_sentence(topic, number, pick) for pick in picks]
            topics += [topic] * len(picks)
            dialects += [dialect] * len(picks)
    words = Words(LENGTH)
    parts = [(words.read(texts), topics, dialects)]
    what = ("grammar_text", "grammar_text")
    made = source_of("grammar_text", what, ("topic", "dialect"), words, parts, len(words.numbers), share)
    return replace(made, details=made.details[1:])


def _sentence(topic: str, dialect: int, pick: NDArray[np.float64]) -> str:
    """Return a sentence that follows from numbers in [0, 1)."""
    picks = iter(pick.tolist())

    def one_of(words: tuple[str, ...]) -> str:
        return words[int(next(picks) * len(words))]

    def noun() -> str:
        source = next(picks)
        if source < 1 / 3:
            return one_of(SHARED)
        others = tuple(other for other in TOPICS if other != topic)
        chosen = one_of(others) if source > 1.0 - CONFUSION else topic
        return one_of(NOUNS[chosen]).split()[dialect]

    def adjective() -> str:
        return one_of(ADJECTIVES).split()[dialect]

    words = [one_of(OPENINGS), adjective(), noun(), one_of(VERBS), adjective(), "and", noun()]
    if next(picks) < 0.5:
        words += ["with", noun()]
    return " ".join(words) + " ."
