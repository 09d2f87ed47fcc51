import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import load_checkpoint
from biofound.core.history import EpochMetrics, StepMetrics
from biofound.core.optimizer import learning_rate
from biofound.errors import TrainingError

GOLDEN = Path(__file__).parent / "golden_losses.json"


@pytest.fixture
def make(make_trainer):
    return make_trainer


def steps(events):
    return [r for r in events if isinstance(r, StepMetrics)]


def epochs(events):
    return [r for r in events if isinstance(r, EpochMetrics)]


def test_losses_per_step_are_the_golden_ones(make):
    # Made by: python -m pytest tests/core/test_trainer.py -k golden, with the file removed, which writes it
    # anew and fails. A refactor keeps these; a change of them is explained in its commit.
    events = list(make().fit())
    got = {
        "step": [r.loss for r in steps(events)],
        "val": [r.val.loss for r in epochs(events)],
        "gradient_norm": [r.gradient_norm for r in steps(events)],
    }
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(got, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was missing and has been written: look at it and commit it")
    for name, values in json.loads(GOLDEN.read_text()).items():
        assert got[name] == pytest.approx(values, rel=1e-4), name


def test_the_same_run_twice_gives_the_same_losses_and_weights(make, tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert [r.loss for r in steps(first.fit())] == [r.loss for r in steps(second.fit())]
    states = [t.model.state_dict() for t in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = make(tmp_path / "c", seed=8)
    assert [r.loss for r in steps(other.fit())] != [r.loss for r in steps(make(tmp_path / "d").fit())]


def test_every_epoch_visits_every_window_once_in_an_order_of_its_own(make):
    trainer = make()
    seen = []
    read = trainer.train.read
    trainer.train.read = lambda index, crop=None: (seen.append(index), read(index, crop))[1]
    list(trainer.fit())
    assert [len(own) for own in seen] == [3, 2, 3, 2, 1, 1] * 3  # batches of 5, 5 and 2, in two micro-batches
    orders = [tuple(np.concatenate(seen[first : first + 6])) for first in (0, 6, 12)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 3


def test_the_optimizer_uses_the_curve_at_every_step(make):
    trainer, used = make(), []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    said = [(r.step, r.lr) for r in steps(trainer.fit())]
    curve = [learning_rate(step, base=1e-3, warmup_steps=3, total_steps=9) for step in range(9)]
    assert used == [[lr, lr] for lr in curve]
    assert said == list(enumerate(curve, start=1))


def test_an_epochs_loss_is_the_ratio_of_its_sums_not_the_mean_of_its_batches(make, config, data):
    # With lr so small that nothing moves, the epoch's loss must equal one big batch's.
    small = {"lr": 1e-12, "random_crop": False, "epochs": 1, "warmup_epochs": 0}
    batches = epochs(make(**small).fit())[0]
    whole = epochs(make(**small, batch_size=12).fit())[0]
    assert batches.train.msm == pytest.approx(whole.train.msm, rel=1e-5)
    assert batches.train.stft == pytest.approx(whole.train.stft, rel=1e-5)
    assert batches.val.loss == pytest.approx(whole.val.loss, rel=1e-5)
    assert batches.train.loss == pytest.approx(batches.train.msm + 0.3 * batches.train.stft, rel=1e-6)


def test_validation_scores_every_window_once_without_crop(make, windows):
    trainer = make(val=windows)
    seen = []
    read = trainer.val.read
    trainer.val.read = lambda index, crop=None: (seen.append((index, crop)), read(index, crop))[1]
    trainer.validate()
    assert sorted(np.concatenate([index for index, _ in seen])) == list(range(12))
    assert all(crop is None for _, crop in seen)


def test_validation_is_without_dropout(make):
    trainer = make(dropout=0.5)
    trainer.model.train()  # as a step leaves it
    assert trainer.validate() == trainer.validate()


def test_dropout_differs_by_step_and_micro_batch(make):
    trainer, seeds = make(dropout=0.2), []

    def note(model, _):
        if model.training:
            seeds.append(torch.initial_seed())

    trainer.model.register_forward_pre_hook(note)
    list(trainer.fit())
    assert len(set(seeds)) == len(seeds) == 18


def test_validation_masks_are_fixed(make):
    vals = [event.val.loss for event in epochs(make(lr=1e-12).fit())]
    assert vals == pytest.approx([vals[0]] * 3, rel=1e-6)


def test_crops_can_be_turned_off_and_differ_by_epoch(make):
    trainer = make(random_crop=False)
    list(trainer.fit())
    assert not trainer.train.crops
    trainer = make()
    list(trainer.fit())
    assert len({tuple(c) for c in trainer.train.crops}) == 18


def test_training_learns(make):
    events = epochs(make(epochs=10, warmup_epochs=1, lr=1e-2, random_crop=False).fit())
    assert events[-1].train.msm < 0.8 * events[0].train.msm


def test_history_is_written_while_the_run_goes_on(make):
    trainer = make()
    for event in trainer.fit():
        if not isinstance(event, EpochMetrics):
            continue
        history = json.loads((trainer.output_dir / "training_history.json").read_text())
        assert history["epoch"] == list(range(1, event.epoch + 1))
        for split, losses in (("train", event.train), ("val", event.val)):
            for name in ("loss", "msm", "stft"):
                assert history[f"{split}_{name}"][-1] == getattr(losses, name)
            assert history[f"{split}_msm_by_channel"]["PPG"][-1] == losses.msm_by_channel["PPG"]
        assert len(history["lr"]) == len(history["seconds"]) == event.epoch
        assert history["synthetic"] is True


def test_the_promised_checkpoints_are_there_and_describe_themselves(make, data):
    trainer = make()
    events = epochs(trainer.fit())
    names = sorted(p.name for p in trainer.output_dir.iterdir())
    files = ["best_model.pt", "checkpoint_epoch_2.pt", "last_model.pt"]
    assert names == [*files, "metrics.jsonl", "training_history.json"]
    best = load_checkpoint(trainer.output_dir / "best_model.pt")
    assert best.best_val_loss == min(r.val.loss for r in events)
    assert best.epoch == max(r.epoch for r in events if r.best)
    assert best.data == data
    assert best.settings == {"seed": 7}
    last = load_checkpoint(trainer.output_dir / "last_model.pt")
    assert (last.epoch, last.step) == (3, 9)
    assert last.optimizer is not None
    ours = trainer.model.encoder.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in last.encoder.items())


def test_a_stop_saves_the_run_as_it_stands(make):
    asked = iter([False, False, False, True])
    trainer = make(stop=lambda: next(asked))
    events = list(trainer.fit())
    assert trainer.interrupted
    assert len(steps(events)) == 4
    last = load_checkpoint(trainer.output_dir / "last_model.pt")
    assert (last.epoch, last.step) == (1, 4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_cases(make, windows):
    broken = windows.copy()
    broken[3] *= np.float32(1e-10)
    broken[3, :, -25:] *= np.float32(1e38)  # the last patch: in units of the others beyond float32
    trainer = make(train=broken, random_crop=False, epochs=20)
    with pytest.raises(TrainingError, match=r"epoch \d+, step \d+ .*case3"):
        list(trainer.fit())
    for path in trainer.output_dir.glob("*.pt"):
        assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(path).encoder.values())


def test_weights_that_are_not_finite_stop_the_run(make):
    trainer = make()
    with torch.no_grad():
        trainer.model.decoder.proj.bias[0] = math.inf
    with pytest.raises(TrainingError, match="the loss is not finite in epoch 1, step 1"):
        list(trainer.fit())


def test_gradients_are_clipped(make):
    trainer = make(gradient_clip=1e-6, lr=1.0, weight_decay=0.0, warmup_epochs=0, epochs=1)
    events = steps(trainer.fit())
    assert all(r.gradient_norm > 1e-3 for r in events)  # the norm before clipping is logged
    seen = [p.grad.square().sum() for p in trainer.model.parameters() if p.grad is not None]
    assert float(torch.stack(seen).sum().sqrt()) <= 1.01e-6


def test_gradients_below_the_clip_are_left_as_they_are(make):
    trainer = make(gradient_clip=1e6, epochs=1)
    [*_, last] = steps(trainer.fit())
    seen = [p.grad.square().sum() for p in trainer.model.parameters() if p.grad is not None]
    assert float(torch.stack(seen).sum().sqrt()) == pytest.approx(last.gradient_norm)


def test_bf16_gives_nearly_the_losses_of_fp32(make, tmp_path):
    plain = epochs(make(tmp_path / "a").fit())[-1]
    low = epochs(make(tmp_path / "b", precision="bf16").fit())[-1]
    assert low.val.loss == pytest.approx(plain.val.loss, rel=0.01)
    assert low.val.loss != plain.val.loss


def test_a_baseline_scores_the_squared_target_whatever_the_model(make, x):
    trainer = make()
    got, _ = trainer.validate(baseline=True)
    mask = torch.from_numpy(trainer.validation_mask(np.arange(4)))
    out = trainer.model(x[:4], mask)
    expected = out.target[out.loss_mask].square().mean().item()
    assert got.msm == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_channel_of_gaps_only_stops_the_run_instead_of_scoring_0(make, windows, part):
    empty = windows.copy()
    empty[:, 1] = np.nan
    trainer = make(**{part: empty})
    with pytest.raises(TrainingError, match="has a real sample of ECG where the mask hides it"):
        list(trainer.fit())


def test_rates_are_0_where_the_clock_stands_still(make_trainer, monkeypatch):
    for clock in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(time, clock, lambda: 7.0)
    trainer = make_trainer(epochs=1)
    steps = [event for event in trainer.fit() if isinstance(event, StepMetrics)]
    assert {(step.windows_per_second, step.data_wait) for step in steps} == {(0.0, 0.0)}
    history = trainer.history()
    assert history["seconds"] == history["windows_per_second"] == [0.0]
