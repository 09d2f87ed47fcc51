"""`biofound pretrain`: train an encoder on windows by reconstructing hidden patches.

`execute` is the whole command; below it stand its steps, in the order in which it takes them.
"""

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from biofound import console
from biofound.commands.inflate import show_transfers
from biofound.commands.pretrain_data import (
    EMBEDDED,
    build_embedded_cohort,
    describe_data,
    open_training_windows,
    parts_of,
    record_data,
    summarize_data,
)
from biofound.commands.pretrain_init import (
    InitialWeights,
    refuse_patients_of_ancestors,
    refuse_unfit_windows,
    unchecked_ancestors,
)
from biofound.commands.pretrain_resume import best_to_carry, checkpoint_to_resume, differences
from biofound.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from biofound.core.devices import resolve_device, resolve_precision
from biofound.core.distributed import Group, joined_group
from biofound.core.gpu_cache import GpuWindowCache, fits
from biofound.core.history import (
    EpochMetrics,
    Losses,
    ProbeErrors,
    StepMetrics,
    TrainingEvent,
    WriteFailure,
)
from biofound.core.memory import keep_freed_memory, peak_memory, return_freed_memory
from biofound.core.models import ModelConfig, build_model, parameter_count
from biofound.core.run_files import BEST, CONFIG, EARLIER, LAST, RECONSTRUCTIONS, RUN_FILES
from biofound.core.trainer import TrainConfig, Trainer
from biofound.data.mixture import MixedWindows
from biofound.data.windows import Windows
from biofound.errors import (
    BiofoundError,
    DataError,
    TrainingError,
    checkpoint_error_context,
    write_error_context,
)
from biofound.figures import Example, draw_losses, draw_reconstructions
from biofound.files import hold_directory, sweep_temporary_files, write_json
from biofound.options import Invocation
from biofound.settings import PretrainSettings
from biofound.settings.resolve import plain_values

if TYPE_CHECKING:
    from biofound.core.validation_probe import ValidationProbe

LONG_EPOCH = 10.0
"""Seconds after which an epoch's freed memory is returned; taking it again costs about 0.1."""
COLUMNS = 80
"""The longest line of an epoch."""
EXAMPLES = 4
"""Windows in the picture of reconstructions."""


