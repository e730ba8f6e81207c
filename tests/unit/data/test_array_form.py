"""Forms of arrays by their axes and types, and samples in the order of their form."""

import numpy as np
import pytest

from fedh2l_mpi.data.array_form import form_of
from fedh2l_mpi.errors import UserError


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "vocabulary", "words"),
    [
        ((5,), "f8", None, None, "vectors of 5"),
        ((5,), "i8", None, None, "vectors of 5"),
        ((5,), "i8", None, 30, "sequences of token ids of 5 out of 30"),
        ((6, 7), "u1", None, None, "images of 1 x 6 x 7"),
        ((6, 7), "f4", None, None, "series of 6 x 7"),
        ((6, 7), "f4", "image", None, "images of 1 x 6 x 7"),
        ((9,), "f4", "series", None, "series of 1 x 9"),
        ((3, 6, 7), "u1", None, None, "images of 3 x 6 x 7"),
        ((6, 7, 3), "u1", None, None, "images of 3 x 6 x 7"),
        ((3, 6, 3), "f4", None, None, "images of 3 x 6 x 3"),
        ((12, 6, 7), "f4", None, None, "images of 12 x 6 x 7"),
    ],
)
def test_the_form_follows_from_axes_and_type(shape, dtype, kind, vocabulary, words):
    found = form_of("x", shape, dtype, kind, vocabulary)
    assert str(found.form) == words
    values = np.arange(2 * np.prod(shape)).reshape(2, *shape).astype(dtype)
    samples = found.samples(values)
    assert samples.shape == (2, *found.form.shape)
    assert samples.dtype == (np.int64 if vocabulary else np.uint8 if "images" in words and dtype == "u1" else "f4")
    if shape == (6, 7, 3):
        assert np.array_equal(samples[1, 2], values[1, :, :, 2])
    else:
        assert np.array_equal(samples.ravel(), values.ravel())


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "vocabulary", "message"),
    [
        ((), "f4", None, None, r"samples of shape \(\), but they have 1 axis"),
        ((2, 3, 4, 5), "f4", None, None, r"samples of shape \(2, 3, 4, 5\), but they have 1 axis"),
        ((3, 0), "f4", None, None, "each of 1 or more"),
        ((3, 4), "f4", "vector", None, "vectors have 1 axes"),
        ((3,), "f4", "images", None, r"kind is 'images' .did you mean 'image'"),
        ((3,), "O", None, None, "type object"),
        ((3,), "?", None, None, "type bool"),
        ((3,), "f4", None, 9, "token ids are integers"),
        ((3,), "i4", "tokens", None, "need `vocabulary`"),
        ((3,), "i4", "vector", 9, "vectors have no `vocabulary`"),
    ],
)
def test_what_has_no_form_is_refused(shape, dtype, kind, vocabulary, message):
    with pytest.raises(UserError, match=message):
        form_of("x", shape, dtype, kind, vocabulary)
