"""Names of the files of a training run in its output directory, so that reading them needs no torch."""

BEST, LAST = "best_model.pt", "last_model.pt"
HISTORY, METRICS = "training_history.json", "metrics.jsonl"
CONFIG = "training_config.json"
RECONSTRUCTIONS = "reconstructions.png"

RUN_FILES = ("*.pt", HISTORY, METRICS, CONFIG, "*.png", "tensorboard")
"""The files of a run in its output directory, as patterns."""
EARLIER = "earlier_"
"""Directories with this name and a number hold earlier runs, moved aside from the same output directory."""
