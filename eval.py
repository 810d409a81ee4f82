"""`accelerate launch eval.py key=value ...`: the founding documents' spelling of `unmask eval`."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
