"""Graphs of neighbours: one class of options per kind."""

from typing import Annotated

from pydantic import Field, model_validator

from fedh2l_mpi.config.section import NO_SWITCH, Count, KindSection, Natural, Switch, problem, refuse

Degree = Annotated[
    Natural, Field(description="neighbours of each participant; small_world: neighbours on the ring, before rewiring")
]
Probability = Annotated[
    float,
    Field(ge=0.0, le=1.0, description="chance of each edge; small_world: chance that an edge is rewired"),
    NO_SWITCH,
]


class TopologyConfig(KindSection):
    """Section `topology`: the graph that says who is whose neighbour."""

    kind: str = Field(
        "ring",
        description="family of graphs; in a star, participant 0 is the hub; the pairs of one_peer_exponential "
        "change with every round",
    )
    redraw_every: Count | None = Field(
        None, description="a random graph is drawn again, from the seed, after this many rounds [rounds]; null: never"
    )
    connected: Switch = Field(
        True, description="require a connected graph: a random graph is drawn again until it is, other graphs must be"
    )
    tries: Count = Field(100, description="draws of a random graph before a graph that is not connected is an error")

    @model_validator(mode="after")
    def _redraws_random_graphs(self) -> "TopologyConfig":
        if self.redraw_every is not None and not isinstance(self, RandomGraph):
            random = ", ".join(name for name, kind in self.kinds.items() if issubclass(kind, RandomGraph))
            text = f"got {self.redraw_every}, but kind {self.kind!r} is not random (random: {random})"
            refuse(problem("redraw_every", self.redraw_every, f"{text}. Fix: set it to null."))
        return self

    @property
    def changes_every(self) -> int | None:
        """Rounds after which another graph takes the place of the last; None: the graph never changes."""
        return self.redraw_every


class Ring(TopologyConfig, kind="ring"):
    """A ring in the order of participants."""


class Complete(TopologyConfig, kind="complete"):
    """Every participant is every other's neighbour."""


class Star(TopologyConfig, kind="star"):
    """Participant 0 is everyone's only neighbour."""


class RandomGraph(TopologyConfig):
    """Group of the kinds that are drawn at random, from the seed."""


class RandomRegular(RandomGraph, kind="random_regular"):
    """Random graph in which all participants have the same number of neighbours."""

    degree: Degree = 3


class SmallWorld(RandomGraph, kind="small_world"):
    """Ring of nearest neighbours, with edges rewired at random."""

    degree: Degree = 4
    probability: Probability = 0.1


class ErdosRenyi(RandomGraph, kind="erdos_renyi"):
    """Random graph in which every edge exists with one probability."""

    probability: Probability = 0.5


class Torus(TopologyConfig, kind="torus"):
    """Grid that is closed in both directions."""


class Exponential(TopologyConfig, kind="exponential"):
    """Participants are neighbours if the distance between their numbers, around the ring, is 1, 2, 4, 8 and so on."""


class OnePeerExponential(TopologyConfig, kind="one_peer_exponential"):
    """Pairs that change with every round: participants whose numbers differ in one binary digit, the next each round.

    The graph of a round is a set of pairs, so `connected` holds for all graphs of a period together.
    """

    @property
    def changes_every(self) -> int | None:
        """One round."""
        return 1


class Hypercube(TopologyConfig, kind="hypercube"):
    """Participants are neighbours if their numbers differ in one binary digit; there must be 2, 4, 8, ... of them."""


class StarOfStars(TopologyConfig, kind="star_of_stars"):
    """Tree of two levels: hubs are the neighbours of participant 0, everyone else is the neighbour of one hub."""

    hubs: Count = Field(2, description="neighbours of participant 0; the other participants are their leaves, in turns")


class EdgeList(TopologyConfig, kind="edge_list"):
    """Edges from a file."""

    path: str = Field(
        description="file with an edge in each line: 'i j', or CSV with a header, such as source,target; '#' starts a "
        "comment"
    )
