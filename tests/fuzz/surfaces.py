"""The surfaces that read files: how each writes whole files, and how it reads them back.

What `make` writes comes from the program's own writers and the tests' fixtures. `read` goes the way that a
command goes, and gives all that was understood, to be compared with what the whole files give.
"""

import contextlib
import gzip
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from biofound.errors import VerificationError
from tests.fuzz.odd_files import change_a_value, change_an_edf_field, write_odd_parquet

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A way into the program.

    `make` writes whole files into a directory, and `read` reads what a directory holds. A damaged file whose
    path matches `guarded` has a checksum somewhere: it must be refused, or be read as what it was.
    `rewrite` damages files with a suffix in `rewritten` in a way of their own: it changes what they hold, and
    writes them whole.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    guarded: tuple[str, ...] = ()
    rewrite: Callable[[bytes, Random], bytes] | None = None
    rewritten: tuple[str, ...] = ()


# ---------------------------------------------------------------- checkpoints


def make_checkpoint(directory: Path) -> None:
    from tests.core.small_run import run

    run(directory / "run", windows=6, epochs=1)
    for name in ("last_model.pt", "metrics.jsonl"):
        shutil.copy(directory / "run" / name, directory / name)
    shutil.rmtree(directory / "run")


def read_checkpoint(directory: Path) -> object:
    """Load it, build the model, inflate it to five channels, and prepare to resume the run."""
    import torch

    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.inflate import inflate
    from biofound.core.models import ModelConfig, build_model
    from biofound.core.trainer import Trainer
    from biofound.data.channels import FINETUNE_CHANNELS
    from tests.core.conftest import DATA, SMALL, TRAINING, MemoryWindows

    checkpoint = load_checkpoint(directory / "last_model.pt")
    model = checkpoint.build()
    inflated = inflate(checkpoint, channels=FINETUNE_CHANNELS).model
    windows = MemoryWindows(np.zeros((6, 2, 250), np.float32))
    trainer = Trainer(
        model=build_model(ModelConfig(channels=("PPG", "ECG"), dropout=0.0, **SMALL), seed=1),
        train=windows,
        val=windows,
        data=DATA,
        config=TRAINING,
        settings={},
        output_dir=directory,
        device=torch.device("cpu"),
    )
    trainer.restore(checkpoint)
    return checkpoint, model.state_dict(), inflated.state_dict(), trainer.history()


# ---------------------------------------------------------------- models to pass on


def make_models(directory: Path) -> None:
    """A task model, a Hugging Face directory and an ONNX file of small encoders."""
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.onnx_file import save_onnx
    from biofound.core.pretrained import write_directory
    from biofound.core.safetensors_file import portable
    from biofound.core.task import TaskCheckpoint, TaskConfig, build_task_model, save_task_checkpoint
    from tests.core.small_run import run

    run(directory / "run", windows=6, epochs=1)
    checkpoint = load_checkpoint(directory / "run" / "last_model.pt")
    shutil.rmtree(directory / "run")
    write_directory(directory / "hub", portable(checkpoint))
    save_onnx(directory / "encoder.onnx", portable(checkpoint))
    task = TaskConfig(task="classification", target="rhythm", classes=("af", "sinus"))
    model = build_task_model(checkpoint.model, task, seed=0)
    save_task_checkpoint(
        directory / "task.pt",
        TaskCheckpoint(
            model=checkpoint.model,
            task=task,
            encoder=model.encoder.state_dict(),
            head=model.head.state_dict(),
            data=checkpoint.data,
            parent=None,
            settings={},
            epoch=1,
            step=2,
            metrics={},
        ),
    )


def read_models(directory: Path) -> object:
    """As Python users load them."""
    from biofound import OnnxEncoder, load_pretrained
    from biofound.core.task import load_task_checkpoint

    encoder = load_pretrained(directory / "hub")
    task = load_task_checkpoint(directory / "task.pt")
    exported = OnnxEncoder(directory / "encoder.onnx")
    windows = np.random.default_rng(0).normal(size=(1, 2, 250)).astype(np.float32)
    return encoder.checkpoint, task, task.build().state_dict(), exported.config, exported.run(windows)


# ---------------------------------------------------------------- windows


