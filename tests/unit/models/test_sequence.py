"""The architectures for series and token ids, and what every architecture says about samples that it does not take."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import build, mixed_precision
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.models.sequence import Gru, TextTransformer, mean_of_tokens
from fedh2l_mpi.models.zoo import ZOO, taking
from fedh2l_mpi.sample_form import SampleForm

FORMS = [
    SampleForm("image", (3, 12, 20)),
    SampleForm("image", (1, 33, 5)),
    SampleForm("series", (2, 15)),
    SampleForm("series", (1, 1)),
    SampleForm("vector", (7,)),
    SampleForm("vector", (1,)),
    SampleForm("tokens", (9,), 20),
]


def samples(form: SampleForm, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    if form.kind == "tokens":
        return torch.randint(form.vocabulary, (count, *form.shape), generator=draw)
    return torch.randn(count, *form.shape, generator=draw)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_trains_on_its_samples_and_refuses_others_by_name(name, form):
    if name not in taking(form.kind):
        with pytest.raises(UserError, match=f"models: '{name}' takes .* are {form}.*{taking(form.kind)[0]}"):
            build(name, form, 5, seed=0)
        return
    model, inputs, labels = build(name, form, 5, seed=0), samples(form, 6), torch.arange(6) % 5
    plain = copy.deepcopy(model).train()
    loss = nn.functional.cross_entropy(plain(inputs), labels)
    expected = torch.autograd.grad(loss, [value for value in plain.parameters() if value.requires_grad])
    flat = FlatParameters(model.train())
    gradient = flat.gradient(nn.functional.cross_entropy(model(inputs), labels))
    length = torch.cat([value.reshape(-1) for value in expected]).norm()
    # Convolutions of the two memory formats sum in different orders.
    torch.testing.assert_close(gradient.norm(), length, rtol=1e-3, atol=0.0)
    for _ in range(20):
        step = flat.gradient(nn.functional.cross_entropy(model(inputs), labels))
        flat.vector.add_(step / step.norm(), alpha=-0.05)
    assert nn.functional.cross_entropy(model(inputs), labels) < loss
    mixed_precision.mix(model)
    assert model.eval()(inputs).dtype == torch.float32


def test_the_recurrent_unit_is_pytorchs():
    own, reference = Gru((3, 6), classes=4, hidden=5), nn.GRU(3, 5, batch_first=True)
    reference.load_state_dict({f"{key}_l0": value for key, value in own.cell.state_dict().items()})
    series = torch.randn(2, 3, 6)
    torch.testing.assert_close(own(series), own.head(reference(series.transpose(1, 2))[1][0]))


@pytest.mark.parametrize("name", taking("tokens"))
def test_padding_changes_no_logit_and_never_learns(name):
    short, long = (SampleForm("tokens", (length,), 20) for length in (4, 9))
    model, longer = build(name, short, 5, seed=0).eval(), build(name, long, 5, seed=0).eval()
    state = model.state_dict()
    if "positions" in state:
        state["positions"] = torch.cat([state["positions"], torch.ones(1, 5, state["positions"].shape[2])], dim=1)
    longer.load_state_dict(state)
    ids = torch.tensor([[3, 1, 4, 1], [2, 7, 0, 0]])
    padded = nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(longer(padded), model(ids))
    assert not torch.equal(model(ids), model(ids.flip(0)))
    # A text of padding alone has logits, too.
    assert longer(torch.zeros_like(padded)).isfinite().all()
    embedding = next(part for part in longer.modules() if isinstance(part, nn.Embedding))
    (gradient,) = torch.autograd.grad(longer(padded).sum(), embedding.weight)
    assert embedding.weight[0].abs().max() == gradient[0].abs().max() == 0
    assert gradient[7].abs().max() > 0


def test_the_mean_of_tokens_leaves_padding_out():
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    is_padding = torch.tensor([[False, False, True], [True, True, True]])
    assert mean_of_tokens(values, is_padding).tolist() == [[2.0], [0.0]]


def test_the_order_of_words_counts_for_the_recurrent_unit_and_the_transformer_alone():
    form, ids = SampleForm("tokens", (3,), 9), torch.tensor([[1, 2, 3]])
    for name, counts in {"mlp": False, "gru": True, "text_transformer": True}.items():
        model = build(name, form, 4, seed=0).eval()
        assert torch.allclose(model(ids), model(ids.flip(1)), atol=1e-6) != counts


def test_arguments_size_the_models():
    tokens, series = SampleForm("tokens", (5,), 9), SampleForm("series", (2, 8))
    assert build("text_transformer(blocks=3,heads=2,width=8)", tokens, 4, seed=0).positions.shape == (1, 5, 8)
    assert build("gru(embedding=6,hidden=7)", tokens, 4, seed=0).cell.weight_ih.shape == (21, 6)
    assert build("cnn1d(width=3)", series, 4, seed=0).head.weight.shape == (4, 6)
    for name, form, says in (
        ("text_transformer(width=10)", tokens, "width 10 must be a multiple of heads 4"),
        ("text_transformer(blocks=0)", tokens, "blocks must be a whole number >= 1, got 0"),
        ("gru(hidden=2.5)", series, "hidden must be a whole number >= 1, got 2.5"),
        ("cnn1d(width=true)", series, "width must be a whole number >= 1, got True"),
        ("mlp(hidden=64)", series, r"hidden must be a list of widths, such as \[128, 64\], got 64"),
        ("mlp(hidden=[64,0])", series, "hidden.1 must be a whole number >= 1, got 0"),
    ):
        with pytest.raises(UserError, match=f"models: .*cannot be built for .*: ValueError: {says}"):
            build(name, form, 4, seed=0)
    assert TextTransformer((5,), 4, 9)(torch.ones(2, 5, dtype=torch.int64)).shape == (2, 4)
