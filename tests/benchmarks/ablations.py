"""Ablations: repeat any row of docs/experiments.md, one change of a recipe at a time, equal CPU time.

    python -m tests.benchmarks.ablations --corpus DIR --judged DIR --variants base,rate --output rows.jsonl
    python -m tests.benchmarks.ablations --output rows.jsonl --table

Each variant pretrains on the corpus's training windows with the trainer of `biofound pretrain` and is judged
on the windows of other patients: masked error and R peaks under the same masks for all, and the error of
heart rate by a probe. Every run is one line of JSON; runs that the output already holds are skipped, so the
same command resumes an interrupted series. Both directories are window stores of WFDB records:

    biofound prepare --source wfdb --root challenge2015 --fractions 1,0,0 --output corpus
    biofound windows --split-file corpus/splits_full.json --outdir corpus/windows
    biofound prepare --source wfdb --root bidmc --fractions 0,1,0 --output judged
    biofound windows --split-file judged/splits_full.json --outdir judged/windows
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from biofound.commands.pretrain_data import open_training_windows
from biofound.core.devices import resolve_precision
from biofound.core.losses import PretrainingLoss
from biofound.core.memory import keep_freed_memory, return_freed_memory
from biofound.core.models import ModelConfig, PretrainingModel, parameter_count
from biofound.core.readout_names import DEFAULT_READOUT
from biofound.core.scores import Estimate, Outcome, paired_difference
from biofound.core.trainer import TrainConfig, Trainer
from biofound.data.integrity import splits_in
from biofound.data.windows import Windows
from biofound.settings import PretrainSettings, resolve
from tests.benchmarks.ablation_changes import (
    BeatPlaces,
    ChannelMaskedEncoder,
    ChannelMasks,
    EarlyFusion,
    ExactSteps,
    LatentTarget,
    MixedChannels,
    PatchNormalised,
    PatchNormalisedLoss,
    Term,
    WithEncoder,
    WithNeighbours,
    WithTeacher,
    WithTerm,
    beat_term,
    contrast_term,
    latent_term,
    magnitude_term,
    slope_term,
)
from tests.benchmarks.recipes import HeartRateProbe, labelled_with_heart_rate, trainer_of

CONFIGS = Path(__file__).parent.parent.parent / "configs"
PLAIN, SMALL_DATA = CONFIGS / "seed_card.yaml", CONFIGS / "small_data.yaml"
READOUTS = (DEFAULT_READOUT, "mean_std")
STEPS = 1500
VALIDATION_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One change of a recipe."""

    change: str
    """What differs from the recipe that heads its group, in words."""
    recipe: Path = SMALL_DATA
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `biofound pretrain`, where the change is one of them."""
    synthetic: str | None = None
    """Population and weight of synthetic windows beside the corpus."""
    steps: int | None = None
    """Steps, where the length is the change."""
    cost: float = 1.0
    """CPU time of a step relative to base's, measured beforehand (`--measure`): so many times fewer steps.
    Left at 1 where it is within 3 %."""
    note: str = ""
    """How its columns are not comparable with the others'."""
    model: Callable[[ModelConfig], PretrainingModel] = PretrainingModel
    config: Callable[..., TrainConfig] = TrainConfig
    loss: Callable[[PretrainingLoss], nn.Module] | None = None
    term_weight: float | None = None
    """The weight of what `WithTerm` adds."""
    trainer: type[ExactSteps] = ExactSteps

    def steps_of(self, steps: int) -> int:
        """Its steps, where base takes `steps`."""
        return self.steps or max(1, round(steps / self.cost))


MASKED_BY_CHANNEL = partial(WithEncoder, encoder=ChannelMaskedEncoder)
HALF_SYNTHETIC = "icu:0.5"


def _plain(change: str, **more: Any) -> Variant:
    return Variant(change=change, recipe=PLAIN, **more)


def _option(name: str, value: Any, *, cost: float = 1.0, change: str | None = None) -> Variant:
    words = f"{name.replace('_', ' ')} {value}" if change is None else change
    return Variant(change=words, options={name: value}, cost=cost)


