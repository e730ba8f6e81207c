"""Augmentation and the seed set's views: shared randomness, closed forms, and what must never differ between ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedh2l_mpi.config import DataConfig, SeedSetConfig, loading
from fedh2l_mpi.config.data_sets import BroughtData
from fedh2l_mpi.data.augmentation import Affine, Jitter, Photo, WordDropout, refuse_unfit
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.rotation import rotate
from fedh2l_mpi.data.seed_set import SeedSet, mixup
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.rng import Purpose, generator

KINDS = ["affine", "mixup", "both", "photo", "jitter", "auto"]


def pictures(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    """A bright square on a dark ground, a little different in every picture, with normalised values."""
    images = torch.full((count, channels, side, side), -0.5)
    for index in range(count):
        images[index, :, side // 4 : side // 2 + index % 4, side // 3 : side // 2] = 1.5 + index / count
    return images.contiguous(memory_format=torch.channels_last)


def seed_set(views: str = "none", per_round: int = 24, seed: int = 0, **keys: object) -> SeedSet:
    samples = Labelled(pictures(40), torch.arange(40) % 10)
    return SeedSet(samples, per_round, 10, SeedSetConfig(views=views, **keys), seed)


class Fixed:
    """A generator whose uniform draws are always the same share of the range."""

    def __init__(self, share: float) -> None:
        self.share = share

    def uniform(self, low, high, size):
        return np.full(size, low + self.share * (high - low))

    def random(self, size):
        return np.full(size, self.share)


def test_an_affine_of_nothing_leaves_the_images_as_they_are():
    images = pictures(5)
    same = Affine(0.0, 0.0, 0.0)(images, np.random.default_rng(0))
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_turn_is_the_rotation_that_makes_the_domains(share):
    images = pictures(4)
    turned = Affine(30.0, 0.0, 0.0)(images, Fixed(share))
    # Rotation works on a dark ground of 0.
    expected = rotate(images + 0.5, -30.0 if share == 0.0 else 30.0) - 0.5
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-4)


def test_a_shift_by_whole_pixels_moves_the_picture():
    images = pictures(3, side=20)
    shifted = Affine(0.0, 0.0, 0.1)(images, Fixed(1.0))
    # The grid moves by a tenth of 20 pixels, so what is seen moves up and to the left by 2.
    expected = torch.full_like(images, -0.5)
    expected[:, :, :-2, :-2] = images[:, :, 2:, 2:]
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-4)


def test_what_comes_in_from_outside_is_the_ground_not_grey():
    images = pictures(8)
    moved = Affine(45.0, 0.2, 0.3)(images, np.random.default_rng(1))
    assert moved.amin() == pytest.approx(-0.5, abs=1e-5)
    assert moved[:, :, 0, 0].max() == pytest.approx(-0.5, abs=1e-5)


def test_a_flipped_whole_crop_without_colour_is_the_mirror_image():
    images = pictures(3, channels=3)
    mirrored = Photo(area=1.0, ratio=1.0, colour=0.0)(images, Fixed(0.25))
    torch.testing.assert_close(mirrored, images.flip(-1), rtol=0, atol=1e-4)


def test_a_crop_never_leaves_the_picture():
    # Values that rise to the right: whatever the crop, no value comes from outside.
    ramp = torch.linspace(0, 1, 28).expand(64, 3, 28, 28).contiguous()
    seen = Photo(area=0.3, colour=0.0)(ramp, np.random.default_rng(2))
    assert seen.amin() >= -1e-5
    assert seen.amax() <= 1 + 1e-5
    assert (seen[:, 0, 0].diff(dim=-1).sign().abs().sum(dim=-1) > 20).all(), "a crop was stretched beyond the edge"


def test_colours_keep_their_mean_but_for_brightness():
    images = torch.rand(16, 3, 8, 8)
    seen = Photo(area=1.0, ratio=1.0, colour=0.3)(images, Fixed(0.75))
    shift = seen.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert shift == pytest.approx(0.15, abs=1e-4)


def test_mixup_is_the_weighted_pair_and_its_targets_say_so():
    images, labels = pictures(12), torch.arange(12) % 10
    mixed, kept, targets = mixup(images, labels, 10, 0.4, np.random.default_rng(3))
    draw = np.random.default_rng(3)
    partner, share = draw.permutation(12), draw.beta(0.4, 0.4, 12)
    own = np.maximum(share, 1 - share)
    for i in range(12):
        expected = own[i] * images[i] + (1 - own[i]) * images[partner[i]]
        torch.testing.assert_close(mixed[i], expected, rtol=0, atol=1e-5)
        assert targets[i, labels[i]] >= 0.5 - 1e-6
    assert torch.equal(kept, labels)
    assert targets.sum(dim=1) == pytest.approx(1.0, abs=1e-6)
    logits = torch.randn(12, 10)
    both = [nn.functional.cross_entropy(logits, y, reduction="none") for y in (labels, labels[partner])]
    expected = (torch.from_numpy(own) * both[0] + torch.from_numpy(1 - own) * both[1]).mean()
    assert nn.functional.cross_entropy(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("views", KINDS)
def test_everyone_draws_the_same_views_and_every_round_others(views):
    one, other = seed_set(views), seed_set(views)
    for index in (0, 5):
        assert torch.equal(one.of_round(index).inputs, other.of_round(index).inputs)
        assert torch.equal(one.of_round(index).targets, other.of_round(index).targets)
    assert not torch.equal(one.of_round(0).inputs, one.of_round(1).inputs)
    assert not torch.equal(one.of_round(0).inputs, seed_set(views, seed=1).of_round(0).inputs)


@pytest.mark.parametrize("views", KINDS)
def test_views_change_which_samples_are_drawn_in_no_way(views):
    plain, viewed = seed_set().of_round(3), seed_set(views).of_round(3)
    assert torch.equal(plain.labels, viewed.labels)
    assert viewed.inputs.shape == plain.inputs.shape
    assert not torch.equal(plain.inputs, viewed.inputs)
    assert viewed.inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("views", KINDS)
def test_every_sample_of_a_round_stands_in_it_in_as_many_views_as_the_config_says(views):
    once, thrice = seed_set(views).of_round(3), seed_set(views, views_per_sample=3).of_round(3)
    assert len(thrice) == len(thrice.inputs) == len(thrice.targets) == 3 * 24
    assert seed_set(views, views_per_sample=3).rows_per_round == 3 * 24
    # Row v n + i is view v of sample i, and the first view does not depend on the number of views.
    assert torch.equal(thrice.labels, once.labels.repeat(3))
    assert torch.equal(thrice.inputs[:24], once.inputs)
    assert torch.equal(thrice.targets[:24], once.targets)
    blocks = thrice.inputs.split(24)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        unlike = (blocks[one] != blocks[other]).flatten(1).any(dim=1)
        # Without mixing, no two views are equal; a mixed image may meet itself as its partner.
        assert unlike.sum() >= (24 if views in ("affine", "photo") else 20)
    assert thrice.inputs.is_contiguous(memory_format=torch.channels_last)


def test_every_view_of_a_mixed_sample_has_a_partner_of_its_own():
    # Sample i is bright in pixel i alone, so a mixed image shows the weights of both halves.
    samples = Labelled(torch.eye(40).view(40, 1, 1, 40), torch.arange(40) % 10)
    mixed = SeedSet(samples, 40, 10, SeedSetConfig(views="mixup", views_per_sample=2), 0).of_round(1)
    partners = [(weights - weights.diag().diag() > 0).long() for weights in mixed.inputs.view(2, 40, 40)]
    for partner in partners:
        # A permutation: a sample has one partner and is one of another sample, or it is alone.
        assert torch.equal(partner.sum(dim=0), partner.sum(dim=1))
        assert partner.sum(dim=0).max() == 1
        assert partner.sum() > 30
    assert not torch.equal(*partners)


def test_without_views_a_round_holds_the_samples_themselves():
    whole = seed_set(per_round=40)
    assert torch.equal(whole.of_round(0).inputs, pictures(40))


def test_the_digest_tells_views_seeds_and_settings_apart():
    variants = [
        seed_set(),
        *(seed_set(kind) for kind in KINDS),
        seed_set("affine", view_rotation_deg=5.0),
        seed_set("affine", seed=1),
        seed_set("mixup", mixup_alpha=1.0),
        seed_set(per_round=23),
        seed_set("affine", views_per_sample=2),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert seed_set("affine").digest() == seed_set("affine").digest()
    # The digest of a run from before there were several views of a sample.
    assert seed_set().digest().hex() == "1574981ffe3dfeede4d245389b44f5621355189dfa8bd65b3d2ef60c16fd95dc"
    swapped = seed_set()
    order = torch.tensor([1, 0, *range(2, 40)])
    samples = Labelled(swapped.samples.stored[order], swapped.samples.labels[order])
    assert replace(swapped, samples=samples).digest() != swapped.digest()


def test_jitter_adds_noise_of_its_standard_deviation_to_every_number():
    draw = np.random.default_rng(0)
    for shape in ((400, 7), (400, 2, 9), (40, 3, 8, 8)):
        noise = Jitter(0.5)(torch.ones(shape), draw) - 1.0
        assert noise.std().item() == pytest.approx(0.5, rel=0.05)
        assert abs(noise.mean().item()) < 0.05
    vectors = torch.randn(6, 5)
    assert torch.equal(Jitter(0.0)(vectors, draw), vectors)


def test_word_dropout_makes_a_share_of_the_words_unknown_and_leaves_padding():
    ids = torch.arange(4000).view(40, 100) % 50
    dropped = WordDropout(0.2)(ids, np.random.default_rng(0))
    assert torch.equal(dropped[ids == 0], ids[ids == 0])
    changed = dropped != ids
    assert (dropped[changed] == 1).all()
    # One word in 49 is unknown already.
    assert changed[ids > 1].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(WordDropout(0.0)(ids, np.random.default_rng(0)), ids)


@pytest.mark.parametrize(
    ("samples", "same"),
    [
        (pictures(40), ("affine", {"view_rotation_deg": 15.0})),
        (torch.randn(40, 6), ("jitter", {"view_noise": 0.1})),
        (torch.randn(40, 2, 6), ("jitter", {})),
        (torch.arange(240).view(40, 6), ("word_dropout", {"view_dropout": 0.1})),
    ],
    ids=["image", "vector", "series", "tokens"],
)
def test_auto_views_are_those_that_fit_the_samples(samples, same):
    views, keys = same
    labelled = Labelled(samples, torch.arange(40) % 10)
    auto, named = (
        SeedSet(labelled, 40, 10, config, 0).of_round(3)
        for config in (SeedSetConfig(views="auto", views_per_sample=2), SeedSetConfig(views=views, **keys))
    )
    assert torch.equal(auto.inputs[:40], named.inputs)
    assert not torch.equal(auto.inputs[40:], named.inputs)
    assert not torch.equal(named.inputs, samples)


@pytest.mark.parametrize("shape", [(40, 6), (40, 2, 6)])
def test_series_and_vectors_are_mixed(shape):
    labelled = Labelled(torch.randn(shape), torch.arange(40) % 10)
    mixed = SeedSet(labelled, 40, 10, SeedSetConfig(views="mixup"), 0).of_round(0)
    draw = generator(0, Purpose.SEED_VIEWS, 0)
    partner, share = draw.permutation(40), draw.beta(0.4, 0.4, 40)
    own = torch.from_numpy(np.maximum(share, 1 - share)).float().view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(mixed.inputs, own * labelled.stored + (1 - own) * labelled.stored[partner])
    torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(40))


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (
            "vector",
            {"seed_set": {"views": "affine"}},
            "seed_set.views: 'affine' does not fit vectors. .*: none, mixup, j",
        ),
        (
            "series",
            {"seed_set": {"views": "both"}},
            "seed_set.views: 'both' does not fit series. .*: none, mixup, jitter",
        ),
        (
            "tokens",
            {"seed_set": {"views": "mixup"}},
            "'mixup' does not fit sequences of token ids. .*: none, word_dropo",
        ),
        ("tokens", {"seed_set": {"views": "jitter"}}, "'jitter' does not fit sequences of token ids"),
        ("image", {"seed_set": {"views": "word_dropout"}}, "'word_dropout' does not fit images"),
        (
            "vector",
            {"data": {"augmentation": "photo"}},
            "data.augmentation: 'photo' does not fit vectors. .*: none, jitter",
        ),
        (
            "image",
            {"data": {"augmentation": "word_dropout"}},
            "augmentation: 'word_dropout' .*: none, affine, photo, jit",
        ),
    ],
)
def test_views_and_augmentations_that_do_not_fit_the_samples_are_refused_with_those_that_do(kind, settings, says):
    base = {"seed_set": {"views": "none"}}
    with pytest.raises(UserError, match=f"{says}[^\n]*$"):
        refuse_unfit(loading.load({**base, **settings}), kind)


def test_what_says_nothing_about_views_and_models_fits_any_samples():
    class Brought(BroughtData):
        """Some data of a user's own."""

    DataConfig.kinds["brought"] = Brought
    try:
        for name, recipe in (("pack", "standard"), ("brought", "standard"), ("brought", "classic")):
            config = loading.load({"recipe": recipe, "data": {"name": name}})
            for kind in ("image", "series", "vector", "tokens"):
                refuse_unfit(config, kind)
            assert loading.load(config) == config
            assert config.models == (("mlp",) if name == "brought" else ("lenet5", "mlp", "cnn"))
    finally:
        del DataConfig.kinds["brought"]
    for name, recipe in (("digits", "standard"), ("digits", "classic"), ("pack", "classic")):
        assert loading.load({"recipe": recipe, "data": {"name": name}}).seed_set.views == "affine"
