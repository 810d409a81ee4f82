"""Run `unmask train` as `accelerate launch train.py key=value ...`, in the spelling of published training scripts."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
