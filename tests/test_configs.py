"""Every key of the shipped YAML files is read by something: changed, it changes what the program does."""

import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from biofound.core.models import ModelConfig
from biofound.core.trainer import TrainConfig
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.store import read_index
from biofound.settings import PretrainSettings, resolve, resolve_channels
from biofound.settings.recipes import RECIPES
from tests.chain import SMALL_MODEL, done
from tests.settings_reads import recorded_reads

CONFIGS = Path(__file__).parent.parent / "configs"
PRETRAIN, WINDOWS, CHANNELS = (
    CONFIGS / name for name in ("ssl_pretrain.yaml", "windows.yaml", "channels.yaml")
)
ONLY_WHEN_A_WRITE_FAILS = "on_write_error"
"""Read by the trainer then alone; `tests/core/test_resume.py` has the disk refuse."""
ONLY_WITH_PROBE_LABELS = {"probe_target", "probe_labels_root", "probe_interval", "best_by"}
"""Read in runs with a probe; `tests/test_pretrain_probe.py` has them."""

pytestmark = pytest.mark.usefixtures("empty_place")


def keys_of(path: Path) -> set[str]:
    return set(yaml.safe_load(path.read_text()))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(value, dict):
        yield path
        return
    for key, item in value.items():
        yield from leaves(item, (*path, key))


def test_every_key_of_the_pretraining_file_is_read_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biofound.commands.pretrain.draw_figures", lambda *_: None)
    monkeypatch.setattr("biofound.data.build.cpu_count", lambda: 1)
    monkeypatch.setitem(SyntheticSource.__init__.__kwdefaults__, "minutes", 0.2)  # type: ignore[index]
    original, read_by_trainer = TrainConfig.__getattribute__, set()

    def recording(self: TrainConfig, name: str) -> object:
        read_by_trainer.add(name)
        return original(self, name)

    small = (*SMALL_MODEL, "--epochs", 1, "--warmup-epochs", 0, "--threads", 1)
    with recorded_reads() as reads, mock.patch.object(TrainConfig, "__getattribute__", recording):
        done("pretrain", "--config", PRETRAIN, "--output-dir", "out", *small)
    read = {name for model, name in reads if model == "PretrainSettings"}
    assert keys_of(PRETRAIN) - read - ONLY_WITH_PROBE_LABELS == set()
    assert {field.name for field in fields(TrainConfig)} - read_by_trainer == {ONLY_WHEN_A_WRITE_FAILS}


@pytest.mark.parametrize("section", ["pretrain", "finetune"])
def test_every_key_of_the_window_files_is_read_when_windows_are_built(section: str) -> None:
    table = ("--channels-yaml", CHANNELS, "--section", section)
    source = ("--source", "synthetic", "--subjects", 12, "--minutes", 0.6, "--seed", 1, "--mode", "full")
    with recorded_reads() as reads:
        done("prepare", *source, *table, "--output", "data")
        split = ("--split-file", "data/splits_full.json", "--split", "train")
        done("windows", *split, *table, "--windows-yaml", WINDOWS, "--outdir", "store", "--workers", 1)
    read = {(model, name) for model, name in reads if model != "PrepareSettings"}
    assert {("WindowsSettings", name) for name in keys_of(WINDOWS)} <= read
    assert ("ChannelsSettings", section) in read
    written = yaml.safe_load(CHANNELS.read_text())[section]
    for name, channel in written.items():
        assert {("ChannelSettings", key) for key in channel} <= read
        assert {("FilterSettings", key) for key in channel["filter"]} <= read
        index = read_index(Path("store/train"))
        assert index.units[name] == channel["unit"]
        assert index.filters[name].as_json() == channel["filter"]
        assert index.quality_thresholds[name] == channel["quality_threshold"]
    assert index.channels == tuple(written)


CHANNEL_KEYS = list(leaves(yaml.safe_load(CHANNELS.read_text())))


@pytest.mark.parametrize("key", CHANNEL_KEYS, ids=".".join)
def test_every_key_of_the_channel_table_changes_its_channel_and_no_other(
    key: tuple[str, ...], tmp_path: Path
) -> None:
    table = yaml.safe_load(CHANNELS.read_text())
    section, name, *_ = key
    inner = table
    for part in key[:-1]:
        inner = inner[part]
    value = inner[key[-1]]
    if key[-1] == "order":
        inner["order"] = 3
    elif isinstance(value, bool):
        inner[key[-1]] = not value
    else:
        inner[key[-1]] = (
            ["OTHER"] if isinstance(value, list) else "kg" if isinstance(value, str) else value / 2
        )
    path = tmp_path / "channels.yaml"
    path.write_text(yaml.safe_dump(table, sort_keys=False))
    changed = [
        (each, channel.name)
        for each in ("pretrain", "finetune")
        for channel, shipped in zip(
            resolve_channels(path, each).channels, resolve_channels(CHANNELS, each).channels, strict=True
        )
        if channel != shipped
    ]
    assert changed == [(section, name)]


def test_the_recipe_for_small_data_takes_synthetic_windows_beside_the_stores() -> None:
    options = {"config": CONFIGS / "small_data.yaml", "data_dir": ["data/windows", "synthetic:icu"]}
    settings = resolve(PretrainSettings, options=options, environ={}).settings
    assert (settings.rate_weight, settings.batch_size, settings.patch_embedding) == (0.1, 32, "convolutional")
    assert (settings.steps, settings.qrs_weight) == (6000, 0.3)
    assert settings.streams() == {"synthetic:icu": ("icu", 1.0)}


def test_the_seed_card_is_the_first_specification_and_nothing_else() -> None:
    settings = resolve(PretrainSettings, options={"config": CONFIGS / "seed_card.yaml"}, environ={}).settings
    model = settings.fill(ModelConfig)
    assert (model.patch_embedding, model.expansion_factor) == ("linear", 8)
    assert not model.rhythm_head and not model.rate_head and not settings.qrs_weight
    stated = {"mask_ratio": 0.4, "mask_type": "random", "lr": 5e-4, "batch_size": 128, "epochs": 100}
    stated |= {"weight_decay": 0.01, "warmup_epochs": 10, "stft_weight": 0.3, "gradient_clip": 1.0}
    for values in (settings, PretrainSettings()):  # the defaults keep what the specification states
        assert {name: getattr(values, name) for name in stated} == stated


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_known_by_name(name: str) -> None:
    options = {"data_dir": ["synthetic:icu"]}
    by_name = resolve(PretrainSettings, options={**options, "config": name}, environ={})
    by_path = resolve(PretrainSettings, options={**options, "config": CONFIGS / f"{name}.yaml"}, environ={})
    assert by_name.settings == by_path.settings.model_copy(update={"config": Path(name)})
    Path(name).write_text("seed: 7")  # a file of that name outranks it
    assert resolve(PretrainSettings, options={"config": name}, environ={}).settings.seed == 7


def test_the_wheel_holds_every_recipe() -> None:
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    copied = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert copied == {f"configs/{name}.yaml": f"biofound/recipes/{name}.yaml" for name in sorted(RECIPES)}
