"""Memory of seed rows per sample from small rounds, against all tensors of a larger round."""

import pytest
import torch
from helpers.configs import settled
from helpers.live_tensors import counted

from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.labelled import Labelled, Normalisation
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.models.memory_format import as_stored
from fedh2l_mpi.planning.view_size import measure_views

VECTOR, SERIES, GREY, COLOURED, TEXT = (32,), (1, 28), (1, 28, 28), (3, 32, 32), (40,)


def samples(count: int, shape: tuple[int, ...], is_compact: bool = False, is_text: bool = False) -> Labelled:
    labels = torch.randint(10, (count,))
    if is_text:
        return Labelled(torch.randint(2, 100, (count, *shape)), labels)
    if not is_compact:
        return Labelled(as_stored(torch.randn(count, *shape)), labels)
    scales = [torch.full((shape[0], 1, 1), value) for value in (255.0, 0.5, 0.25)]
    return Labelled(as_stored(torch.randint(256, (count, *shape), dtype=torch.uint8)), labels, Normalisation(*scales))


@pytest.mark.parametrize("is_subset", [False, True])
@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize(
    ("shape", "kind", "views"),
    [
        *((shape, "", views) for shape in (VECTOR, SERIES) for views in ("mixup", "jitter")),
        *((shape, "", views) for shape in (GREY, COLOURED) for views in ("affine", "photo", "both", "mixup", "jitter")),
        *((COLOURED, "is_compact", views) for views in ("none", "affine", "photo")),
        *((TEXT, "is_text", views) for views in ("none", "word_dropout")),
        (COLOURED, "", "none"),
    ],
)
def test_a_rounds_rows_take_what_was_measured_for_each_sample(shape, kind, views, each, is_subset):
    if views == "none" and each > 1:
        pytest.skip("views of no kind are not repeated")
    config = settled(f"seed_set.views={views}", f"seed_set.views_per_sample={each}").seed_set
    few, more, many = (samples(count, shape, **({kind: True} if kind else {})) for count in (3, 5, 100 + is_subset))
    told = measure_views(config, None, few, more, 10, is_subset)
    seed_set = SeedSet(many, 100, 10, config, 0)
    with counted() as live:
        drawn = seed_set.of_round(0)
        held = live.live_bytes
    del drawn
    # Only the grid of one image and the like do not grow with the number of samples.
    assert 100 * told.drawn_bytes == pytest.approx(live.peak_bytes, rel=0.02, abs=1000)
    assert 100 * told.held_bytes == pytest.approx(held, rel=0.02, abs=1000)


def test_views_of_images_take_several_times_the_images():
    config = settled("seed_set.views=affine", "seed_set.views_per_sample=1").seed_set
    told = measure_views(config, None, samples(3, COLOURED), samples(5, COLOURED), 10, is_subset=False)
    image = 4 * 3 * 32 * 32
    # The image without its darkest value, the view twice, once per memory format, and two coordinates for each pixel.
    assert told.drawn_bytes == pytest.approx(3 * image + image * 2 / 3, rel=0.01)
    assert told.held_bytes == image


@pytest.mark.parametrize(
    ("name", "times"),
    [
        # A photograph in bytes is a quarter of its input. Then there are the input and the same as above.
        (None, 1.25),
        ("affine", 4 + 2 / 3),
    ],
)
def test_a_minibatch_of_photographs_takes_its_input_and_what_its_views_need(name, times):
    few, more = (samples(count, COLOURED, is_compact=True) for count in (3, 5))
    augment = AUGMENTATIONS[name] if name else None
    told = measure_views(settled("seed_set.views=none").seed_set, augment, few, more, 10, is_subset=False)
    assert told.minibatch_bytes == pytest.approx(times * 4 * 3 * 32 * 32, rel=0.01)
