"""Section `faults`: participants that do not take part in every round."""

from typing import Annotated

from pydantic import Field

from fedh2l_mpi.config.section import NO_SWITCH, KindSection, Section

# A mean of more rounds than any run has is as good as for ever.
MeanRounds = Annotated[float, Field(ge=1.0, le=1e9), NO_SWITCH]


class ParticipationConfig(KindSection):
    """Section `faults.participation`: the participants of each round."""

    kind: str = Field(
        "always",
        description="who takes part in a round: all (always), each with a chance (bernoulli), each while a chain of "
        "two states lasts (markov), a number of participants that is drawn (fixed_share), or those of a file (file); "
        "who is absent neither trains nor publishes",
    )


class Always(ParticipationConfig, kind="always"):
    """Every participant takes part in every round."""


class Bernoulli(ParticipationConfig, kind="bernoulli"):
    """Each participant takes part in each round with one probability."""

    probability: Annotated[float, Field(ge=0.0, le=1.0), NO_SWITCH] = Field(
        description="chance that a participant takes part in a round"
    )


class Markov(ParticipationConfig, kind="markov"):
    """Each participant is present and absent by turns, for times that are geometrically distributed."""

    mean_present: MeanRounds = Field(6.0, description="mean number of rounds for which a participant stays [rounds]")
    mean_absent: MeanRounds = Field(2.0, description="mean number of rounds for which a participant is away [rounds]")


class FixedShare(ParticipationConfig, kind="fixed_share"):
    """The same number of participants takes part in every round."""

    share: Annotated[float, Field(gt=0.0, le=1.0), NO_SWITCH] = Field(
        description="share of the participants that is drawn for each round, at least one of them"
    )


class AvailabilityFile(ParticipationConfig, kind="file"):
    """Participants take part in the rounds that a file names."""

    path: str = Field(
        description="CSV file with the header participant,from,to: the first and the last round, from 0, of a time in "
        "which the participant takes part; an empty `to`: until the end; who is not named takes part in every round"
    )


class FaultsConfig(Section):
    """Section `faults`: faults that the run simulates."""

    participation: ParticipationConfig = ParticipationConfig()
