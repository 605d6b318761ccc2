"""``python -m pruning …``, and so ``accelerate launch -m pruning …``."""

from pruning.cli import command

if __name__ == "__main__":
    command()
