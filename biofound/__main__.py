"""How `python -m biofound` starts, which is what `torchrun -m biofound` needs."""

from biofound.cli import main

if __name__ == "__main__":
    main()
