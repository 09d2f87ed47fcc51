import subprocess
import sys

import pytest

import biofound


def test_the_package_offers_what_its_users_load_and_imports_torch_only_then():
    code = (
        "import sys, biofound; assert 'torch' not in sys.modules; biofound.load_checkpoint; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_it_offers_is_there():
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.inflate import load_pretrained_with_channel_inflate

    assert biofound.load_checkpoint is load_checkpoint
    assert biofound.load_pretrained_with_channel_inflate is load_pretrained_with_channel_inflate
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = biofound.load_model
