"""Run `unmask train` as published scripts are run: `accelerate launch train.py key=value ...`."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