def _latent(weight: float) -> Variant:
    return Variant(
        change=f"latent target (EMA teacher), weight {weight:g}",
        model=LatentTarget,
        loss=partial(WithTerm, term=latent_term),
        term_weight=weight,
        trainer=WithTeacher,
        cost=1.3,
    )


def _beats(change: str, term: Term, weight: float, **more: Any) -> Variant:
    """A term that asks where the beats of the ECG are."""
    loss = partial(WithTerm, term=term)
    return Variant(change=f"{change}, weight {weight:g}", loss=loss, term_weight=weight, **more)


def _plain_with(prefix: str, words: str, options: Mapping[str, Any]) -> dict[str, Variant]:
    """The plain recipe with one thing that base has more."""
    changes: tuple[tuple[str, str, dict[str, Any], float], ...] = (
        ("convolutional", "convolutional embedding", {"patch_embedding": "convolutional"}, 1.17),
        ("global", "global term 0.3", {"global_weight": 0.3}, 0.79),
        ("rhythm", "rhythm term 0.1", {"rhythm_weight": 0.1}, 0.79),
    )
    return {
        f"{prefix}_{name}": _plain(f"{words} + {change}", options={**options, **more}, cost=cost)
        for name, change, more, cost in changes
    }


GROUPS: dict[str, dict[str, Variant]] = {
    "Plain recipe": {
        "plain": _plain("plain (seed_card.yaml, batches of 32), lr 5e-4", cost=0.7),
        "plain_lr": _plain("plain, lr 2e-3", options={"lr": 2e-3}, cost=0.7),
        **_plain_with("plain", "plain, lr 5e-4,", {}),
        **_plain_with("plain_lr", "plain, lr 2e-3,", {"lr": 2e-3}),
    },
    "Loss terms": {
        "base": Variant(change="base (small_data.yaml without synthetic windows, rate and QRS term)"),
        "no_global": _option("global_weight", 0.0, change="without the global term"),
        "no_rhythm": _option("rhythm_weight", 0.0, change="without the rhythm term"),
        "no_terms": Variant(
            change="without both terms", options={"global_weight": 0.0, "rhythm_weight": 0.0}, cost=0.9
        ),
        "synthetic": Variant(
            change="a third of the windows synthetic (icu)", synthetic=HALF_SYNTHETIC, cost=1.1
        ),
        "rate": Variant(
            change="a third of the windows synthetic (icu), rate term 0.1",
            synthetic=HALF_SYNTHETIC,
            options={"rate_weight": 0.1},
            cost=1.14,
        ),
    },
    "Beats": {
        **{
            f"qrs_{weight:g}": _option("qrs_weight", weight, change=f"QRS term {weight:g}")
            for weight in (0.1, 0.2, 0.3, 1.0)
        },
        "magnitude_0.3": _beats("squared error of the ECG's STFT magnitude", magnitude_term, 0.3),
        "slope_0.3": _beats("squared error of the ECG's slope size", slope_term, 0.3),
        "slope_1": _beats("squared error of the ECG's slope size", slope_term, 1.0),
        "beats_1": _beats("R peaks in bins of 40 ms, from the latents", beat_term, 1.0, model=BeatPlaces),
    },
    "Masks": {
        "mask_0.2": _option("mask_ratio", 0.2),
        "mask_0.6": _option("mask_ratio", 0.6),
        "mask_block": _option("mask_type", "block", change="one span of four patches"),
        "mask_by_channel": Variant(
            change="masks independent by channel",
            model=MASKED_BY_CHANNEL,
            config=partial(ChannelMasks, independent=True),
        ),
        "mask_whole_channel": Variant(
            change="one channel hidden whole, the other visible, in 30 % of the windows",
            model=MASKED_BY_CHANNEL,
            config=partial(ChannelMasks, whole_share=0.3),
        ),
        "mask_mixed": Variant(
            change="half of the windows by channel, half with one channel hidden whole",
            model=MASKED_BY_CHANNEL,
            config=partial(ChannelMasks, independent=True, whole_share=0.5),
        ),
    },
    "Fusion": {
        "fusion_1": Variant(
            change="fusion after 1 of 4 layers",
            model=partial(WithEncoder, encoder=partial(EarlyFusion, layers=1)),
            cost=0.95,
        ),
        "fusion_2": Variant(
            change="fusion after 2 of 4 layers",
            model=partial(WithEncoder, encoder=partial(EarlyFusion, layers=2)),
        ),
        "mix_channel": Variant(
            change="granite's mix_channel", model=partial(WithEncoder, encoder=MixedChannels), cost=1.14
        ),
    },
    "Targets": {
        "patch_target": Variant(
            change="target normalised by patch",
            model=PatchNormalised,
            loss=partial(PatchNormalisedLoss, patch_size=125),
            note="MSM and R peaks are given each hidden patch's true mean and scale: not comparable.",
        ),
        "latent_0.5": _latent(0.5),
        "latent_1": _latent(1.0),
        "neighbours": Variant(
            change="batches of 16 windows and their 16 neighbours, no contrast",
            options={"batch_size": 16},
            trainer=WithNeighbours,
            cost=0.85,
        ),
        "contrast": Variant(
            change="the same, contrast between neighbours, weight 0.1",
            options={"batch_size": 16},
            loss=partial(WithTerm, term=contrast_term),
            term_weight=0.1,
            trainer=WithNeighbours,
            cost=0.85,
        ),
    },
    "STFT": {
        "stft_0": _option("stft_weight", 0.0),
        "stft_0.1": _option("stft_weight", 0.1),
        "stft_1": _option("stft_weight", 1.0),
        "stft_64": _option("stft_windows", (64,), change="STFT windows 64", cost=0.95),
        "stft_256": _option("stft_windows", (256,), change="STFT windows 256", cost=0.94),
        "stft_32_512": _option(
            "stft_windows", (32, 64, 128, 256, 512), change="STFT windows 32, 64, 128, 256, 512", cost=1.11
        ),
        "floor_1e-2": _option("stft_floor", 1e-2),
        "floor_1e-5": _option("stft_floor", 1e-5),
    },
    "Size": {
        "width_96": _option("d_model", 96, cost=0.87),
        "width_288": _option("d_model", 288, cost=1.15),
        "layers_2": _option("num_layers", 2, cost=0.92),
        "layers_6": _option("num_layers", 6, cost=1.12),
        "expansion_1": _option("expansion_factor", 1, cost=0.94),
        "expansion_4": _option("expansion_factor", 4, cost=1.04),
        "expansion_8": _option("expansion_factor", 8, cost=1.28),
    },
    "Optimisation": {
        "lr_1e-3": _option("lr", 1e-3),
        "lr_4e-3": _option("lr", 4e-3),
        "batch_16": _option("batch_size", 16, cost=0.67),
        "batch_64": _option("batch_size", 64, cost=1.64),
        "batch_128": _option("batch_size", 128, cost=2.86),
    },
    "Length": {f"steps_{steps}": Variant(change=f"{steps:,} steps", steps=steps) for steps in (500, 4000)},
}
VARIANTS = {name: variant for group in GROUPS.values() for name, variant in group.items()}


