"""What a step sees is a function of (seed, step)."""

from collections import Counter

import pytest
import torch

import scorefield as sf
from scorefield.data import array
from scorefield.training import TrainConfig
from scorefield.training.batches import Feed, batch_indices, derived_seed


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_every_item_is_seen_once_an_epoch_whatever_the_batch(batch_size):
    stream = [i for step in range(50) for i in batch_indices(3, step, batch_size, 10)]
    for epoch in range(len(stream) // 10):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_order_differs_between_epochs_and_seeds():
    epochs = {tuple(batch_indices(seed, step, 50, 50)) for seed in (0, 1) for step in range(3)}
    assert len(epochs) == 6


def test_derived_seeds_do_not_collide():
    seeds = [derived_seed(s, p, i) for s in (0, 1, 2**40) for p in ("order", "noise") for i in (0, 1, 2**33)]
    assert max(Counter(seeds).values()) == 1


def images(n=12):
    values = torch.randint(0, 256, (n, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return array(values, labels=torch.arange(n) % 3)


def batch(config, step=3, rank=0, world=1):
    feed = Feed(images(), config, sf.VP(), labels=True, rank=rank, world=world)
    return feed.batch(step, next(iter(feed.raw(step, step + 1))), torch.device("cpu"))


def test_two_processes_see_the_halves_of_what_one_sees():
    config = TrainConfig(batch_size=8, dequantize=True, flip=True)
    whole, halves = batch(config), [batch(config, rank=r, world=2) for r in range(2)]
    for name in ("x0", "t", "weight", "noise", "label"):
        assert torch.equal(torch.cat([getattr(h, name) for h in halves]), getattr(whole, name))


def test_dequantised_flipped_batch_holds_the_items_themselves():
    # With 12 items in a batch of 12 every item is there; undoing noise and flip must give back its levels.
    b = batch(TrainConfig(batch_size=12, dequantize=True, flip=True, label_dropout=0.0), step=0)
    levels = ((b.x0 + 1) * 128).floor().to(torch.uint8)
    known = {
        bytes(v.numpy().tobytes()): i for i, item in enumerate(images()) for v in (item, item.flip(-1).contiguous())
    }
    found = [known[bytes(v.contiguous().numpy().tobytes())] for v in levels]
    assert sorted(found) == list(range(12))
    assert b.label.tolist() == [i % 3 for i in found]


def test_labels_are_withheld_at_the_given_rate():
    b = batch(TrainConfig(batch_size=2000, label_dropout=0.25))
    assert float((b.label == -1).float().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_reading_ahead_changes_nothing():
    from dataclasses import replace

    slow = replace(images(), slow=True)
    config = TrainConfig(batch_size=5, workers=3)
    ahead = [r[0] for r in Feed(slow, config, sf.VP()).raw(2, 20)]
    plain = [r[0] for r in Feed(images(), config, sf.VP()).raw(2, 20)]
    assert len(ahead) == 18
    assert all(torch.equal(a, b) for a, b in zip(ahead, plain, strict=True))


def test_error_of_a_reader_reaches_the_loop():
    from dataclasses import replace

    def fail(indices):
        raise sf.errors.InputError("item 3 is broken")

    broken = replace(images(), slow=True, read=fail)
    with pytest.raises(sf.errors.InputError, match="item 3"):
        next(iter(Feed(broken, TrainConfig(batch_size=5), sf.VP()).raw(0, 9)))