def _samples(windows: Any) -> object:
    """All that windows say and hold."""
    index = np.arange(len(windows))
    said = ("channels", "sfreq", "window_samples", "units", "filters", "subjects", "synthetic")
    crop = np.full(len(index), 0.5)
    return (
        {name: getattr(windows, name) for name in said},
        windows.read(index),
        windows.read(index, crop),
        windows.info(index),
    )


def make_npz(directory: Path) -> None:
    from biofound.data.npz import write_npz

    random = np.random.default_rng(0)
    arrays = {
        "x": random.normal(size=(6, 2, 250)).astype(np.float32),
        "channels": np.array(["PPG", "ECG"]),
        "sfreq": np.array(125.0),
        "subjects": np.array(list("aabbcc")),
        "case_ids": np.array(["1", "1", "2", "2", "3", "3"]),
        "start_s": np.array([0.0, 2.0] * 3),
        "synthetic": np.array(True),
    }
    np.savez_compressed(directory / "train_windows.npz", **arrays)
    with (directory / "val_windows.npz").open("wb") as file:
        write_npz(file, arrays)


def read_npz(directory: Path) -> object:
    from biofound.data.integrity import check_store
    from biofound.data.windows import open_windows

    found = [_samples(open_windows(directory, split)) for split in ("train", "val")]
    return found, [check.passed for check in check_store(directory)]


def make_store(directory: Path) -> None:
    from tests.data.cohort import build, cohort, entries_of

    source = cohort(subjects=3, minutes=0.6, artefacts=1.0)
    cases = entries_of(source)
    build(directory, source=source, entries=cases[:2], split="train")
    build(directory, source=source, entries=cases[2:], split="val")


def read_store(directory: Path) -> object:
    """As `pretrain` and `windows --inspect` read it, and then `verify --data-dir`."""
    from biofound.data.integrity import check_store, inspect_store
    from biofound.data.store import StoreWindows, random_windows
    from biofound.data.windows import open_windows

    found = []
    for split in ("train", "val"):
        windows = open_windows(directory, split)
        assert isinstance(windows, StoreWindows)
        found.append((_samples(windows), windows.index, windows.segments()))
        found.append(inspect_store(directory / split))
        found.append(random_windows(windows, count=2, seed=0))
    failed = [check.name for check in check_store(directory) if not check.passed]
    if failed:
        raise VerificationError(", ".join(failed))
    return found


# ---------------------------------------------------------------- .vital files, and VitalDB's answers


def _vital_channels() -> tuple[Any, Any]:
    from tests.data import cohort

    ppg = replace(cohort.PPG, tracks=("SNUADC/PLETH", "PLETH"))
    return ppg, replace(cohort.ECG, tracks=("SNUADC/ECG_II", "II"))


def _write_vital(path: Path, *, packed: bool) -> None:
    from tests.data.sources.vitaldb_server import Wave, write_vital

    pleth, ecg = np.random.default_rng(0).uniform(-2, 2, (2, 1500))
    pleth[700:900] = np.nan
    names = (("SNUADC/PLETH", pleth), ("SNUADC/ECG_II", ecg))
    write_vital(path, [Wave(name=name, samples=wave) for name, wave in names], packed=packed)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content, 1, mtime=0))  # the same bytes every time


def make_vital(directory: Path) -> None:
    _write_vital(directory / "packed.vital", packed=True)
    _write_vital(directory / "unpacked.vital", packed=False)


def read_vital(directory: Path) -> object:
    from biofound.data.sources.vitaldb import VitalFilesSource

    channels = _vital_channels()
    source = VitalFilesSource(root=directory)
    cases = source.cases(channels)
    return cases, [source.read(case.case_id, channels) for case in cases]


def make_http(directory: Path) -> None:
    """Three whole answers: status, headers and body."""
    case = directory / "1.vital"
    _write_vital(case, packed=True)
    tables = {
        "cases": "\ufeffcaseid,subjectid,casestart,caseend\r\n1,10,0,100\r\n2,10,5,200\r\n3,11,0,50\r\n",
        "trks": "caseid,tname,tid\r\n"
        + "".join(f"{case},SNUADC/{name},{case}{name}\r\n" for case in "123" for name in ("PLETH", "ECG_II")),
    }
    bodies = {name: text.encode() for name, text in tables.items()} | {"1.vital": case.read_bytes()}
    case.unlink()
    for name, body in bodies.items():
        encoding = b"Content-Encoding: gzip\r\n" if name == "trks" else b""
        body = gzip.compress(body, mtime=0) if name == "trks" else body
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nRetry-After: 0\r\n%s\r\n" % (len(body), encoding)
        (directory / f"{name}.http").write_bytes(head + body)


