"""Settings: which value counts and where it came from, and every mistake told at once."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from biofound.data.sources.registry import SOURCES
from biofound.data.sources.synthetic import MAX_MINUTES, MIN_MINUTES, SyntheticSource
from biofound.errors import SettingsError
from biofound.files import path_from_text
from biofound.settings import (
    COMMANDS,
    ChannelsSettings,
    FinetuneSettings,
    InflateSettings,
    PredictSettings,
    PrepareSettings,
    PretrainSettings,
    ProbeSettings,
    Resolved,
    WindowsSettings,
    resolve,
    resolve_channels,
)
from biofound.settings.base import bounds_of, extra_of
from biofound.settings.pretrain import nearest_divisors, nearest_multiples

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def pretrain(environ: dict[str, str] | None = None, **options: object) -> Resolved[PretrainSettings]:
    return resolve(PretrainSettings, options=options, environ=environ or {})


def problems_of(call) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        call()
    first, *rest = str(caught.value).splitlines()
    if not rest:
        return [first]
    assert first.startswith(str(len(rest)))  # says how many follow
    return [line.strip() for line in rest]


def assert_tells(problems: list[str], *expected: tuple[str, ...]) -> None:
    """Each problem holds all words (place, field, bound, value) of one of `expected`; none is left."""
    assert len(problems) == len(expected), problems
    for words in expected:
        matching = [problem for problem in problems if all(word in problem for word in words)]
        assert len(matching) == 1, (words, problems)


# ---- Precedence and origin


def test_each_place_outranks_the_next(config) -> None:
    path = config("lr: 0.1\n")
    environ = {"BIOFOUND_PRETRAIN_LR": "0.2"}
    for options, said, value, origin in [
        ({}, {}, 5e-4, "default"),
        ({"config": path}, {}, 0.1, f"{path}:1"),
        ({"config": path}, environ, 0.2, "environment BIOFOUND_PRETRAIN_LR"),
        ({"config": path, "lr": "0.3"}, environ, 0.3, "option --lr"),
    ]:
        resolved = pretrain(said, **options)
        assert (resolved.settings.lr, resolved.origins["lr"]) == (value, origin)


def test_environment_can_name_the_file(config) -> None:
    path = config("\n\nseed: 7\n")
    resolved = pretrain({"BIOFOUND_PRETRAIN_CONFIG": str(path)})
    assert (resolved.settings.seed, resolved.origins["seed"]) == (7, f"{path}:3")
    assert resolved.origins["config"] == "environment BIOFOUND_PRETRAIN_CONFIG"


def test_empty_variable_counts_as_not_set() -> None:
    assert pretrain({"BIOFOUND_PRETRAIN_LR": ""}).origins["lr"] == "default"


def test_variables_of_other_commands_and_tools_are_left_alone() -> None:
    pretrain({"BIOFOUND_WINDOWS_SFREQ": "x", "BIOFOUND_VITALDB_URL": "http://localhost", "LR": "x"})


def test_text_from_options_and_environment_becomes_values() -> None:
    resolved = pretrain(
        {"BIOFOUND_PRETRAIN_RANDOM_CROP": "no", "BIOFOUND_PRETRAIN_CHANNELS": "ECG, PPG"},
        output_dir="out",
        epochs="20",
    )
    settings = resolved.settings
    assert (settings.random_crop, settings.channels) == (False, ("ECG", "PPG"))
    assert (settings.output_dir, settings.epochs) == (Path("out"), 20)


def test_a_path_may_begin_at_home_where_there_is_one(
    config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config("output_dir: ~/runs\n")
    assert pretrain(config="~/config.yaml").settings.output_dir == tmp_path / "runs"
    assert ProbeSettings(checkpoint=("a.pt", "~/b.pt"), data_dir="d", labels="l", target="HR").checkpoint == (
        Path("a.pt"),
        tmp_path / "b.pt",
    )
    (tmp_path / "l.csv").touch()
    given = pretrain(data_dir="~/a,synthetic:icu,file:///~/b,c//~", probe_labels="~/l.csv").settings
    assert given.data_dir == (f"{tmp_path}/a", "synthetic:icu", "file:///~/b", "c//~")
    assert given.probe_labels == f"{tmp_path}/l.csv"
    probe = ProbeSettings(checkpoint=("a.pt",), data_dir="d", labels="~/l", target="~")
    assert (probe.labels, probe.target) == (f"{tmp_path}/l", "~")
    tuned = FinetuneSettings(data_dir="d", labels="~/l", target="HR", task="regression")
    predicted = PredictSettings(model="m.pt", data_dir="d", labels="~/l", output="o.npz")
    assert tuned.labels == predicted.labels == f"{tmp_path}/l"
    (problem,) = problems_of(lambda: pretrain(data_dir="~nobody-of-this-name/windows"))
    assert problem.startswith("option --data-dir: ") and "no home directory" in problem
    (problem,) = problems_of(lambda: pretrain(output_dir="~nobody-of-this-name/runs"))
    assert problem.startswith("option --output-dir: ") and "no home directory" in problem


def test_exponent_without_point_is_a_number(config) -> None:
    path = config("lr: 5e-4\n")
    assert pretrain(config=path).settings.lr == 5e-4


def test_every_field_has_an_origin_and_plain_json() -> None:
    resolved = pretrain(epochs="50")
    assert resolved.origins.keys() == PretrainSettings.model_fields.keys()
    written = resolved.as_json()
    assert written["epochs"] == {"value": 50, "origin": "option --epochs"}
    assert written["output_dir"] == {"value": "artifacts/foundation_model", "origin": "default"}
    assert written["channels"]["value"] == ["PPG", "ECG"]


def test_empty_file_sets_nothing(config) -> None:
    resolved = pretrain(config=config("# nothing\n"))
    assert {name for name, origin in resolved.origins.items() if origin != "default"} == {"config"}


# ---- Defaults that follow other settings


def test_fast_changes_defaults_and_says_so() -> None:
    resolved = pretrain(fast=True)
    for name, value in PretrainSettings.FAST.items():
        assert getattr(resolved.settings, name) == value
        assert resolved.origins[name] == "--fast"
    assert resolved.settings == PretrainSettings(fast=True)


def test_single_value_outranks_fast_said_in_the_same_place(config) -> None:
    path = config("fast: true\nepochs: 3\n")
    for resolved in [
        pretrain(fast=True, epochs="3"),
        pretrain(config=path),
        pretrain({"BIOFOUND_PRETRAIN_FAST": "1", "BIOFOUND_PRETRAIN_EPOCHS": "3"}),
    ]:
        assert resolved.settings.epochs == 3
        assert resolved.settings.batch_size == PretrainSettings.FAST["batch_size"]


def test_fast_as_option_outranks_the_shipped_file() -> None:
    resolved = pretrain(config=CONFIGS / "ssl_pretrain.yaml", fast=True)
    assert resolved.settings.epochs == PretrainSettings.FAST["epochs"]


def test_fast_in_the_file_is_outranked_by_options(config) -> None:
    resolved = pretrain(config=config("fast: true\n"), batch_size="5")
    assert resolved.settings.batch_size == 5
    assert resolved.origins["epochs"].startswith("fast, ")
    assert pretrain(config=config("fast: true\n"), fast=False).settings == pretrain(
        config=config("")
    ).settings.model_copy(update={"config": resolved.settings.config})


@pytest.mark.parametrize(
    ("epochs", "warmup"), [(1, 1), (5, 1), (10, 1), (11, 2), (95, 10), (100, 10), (1000, 10)]
)
def test_short_runs_get_a_short_warmup(epochs: int, warmup: int) -> None:
    resolved = pretrain(epochs=str(epochs))
    assert resolved.settings.warmup_epochs == warmup
    assert resolved.settings == PretrainSettings(epochs=epochs)
    expected = f"default for {epochs} epochs" if epochs <= 90 else "default"
    assert resolved.origins["warmup_epochs"] == expected


def test_explicit_warmup_beyond_the_epochs_is_an_error() -> None:
    problems = problems_of(lambda: pretrain(epochs="5", warmup_epochs="6"))
    assert_tells(problems, ("option --warmup-epochs, option --epochs: ", "(6)", "(5)"))


# ---- Mistakes


def test_all_mistakes_of_all_places_are_told_at_once(config) -> None:
    path = config(
        "mask_ration: 0.3\nbatch_size: -3\nepochs: yes\nlr: 1\nlr: 2\nconfig: x\nchannels: [PPG, 3]\n"
    )
    environ = {"BIOFOUND_PRETRAIN_SEED": "-1", "BIOFOUND_PRETRAIN_MASKRATIO": "0.3"}
    found = problems_of(
        lambda: pretrain(environ, config=path, dropout="x", context_length="1000", patch_size="130")
    )
    assert_tells(
        found,
        (f"{path}:1: mask_ration: ", "mask_ratio?"),
        (f"{path}:2: batch_size: ", "at least 1", "in windows", "-3"),
        (f"{path}:3: epochs: ", "at least 1", "in epochs", "True"),
        (f"{path}:5: lr ", "line 4"),
        (f"{path}:5: lr: ", "above 0, at most 1", "got 2"),
        (f"{path}:6: config ", "--config"),
        (f"{path}:7: channels.1: ", "3"),
        ("option --dropout: ", "at least 0, below 1", "'x'"),
        ("environment BIOFOUND_PRETRAIN_SEED: ", "below 4294967296", "'-1'"),
        ("environment BIOFOUND_PRETRAIN_MASKRATIO: ", "BIOFOUND_PRETRAIN_MASK_RATIO?"),
        ("option --context-length, option --patch-size: ", "130", "1000"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: [1\nseed: 2\n", (":2: ", "YAML")),
        ("- lr\n", (":1: ", "list")),
        ("just words\n", (":1: ", "'just words'")),
        ("lr: 1\n---\nlr: 2\n", ("YAML",)),
        ("lr: !!python/object:os.system x\n", (":1: ", "YAML")),
        ("lr: 2024-99-99\n", ("YAML", "month")),
        ("? [a]\n: 3\n", (":1: ", "YAML")),
        ("a: &a\n  b: *a\n", (":2: ", "holds itself")),
        ("on: 3\n", (":1: on: ",)),
        ("lr: .inf\n", (":1: lr: ", "inf")),
        ("lr:\n  deep: 1\n", (":1: lr: ", "{'deep': 1}")),
        ("seed: null\n", (":1: seed: ", "None")),
        ("channels: []\n", (":1: channels: ", "at least 1")),
        ("channels: [PPG, PPG]\n", (":1: channels: ", "PPG")),
        ("channels: [PPG, E CG]\n", (":1: channels.1: ", "'E CG'")),
    ],
)
def test_bad_files_are_told_with_their_line(config, text: str, words: tuple[str, ...]) -> None:
    path = config(text)
    assert_tells(problems_of(lambda: pretrain(config=path)), (str(path), *words))


def tenfold(first: str, item: str, last: int) -> str:
    """Lines of which each stands for ten times the one before, by aliases."""
    lines = [f"a{n}: &a{n} {item % ', '.join([f'*a{n - 1}'] * 10)}\n" for n in range(1, last)]
    return f"a0: &a0 {first}\n{''.join(lines)}"


BOMBS = {
    "aliases": (tenfold("[x]", "[%s]", 10), (":5: ", "10,000")),
    "merged mappings": (tenfold("{x: 1}", "{<<: [%s]}", 10), (":5: ", "10,000")),
    "deep lists": ("lr: " + "[" * 2000 + "]" * 2000, (":1: ", "20 levels")),
    "deep mappings": ("".join(f"{' ' * n}a:\n" for n in range(500)), (":21: ", "20 levels")),
    "digits": ("epochs: " + "9" * 4000, (":1: ", "100 characters", "4,000")),
    "hexadecimal digits": ("channels: [0x" + "f" * 4000 + "]", (":1: ", "100 characters", "4,002")),
    "sixties": ("lr: 1" + ":1" * 3000 + ".5", (":1: ", "100 characters", "6,003")),
    "unknown keys": ("".join(f"k{n}: 1\n" for n in range(100_000)), ("10,000",)),
    "text": ("lr: " + "x" * 2_000_000, ("1,000,000 bytes",)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_files_beyond_what_settings_need_are_refused_in_bounded_time_and_memory(config, kind: str) -> None:
    text, expected = BOMBS[kind]
    path = config(text)
    for read in (lambda: pretrain(config=path), lambda: resolve_channels(path, "pretrain")):
        (problem,) = problems_of(read)
        assert problem.startswith(str(path)) and len(problem) < 300
        assert [word for word in expected if word not in problem] == []


def test_numbers_and_lists_of_problems_are_bounded_wherever_they_come_from(config) -> None:
    for name in ("epochs", "steps", "seed"):
        (problem,) = problems_of(lambda name=name: pretrain(**{name: "9" * 4000}))
        assert problem.startswith(f"option --{name}: ") and len(problem) < 200
    with pytest.raises(SettingsError) as many:
        pretrain(config=config("".join(f"k{n}: 1\n" for n in range(80))))
    lines = str(many.value).splitlines()
    assert len(lines) == 52 and lines[0].startswith("80 ") and lines[-1] == "  and 30 more"


def test_file_that_cannot_be_read_is_told_with_the_other_mistakes(tmp_path: Path) -> None:
    missing, noise = tmp_path / "no.yaml", tmp_path / "noise.yaml"
    noise.write_bytes(b"lr: \xff\xfe")
    assert_tells(
        problems_of(lambda: pretrain(config=missing, lr="x")),
        (f"{missing}: ", "No such file or directory"),
        ("option --lr: ",),
    )
    assert_tells(problems_of(lambda: pretrain(config=noise)), (f"{noise}: ", "UTF-8"))


def test_lengths_that_do_not_divide_come_with_the_nearest_that_do() -> None:
    problems = problems_of(lambda: pretrain(context_length="1000", patch_size="130"))
    assert_tells(problems, ("context_length 910 or 1040", "patch_size 125 or 200"))
    PretrainSettings(context_length=1040, patch_size=130)
    PretrainSettings(context_length=1000, patch_size=200)


def test_options_for_windows_of_another_length_are_settings_that_work() -> None:
    settings = PretrainSettings()
    assert settings.options_for(2500) == {"context_length": 2500}
    assert settings.options_for(937) == {}  # a prime: no patch but single samples would do
    assert settings.options_for(1200) == {"context_length": 1200, "patch_size": 120}
    assert settings.options_for(200) == {"context_length": 200, "patch_size": 100, "stft_windows": (64, 128)}
    assert PretrainSettings(mask_ratio=0.1).options_for(250) == {}  # a tenth of two patches hides none
    for samples in range(1, 2600, 11):
        PretrainSettings(**settings.options_for(samples))


def test_proposed_lengths_are_the_nearest() -> None:
    for length in range(4, 200):
        for patch in range(2, length // 2):
            if length % patch == 0:
                continue
            for proposed in nearest_multiples(length, patch):
                assert proposed % patch == 0
                assert abs(proposed - length) < patch
            divisors = [size for size in range(1, length // 2 + 1) if length % size == 0]
            nearest = min(divisors, key=lambda size: abs(size - patch))
            assert nearest in nearest_divisors(length, patch)


@pytest.mark.parametrize(
    ("ratio", "good"), [("0.04", False), ("0.1", True), ("0.94", True), ("0.96", False), ("0.4", True)]
)
def test_mask_hides_a_patch_and_leaves_a_patch(ratio: str, good: bool) -> None:
    if good:
        pretrain(mask_ratio=ratio)
    else:
        problems = problems_of(lambda: pretrain(mask_ratio=ratio))
        assert_tells(problems, ("option --mask-ratio: ", ratio, "10 patches", "0.1", "0.9"))


def test_one_patch_is_too_few() -> None:
    problems = problems_of(lambda: pretrain(context_length="125"))
    assert_tells(problems, ("option --context-length: ", "at least 2 patches"))


def test_no_amp_contradicts_half_precision() -> None:
    [problem] = problems_of(lambda: pretrain(no_amp=True, precision="bf16"))
    assert problem.startswith("option --no-amp, option --precision: ")


def test_models_refuse_conflicts_without_a_command_line_too() -> None:
    with pytest.raises(ValidationError, match="patch_size"):
        PretrainSettings(patch_size=130)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("option --source", *SOURCES)),
        ({"source": "wfdb"}, ("option --source: ", "root")),
        ({"source": "synthetic", "root": "x"}, ("root", "wfdb and vital", "synthetic")),
        ({"source": "wfdb", "root": "x", "case_set": "bis"}, ("case_set", "vitaldb", "wfdb")),
        ({"source": "wfdb", "root": "x", "subject_pattern": "("}, ("--subject-pattern: ", "'('")),
        ({"source": "wfdb", "root": "x", "subject_pattern": "a"}, ("--subject-pattern: ", "group")),
        ({"source": "vital", "root": "x", "subject_column": "a"}, ("subject_column", "table", "vital")),
        (
            {"source": "wfdb", "root": "x", "record_is_subject": True, "subjects_csv": "y"},
            ("option --subjects-csv, option --record-is-subject: ",),
        ),
    ],
)
def test_prepare_refuses_what_does_not_fit_the_source(
    options: dict[str, object], words: tuple[str, ...]
) -> None:
    assert_tells(problems_of(lambda: resolve(PrepareSettings, options=options, environ={})), words)


def test_bounds_of_the_synthetic_cohort_are_those_of_its_source() -> None:
    for minutes in (MIN_MINUTES, MAX_MINUTES):
        SyntheticSource(minutes=minutes)
        resolve(PrepareSettings, options={"source": "synthetic", "minutes": str(minutes)}, environ={})
    options = {"source": "synthetic", "minutes": str(2 * MAX_MINUTES)}
    assert_tells(
        problems_of(lambda: resolve(PrepareSettings, options=options, environ={})),
        ("option --minutes: ", f"at least {MIN_MINUTES}, at most {MAX_MINUTES}"),
    )


def test_window_must_be_a_whole_number_of_samples() -> None:
    WindowsSettings(sfreq=62.5, window_seconds=0.4)
    problems = problems_of(lambda: resolve(WindowsSettings, options={"sfreq": "125.01"}, environ={}))
    assert_tells(problems, ("option --sfreq: ", "10 s", "125.01 Hz", "1250.1"))


def test_inflate_wants_as_many_names_as_channels() -> None:
    options = {"checkpoint": "x", "to": "3", "channels": "PPG,ECG"}
    problems = problems_of(lambda: resolve(InflateSettings, options=options, environ={}))
    assert_tells(problems, ("option --channels, option --to: ", "PPG, ECG", "3"))


# ---- Channels


ROW = "{tracks: [a], unit: x, filter: {low_hz: 1, high_hz: 2, order: 3}, quality_threshold: 0.5}"


def test_paths_that_are_not_utf8_are_given_and_written_as_uris() -> None:
    odd = os.fsdecode(b"/data/caf\xe9")
    options = {"data_dir": f"{odd},data/café", "output_dir": Path(odd)}
    resolved = resolve(PretrainSettings, options=options, environ={})
    assert resolved.settings.data_dir == ("file:///data/caf%E9", "data/café")
    assert resolved.as_json()["output_dir"]["value"] == "file:///data/caf%E9"
    assert path_from_text(resolved.settings.data_dir[0]) == resolved.settings.output_dir == Path(odd)


def test_built_in_channels() -> None:
    channels = {channel.name: channel for channel in resolve_channels(None, "finetune").channels}
    assert list(channels) == ["ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG"]
    assert {channel.band.low_hz for channel in channels.values()} == {0.5}
    assert [channel.band.high_hz for channel in channels.values()] == [10, 10, 10, 8, 40]
    assert [channel.unit for channel in channels.values()] == ["g", "g", "g", "NU", "mV"]
    pretrain_channels = resolve_channels(None, "pretrain").channels
    assert pretrain_channels == [channels["PPG"], channels["ECG"]]
    assert tuple(channel.name for channel in pretrain_channels) == PretrainSettings().channels


def test_channel_table_keeps_the_order_of_the_file(config) -> None:
    path = config(f"pretrain:\n  ECG: {ROW}\n  ACC_Z: {ROW}\n  PPG: {ROW}\n")
    assert [c.name for c in resolve_channels(path, "pretrain").channels] == ["ECG", "ACC_Z", "PPG"]


def test_channel_that_gives_its_tracks_alone_keeps_the_other_defaults(config) -> None:
    known = "pretrain:\n  ECG:\n  PPG: {tracks: Pleth}\n  ACC_X: {filter: {high_hz: 9}}\n"
    path = config(f"{known}  PPG2:\n    tracks: [b]\n")
    missing = [f"{path}:5: pretrain.PPG2.{name} " for name in ("unit", "filter", "quality_threshold")]
    assert_tells(problems_of(lambda: resolve_channels(path, "pretrain")), *[(where,) for where in missing])
    path.write_text(known)
    ecg, ppg, acc = resolve_channels(path, "pretrain").channels
    built_in = {channel.name: channel for channel in resolve_channels(None, "finetune").channels}
    assert ecg == built_in["ECG"]
    assert ppg == replace(built_in["PPG"], tracks=("Pleth",))
    assert acc == replace(built_in["ACC_X"], band=replace(built_in["ACC_X"].band, high_hz=9.0))


def test_section_that_a_channel_table_lacks_is_not_taken_from_the_built_in_one(config) -> None:
    path = config(f"pretrain:\n  ECG: {ROW}\n")
    assert_tells(problems_of(lambda: resolve_channels(path, "finetune")), (str(path), "finetune", "pretrain"))


def test_channels_by_name_stand_in_the_order_asked_for() -> None:
    table = resolve_channels(None, "finetune")
    assert [channel.name for channel in table.named(["ECG", "ACC_Z"])] == ["ECG", "ACC_Z"]
    assert_tells(problems_of(lambda: table.named(["ECG", "EDA"])), ("EDA", "--channels-yaml"))
    assert_tells(problems_of(lambda: table.named(["ppg", "ECG"])), ("channel ppg: ", "did you mean PPG?"))


def test_mistakes_in_the_channel_table_are_told_with_their_lines(config) -> None:
    path = config(
        "pretrain:\n"
        "  PPG:\n"
        "    tracks: [PLETH]\n"
        "    unit: NU\n"
        "    filter: {low_hz: 9, high_hz: 8, order: 4}\n"
        "    quality_threshold: 2\n"
        "  E CG:\n"
        "    tracks: []\n"
        "    unit: mV\n"
        "    filter:\n"
        "      low_hz: 0.5\n"
        "      high: 3\n"
        "      order: yes\n"
        "    quality_threshold: 0.5\n"
        "fine: 3\n"
    )
    assert_tells(
        problems_of(lambda: resolve_channels(path, "pretrain")),
        (f"{path}:5: pretrain.PPG.filter: ", "9 Hz", "8 Hz"),
        (f"{path}:6: pretrain.PPG.quality_threshold: ", "at least 0, at most 1", "2"),
        (f"{path}:7: pretrain.E CG: ", "'E CG'"),
        (f"{path}:8: pretrain.E CG.tracks: ", "at least 1"),
        (f"{path}:10: pretrain.E CG.filter.high_hz ", "above 0", "Hz"),
        (f"{path}:13: pretrain.E CG.filter.order: ", "at least 1, at most 12", "True"),
        (f"{path}:12: pretrain.E CG.filter.high: ", "high_hz?"),
        (f"{path}:15: fine: ", "finetune?"),
    )


def test_yaml_anchors_save_repetition(config) -> None:
    path = config(
        "pretrain:\n"
        "  PPG: &ppg\n    tracks: [a]\n    unit: NU\n"
        "    filter: {low_hz: 1, high_hz: 2, order: 3}\n    quality_threshold: 0.5\n"
        "  PPG2:\n    <<: *ppg\n    tracks: [b]\n"
    )
    first, second = resolve_channels(path, "pretrain").channels
    assert (second.tracks, second.band) == (("b",), first.band)


# ---- What is shipped


@pytest.mark.parametrize(
    ("name", "model", "option"),
    [("ssl_pretrain.yaml", PretrainSettings, "config"), ("windows.yaml", WindowsSettings, "windows_yaml")],
)
def test_shipped_file_holds_every_setting_and_the_defaults(name: str, model, option: str) -> None:
    path = CONFIGS / name
    in_file = {field for field, info in model.model_fields.items() if extra_of(info, "in_file")}
    assert set(yaml.safe_load(path.read_text())) == in_file
    resolved = resolve(model, options={option: path}, environ={})
    assert resolved.settings.model_copy(update={option: None}) == model()
    assert all(resolved.origins[field].startswith(f"{path}:") for field in in_file)


def test_shipped_channel_table_is_the_built_in_one() -> None:
    written = ChannelsSettings.model_validate(yaml.safe_load((CONFIGS / "channels.yaml").read_text()))
    assert written == ChannelsSettings()


@pytest.mark.parametrize("model", COMMANDS)
def test_every_field_is_described_and_numbers_are_bounded(model) -> None:
    for name, info in model.model_fields.items():
        assert info.description and info.description.endswith("."), name
        if info.annotation in (int, float, int | None, float | None):
            assert bounds_of(info), name
