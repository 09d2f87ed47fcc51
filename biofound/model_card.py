"""Model cards: what is known of an encoder, from its checkpoint and the files of its run, and nothing else.

What was not measured says so. The form is that of Mitchell et al. 2019, https://arxiv.org/abs/1810.03993,
with the YAML header of the Hugging Face Hub.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from biofound.core.checkpoint import Checkpoint

NOT_MEASURED = "not measured"
NOT_SAID = "not said"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beside the checkpoint: results as `--json` printed them, and words of its author."""

    title: str = "biofound encoder"
    history: Mapping[str, Any] | None = None
    """`training_history.json` of the run."""
    training: Mapping[str, Any] | None = None
    """`training_config.json` of the run."""
    verify: Mapping[str, Any] | None = None
    """What `biofound verify --checkpoint F --json` printed."""
    probes: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """What `biofound probe --json` printed, one a target."""
    license: str | None = None
    data_license: str | None = None
    citation: str | None = None


def model_card(checkpoint: "Checkpoint", facts: CardFacts | None = None) -> str:
    """The card in Markdown.

    Args:
        checkpoint: the model.
        facts: what else is known; by default nothing.
    """
    facts = facts or CardFacts()
    sections = {
        "Use": _use(checkpoint),
        "Training data": _training_data(checkpoint, facts),
        "Training": _training(checkpoint, facts),
        "Masked reconstruction": _reconstruction(facts),
        "Probe": _probe(facts),
        "Verification": _verification(facts),
        "Limits": _limits(checkpoint, facts),
        "Citation": [facts.citation or NOT_SAID],
    }
    lines = ["---", _header(facts).strip(), "---", "", f"# {_plain(facts.title)}", ""]
    lines += [
        "Generated from the checkpoint and the files of its run. Signals in, one vector a second and a "
        "window out; no medical device.",
        "",
    ]
    for heading, text in sections.items():
        lines += [f"## {heading}", "", *text, ""]
    return "\n".join(lines)


def _header(facts: CardFacts) -> str:
    described = {"library_name": "biofound", "tags": ["biosignals", "ppg", "ecg", "self-supervised"]}
    if facts.license is not None:
        described["license"] = facts.license
    return str(yaml.safe_dump(described, sort_keys=False))


def _use(checkpoint: "Checkpoint") -> list[str]:
    model, data = checkpoint.model, checkpoint.data
    seconds = model.context_length / data.sfreq
    bands = [
        f"{name} in {data.units[name]}, {band['low_hz']:g} to {band['high_hz']:g} Hz"
        for name, band in ((name, data.filters[name]) for name in model.channels)
    ]
    return [
        "```python",
        "from biofound import BiofoundEncoder",
        "",
        'encoder = BiofoundEncoder.from_pretrained("this directory or repository")',
        "windows = encoder.preprocess(x, sfreq=250)  # x: (channels, samples), as below",
        "vectors = encoder.embed(windows.x)",
        "```",
        "",
        f"Channels, in this order: {'; '.join(bands)}. `preprocess` filters, resamples to {data.sfreq:g} Hz, "
        f"and cuts windows of {seconds:g} s ({model.context_length} samples, {model.patches} patches); each "
        "channel of a window is normalised inside of the encoder. NaN are gaps.",
    ]


def _training_data(checkpoint: "Checkpoint", facts: CardFacts) -> list[str]:
    data = checkpoint.data
    kind = "synthetic hearts alone; no person was recorded" if data.synthetic else "recordings"
    if not data.synthetic and data.synthetic_share:
        kind += f", with {data.synthetic_share:.0%} synthetic windows in an epoch"
    rows = [("data", kind), ("fingerprint of the training windows", data.fingerprint or NOT_SAID)]
    resolved = (facts.training or {}).get("resolved", {})
    rows.append(("training windows", resolved.get("train", NOT_SAID)))
    rows.append(("validation windows", resolved.get("validation", NOT_SAID)))
    for part in data.parts:
        words = "synthetic" if part["synthetic"] else "recorded"
        rows.append((f"windows an epoch, {words}", f"{part['windows']:,}"))
    rows.append(
        ("licence of the data", facts.data_license or ("none needed" if data.synthetic else NOT_SAID))
    )
    return _table(("what", "value"), rows)


