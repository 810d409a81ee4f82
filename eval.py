"""Run `unmask eval` as `accelerate launch eval.py key=value ...`, in the spelling of published evaluation scripts."""

import sys

from unmask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