def execute(
    invocation: Invocation[PretrainSettings],
    windows: tuple[Windows, Windows] | None,
    probe: "ValidationProbe | None",
    initial: InitialWeights | None,
) -> None:
    """Train, and leave checkpoints, history and pictures in the output directory.

    Args:
        invocation: the command's settings.
        windows: the training and validation windows; None for the embedded cohort, which is built first.
        probe: the probe of the validation windows that the settings ask for.
        initial: the weights to start from; None for random ones, and where a run is resumed.

    Raises:
        SettingsError: when a setting does not fit the windows, this machine or the run to resume.
        DataError: when the windows cannot be used, or the output directory cannot be written.
        CheckpointError: when the run to resume cannot be read.
        TrainingError: when the run had to stop.
        KeyboardInterrupt: after Ctrl-C, when the run is saved.
    """
    settings = invocation.settings
    data_dirs = settings.data_dirs
    with (
        joined_group(resolve_device(settings.device)) as (group, device),
        _output_held(settings, group, device),
    ):
        checkpoint, path = None, checkpoint_to_resume(settings)
        if path is not None:
            checkpoint = load_checkpoint(path)
        if windows is None:
            data_dirs = (str(settings.output_dir / EMBEDDED),)
            if group.rank == 0:
                build_embedded_cohort(settings)
            group.wait()
            windows = open_training_windows(settings, data_dirs)
        train, val = windows
        with stop_on_signals() as received:
            # Everything is checked before the first step, and before the output directory is touched.
            precision = resolve_precision("fp32" if settings.no_amp else settings.precision, device)
            if settings.threads is not None:
                torch.set_num_threads(settings.threads)
            if device.type == "cpu":
                keep_freed_memory()
            if initial is None:
                model = build_model(settings.fill(ModelConfig), seed=settings.seed)
                parent = None if checkpoint is None else checkpoint.parent
            else:
                refuse_unfit_windows(initial, train, val, settings)
                model, parent = initial.inflation.model, initial.parent
            ancestors = [] if parent is None else list(parent.chain())
            refuse_patients_of_ancestors(ancestors, parts_of(val, name=", ".join(data_dirs)))
            trainer = Trainer(
                model=model,
                train=_cached(train, device),
                val=_cached(val, device),
                data=describe_data(train, val, settings),
                config=train_config(settings, precision=precision, windows=len(train)),
                settings=plain_values(settings),
                output_dir=settings.output_dir,
                device=device,
                group=group,
                stop=lambda: bool(received),
                probe=probe,
                parent=parent,
            )
            threads, processes = torch.get_num_threads(), group.size
            summary = {
                **summarize_data(train, val, settings, data_dirs),
                **_summarize_probe(probe, val, data_dirs),
                "model": f"{parameter_count(model):,} parameters",
                "device": f"{device} in {precision}, {f'{processes} processes of ' if processes > 1 else ''}"
                f"{threads} thread{'s' if threads > 1 else ''}",
                "output": str(settings.output_dir),
            }
            if initial is not None:
                summary["initial weights"] = initial.summary()
            if unchecked := unchecked_ancestors(ancestors):
                summary["not checked, parent"] = (
                    f"whether validation patients were in the training of {unchecked}: it names no patients"
                )
            best = None
            if checkpoint is not None and path is not None:
                summary["resumed"] = f"{path}, after step {checkpoint.step} of {trainer.total_steps}"
                if forced := differences(path, checkpoint, settings, trainer):
                    summary["forced"] = "; ".join(forced)
                with checkpoint_error_context(path):
                    trainer.restore(checkpoint)
                if settings.resume_from is not None:
                    best = best_to_carry(path, checkpoint, trainer)
                    if best is None:
                        trainer.forget_best()
            group.wait()  # every rank has read the run to resume before rank 0 touches the directory
            record: dict[str, Any] = {}
            if group.rank == 0:
                record = {"settings": invocation.resolved.as_json(), "resolved": summary}
                record["data"] = record_data(train, val, data_dirs, streams=settings.streams())
                if (aside := _prepare_output(settings, record, best)) is not None:
                    summary["earlier run"] = f"moved to {aside}"

            console.table("pretraining", ("what", "value"), list(summary.items()))
            if initial is not None:
                synthetic = initial.parent.synthetic
                show_transfers("initial weights", initial.inflation.transfers, synthetic=synthetic)
            with (
                _outcome_recorded(trainer, record),
                _tensorboard_writer(settings, trainer) as write_event,
            ):
                _train(trainer, write_event)
        # A signal may leave seconds only: they are for the checkpoint, which is written.
        baseline = None if trainer.interrupted else trainer.validate(baseline=True)[0]
        if group.rank == 0:
            draw_figures(trainer, val)
    if baseline is None:
        _say_stopped(trainer, received[0] if received else signal.SIGTERM)  # else a signal on another rank
    elif invocation.json:
        console.print_json(_result_json(trainer, baseline))
    else:
        _show_result(trainer, baseline)


def _summarize_probe(
    probe: "ValidationProbe | None", val: Windows, data_dirs: Sequence[str]
) -> dict[str, str]:
    if probe is None:
        return {}
    from biofound.commands.pretrain_probe import summarize_probe  # scikit-learn

    return summarize_probe(probe, parts_of(val, name=", ".join(data_dirs)))


