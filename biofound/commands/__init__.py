"""The commands: `<name>.py` puts one together from its settings, the data and the core, and shows its result.

Each has one entry, `execute(invocation)`. `biofound/cli.py` imports a command's module only when that command
is executed, so these modules import what they need at their top. What needs no torch is checked before:
`inputs.py` opens what a command reads, and `execute` takes it as further arguments.
"""
