"""Convert units of tracks to units of channels."""

from biofound.data.channels import Channel
from biofound.errors import DataError

_FACTORS = {
    ("uv", "mv"): 1e-3,
    ("µv", "mv"): 1e-3,
    ("v", "mv"): 1e3,
    ("mv", "uv"): 1e3,
    ("mv", "v"): 1e-3,
    ("mg", "g"): 1e-3,
    ("m/s2", "g"): 1 / 9.80665,
    ("m/s^2", "g"): 1 / 9.80665,
}
_ARBITRARY = {"nu", "au", "a.u.", "arbitrary", "unitless", ""}


def conversion(unit: str, channel: Channel, *, what: str) -> tuple[float, str]:
    """The factor from a track's unit to the channel's, and the resulting unit.

    A channel of arbitrary unit (a PPG) takes any unit, unconverted.

    Raises:
        DataError: no factor is known; the message starts with `what`.
    """
    got, wanted = unit.strip().casefold(), channel.unit.strip().casefold()
    if wanted in _ARBITRARY:
        return 1.0, unit or channel.unit
    if got == wanted:
        return 1.0, channel.unit
    if (got, wanted) not in _FACTORS:
        raise DataError(
            f"{what}: expected {channel.unit} or a unit that converts to it, the recording has"
            f" {unit or 'no unit'}. Set the channel's unit to what the recordings have."
        )
    return _FACTORS[got, wanted], channel.unit
