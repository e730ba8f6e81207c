"""Labels of architectures with arguments."""

import datetime

import pytest

from fedh2l_mpi.config import Config, architecture, loading
from fedh2l_mpi.errors import UserError

NET = {"name": "m:Net", "width": 64, "acts": ["relu", {"slope": 1.5e-3, "b": None}], "on": True, "text": 'a,)("'}


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ("lenet5", "lenet5"),
        (" m:Net() ", "m:Net"),
        ({"name": "m:Net", "width": 64}, "m:Net(width=64)"),
        ("m:Net( width = 64 , depth=2)", "m:Net(depth=2,width=64)"),
        ({"name": "m:Net(width=64)", "depth": 2}, "m:Net(depth=2,width=64)"),
        (NET, r'm:Net(acts=["relu",{"b":null,"slope":0.0015}],on=true,text="a,)(\"",width=64)'),
    ],
)
def test_equal_entries_have_one_label_which_reads_back_to_them(entry, label):
    read = architecture.read(entry)
    assert read.label == label
    assert architecture.read(label) == read


def test_the_arguments_arrive_as_they_were_written():
    assert architecture.read(NET) == ("m:Net", {key: value for key, value in NET.items() if key != "name"})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("m:Net(64)", "must have arguments such as m:Net.width=64., each with a key"),
        ("m:Net(width=64", "must end with a bracket"),
        ("m:Net(width=wide)", "must have a JSON value for 'width'"),
        ("m:Net(width=64 depth=2)", "must have a comma"),
        ("m:Net(width=64,width=64)", "gives the argument 'width' twice"),
        ({"name": "m:Net(width=64)", "width": 32}, "gives the argument 'width' twice"),
        ({"nam": "m:Net"}, "must have the architecture as its key `name`"),
        ({"name": "m:Net", 3: 64}, "has 3, which cannot be the name of an argument"),
        ({"name": "m:Net", "width": float("inf")}, "has the value inf of 'width', which is no finite number"),
        ({"name": "m:Net", "since": datetime.date(2026, 1, 1)}, "has a date as a value of 'since'"),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_line(entry, says):
    with pytest.raises(UserError, match=f"^models: got .*{says}[^\n]*$"):
        loading.load({"models": [entry]})


@pytest.mark.parametrize("models", [[NET, "mlp"], {0: NET, 1: "mlp"}])
def test_a_config_stores_labels_and_finds_weights_by_them(models):
    label = architecture.read(NET).label
    config = loading.load({"models": models, "participants": 2, "weights": {label.replace("=", " = "): "net.pth"}})
    assert config.architecture(0) == label
    assert config.architecture(1) == "mlp"
    assert config.weights == {label: "net.pth"}
    assert loading.load(config) == config == Config(models=models, participants=2, weights=config.weights)


def test_one_map_alone_is_pointed_to_a_list():
    with pytest.raises(UserError, match="must be a list of architectures, .* Fix: put the map into a list"):
        loading.load({"models": {"name": "m:Net", "width": 64}})
