"""Run `unmask eval` as published scripts are run: `accelerate launch eval.py key=value ...`."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