def _training(checkpoint: "Checkpoint", facts: CardFacts) -> list[str]:
    settings = checkpoint.settings
    rows = [
        ("epochs, steps", f"{checkpoint.epoch}, {checkpoint.step:,}"),
        ("model", ", ".join(f"{k} {v}" for k, v in checkpoint.model.as_json().items() if k != "channels")),
    ]
    names = ("lr", "batch_size", "weight_decay", "mask_ratio", "mask_type", "seed")
    weights = ("stft_weight", "global_weight", "rhythm_weight", "rate_weight")
    rows.append(
        ("settings", ", ".join(f"{name} {settings.get(name, NOT_SAID)}" for name in (*names, *weights)))
    )
    seconds = (facts.history or {}).get("seconds")
    rows.append(("time", f"{sum(seconds) / 60:.1f} minutes" if seconds else NOT_MEASURED))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in checkpoint.versions.items())))
    if checkpoint.inflated_from is not None:
        rows.append(("inflated from", f"{', '.join(checkpoint.inflated_from['channels'])}"))
    return _table(("what", "value"), rows)


def _reconstruction(facts: CardFacts) -> list[str]:
    """Masked error of the best epoch by channel; the constant guess where `verify` measured it."""
    history = facts.history
    if not history or history.get("best_epoch") is None:
        return [f"Masked error: {NOT_MEASURED}."]
    row = history["epoch"].index(history["best_epoch"])
    by_channel = history["val_msm_by_channel"]
    rows = [("validation, best epoch", *(f"{values[row]:.3f}" for values in by_channel.values()))]
    rows.append(("constant guess", *(NOT_MEASURED for _ in by_channel)))
    constant = _constant_guess(facts)
    if constant is not None:
        rows[-1] = ("constant guess", *(f"{constant.get(name, float('nan')):.3f}" for name in by_channel))
    return [
        "Mean squared error of hidden samples, in units of the visible signal's variance.",
        "",
        *_table(("masked error", *by_channel), rows),
    ]


def _constant_guess(facts: CardFacts) -> Mapping[str, float] | None:
    return (facts.history or {}).get("constant_guess_msm_by_channel")


def _probe(facts: CardFacts) -> list[str]:
    if not facts.probes:
        return [f"What labels can be read from the frozen encoder: {NOT_MEASURED} (`biofound probe --json`)."]
    lines: list[str] = []
    for probe in facts.probes:
        scores = ("mae", "rmse", "r2") if not probe["classes"] else ("auroc", "balanced_accuracy")
        rows = [
            (row["name"], *(_estimate(row, score) for score in scores), row["subjects"], _seen(row))
            for row in probe["rows"]
        ]
        lines += [f"Target `{_plain(probe['target'])}`, every subject counted equally, 95 % intervals:", ""]
        lines += [*_table(("row", *scores, "subjects", "of them in pretraining"), rows), ""]
    return lines[:-1]


def _estimate(row: Mapping[str, Any], score: str) -> str:
    value, interval = row.get(score), row.get(f"{score}_interval")
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _seen(row: Mapping[str, Any]) -> str:
    seen = row.get("subjects_in_pretraining")
    return "not known" if seen is None else str(len(seen))


def _verification(facts: CardFacts) -> list[str]:
    if facts.verify is None:
        return [f"`biofound verify --checkpoint`: {NOT_MEASURED}."]
    checks = facts.verify["checks"]
    failed = [check["name"] for check in checks if not check["passed"]]
    outcome = f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed"
    return [f"`biofound verify`: {len(checks)} checks, {outcome}."]


def _limits(checkpoint: "Checkpoint", facts: CardFacts) -> list[str]:
    targets = sorted({str(probe["target"]) for probe in facts.probes})
    tried = f"only as far as the table above says ({', '.join(targets)})" if targets else "on nothing"
    lines = [f"- Tried {tried}. Other devices, people, rhythms and tasks: {NOT_MEASURED}."]
    if checkpoint.data.synthetic:
        lines.append("- It learned from simulated signals alone: what these lack it has not seen.")
    if not checkpoint.data.subjects:
        lines.append(
            "- It does not say whom it was trained on: leakage into a test set cannot be told from this."
        )
    return [*lines, "- Research use; not for decisions about patients."]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return lines + [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]


def _plain(value: Any) -> str:
    """Text that means nothing to Markdown or HTML."""
    text = " ".join(str(value).split())
    for sign, escape in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, escape)
    return text
