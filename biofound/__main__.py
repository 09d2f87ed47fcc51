"""Entry of `python -m biofound` and of `torchrun -m biofound`."""

from biofound.cli import main

if __name__ == "__main__":
    main()
