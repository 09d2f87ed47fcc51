from pathlib import Path

import matplotlib.pyplot as plt

from biofound import figures


def test_loss_curves_have_the_constant_guess_of_each_channel_where_it_is(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    guess = {"PPG": [1.067, 1.067], "ECG": [0.98, 0.98]}
    by_channel = {"PPG": [1.2, 1.183], "ECG": [0.9, 0.8]}
    losses = {f"{split}_{name}": [2.0, 1.0] for split in ("train", "val") for name in ("loss", "stft")}
    monitor = {name: [None, None] for name in ("r_peak_recall", "r_peak_precision", "latent_rank")}
    monitor |= {"constant_guess_msm": guess, "copy_patch_msm": {"PPG": [None] * 2, "ECG": [None] * 2}}
    monitor |= {"variance_ratio": by_channel}
    history = {**losses, "epoch": [1, 2], "best_epoch": 2, "synthetic": True}
    figures.draw_losses(Path("x.png"), {**history, "val_msm_by_channel": by_channel, "val_monitor": monitor})
    (axis,) = [axis for axis in drawn[0].axes if axis.get_title() == "validation MSM"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    plt.close(drawn[0])
    constant = {f"{name}, constant guess": levels for name, levels in guess.items()}
    assert lines == {**by_channel, **constant}
