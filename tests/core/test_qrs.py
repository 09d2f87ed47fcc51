import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.losses import mean_of
from biofound.core.models import build_model
from biofound.core.qrs import AMPLITUDE_FLOOR, LEAST_ENERGY, qrs_energy, qrs_term
from biofound.core.trainer import Trainer

from .conftest import DATA, TRAINING, MemoryWindows

SFREQ, SAMPLES = 125.0, 1250
T = torch.arange(SAMPLES) / SFREQ


def tone(hz, *, size=1.0):
    """Of unit variance times `size`."""
    return size * math.sqrt(2) * torch.sin(2 * math.pi * hz * T + 0.4)


def beats(*places, width=2.0):
    return sum(10 * torch.exp(-0.5 * ((torch.arange(SAMPLES) - p) / width) ** 2) for p in places)


def hidden(*patches):
    mask = torch.zeros(1, 1, SAMPLES, dtype=torch.bool)
    for p in patches:
        mask[..., p * 125 : (p + 1) * 125] = True
    return mask


def cost(ours, target, mask=None):
    """The term of one window of one channel."""
    mask = hidden(*range(10)) if mask is None else mask
    return mean_of(qrs_term(ours[None, None], target[None, None], mask, ecg=[0], sfreq=SFREQ)).item()


def amplitude(energy):
    return math.sqrt(energy + AMPLITUDE_FLOOR)


@pytest.mark.parametrize("size", [0.0, 0.5, -1.0, 2.0])
def test_a_tone_of_another_size_costs_the_square_of_the_amplitudes_difference_whatever_its_sign(size):
    wanted = (amplitude(size**2) - amplitude(1.0)) ** 2
    assert cost(tone(10, size=size), tone(10)) == pytest.approx(wanted, rel=0.01, abs=1e-6)


def test_what_lies_outside_the_band_costs_nothing():
    for hz in (2.0, 30.0):
        assert cost(tone(10) + tone(hz), tone(10)) < 1e-6


def test_the_energy_equals_an_independent_reference_in_float64():
    x = np.random.default_rng(0).standard_normal((3, SAMPLES))
    spectrum = np.fft.fft(x)
    hz = np.abs(np.fft.fftfreq(SAMPLES, 1 / SFREQ))
    spectrum[:, (hz < 5) | (hz > 20)] = 0
    squared = np.fft.ifft(spectrum).real ** 2
    wanted = [np.convolve(row, np.full(13, 1 / 13), mode="same") for row in squared]
    np.testing.assert_allclose(qrs_energy(torch.from_numpy(x), sfreq=SFREQ).numpy(), wanted, atol=1e-12)


def test_a_late_beat_costs_less_than_one_left_out_where_the_squared_error_prefers_to_leave_it_out():
    target = beats(60, 160, 300)
    late, left_out = beats(60, 165, 300), beats(60, 300)
    mask = hidden(1)
    assert cost(late, target, mask) < 0.5 * cost(left_out, target, mask)
    squared = [(ours - target)[125:250].square().sum() for ours in (late, left_out)]
    assert squared[0] > 1.2 * squared[1]


def test_visible_samples_of_the_reconstruction_count_nothing():
    target = beats(60, 190, 300)
    assert cost(torch.where(hidden(1)[0, 0], target, 99.0), target, hidden(1)) == 0
    assert cost(0 * target, target, hidden()) == 0


def test_the_error_is_the_mean_over_hidden_samples_alone():
    target, ours, mask = beats(60, 190, 260, 400), beats(230), hidden(1)
    composite = torch.where(mask[0, 0], ours, target)
    energies = [qrs_energy(x[None].double(), sfreq=SFREQ)[0].numpy() for x in (composite, target)]
    first, second = (np.sqrt(energy / energies[1].mean() + AMPLITUDE_FLOOR) for energy in energies)
    squared = (first - second) ** 2
    assert squared[250:270].max() > 0.1  # the energy of a hidden beat reaches into the patch beside it
    assert cost(ours, target, mask) == pytest.approx(squared[125:250].mean(), rel=1e-4)


def test_only_the_rows_of_ecgs_count():
    target = torch.stack([tone(10), tone(10), tone(10)])[None]
    sums = qrs_term(0 * target, target, hidden(*range(10)).expand_as(target), ecg=[2], sfreq=SFREQ)
    assert sums[:, :2].tolist() == [[0, 0], [0, 0]]
    assert sums[1, 2] == SAMPLES and sums[0, 2] > 0


def test_a_window_with_little_qrs_energy_is_not_scaled_up():
    weak = tone(10, size=1e-3)
    wanted = (amplitude(1 / LEAST_ENERGY) - amplitude(0)) ** 2
    assert cost(tone(10), weak) == pytest.approx(wanted, rel=0.01)


def test_silence_has_a_finite_gradient_and_autocast_changes_nothing():
    target, ours = tone(10), torch.zeros(SAMPLES, requires_grad=True)
    mask = hidden(*range(10))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = qrs_term(ours[None, None], target[None, None], mask, ecg=[0], sfreq=SFREQ)
    mean_of(sums).sum().backward()
    assert sums.dtype == torch.float32
    assert torch.isfinite(ours.grad).all()
    assert mean_of(sums).item() == cost(ours.detach(), target)


@pytest.fixture
def trainer(config, tmp_path):
    place = torch.arange(250) - torch.arange(8)[:, None] * 12
    ecg = sum(torch.exp(-0.5 * ((place - p) / 2.0) ** 2) for p in range(-120, 250, 80))
    windows = torch.stack([torch.sin(place / 13), ecg], 1).numpy().astype(np.float32)

    def made(**changes):
        return Trainer(
            model=build_model(config, seed=0),
            train=MemoryWindows(windows),
            val=MemoryWindows(windows),
            data=DATA,
            config=replace(TRAINING, epochs=25, warmup_epochs=1, lr=5e-3, **changes),
            settings={},
            output_dir=tmp_path,
            device=torch.device("cpu"),
        )

    return made


def test_the_trainer_learns_the_term_and_without_it_does_not(trainer):
    weighted, plain = trainer(qrs_weight=2.0), trainer()
    before, _ = weighted.validate()
    further = 2.0 * before.further["qrs"]
    assert before.loss == pytest.approx(before.msm + 0.3 * before.stft + further, rel=1e-5)
    for each in (weighted, plain):
        list(each.fit())
    after, _ = weighted.validate()
    weighted.model.load_state_dict(plain.model.state_dict())  # whose own trainer leaves the term out
    without, _ = weighted.validate()
    assert after.further["qrs"] < 0.7 * before.further["qrs"]
    assert after.further["qrs"] < 0.7 * without.further["qrs"]


def test_weight_zero_and_a_model_without_an_ecg_leave_the_term_out(trainer, config):
    plain, _ = trainer().validate()
    assert plain.loss == pytest.approx(plain.msm + 0.3 * plain.stft, rel=1e-6)
    assert plain.further == {}
    weighted = replace(TRAINING, qrs_weight=0.5)
    rows = [
        weighted.loss_terms(DATA, replace(config, channels=names)).qrs_rows
        for names in (("PPG",), ("ECG", "PPG"))
    ]
    assert rows == [(), (0,)]