# ---------------------------------------------------------------------------------------------------------
# One run


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs read: the window stores of the corpus and of the patients whom they are judged on."""

    corpus: Path
    judged: Path
    precision: str

    def settings(self, variant: Variant, *, seed: int, steps: int, **changes: Any) -> PretrainSettings:
        """The settings of a variant; `changes` are the recipe's, which the variant outranks."""
        stream = [f"synthetic:{variant.synthetic}"] if variant.synthetic else []
        options = {
            "config": variant.recipe,
            "batch_size": 32,
            "rate_weight": 0.0,
            "qrs_weight": 0.0,
            **changes,
            **variant.options,
            "data_dir": (str(self.corpus), str(self.judged), *stream),
            "seed": seed,
            "steps": steps,
        }
        return resolve(PretrainSettings, options=options, environ={}).settings

    def windows(self, settings: PretrainSettings) -> tuple[Windows, Windows]:
        """The windows to train on, and those to judge on."""
        if splits_in(self.judged) != ["val"]:
            raise SystemExit(
                f"{self.judged}: expected windows of the split val alone (prepare --fractions 0,1,0): those "
                "of another would be trained on, or not judged"
            )
        return open_training_windows(settings, settings.data_dir)


def trainer_for(
    variant: Variant, place: Place, *, seed: int, steps: int, log_interval: int = 100, **changes: Any
) -> ExactSteps:
    """The trainer of a variant, for so many steps."""
    settings = place.settings(variant, seed=seed, steps=steps, **changes)
    train, val = place.windows(settings)
    weight = {} if variant.term_weight is None else {"rate_weight": variant.term_weight}
    trainer = trainer_of(
        settings,
        train,
        val,
        precision=place.precision,
        output_dir=place.corpus,  # where it writes nothing
        model=variant.model,
        config=variant.config,
        trainer=partial(variant.trainer, steps=steps),
        log_interval=log_interval,
        **weight,
    )
    if variant.loss is not None:
        trainer.loss_terms = variant.loss(trainer.loss_terms)
    return trainer