@contextlib.contextmanager
def _answering(directory: Path) -> Iterator[str]:
    """The address of a server that answers with the bytes of the files, whatever they are."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that has seen enough
                asked = self.rfile.readline(1000).split()
                name = asked[1].rsplit(b"/", 1)[-1].decode() if len(asked) > 1 else ""
                self.wfile.write((directory / f"{name}.http").read_bytes())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, bind_and_activate=True) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def read_http(directory: Path) -> object:
    from biofound.data.sources.vitaldb import VitalDBSource

    channels = _vital_channels()
    with _answering(directory) as url, tempfile.TemporaryDirectory() as cache:
        source = VitalDBSource(
            cache_dir=cache,
            case_set="all",
            base_url=url,
            timeout_s=1.0,
            retries=1,
            backoff_s=0.0,
            longest_wait_s=0.1,
        )
        return source.cases(channels), source.read("1", channels)


# ---------------------------------------------------------------- WFDB


def _wfdb_channels() -> tuple[Any, Any]:
    from tests.data import cohort

    return replace(cohort.PPG, tracks=("PLETH",)), replace(cohort.ECG, tracks=("II",))


def make_wfdb(directory: Path) -> None:
    """Two records with checksums in their headers, numerics, annotations, and who was recorded."""
    from biofound.data.sources.wfdb import import_wfdb
    from tests.data.sources.test_wfdb import write, wrsamp

    x = write(directory, "r1")
    write(directory, "r2", x=x / 2, fmt=["212", "212"])
    place = str(directory)
    wrsamp(
        "r1n",
        fs=1,
        units=["bpm"],
        sig_name=["HR"],
        p_signal=np.full((4, 1), 70.0),
        fmt=["16"],
        write_dir=place,
    )
    beats, symbols, notes = np.array([0, 100, 200, 300]), ["+", "N", "N", "N"], ["(N", "", "", ""]
    import_wfdb().wrann("r1", "atr", beats, symbols, aux_note=notes, fs=125, write_dir=place)
    (directory / "RECORDS").write_text("r1\nr2\nr1n\n")
    (directory / "subjects.csv").write_text("record,subject\nr1,s1\nr2,s2\n")


def read_wfdb(directory: Path) -> object:
    """What the records are and hold; of the signals their checksums, which is what headers promise."""
    from biofound.data.labels import WindowTimes, labels_from_annotations, labels_from_numerics
    from biofound.data.sources.wfdb import WfdbSource

    channels = _wfdb_channels()
    source = WfdbSource(root=directory)
    cases = source.cases(channels)
    sums = {}
    for case in cases:
        recording = source.read(case.case_id, channels)
        for name, signal in recording.signals.items():
            units = np.nan_to_num(signal.samples.astype(np.float64) * 1000, nan=-32768.0)
            with np.errstate(invalid="ignore"):
                sums[case.case_id, name] = signal.sfreq, int(np.rint(units).astype(np.int64).sum()) % 65536
    windows = WindowTimes(case_id=np.array(["r1"]), start_s=np.array([0.0]), window_seconds=2.0)
    labels = [
        labels_from_numerics(source, "HR", windows=windows).values,
        labels_from_annotations(source, "HR", windows=windows).values,
        labels_from_annotations(source, "rhythm", windows=windows).values.tolist(),
    ]
    return cases, source.survey(channels), sums, labels


# ---------------------------------------------------------------- tables, EDF


def make_table(directory: Path) -> None:
    """Recordings as CSV with seconds and with time stamps, Parquet with and without, npz packed and not."""
    import pyarrow as pa
    from pyarrow import parquet

    ppg, ecg = np.random.default_rng(0).uniform(-2, 2, (2, 400)).round(3).astype(np.float32)
    seconds = np.arange(400) / 50
    stamps = np.datetime64("2026-01-01T00:00:00") + (seconds * 1e3).astype("timedelta64[ms]")
    for name, times in (("seconds", seconds), ("stamps", stamps)):
        rows = "".join(f"{t},a,{p},{e}\n" for t, p, e in zip(times, ppg, ecg, strict=True))
        (directory / f"{name}.csv").write_text("time,subject,PPG,ECG [mV]\n" + rows)
        columns = {"time": pa.array(times), "PPG": pa.array(ppg), "ECG": pa.array(ecg)}
        parquet.write_table(pa.table(columns), directory / f"{name}.parquet", row_group_size=150)
    np.savez(directory / "plain.npz", PPG=ppg, ECG=ecg, sfreq=50.0)
    np.savez_compressed(directory / "packed.npz", PPG=ppg, ECG=ecg, t=seconds, sfreq_ECG=50.0)
    for path in directory.iterdir():  # names that begin with the kind, so that one file is one case
        path.rename(path.with_name(f"{path.suffix[1:]}_{path.name}"))


def read_table(directory: Path) -> object:
    from biofound.data.sources.table import TableSource
    from tests.data.cohort import CHANNELS

    source = TableSource(root=directory, record_is_subject=True)
    cases = source.cases(CHANNELS)
    of_column = TableSource(root=directory, subject_column="subject").survey(CHANNELS)
    return source.tracks(), of_column, [source.read(case.case_id, CHANNELS) for case in cases]


def make_edf(directory: Path) -> None:
    """EDF, EDF+ with a record that lies later, and BDF."""
    from tests.data.sources.test_edf import edit, write

    write(directory / "whole.edf")
    write(directory / "biosemi.bdf", kind="Bdf")
    later = (b"+5\x14\x14", b"+9\x14\x14")
    edit(write(directory / "gaps.edf", annotations=()), kind=(b"EDF+C", b"EDF+D"), later=later)


def read_edf(directory: Path) -> object:
    from biofound.data.sources.edf import EdfSource
    from tests.data.sources.test_edf import ECG, PPG

    source = EdfSource(root=directory, record_is_subject=True)
    cases = source.cases((PPG, ECG))
    return source.tracks(), cases, [source.read(case.case_id, (PPG, ECG)) for case in cases]


# ---------------------------------------------------------------- vectors


def make_vectors(directory: Path) -> None:
    from biofound.data.window_table import write_table
    from tests.data.test_window_table import HEADER, piece

    for name in ("vectors.parquet", "vectors.npz"):
        write_table(directory / name, [piece(3), piece(2, number=1)], HEADER)


def read_vectors(directory: Path) -> object:
    """As `embed` looks at the file that it would replace."""
    from biofound.data.window_table import VectorsHeader, read_header, refuse_other_table

    headers = [read_header(directory / name, VectorsHeader) for name in ("vectors.parquet", "vectors.npz")]
    for path in sorted(directory.iterdir()):
        refuse_other_table(path, VectorsHeader, headers[0].origin)
    return headers


# ---------------------------------------------------------------- YAML, JSON, CSV


def make_yaml(directory: Path) -> None:
    for name in ("ssl_pretrain.yaml", "channels.yaml", "windows.yaml"):
        shutil.copy(ROOT / "configs" / name, directory / name)


def read_yaml(directory: Path) -> object:
    from biofound.settings import PretrainSettings, WindowsSettings, resolve, resolve_channels

    pretrain = resolve(PretrainSettings, options={"config": directory / "ssl_pretrain.yaml"}, environ={})
    windows = resolve(WindowsSettings, options={"windows_yaml": directory / "windows.yaml"}, environ={})
    channels = [resolve_channels(directory / "channels.yaml", s).channels for s in ("pretrain", "finetune")]
    # The paths name the directory, which differs.
    return (
        pretrain.settings.model_dump(exclude={"config"}),
        windows.settings.model_dump(exclude={"windows_yaml"}),
        channels,
    )


def make_json(directory: Path) -> None:
    """A split file, a sidecar and an index of a store, and the record of a download."""
    from biofound.data.splits import make_splits, save_splits
    from biofound.files import sha256_of, write_json
    from tests.data.cohort import CHANNELS, build, cohort, entries_of

    source = cohort(subjects=8, minutes=0.6)
    splits = make_splits(
        source.cases(CHANNELS),
        mode="full",
        seed=1,
        source=source.describe(),
        dataset_version=source.version(),
        channels=("PPG", "ECG"),
        fractions=(0.5, 0.25, 0.25),
    )
    save_splits(directory / "splits_full.json", splits)
    build(directory / "store", source=source, entries=entries_of(source)[:1])
    shutil.copy(directory / "store" / "train" / "index.json", directory / "index.json")
    shutil.copy(directory / "store" / "train" / "syn0001_1.json", directory / "sidecar.json")
    shutil.rmtree(directory / "store")
    write_json(
        directory / "1.json", {"size": 3, "mtime_ns": 7, "sha256": sha256_of(directory / "index.json")}
    )


def read_json(directory: Path) -> object:
    from biofound.data.build import _is_sidecar
    from biofound.data.sources.registry import open_source
    from biofound.data.sources.vitaldb import VitalDBSource
    from biofound.data.splits import load_splits
    from biofound.data.store import read_index, read_sidecar

    splits = load_splits(directory / "splits_full.json")
    opened = open_source(**splits.source).describe()
    # Nobody listens there: without a record it would ask VitalDB's own server.
    vitaldb = VitalDBSource(
        cache_dir=directory, dataset_version=".", base_url="http://127.0.0.1:9", retries=0, timeout_s=1.0
    )
    sidecar = directory / "sidecar.json"
    told = read_sidecar(sidecar), _is_sidecar(sidecar), vitaldb.fingerprint("1")
    return splits, opened, read_index(directory), told


def make_csv(directory: Path) -> None:
    rows = "".join(f"c{row % 2},{10 * row},{10 * row + 10},{60 + row},{'NA'[row % 2]}\n" for row in range(6))
    (directory / "labels.csv").write_text("case_id,start_s,end_s,HR,rhythm\n" + rows)
    (directory / "subjects.csv").write_text("record,subject\nr1,s1\nr2,s2\nr3,s1\n")


def read_csv(directory: Path) -> object:
    from biofound.data.labels import WindowTimes, labels_from_csv
    from biofound.data.sources.subjects import find_subjects

    path = directory / "subjects.csv"
    subjects = find_subjects(None, path, record_is_subject=False, source="csv", columns=("file", "record"))
    windows = WindowTimes(
        case_id=np.array(["c0", "c1", "c0"]), start_s=np.array([0.0, 10.0, 25.0]), window_seconds=10.0
    )
    labels = [labels_from_csv(directory / "labels.csv", name, windows=windows) for name in ("HR", "rhythm")]
    return subjects, [label.values.tolist() for label in labels]


SURFACES = {
    surface.name: surface
    for surface in (
        Surface(
            name="checkpoint",
            make=make_checkpoint,
            read=read_checkpoint,
            guarded=("*.pt",),
            rewrite=change_a_value,
            rewritten=(".pt",),
        ),
        Surface(
            name="models",
            make=make_models,
            read=read_models,
            guarded=("task.pt", "encoder.onnx", "hub/model.safetensors", "hub/config.json"),
            rewrite=change_a_value,
            rewritten=(".pt",),
        ),
        Surface(name="npz", make=make_npz, read=read_npz),
        Surface(name="store", make=make_store, read=read_store, guarded=("*",)),
        Surface(name="vital", make=make_vital, read=read_vital),
        Surface(name="wfdb", make=make_wfdb, read=read_wfdb, guarded=("r1.dat", "r2.dat")),
        Surface(
            name="table",
            make=make_table,
            read=read_table,
            rewrite=write_odd_parquet,
            rewritten=(".parquet",),
        ),
        Surface(
            name="edf",
            make=make_edf,
            read=read_edf,
            rewrite=change_an_edf_field,
            rewritten=(".edf", ".bdf"),
        ),
        Surface(
            name="vectors",
            make=make_vectors,
            read=read_vectors,
            rewrite=write_odd_parquet,
            rewritten=(".parquet",),
        ),
        Surface(name="yaml", make=make_yaml, read=read_yaml),
        Surface(name="json", make=make_json, read=read_json),
        Surface(name="csv", make=make_csv, read=read_csv),
        Surface(name="http", make=make_http, read=read_http),
    )
}
