"""Domains that are made by shifts: the formula of each, what is drawn for a row, and what is refused."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fedh2l_mpi.config import Config, DataConfig, PartitionConfig, SeedSetConfig, loading
from fedh2l_mpi.config.data import Pack
from fedh2l_mpi.config.shift import SHIFTS, Shift
from fedh2l_mpi.data import federated, shifts
from fedh2l_mpi.data.made_domains import made_domains
from fedh2l_mpi.data.rotation import rotate
from fedh2l_mpi.data.sources import ArrayTable, NaturalDomains, Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import SampleForm

CPU = torch.device("cpu")
ONE = torch.ones(())


def seen(rows, domain=1, table=0, kind="vector", std=ONE):
    return shifts.Samples(np.asarray(rows), table, domain, std, kind)


def test_colour_scales_the_channels_in_even_steps():
    images = torch.rand(2, 3, 4, 5)
    expected = images * torch.tensor([1.4, 1.0, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(shifts.colour(images, 0.4), expected)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_is_a_gaussian_filter(sigma):
    images = torch.rand(2, 1, 9, 12, dtype=torch.float64)
    expected = [ndimage.gaussian_filter(image[0].numpy(), sigma, mode="nearest", truncate=3.0) for image in images]
    torch.testing.assert_close(shifts.blur(images, sigma)[:, 0], torch.tensor(np.array(expected)))
    # The same bits for a sample alone.
    assert torch.equal(shifts.blur(images, sigma)[1:], shifts.blur(images[1:], sigma))


def test_invert_scale_and_offset_are_their_formulas():
    values, std = torch.tensor([[0.0, 0.25, 1.0]]), torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(shifts.invert(values, 0.2), torch.tensor([[0.2, 0.35, 0.8]]))
    torch.testing.assert_close(shifts.scale(values, -0.5), torch.tensor([[0.0, 0.125, 0.5]]))
    torch.testing.assert_close(shifts.offset(values, 0.5, std), torch.tensor([[0.5, 1.25, 2.5]]))


@pytest.mark.parametrize("amount", [0.9, -0.6])
def test_a_time_warp_reads_the_series_along_its_curve(amount):
    series = torch.randn(2, 3, 50, dtype=torch.float64)
    u = np.linspace(0.0, 1.0, 50)
    curve = u + amount * np.sin(np.pi * u) / np.pi
    expected = np.array([[np.interp(curve, u, channel) for channel in one] for one in series.numpy()])
    warped = shifts.time_warp(series, amount)
    torch.testing.assert_close(warped, torch.tensor(expected))
    torch.testing.assert_close(warped[..., [0, -1]], series[..., [0, -1]])
    assert torch.equal(shifts.time_warp(series[..., :1], amount), series[..., :1])


def test_noise_depends_on_table_row_domain_and_place_alone():
    values, noise = torch.zeros(400, 100), Shift("noise", 0.5)
    std = torch.linspace(1.0, 3.0, 100)
    drawn = shifts.apply([noise], values, seen(np.arange(400), domain=2, std=std))
    torch.testing.assert_close(drawn.std(dim=0) / std, torch.ones(100), rtol=0.2, atol=0.0)
    torch.testing.assert_close(drawn.std() / std.pow(2).mean().sqrt(), ONE, rtol=0.01, atol=0.0)
    assert abs(drawn.mean()) < 0.05
    rows = np.array([300, 7])
    assert torch.equal(shifts.apply([noise], values[rows], seen(rows, domain=2, std=std)), drawn[rows])
    first = drawn[7]
    others = [seen([7], domain=1, std=2 * std), seen([7], domain=2, table=1, std=std), seen([8], domain=2, std=std)]
    assert not any(torch.equal(shifts.apply([noise], values[:1], other)[0], first) for other in others)
    again = shifts.apply([Shift("offset", 0.0), noise], values[:1], seen([7], domain=2, std=std))
    assert not torch.equal(again[0], first)


def test_shifts_are_applied_in_their_order_by_the_domains_number_of_steps():
    images, turn, negative = torch.rand(3, 1, 8, 8), Shift("rotation", 10.0), Shift("invert", 0.3)
    at = seen(np.arange(3), domain=3, kind="image")
    expected = shifts.invert(rotate(images, 30.0), 3 * 0.3)
    assert torch.equal(shifts.apply([turn, negative], images, at), expected)
    assert torch.equal(shifts.apply([negative, turn], images, at), rotate(shifts.invert(images, 3 * 0.3), 30.0))
    assert shifts.apply([turn, negative], images, seen(np.arange(3), domain=0)) is images
    assert shifts.name([turn, negative], 3) == "rotation 30 deg + invert 0.9"


def source_of(form, natural=None):
    values = np.random.default_rng(0).normal(5.0, 2.0, (60, *form.shape)).astype(np.float32)
    table = ArrayTable(np.arange(60) % 2, values)
    return Source("own", 2, form, 1.0, 5.0, 2.0, table, None, natural)


def test_a_plan_applies_the_shifts_before_it_normalises():
    data = DataConfig(partition=PartitionConfig(domains=2, shift=[{"kind": "offset", "step": 0.5}]))
    config = Config(data=data, participants=2, rounds=1, seed_set=SeedSetConfig(views="none")).resolved(
        1, launched=False
    )
    plan = federated.plan(config, source_of(SampleForm("series", (2, 5))))
    assert plan.domain_names == ["offset 0 sd", "offset 0.5 sd"]
    loaded = federated.load(plan, [0, 1], CPU)
    for domain, part in enumerate([plan.shares[0].private, plan.shares[1].private]):
        stored = torch.from_numpy(plan.source.train.samples(part.rows))
        torch.testing.assert_close(loaded.private[domain].inputs(), (stored - 5.0) / 2.0 + 0.5 * domain)
    torch.testing.assert_close(loaded.tests[1].inputs(), loaded.tests[0].inputs() + 0.5)


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("form", [(3, 4, 4), (2, 9), (6,)], ids=["image", "series", "vector"])
def test_every_kind_fits_the_samples_that_it_declares_and_no_others(kind, form):
    form = SampleForm({3: "image", 2: "series", 1: "vector"}[len(form)], form)
    part, source = PartitionConfig(domains=2, shift=[{"kind": kind, "step": 0.5}]), source_of(form)
    if form.kind not in SHIFTS[kind].samples:
        with pytest.raises(UserError, match=rf"shift.0: {kind} does not fit .*\. Kinds that fit: .*noise"):
            made_domains(part, source)
        return
    made = made_domains(part, source)
    values = torch.from_numpy(source.train.samples(np.arange(6))).clone()
    std = torch.full([len(values[0]), *[1] * (len(form.shape) - 1)], 2.0)
    shifted = shifts.apply(made.shifts, values, seen(np.arange(6), kind=form.kind, std=std))
    assert shifted.shape == values.shape
    assert not torch.equal(shifted, values)


def test_data_without_a_shift_are_rotated_images_or_one_domain():
    images, tokens = SampleForm.image(1, 4), SampleForm("tokens", (5,), 9)
    given, shifted = DataConfig().partition, PartitionConfig(shift=[{"kind": "noise", "step": 0.5}])
    assert made_domains(given, source_of(images)).names[1] == "rotated 20 deg"
    unsaid = Pack().partition
    assert made_domains(unsaid, source_of(tokens)).names == ("all",)
    natural = NaturalDomains(("a", "b"), np.arange(60) % 2)
    assert made_domains(unsaid, source_of(images, natural)) is None
    with pytest.raises(UserError, match="domains: got 4, but vectors cannot be rotated. Fix: .*shift: noise, scale"):
        made_domains(given, source_of(SampleForm("vector", (5,))))
    with pytest.raises(UserError, match="noise does not fit sequences of token ids. No kind fits"):
        made_domains(shifted, source_of(tokens))
    with pytest.raises(UserError, match="colour needs images of 2 or more channels, but the data are images of 1 x"):
        made_domains(PartitionConfig(shift=[{"kind": "colour", "step": 0.1}]), source_of(images))
    with pytest.raises(
        UserError, match=r"data.partition.domains: got 4, but the data have domains of their own \(a, b"
    ):
        made_domains(shifted, source_of(images, natural))


@pytest.mark.parametrize(
    ("partition", "says"),
    [
        ({"shift": "noise"}, "shift: got 'noise', must be a list of maps"),
        ({"shift": []}, r"shift: got \[\], must be a list of maps"),
        ({"shift": [3]}, "shift.0: got 3, must be a map such as"),
        ({"shift": [{"kind": "nois", "step": 1}]}, "shift.0: got kind 'nois'; known: .*did you mean 'noise'"),
        ({"shift": [{"kind": "noise"}]}, "shift.0: got step None of noise, must be a number"),
        ({"shift": [{"kind": "noise", "step": float("nan")}]}, "shift.0: got step nan of noise"),
        ({"shift": [{"kind": "noise", "stp": 1}]}, "shift.0: unknown key 'stp'; .*did you mean 'step'"),
        ({"shift": [{"kind": "noise", "step": -1}]}, "shift.0: 4 domains of noise with step -1 reach -3, .* 0 and 100"),
        ({"shift": [{"kind": "invert", "step": 0.5}]}, "shift.0: 4 domains of invert .* reach 1.5, .* between 0 and 1"),
        ({"shift": [{"kind": "rotation", "step": 60}]}, "shift.0: 4 domains .* reach 180, .* between -180 and 180"),
        (
            {"shift": [{"kind": "rotation", "step": 15}], "rotation_step_deg": 15},
            "rotation_step_deg: got 15.0, but shift is given",
        ),
    ],
)
def test_what_is_no_shift_is_refused_in_one_line(partition, says):
    with pytest.raises(UserError, match=f"^data.partition.{says}[^\n]*$"):
        loading.load({"data": {"partition": partition}})


@pytest.mark.parametrize("recipe", ["standard", "classic"])
def test_a_stored_config_keeps_its_shifts(recipe):
    entries = [{"kind": "noise", "step": 0.5}, {"kind": "rotation", "step": 15.0}]
    config = loading.load({"recipe": recipe, "data": {"partition": {"shift": entries}}})
    assert config.data.partition.shifts == (Shift("noise", 0.5), Shift("rotation", 15.0))
    assert config.data.partition.rotation_step_deg is None
    assert loading.load(config) == config
