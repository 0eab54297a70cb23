"""The embedded digit classifier."""

import pytest
import torch

import scorefield as sf
from scorefield.errors import InputError
from scorefield.evaluation import digit_classifier


def test_at_least_985_of_the_held_out_digits_are_recognised():
    data = sf.digits(train=False)
    assert int((digit_classifier()(data.tensor()).argmax(1) == data.labels).sum()) >= 985


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0)])
def test_bytes_and_floats_of_any_range_give_the_same_features(ends):
    data, classifier = sf.digits(train=False)[:20], digit_classifier(*ends)
    raw = classifier.features(data.read(range(20)))
    torch.testing.assert_close(classifier.features(data.tensor(ends)), raw, rtol=1e-4, atol=1e-5)
    assert raw.shape == (20, 64)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"x has shape \(2, 3, 32, 32\)"):
        digit_classifier()(torch.zeros(2, 3, 32, 32))


def test_gradients_reach_the_image_and_not_the_weights():
    x = torch.zeros(1, 1, 28, 28, requires_grad=True)
    classifier = digit_classifier()
    classifier(x)[0, 3].backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in classifier.parameters())
