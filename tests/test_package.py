import subprocess
import sys

import pytest

import biofound

LOADS = """
import logging, sys, biofound
assert "torch" not in sys.modules
biofound.load_checkpoint
assert "torch" in sys.modules
logging.getLogger("matplotlib.font_manager").info("stray")
logging.basicConfig(level=logging.DEBUG, format="user: %(message)s", stream=sys.stdout)
logging.debug("mine")
"""


def test_the_package_imports_torch_when_it_is_used_and_leaves_logging_to_its_user():
    done = subprocess.run([sys.executable, "-c", LOADS], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("user: mine\n", "")


def test_every_name_it_offers_is_there():
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.inflate import load_pretrained_with_channel_inflate

    assert biofound.load_checkpoint is load_checkpoint
    assert biofound.load_pretrained_with_channel_inflate is load_pretrained_with_channel_inflate
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = biofound.load_model
