"""The file of kept posteriors: what the neighbours got, over resuming and extending."""

import numpy as np
import pytest
from helpers import runs_in_process

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import Exchange
from fedh2l_mpi.metrics import posteriors

SETS = ["models=[mlp]", "participants=3", "exchange.codec=uint8", "seed_set.samples_per_round=16"]
SETS += ["seed_set.views_per_sample=1"]
SHAPE = (3, 16, 10)


def content(out, finished=99):
    kept, problem = posteriors.find(out / "posteriors.h5", SHAPE, finished)
    assert problem == ""
    return kept


def test_what_is_kept_is_what_the_neighbours_got(tmp_path, monkeypatch):
    finish, got = Exchange.finish, {}

    def watched(self, idle=None):
        theirs = finish(self, idle)
        # On a ring of three, everyone is a neighbour of the other two.
        got[self._round] = {0: theirs[1][0].numpy().copy(), 1: theirs[0][0].numpy().copy(), 2: theirs[0][1].numpy()}
        return theirs

    monkeypatch.setattr(Exchange, "finish", watched)
    runs_in_process.run(tmp_path / "run", *SETS, "rounds=5", "exchange.keep_posteriors=2")
    kept = content(tmp_path / "run")
    assert kept.round.tolist() == [1, 3]
    for participant in range(3):
        arrays = kept.of_participant(participant)
        assert list(arrays) == [1, 3]
        for round_index, array_SC in arrays.items():
            assert np.array_equal(array_SC, got[round_index][participant])
    assert kept.of_round(2) is None
    file_bytes = (tmp_path / "run" / "posteriors.h5").stat().st_size
    assert posteriors.file_bytes(2, 5, *SHAPE) == pytest.approx(file_bytes, rel=0.2)


def test_a_resumed_run_keeps_what_was_kept_and_an_extended_one_gets_more_room(tmp_path):
    sets = [*SETS, "exchange.keep_posteriors=2", "checkpoint.every=3"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    runs_in_process.run(whole, *sets, "rounds=6")
    assert runs_in_process.run(out, *sets, "rounds=4", stop_after=2).stops
    # A round after the checkpoint, which a killed process had written, does not count.
    assert list(content(out, 1).of_participant(0)) == []
    runs_in_process.run(out, "rounds=6", mode="auto")
    assert (out / "posteriors.h5").read_bytes() == (whole / "posteriors.h5").read_bytes()


def test_a_round_without_an_exchange_keeps_nothing(tmp_path):
    sets = [*SETS, "method.name=fedmd", "method.warmup_rounds=2", "exchange.codec=float32"]
    runs_in_process.run(tmp_path / "run", *sets, "rounds=3", "exchange.keep_posteriors=1")
    kept = content(tmp_path / "run")
    assert kept.kind == "logits"
    assert list(kept.of_participant(2)) == [2]


def test_a_file_of_another_run_or_damaged_is_named(tmp_path):
    out = tmp_path / "run"
    runs_in_process.run(out, *SETS, "rounds=2", "exchange.keep_posteriors=2")
    path = out / "posteriors.h5"
    assert posteriors.find(path, (4, 16, 10), 2)[1] == "posteriors.h5: does not belong to this run, or is damaged"
    path.write_bytes(b"not HDF5")
    assert posteriors.find(path, SHAPE, 2)[1].startswith("posteriors.h5: damaged: ")
    assert posteriors.find(out / "none.h5", SHAPE, 2) == (None, "")


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["method.name=independent"], "method 'independent' exchanges nothing"),
        (["method.name=d_psgd", "exchange.codec=float32"], "the method exchanges parameters. Allowed: null, or"),
        (["method.name=fd", "exchange.codec=float32"], "the method exchanges class posteriors"),
    ],
)
def test_what_is_not_of_seed_samples_is_not_kept(tmp_path, sets, says):
    with pytest.raises(UserError, match=f"^exchange.keep_posteriors: got 2, but {says}"):
        runs_in_process.run(tmp_path / "run", "models=[mlp]", "participants=3", *sets, "exchange.keep_posteriors=2")