def run(
    name: str, place: Place, probe: HeartRateProbe, *, seed: int, steps: int, **changes: Any
) -> dict[str, Any]:
    """Pretrain and judge one variant: its line of JSON."""
    variant = VARIANTS[name]
    trainer = trainer_for(variant, place, seed=seed, steps=variant.steps_of(steps), **changes)
    before = time.process_time()
    for _ in trainer.fit():
        pass
    minutes = (time.process_time() - before) / 60
    return {
        "variant": name,
        "seed": seed,
        "steps": trainer.step,
        "cpu_minutes": minutes,
        "parameters": parameter_count(trainer.model.encoder),
        **reconstructed(trainer, place, **changes),
        "hr": {
            readout: _error(outcome, probe.classical)
            for readout, outcome in probe.of_encoder(trainer.model.encoder, READOUTS).items()
        },
        "classical": _estimate(probe.classical.row.scores["mae"]),
        "corpus": trainer.data.fingerprint,
        "precision": place.precision,
    }


def reconstructed(trainer: Trainer, place: Place, **changes: Any) -> dict[str, Any]:
    """How well hidden patches are reconstructed, by base's own validation with its masks of one seed."""
    settings = place.settings(VARIANTS["base"], seed=VALIDATION_SEED, steps=1, **changes)
    judge = trainer_of(
        settings,
        trainer.val,  # type: ignore[arg-type]
        trainer.val,  # type: ignore[arg-type]
        precision=place.precision,
        output_dir=place.judged,
        model=lambda _: trainer.model,
    )
    losses, monitor = judge.validate()
    return {
        "msm": losses.msm_by_channel,
        **{key: monitor[key] for key in ("r_peak_recall", "r_peak_precision", "latent_rank")},
    }


def _error(outcome: Outcome, classical: Outcome) -> dict[str, Any]:
    difference = paired_difference(outcome, classical, score="mae")
    return {**_estimate(outcome.row.scores["mae"]), "minus_classical": _estimate(difference.estimate)}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": estimate.interval}


# ---------------------------------------------------------------------------------------------------------
# Many runs


