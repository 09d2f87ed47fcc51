"""From unlabelled PPG and ECG recordings to a small pretrained encoder one can trust."""

from importlib.metadata import version

__version__ = version("biofound")
