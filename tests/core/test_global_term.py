import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.global_term import (
    _FREQUENCIES_HZ,
    _INTERVALS_S,
    _LAGS_S,
    INTERVALS,
    SUMMARIES,
    RhythmTargets,
    global_terms,
    rate_target,
    rate_term,
)
from biofound.core.history import EpochMetrics
from biofound.core.models import build_model
from biofound.core.trainer import Trainer
from biofound.core.verify import probe_windows

from .conftest import DATA, TRAINING, MemoryWindows
from .small_run import mixed_windows

SFREQ, SAMPLES = 125.0, 1250
BANDS = [(0.5, 8.0), (0.5, 40.0)]


def targets(window, bands=BANDS, samples=SAMPLES):
    return RhythmTargets(sfreq=SFREQ, bands=bands, samples=samples)(window)


def sinus(hz):
    time = torch.arange(SAMPLES) / SFREQ
    return math.sqrt(2) * torch.sin(2 * math.pi * hz * time)


def spikes(interval_s):
    time = torch.arange(SAMPLES) / SFREQ
    since = (time + 0.2) % interval_s - 0.2
    wave = torch.exp(-0.5 * (since / 0.012) ** 2)
    return (wave - wave.mean()) / wave.std()


def test_the_autocorrelation_of_a_sinus_is_a_cosine_that_shrinks_with_the_overlap():
    summaries, _ = targets(sinus(1.25)[None, None], BANDS[:1])
    lags = torch.tensor(_LAGS_S)
    expected = (1 - lags / 10) * torch.cos(2 * math.pi * 1.25 * lags)
    assert torch.allclose(summaries[0, 0, : len(lags)] * 0.3, expected, atol=0.02)


