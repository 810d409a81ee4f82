"""`accelerate launch train.py key=value ...`: the founding documents' spelling of `unmask train`."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
