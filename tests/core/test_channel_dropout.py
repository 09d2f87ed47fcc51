"""Whole-channel dropout, and what an absent channel may do to anything: nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.history import StepMetrics
from biofound.core.losses import PretrainingLoss
from biofound.core.masking import draw_channel_dropout
from biofound.core.models import build_model
from biofound.errors import DataError
from biofound.settings.pretrain import PretrainSettings

from .conftest import checkpoint_of

THREE = ("ACC_X", "PPG", "ECG")


def drawn(present, *, probability=0.5, seed=3, epoch=0, index=None):
    index = np.arange(len(present)) if index is None else index
    return draw_channel_dropout(present, probability=probability, seed=seed, epoch=epoch, index=index)


def test_windows_lose_channels_as_often_as_said_and_every_choice_is_equally_likely():
    present = np.ones((40_000, 3), bool)
    dropped = drawn(present, probability=0.3)
    count = dropped.sum(1)
    assert (count > 0).mean() == pytest.approx(0.3, abs=0.01)  # 4 standard deviations
    codes, found = np.unique(dropped[count > 0] @ (1, 2, 4), return_counts=True)
    assert codes.tolist() == [1, 2, 3, 4, 5, 6]  # one or two, never none and never all
    np.testing.assert_allclose(found / found.sum(), 1 / 6, atol=0.015)
    assert not drawn(present, probability=0.0).any()
    assert (drawn(present, probability=1.0).sum(1) >= 1).all()


def test_a_channel_that_a_window_lacks_is_never_what_it_keeps():
    present = np.random.default_rng(0).random((20_000, 4)) < 0.4
    dropped = drawn(present, probability=1.0)
    assert not (dropped & ~present).any()
    left = (present & ~dropped).sum(1)
    assert (left[present.any(1)] >= 1).all()
    assert (dropped.any(1) == (present.sum(1) > 1)).all()


def test_what_a_window_loses_depends_on_its_key_alone():
    present = np.ones((200, 3), bool)
    together = drawn(present)
    assert (drawn(present[:1], index=np.array([31])) == together[31]).all()
    assert (drawn(present, index=np.arange(200)[::-1]) == together[::-1]).all()
    for changed in ({"seed": 4}, {"epoch": 1}):
        assert (drawn(present, **changed) != together).any()


@pytest.fixture(params=["linear", "convolutional"])
def three(config, request):
    heads = {"rhythm_head": True, "rate_head": True, "patch_embedding": request.param}
    return build_model(replace(config, channels=THREE, **heads), seed=0).eval()


@pytest.fixture
def x3(x):
    return torch.cat([torch.randn(len(x), 1, 250, generator=torch.Generator().manual_seed(1)), x], dim=1)


@pytest.mark.parametrize("absent", [(0,), (2,), (0, 1)])
def test_what_an_absent_channel_holds_changes_no_bit_and_no_loss(three, x3, absent):
    mask = torch.arange(10).expand(len(x3), 10) % 3 == 1
    there = torch.ones_like(x3, dtype=torch.bool)
    there[:, absent] = False
    bands = [(0.5, 10.0), (0.5, 8.0), (0.5, 40.0)]
    terms = PretrainingLoss(
        sfreq=125.0, bands=bands, samples=250, stft_windows=(32, 64), stft_floor=1e-3, qrs_rows=range(3)
    )
    rates = torch.full((len(x3),), 70.0)
    missing = three(torch.where(there, x3, torch.nan), mask)  # as a window store says it
    plain = terms(missing, rates).values
    for what in (x3, 1e30, -x3.flip(-1), torch.inf):
        out = three(torch.where(there, x3, what), mask, there)
        for part in ("values", "target", "latents", "rhythm", "rate", "loss_mask", "whole"):
            assert torch.equal(getattr(out, part), getattr(missing, part)), part
        assert torch.equal(terms(out, rates).values, plain)
    assert not plain[1, :, absent].any()  # counts of MSM, STFT and the further terms
    assert (plain[1, :, 2 if 2 not in absent else 1] > 0).all()
    msm = ((missing.values - missing.target)[missing.loss_mask]).square().sum()
    assert plain[0, 0].sum().item() == pytest.approx(msm.item(), rel=1e-5)


def test_an_absent_channel_adds_the_same_vector_to_the_latents_of_every_window(three, x3):
    missing = x3.clone()
    missing[:, 2] = torch.nan
    encoded = three.encoder.encode(missing)
    with torch.no_grad():
        of_others = sum(
            encoded.by_channel[:, row] @ three.encoder.fusion[name] for row, name in enumerate(THREE[:2])
        )
        rest = encoded.latents - of_others
    assert torch.allclose(rest, rest[:1].expand_as(rest), atol=1e-6)
    assert not torch.allclose(three.encoder(x3), encoded.latents, atol=1e-3)


@pytest.mark.parametrize("epoch", [0, 1])
def test_training_with_channel_dropout_is_training_on_windows_that_lack_those_channels(
    make_trainer, windows, tmp_path, epoch
):
    """Step by step the same losses and weights, to the bit: nothing sees or counts what was dropped."""
    probability, plain = 0.6, {"random_crop": False, "epochs": 2, "global_weight": 0.3}
    trainer = make_trainer(tmp_path / "dropped", channel_dropout=probability, **plain)
    dropped = draw_channel_dropout(
        np.ones((len(windows), 2), bool),
        probability=probability,
        seed=trainer.config.seed,
        epoch=epoch,
        index=np.arange(len(windows)),
    )
    assert 0 < dropped.any(1).sum() < len(windows)
    lacking = windows.copy()
    lacking[dropped] = np.nan
    reference = make_trainer(tmp_path / "lacking", train=lacking, **plain)
    for each in (trainer, reference):
        each.epoch, each.step = epoch, epoch * each.steps_per_epoch
    ours, theirs = (
        [event for event in each._fit_epoch() if isinstance(event, StepMetrics)]
        for each in _with_files(trainer, reference)
    )
    assert [step.loss for step in ours] == [step.loss for step in theirs]
    state = reference.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items())
    undropped = make_trainer(tmp_path / "all", **plain)
    first = next(event for event in undropped.fit() if isinstance(event, StepMetrics))
    assert epoch or first.loss != ours[0].loss


def _with_files(*trainers):
    for trainer in trainers:
        trainer.output_dir.mkdir(parents=True)
        yield trainer


def test_which_subsets_a_checkpoint_serves(three):
    trained = checkpoint_of(three, settings={"channel_dropout": 0.5})
    assert trained.absent_channels(["ECG", "PPG", "RESP"]) == ("ACC_X",)
    assert trained.absent_channels(THREE) == ()
    with pytest.raises(DataError, match="at least one of its channels"):
        trained.absent_channels(["RESP"])
    for settings in ({}, {"channel_dropout": 0.0}):
        untrained = checkpoint_of(three, settings=settings)
        assert untrained.absent_channels(THREE) == ()
        with pytest.raises(DataError, match=r"but no ACC_X, ECG.*--channel-dropout 0\.5"):
            untrained.absent_channels(["PPG"])


def test_one_channel_cannot_be_dropped():
    with pytest.raises(ValueError, match="channel_dropout needs two channels or more"):
        PretrainSettings(channels=("PPG",), channel_dropout=0.5)