def test_summaries_agree_with_numpy():
    window = np.random.default_rng(0).normal(size=SAMPLES).cumsum()
    window = (window - window.mean()) / window.std()
    summaries, _ = targets(torch.tensor(window, dtype=torch.float32)[None, None], BANDS[:1])
    window = (window - window.mean()) / window.std(ddof=1)
    full = np.correlate(window, window, "full")[SAMPLES - 1 :]
    correlation = np.interp(np.array(_LAGS_S) * SFREQ, np.arange(SAMPLES), full / full[0])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SAMPLES) / SAMPLES)
    spectrum = np.abs(np.fft.rfft(window * hann)) ** 2
    power = spectrum[np.rint(np.array(_FREQUENCIES_HZ) * 10).astype(int)]
    share = power / (np.sum(hann**2) * SAMPLES / 2)
    expected = np.concatenate([correlation / 0.3, (np.log(share + 1e-4) + 6.5) / 2])
    np.testing.assert_allclose(summaries[0, 0].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("interval_s", [0.4, 0.6, 0.85, 1.3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_likeliest_beat_interval_is_the_true_one_whichever_way_the_waves_point(interval_s, sign):
    window = torch.stack([sinus(1 / interval_s), sign * spikes(interval_s)])[None]
    _, intervals = targets(window)
    assert torch.allclose(intervals.sum(-1), torch.ones(1, 2))
    for found in intervals.argmax(-1)[0].tolist():
        assert _INTERVALS_S[found] == pytest.approx(interval_s, rel=0.04)


def test_scale_and_offset_do_not_matter_and_a_flat_window_is_finite():
    window = torch.stack([sinus(1.25), spikes(0.8)])[None]
    for got, wanted in zip(targets(5 * window + 2), targets(window), strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)
    assert all(torch.isfinite(target).all() for target in targets(torch.zeros(1, 2, SAMPLES)))


def test_a_short_window_has_no_correlation_beyond_its_end():
    summaries, _ = targets(torch.randn(1, 2, 125), samples=125)
    beyond = torch.tensor(_LAGS_S) > 1
    assert torch.equal(summaries[..., : len(_LAGS_S)][..., beyond], torch.zeros(1, 2, int(beyond.sum())))


def test_the_terms_in_closed_form():
    prediction = torch.zeros(2, 3, 2, SUMMARIES + INTERVALS)
    summaries = torch.full((3, 2, SUMMARIES), 2.0)
    intervals = torch.full((3, 2, INTERVALS), 1 / INTERVALS)
    counts = torch.tensor([[True, False], [True, True], [False, False]])
    prediction[:, ~counts] = float("inf")  # what does not count may be anything
    terms = global_terms(prediction, summaries, intervals, counts)
    total, count = terms.sum(-1)
    assert count.tolist() == [3, 3]
    # 2^2, and the entropy of the uniform guess, each from two predictions
    assert (total / count).tolist() == pytest.approx([8.0, 2 * math.log(INTERVALS)], rel=1e-5)


def test_the_trainer_learns_the_terms_and_leaves_them_out_at_weight_zero(config, tmp_path):
    windows = MemoryWindows(probe_windows(windows=8, channels=2, samples=250, sfreq=SFREQ, seed=0))

    def trainer(**changes):
        head = bool(changes)
        return Trainer(
            model=build_model(replace(config, rhythm_head=head), seed=0),
            train=windows,
            val=windows,
            data=DATA,
            config=replace(TRAINING, epochs=8, warmup_epochs=1, lr=5e-3, **changes),
            settings={},
            output_dir=tmp_path / str(len(changes)),
            device=torch.device("cpu"),
        )

    with_terms = trainer(global_weight=0.3, rhythm_weight=0.1)
    before, _ = with_terms.validate()
    further = 0.3 * before.further["global"] + 0.1 * before.further["rhythm"]
    assert before.loss == pytest.approx(before.msm + 0.3 * before.stft + further, rel=1e-5)
    (tmp_path / "2").mkdir()
    list(with_terms.fit())
    after, _ = with_terms.validate()
    assert after.further["global"] < 0.9 * before.further["global"]
    assert after.further["rhythm"] < before.further["rhythm"]
    plain, _ = trainer().validate()
    assert plain.loss == pytest.approx(plain.msm + 0.3 * plain.stft, rel=1e-6)
    assert plain.further == {}


def test_the_rate_term_in_closed_form():
    heart_rate = torch.tensor([60.0, float("nan"), 120.0])
    right = rate_target(heart_rate)[None, :, None].expand(2, 3, 2)
    whole = torch.ones(3, 2, dtype=torch.bool)
    assert rate_term(right, heart_rate, whole).tolist() == [[0.0, 0.0], [2.0, 2.0]]  # NaN counts nothing
    off = right + torch.tensor([0.5, 2.0])[:, None, None]
    # Huber: 0.5 ** 2 / 2 from the latents, and 2 - 1 / 2 from the channel
    total, count = rate_term(off, heart_rate, whole)
    assert (total / count).tolist() == pytest.approx([0.125 + 1.5] * 2, rel=1e-6)
    whole[0, 1] = False  # a channel with a gap does not count
    assert rate_term(off, heart_rate, whole)[1].tolist() == [2.0, 1.0]
    assert (total / count).tolist() == pytest.approx([0.125 + 1.5] * 2, rel=1e-6)
    ratio = rate_target(torch.tensor(120.0)) - rate_target(torch.tensor(60.0))
    assert ratio.item() == pytest.approx(math.log(2) / 0.4)


def test_the_trainer_learns_the_rate_of_synthetic_windows(config, tmp_path):
    windows = mixed_windows(probe_windows(windows=6, channels=2, samples=250, sfreq=SFREQ, seed=0))
    trainer = Trainer(
        model=build_model(replace(config, rate_head=True), seed=0),
        train=windows,
        val=MemoryWindows(windows.read(np.arange(6))),
        data=DATA,
        config=replace(TRAINING, epochs=15, warmup_epochs=1, rate_weight=1.0),
        settings={},
        output_dir=tmp_path,
        device=torch.device("cpu"),
    )
    epochs = [event for event in trainer.fit() if isinstance(event, EpochMetrics)]
    rates = [epoch.train.further["rate"] for epoch in epochs]
    assert rates[0] > 0
    assert np.mean(rates[-5:]) < 0.8 * np.mean(rates[:5])
    assert epochs[0].val.further["rate"] == 0.0  # of recordings no rate is known
