"""A number of participants that no memory holds is refused before anything is allocated for them."""

import pytest

from fedh2l_mpi.build import build_rank
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.doctor import messages
from fedh2l_mpi.planning import check
from fedh2l_mpi.planning.participant_limit import refuse_too_many
from fedh2l_mpi.runtime.world import World


@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        # 1,850 bytes for each participant and 85 for each edge: 1850 P + 85 P (P - 1) / 2 <= 10**6.
        ("complete", 133),
        # 1850 P + 85 (P - 1) <= 10**6.
        ("ring", 516),
        # 1850 P + 85 * 3 P / 2 <= 10**6.
        ("random_regular", 505),
    ],
)
def test_the_number_that_fits_is_said_and_accepted(kind, fits):
    def config(participants):
        return loading.load(None, [f"topology.kind={kind}", f"participants={participants}"])

    with pytest.raises(UserError, match=rf"^participants: got 2000000000\. .* Fix: use {fits} or fewer\.$"):
        refuse_too_many(config(2 * 10**9), available=10**6)
    refuse_too_many(config(fits), available=10**6)
    with pytest.raises(UserError):
        refuse_too_many(config(fits + 1), available=10**6)


@pytest.mark.parametrize("step", [check.check, messages.load_of, lambda config: build_rank(config, World(None))])
def test_whatever_would_list_them_refuses_first(step):
    config = loading.load(None, ["topology.kind=complete", "participants=2147483648"]).resolved(1, launched=False)
    with pytest.raises(UserError, match=r"^participants: got 2147483648\. .* \(complete\), .* TiB, but "):
        step(config)