def train_config(
    settings: PretrainSettings, *, precision: Literal["fp32", "bf16", "fp16"], windows: int
) -> TrainConfig:
    """How to train, in a precision that the machine has, on so many windows an epoch."""
    config = settings.fill(TrainConfig, precision=precision)
    if settings.steps is None:
        return config
    epochs = math.ceil(settings.steps / math.ceil(windows / settings.batch_size))
    return replace(config, epochs=epochs, warmup_epochs=min(config.warmup_epochs, max(1, epochs // 10)))


def _cached(windows: Windows, device: torch.device) -> Windows | GpuWindowCache:
    """The windows in GPU memory, where they fit and are the same in every epoch."""
    cacheable = not isinstance(windows, MixedWindows) and fits(windows, device)
    return GpuWindowCache(windows, device) if cacheable else windows


@contextmanager
def stop_on_signals() -> Iterator[list[signal.Signals]]:
    """The signals received: the first SIGINT or SIGTERM is only noted, a second one acts as usual."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _output_held(settings: PretrainSettings, group: Group, device: torch.device) -> Iterator[None]:
    """Rank 0 locks the output directory for all ranks; where it cannot, all of them end."""
    with ExitStack() as held:
        refusal = None
        if group.rank == 0:
            try:
                with write_error_context(settings.output_dir, option="--output-dir"):
                    held.enter_context(hold_directory(settings.output_dir, option="--output-dir"))
            except DataError as problem:
                refusal = problem
        refused = group.sum(torch.tensor([float(refusal is not None)], device=device)).item()
        if refusal is not None:
            raise refusal
        if refused:
            raise SystemExit(1)  # rank 0 says why
        yield


def _prepare_output(
    settings: PretrainSettings, config: Mapping[str, Any], best: Checkpoint | None
) -> Path | None:
    """Make the output directory ready, and move an earlier run in it away; the directory it is in then.

    `best` is the best model so far of a run that is resumed from elsewhere.
    """
    directory = settings.output_dir
    with write_error_context(directory, option="--output-dir"):
        sweep_temporary_files(directory)
        aside = None if settings.resume else move_earlier_run(directory, RUN_FILES)
        write_json(directory / CONFIG, config)
        if best is not None:
            save_checkpoint(directory / BEST, best)
    return aside


def move_earlier_run(directory: Path, patterns: Sequence[str]) -> Path | None:
    """Move the files of a run that is not resumed into `earlier_<n>`: nothing is lost or mixed."""
    files = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    if not files:
        return None
    number = 1
    while (directory / f"{EARLIER}{number}").exists():
        number += 1
    aside = directory / f"{EARLIER}{number}"
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    return aside


# ---------------------------------------------------------------------------------------------------------
# While it trains


def _train(trainer: Trainer, write_event: Callable[[TrainingEvent], None]) -> None:
    """Train to the end or until a signal, with progress over the steps and a line an epoch."""
    done = trainer.step
    with console.progress("training", total=trainer.total_steps, unit="steps") as progress:
        progress.advance(done)
        for event in trainer.fit():
            write_event(event)
            if isinstance(event, StepMetrics):
                text = f"loss {event.loss:.4f}  {event.windows_per_second:.0f} windows/s"
                progress.advance(event.step - done, text=f"epoch {event.epoch}  {text}")
                done = event.step
            elif isinstance(event, WriteFailure):
                progress.line(f"WARNING: {_not_written(event)}; the run continues")
            elif isinstance(event, EpochMetrics):
                progress.line(epoch_line(event, trainer.config.epochs))
                if event.probe is not None:
                    progress.line(_probe_line(event.probe))
                if trainer.device.type == "cpu" and event.seconds > LONG_EPOCH:
                    return_freed_memory()


@contextmanager
def _outcome_recorded(trainer: Trainer, record: Mapping[str, Any]) -> Iterator[None]:
    """Add to `training_config.json` (`record`) how the training ended, and its peak memory.

    A run that was killed, or lost its power, has no such entry.
    """

    def write(ended: str, message: str) -> list[WriteFailure]:
        outcome = {"ended": ended, "message": message, "peak_memory_bytes": peak_memory(trainer.device)}
        return list(trainer.write(CONFIG, lambda path: write_json(path, {**record, "outcome": outcome})))

    try:
        yield
    except BaseException as problem:
        message = (
            str(problem) if isinstance(problem, BiofoundError) else f"{type(problem).__name__}: {problem}"
        )
        with suppress(TrainingError):  # what ended the training is the error to show
            write("failed", message)
        raise
    ended = "stopped" if trainer.interrupted else "finished"
    for failure in write(ended, f"after step {trainer.step} of {trainer.total_steps}"):
        console.warning(_not_written(failure))


def epoch_line(epoch: EpochMetrics, epochs: int) -> str:
    """An epoch's losses, validation MSM by channel and R peaks found, in lines of at most `COLUMNS`."""
    parts = [f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}"]
    parts += [f"train {epoch.train.loss:.3f}", f"val {epoch.val.loss:.3f}"]
    parts += [f"{name} {value:.3f}" for name, value in epoch.val.msm_by_channel.items()]
    if (recall := epoch.monitor["r_peak_recall"]) is not None:
        parts.append(f"R peaks {100 * recall:.0f}%")
    parts.append(f"{epoch.seconds:.0f} s{' *' if epoch.best else ''}")
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 2 <= COLUMNS:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"    {part}")
    return "\n".join(lines)


def _probe_line(probe: ProbeErrors) -> str:
    return f"  probe of {probe.target}: error {probe.error:.3f}, constant guess {probe.constant_error:.3f}"


@contextmanager
def _tensorboard_writer(
    settings: PretrainSettings, trainer: Trainer
) -> Iterator[Callable[[TrainingEvent], None]]:
    """A function that writes an event's numbers for TensorBoard; one that does nothing where that is off.

    Events of steps after the trainer's step, which a resumed run takes again, are purged.
    """
    if not settings.tensorboard or trainer.group.rank:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter  # an extra

    writers: list[SummaryWriter] = []
    failures: list[WriteFailure] = []

    def attempt(write: Callable[[Path], object]) -> None:
        """After the first failure nothing more is written."""
        if not failures:
            failures.extend(trainer.write("tensorboard", write))
            for failure in failures:
                console.warning(f"{_not_written(failure)}; the run continues without TensorBoard events")

    attempt(lambda path: writers.append(SummaryWriter(str(path), purge_step=trainer.step + 1)))
    try:
        yield lambda event: attempt(lambda _: _add_event(writers[0], event))
    finally:
        attempt(lambda _: writers[0].close())


def _add_event(writer: Any, event: TrainingEvent) -> None:
    if isinstance(event, StepMetrics):
        for name in ("loss", "msm", "stft", "lr", "gradient_norm", "windows_per_second", "data_wait"):
            writer.add_scalar(f"step/{name}", getattr(event, name), event.step)
    elif isinstance(event, EpochMetrics):
        for name in ("r_peak_recall", "r_peak_precision", "latent_rank"):
            if event.monitor[name] is not None:
                writer.add_scalar(f"monitor/{name}", event.monitor[name], event.epoch)
        if event.probe is not None:
            for name in ("error", "constant_error"):
                writer.add_scalar(f"probe/{name}", getattr(event.probe, name), event.epoch)
        for split, losses in (("train", event.train), ("val", event.val)):
            for name in ("loss", "msm", "stft"):
                writer.add_scalar(f"{split}/{name}", getattr(losses, name), event.epoch)


# ---------------------------------------------------------------------------------------------------------
# Afterwards


def draw_figures(trainer: Trainer, val: Windows) -> None:
    """Draw the loss curves and, unless the run was interrupted, a few reconstructions."""
    failures: list[WriteFailure] = []
    if trainer.epochs_done:
        failures += trainer.write("loss_curves.png", lambda path: draw_losses(path, trainer.history()))
    if not trainer.interrupted:
        draw = partial(
            draw_reconstructions,
            examples=reconstruct_examples(trainer, val),
            channels=trainer.model.config.channels,
            units=trainer.data.units,
            sfreq=trainer.data.sfreq,
            synthetic=val.synthetic,
        )
        failures += trainer.write(RECONSTRUCTIONS, draw)
    for failure in failures:
        console.warning(_not_written(failure))


def _not_written(failure: WriteFailure) -> str:
    return f"{failure.path} not written: {failure.error}"


def reconstruct_examples(trainer: Trainer, val: Windows) -> list[Example]:
    """A few validation windows, spread over the set, with the reconstruction of their hidden patches."""
    index = np.unique(np.linspace(0, len(val) - 1, EXAMPLES).round().astype(np.int64))
    windows, mask = val.read(index), trainer.validation_mask(index)
    trainer.model.eval()
    with torch.inference_mode():
        out = trainer.model(
            torch.from_numpy(windows).to(trainer.device), torch.from_numpy(mask).to(trainer.device)
        )
    reconstructions = out.in_physical_units().cpu().numpy()
    hidden = mask.repeat(trainer.model.config.patch_size, axis=1)
    cases = val.info(index).case_id.tolist()
    return [
        Example(signal=signal, reconstruction=reconstruction, hidden=hidden, case=case)
        for signal, reconstruction, hidden, case in zip(windows, reconstructions, hidden, cases, strict=True)
    ]


def _say_stopped(trainer: Trainer, by: signal.Signals) -> None:
    """Say that a stopped run is saved; after Ctrl-C by raising KeyboardInterrupt, which ends the command."""
    message = (
        f"stopped by {by.name} after step {trainer.step} of {trainer.total_steps}; saved: "
        f"{trainer.output_dir / LAST}; continue with --resume"
    )
    if by == signal.SIGINT:
        raise KeyboardInterrupt(message)
    console.note(message)


def _best_epoch(trainer: Trainer) -> EpochMetrics:
    return max((epoch for epoch in trainer.epochs_done if epoch.best), key=lambda epoch: epoch.epoch)


def _probe_to_show(trainer: Trainer) -> tuple[int, ProbeErrors] | None:
    """The epoch and errors of the best epoch's probe, else of the last one; None in a run without probes."""
    probes = {epoch.epoch: epoch.probe for epoch in trainer.epochs_done if epoch.probe is not None}
    best = _best_epoch(trainer).epoch
    shown = best if best in probes else max(probes, default=None)
    return None if shown is None else (shown, probes[shown])


def _files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def _result_json(trainer: Trainer, baseline: Losses) -> dict[str, Any]:
    best, probe = _best_epoch(trainer), _probe_to_show(trainer)
    return {
        "output_dir": str(trainer.output_dir),
        "synthetic": trainer.data.synthetic,
        "synthetic_share": trainer.data.synthetic_share,
        "parent": trainer.history()["parent"],
        "epochs": len(trainer.epochs_done),
        "best_epoch": best.epoch,
        "train": asdict(best.train),
        "val": asdict(best.val),
        "val_monitor": best.monitor,
        "probe": None if probe is None else {"epoch": probe[0], **asdict(probe[1])},
        "constant_guess": asdict(baseline),
        "seconds": sum(epoch.seconds for epoch in trainer.epochs_done),
        "files": _files_in(trainer.output_dir),
    }


def _show_result(trainer: Trainer, baseline: Losses) -> None:
    """The table of the best epoch's losses beside those of a constant guess, and the files of the run."""
    best, channels = _best_epoch(trainer), trainer.model.config.channels
    rows = [
        (
            name,
            *(f"{value:.4f}" for value in (losses.loss, losses.msm, losses.stft)),
            *(f"{losses.msm_by_channel[channel]:.4f}" for channel in channels),
        )
        for name, losses in (
            ("train", best.train),
            ("validation", best.val),
            ("validation, constant guess", baseline),
        )
    ]
    columns = (f"epoch {best.epoch}", "loss", "MSM", "STFT", *(f"MSM {channel}" for channel in channels))
    share = trainer.data.synthetic_share
    kind = "synthetic" if trainer.data.synthetic else "recorded" if share == 0 else "recorded and synthetic"
    title = f"epoch {best.epoch} of {len(trainer.epochs_done)} was best, on {kind} data"
    console.table(title, columns, rows, numbers=columns[1:])
    _show_monitor(best.monitor, channels)
    if (probe := _probe_to_show(trainer)) is not None:
        console.note(f"epoch {probe[0]}: {_probe_line(probe[1]).strip()}")
    console.note(f"in {trainer.output_dir}: {', '.join(_files_in(trainer.output_dir))}")


def _show_monitor(monitor: Mapping[str, Any], channels: tuple[str, ...]) -> None:
    """The table of what the monitor measured on the hidden samples of the validation windows."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    names = {
        "variance_ratio": "variance of the reconstruction / of the signal",
        "copy_patch_msm": "MSM of copying the nearest visible patch",
    }
    rows = [(text, *(shown(monitor[name][channel]) for channel in channels)) for name, text in names.items()]
    console.table("validation, hidden samples", ("measure", *channels), rows, numbers=channels)
    peaks = monitor["r_peak_recall"], monitor["r_peak_precision"]
    if peaks[0] is not None:
        console.note(
            f"hidden R peaks found within 50 ms: {peaks[0]:.1%}; predicted ones that are right: "
            f"{'none predicted' if peaks[1] is None else f'{peaks[1]:.1%}'}"
        )
    console.note(f"effective rank of the latents: {shown(monitor['latent_rank'])}")
