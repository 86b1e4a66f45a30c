"""Batches reach the devices whole and in order; the background thread ends with its consumer."""

import threading
import time
import traceback

import jax
import numpy as np
import pytest

from gram_jax.data.batches import BatchPlan
from gram_jax.data.examples import Examples, flat_documents
from gram_jax.data.feed import THREAD, prefetch, process_shard, to_device
from gram_jax.data.report import ReadReport
from gram_jax.errors import RecipeError
from gram_jax.sharding import make_placement


def plan_of(stage: str, lengths: list[int], batch_size: int):
    documents = flat_documents(np.arange(1, n + 1) for n in lengths)
    count = len(lengths)
    weights = np.ones(count if stage == "finetune" else len(documents.tokens), np.float32)
    label = np.zeros(count if stage == "finetune" else 0, np.int32)
    read, source = ReadReport(count, count), np.zeros(count, np.int32)
    examples = Examples(stage, documents, weights, label, source, per_unit=1, read=read)
    return BatchPlan(examples, batch_size=batch_size, max_length=16, seed=0, packing=True)


@pytest.fixture
def plan():
    return plan_of("finetune", [5 + i % 7 for i in range(60)], 8)


def feeders() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(THREAD) and t.is_alive()]


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, {"tensor": 8}]
)
def test_a_batch_on_any_mesh_is_the_numpy_batch(plan, sizes):
    placement = make_placement(sizes, devices=jax.devices()[:8])
    batch = plan.batch(1)
    there = to_device(batch, placement)
    assert type(there) is type(batch)
    for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(there), strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
        assert theirs.sharding.is_equivalent_to(placement.sharding("batch"), theirs.ndim)


def test_prefetched_batches_come_in_order_and_equal_the_plan(plan, one_device):
    assert list(prefetch(plan, one_device, 5, 5)) == []
    steps = list(prefetch(plan, one_device, 2, 9))
    assert [step for step, _ in steps] == list(range(2, 9))
    for step, batch in steps:
        assert np.array_equal(batch.seqs.tokens, plan.batch(step).seqs.tokens)
    assert not feeders()


def test_an_exception_in_the_thread_comes_out_with_its_own_traceback(plan, one_device):
    def broken_batch(step, shard):
        if step == 2:
            raise ZeroDivisionError("the third batch")
        return type(plan).batch(plan, step, shard)

    plan.batch = broken_batch
    seen = []
    with pytest.raises(ZeroDivisionError, match="the third batch") as error:
        for step, _ in prefetch(plan, one_device, 0, 9):
            seen.append(step)
    assert seen == [0, 1]
    assert "broken_batch" in "".join(traceback.format_tb(error.value.__traceback__))
    assert not feeders()


@pytest.mark.parametrize("leave", ["break", "close", "raise"])
def test_leaving_the_loop_ends_the_thread(plan, one_device, leave):
    feed = prefetch(plan, one_device, 0, 10**6, depth=1)
    assert next(feed)[0] == 0
    assert len(feeders()) == 1
    if leave == "break":
        for _ in feed:
            break
        del feed
    elif leave == "close":
        feed.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            feed.throw(KeyboardInterrupt)
    assert not feeders()


def test_a_slow_consumer_lets_only_a_few_batches_wait(plan, one_device):
    asked = []
    original = plan.batch
    plan.batch = lambda step, shard: asked.append(step) or original(step, shard)
    feed = prefetch(plan, one_device, 0, 100, depth=2)
    next(feed)
    time.sleep(0.2)
    assert len(asked) <= 1 + 2  # one taken, two waiting
    feed.close()


def test_rows_that_do_not_divide_over_the_mesh_are_refused(plan):
    placement = make_placement({"fsdp": 8}, devices=jax.devices()[:8])
    with pytest.raises(RecipeError, match=r"batch_size = 12 .* 8 and 16"):
        process_shard(placement, 12)
    assert process_shard(placement, 16) == (0, 1)


def test_a_process_provides_the_rows_that_its_devices_hold(monkeypatch):
    placement = make_placement({"data": 4, "tensor": 2}, devices=jax.devices()[:8])
    sharding = placement.sharding("batch")
    whole = sharding.devices_indices_map((16,))

    class Local:
        """The view of one of two processes, each with half of the devices."""

        def __init__(self, part):
            self.part = part

        def addressable_devices_indices_map(self, shape):
            devices = sorted(whole, key=lambda d: d.id)[self.part * 4 : self.part * 4 + 4]
            return {d: whole[d] for d in devices}

    for part in (0, 1):
        monkeypatch.setattr(type(placement), "sharding", lambda self, axis, p=part: Local(p))
        assert process_shard(placement, 16) == (part, 2)


def test_stage_one_batches_travel_too(one_device):
    plan = plan_of("pretrain", [8] * 6, 2)
    total = sum(float(batch.weights.sum()) for _, batch in prefetch(plan, one_device, 0, 2))
    assert total == 42
