"""The two ways a run ends that are not a fault of the program, and their exit codes."""

import difflib
from collections.abc import Sequence

EXIT_FAULT = 1
EXIT_USER = 2
EXIT_LATE = 86
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """A mistake the user can mend: shown as one message without a traceback, exit code 2.

    The text says where (dotted config key, file, array), what was got, what is allowed and, if short, the way out.
    `agreed` is true where every rank has raised the same error, so that all can leave together.
    """

    def __init__(self, text: str, agreed: bool = False) -> None:
        super().__init__(text)
        self.agreed = agreed


class DivergedError(RuntimeError):
    """A participant's numbers are no longer finite: the whole job ends, exit code 1."""


class LateRankError(RuntimeError):
    """A rank did not answer before the deadline: the whole job ends, exit code 86."""


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """A hint at the nearest of the known words, to be put at the end of a message; empty if none is near."""
    near = difflib.get_close_matches(str(word), known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""
