"""Batches are a function of seed, epoch and position, alike on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.data.sampler import BucketBatchSampler, Draw
from simpletuner.helpers.data.samples import Sample


def make_samples(counts: list[int], repeats: int = 0) -> list[Sample]:
    """So many samples in each of several buckets."""
    return [
        Sample(
            id=f"{bucket}/{number}",
            entry_id="set",
            path=Path(f"{number}.png"),
            digest="",
            caption="",
            width=64,
            height=64,
            bucket=Bucket(64, 16 * (bucket + 1)),
            latent_frames=1,
            latent_folder=Path("vae"),
            repeats=repeats,
        )
        for bucket, count in enumerate(counts)
        for number in range(count)
    ]


def take(sampler: BucketBatchSampler, count: int) -> list[list[Draw]]:
    """The next batches over as many epochs as it needs."""
    taken: list[list[Draw]] = []
    while len(taken) < count:
        for batch in sampler:
            taken.append(batch)
            sampler.advance()
            if len(taken) == count:
                break
    return taken


counts = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(counts, st.integers(1, 4), st.integers(0, 3), st.integers(0, 5))
def test_every_sample_is_seen_and_a_batch_has_one_bucket(
    counts: list[int], batch_size: int, repeats: int, epoch: int
) -> None:
    samples = make_samples(counts, repeats)
    sampler = BucketBatchSampler(samples, batch_size, seed=1)
    batches = sampler.global_batches(epoch)
    assert len(batches) == len(sampler) == sum(-(-count * (1 + repeats) // batch_size) for count in counts)
    drawn = [index for batch in batches for index in batch]
    assert all(drawn.count(index) >= 1 + repeats for index in range(len(samples)))
    for batch in batches:
        assert len(batch) == batch_size
        assert len({samples[index].bucket for index in batch}) == 1


@given(counts, st.integers(1, 3), st.sampled_from([2, 4]))
def test_slices_of_ranks_make_up_the_global_batch(counts: list[int], batch_size: int, world_size: int) -> None:
    samples = make_samples(counts)
    alone = BucketBatchSampler(samples, batch_size * world_size, seed=3)
    ranks = [
        BucketBatchSampler(samples, batch_size, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for whole, *slices in zip(alone, *ranks, strict=True):
        assert [draw for part in slices for draw in part] == whole


def test_order_depends_on_seed_and_epoch() -> None:
    samples = make_samples([20])
    first = BucketBatchSampler(samples, 2, seed=0)
    assert first.global_batches(0) == BucketBatchSampler(samples, 2, seed=0).global_batches(0)
    assert first.global_batches(0) != first.global_batches(1)
    assert first.global_batches(0) != BucketBatchSampler(samples, 2, seed=1).global_batches(0)


@given(st.integers(0, 30))
def test_resume_continues_exactly(consumed: int) -> None:
    samples = make_samples([5, 8])
    uninterrupted = take(BucketBatchSampler(samples, 2, seed=0), 40)
    before = BucketBatchSampler(samples, 2, seed=0)
    take(before, consumed)
    after = BucketBatchSampler(samples, 2, seed=0)
    after.load_state_dict(before.state_dict())
    assert take(after, 40 - consumed) == uninterrupted[consumed:]


def test_resume_on_other_ranks_with_the_same_global_batch_is_exact() -> None:
    samples = make_samples([8])
    before = BucketBatchSampler(samples, 4, seed=0)
    take(before, 1)
    after = BucketBatchSampler(samples, 2, seed=0, rank=1, world_size=2)
    after.load_state_dict(before.state_dict())
    assert take(after, 1) == [take(before, 1)[0][2:]]


def test_resume_with_other_data_starts_the_epoch_anew(caplog: pytest.LogCaptureFixture) -> None:
    before = BucketBatchSampler(make_samples([8]), 2, seed=0)
    take(before, 7)
    after = BucketBatchSampler(make_samples([9]), 2, seed=0)
    after.load_state_dict(before.state_dict())
    assert (after.epoch, after.position) == (1, 0)
    assert "another samples_per_bucket" in caplog.text


def test_resume_with_other_buckets_starts_the_epoch_anew(caplog: pytest.LogCaptureFixture) -> None:
    """As many samples, cut into fewer batches: the old place can lie beyond the epoch's end."""
    before = BucketBatchSampler(make_samples([1] * 8), 2, seed=0)
    take(before, 7)
    after = BucketBatchSampler(make_samples([8]), 2, seed=0)
    after.load_state_dict(before.state_dict())
    assert (after.epoch, after.position) == (0, 0)
    assert "another samples_per_bucket" in caplog.text