def rows_in(output: Path) -> list[dict[str, Any]]:
    """The runs that a file holds; none where it is not there."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() else []


def run_all(
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    place: Place,
    probe: HeartRateProbe,
    steps: int,
    output: Path,
    **changes: Any,
) -> Iterator[dict[str, Any]]:
    """Run what the output lacks, seed by seed, and add a line for each run."""
    for seed in seeds:
        for name in names:
            if any((row["variant"], row["seed"]) == (name, seed) for row in rows_in(output)):
                continue
            row = run(name, place, probe, seed=seed, steps=steps, **changes)
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            return_freed_memory()
            yield row


def measure(names: Sequence[str], place: Place, *, steps: int) -> Iterator[tuple[str, float, float]]:
    """CPU seconds of a step of each variant and of base, in turns: the medians."""
    for name in names:
        running = [
            trainer_for(VARIANTS[each], place, seed=0, steps=steps + 4, log_interval=1).fit()
            for each in (name, "base")
        ]
        spent: list[list[float]] = [[], []]
        for _ in range(steps + 3):
            for events, seconds in zip(running, spent, strict=True):
                before = time.process_time()
                next(events)
                seconds.append(time.process_time() - before)
        ours, base = (statistics.median(seconds[3:]) for seconds in spent)
        yield name, ours, base


# ---------------------------------------------------------------------------------------------------------
# Table

COLUMNS = (
    "what",
    "seed",
    "steps",
    "CPU min",
    "MSM PPG",
    "MSM ECG",
    "R peaks",
    "rank",
    "HR",
    "− classical",
    "HR, `mean_std`",
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, in the order of `GROUPS`."""
    lines = []
    for group, variants in GROUPS.items():
        found = [
            row
            for name in variants
            for row in sorted(rows, key=lambda row: row["seed"])
            if row["variant"] == name
        ]
        if found:
            lines += [f"### {group}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in found]
            notes = {VARIANTS[row["variant"]].change: VARIANTS[row["variant"]].note for row in found}
            lines += ["", *(f"*{change}*: {note}\n" for change, note in notes.items() if note)]
    for classical in sorted({_shown(row["classical"]) for row in rows}):
        lines += [f"Classical features in the same folds: HR {classical}."]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    hr, fused = (row["hr"][readout] for readout in READOUTS)
    recall, precision = (
        "-" if row[key] is None else f"{row[key]:.2f}" for key in ("r_peak_recall", "r_peak_precision")
    )
    return [
        VARIANTS[row["variant"]].change,
        str(row["seed"]),
        f"{row['steps']:,}",
        f"{row['cpu_minutes']:.1f}",
        *(f"{row['msm'][channel]:.3f}" for channel in ("PPG", "ECG")),
        f"{recall} / {precision}",
        f"{row['latent_rank']:.0f}",
        _shown(hr),
        _shown(hr["minus_classical"], sign="+"),
        _shown(fused),
    ]


def _shown(estimate: Mapping[str, Any], *, sign: str = "") -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]".replace("-", "−")


# ---------------------------------------------------------------------------------------------------------
# Command line


def arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<24}{variant.change}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ablations",
        description=__doc__,
        epilog=f"variants:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, help="window store to train on")
    parser.add_argument("--judged", type=Path, help="window store of the patients to judge on")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which (default: all)")
    parser.add_argument("--seeds", default="0,1", help="seeds (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="steps of base; others take its CPU time (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="file of rows, one line of JSON a run")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--table", action="store_true", help="print the rows of --output as Markdown")
    parser.add_argument(
        "--measure",
        type=int,
        metavar="N",
        help="print the CPU time of a step over N steps, and do nothing else",
    )
    given = parser.parse_args()
    if unknown := [name for name in given.variants.split(",") if name not in VARIANTS]:
        parser.error(f"--variants {','.join(unknown)}: expected some of {', '.join(VARIANTS)}")
    if (given.table or not given.measure) and given.output is None:
        parser.error("expected --output FILE")
    if not given.table and None in (given.corpus, given.judged):
        parser.error("expected --corpus DIR --judged DIR")
    return given


def main() -> None:
    given = arguments()
    if given.table:
        print(table(rows_in(given.output)))  # noqa: T201
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # granite and transformers comment on their own defaults
    torch.set_num_threads(1)
    threadpool_limits(1)  # the threads of numpy's and scipy's products wait by spinning
    keep_freed_memory()
    precision = resolve_precision(given.precision, torch.device("cpu"))
    place = Place(corpus=given.corpus, judged=given.judged, precision=precision)
    names = given.variants.split(",")
    if given.measure:
        for name, ours, base in measure(names, place, steps=given.measure):
            print(f"{name:<24}{ours:.4f} s a step, base {base:.4f} s: cost {ours / base:.2f}")  # noqa: T201
        return
    probe = HeartRateProbe(labelled_with_heart_rate(given.judged), repeats=2, resamples=1000)
    runs = run_all(
        names,
        [int(seed) for seed in given.seeds.split(",")],
        place=place,
        probe=probe,
        steps=given.steps,
        output=given.output,
    )
    for row in runs:
        print(json.dumps(row), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
