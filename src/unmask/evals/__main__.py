"""`python -m unmask.evals`: lm-eval's command line, in which the model `unmask` is known."""

from __future__ import annotations

from unmask.errors import DependencyError


def main() -> None:
    """Run lm-eval with this process's arguments. Raises DependencyError without it."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        raise DependencyError(
            "this is lm-eval's command line, and lm_eval is not installed; pip install 'unmask[eval]'"
        ) from None
    from unmask.evals.lm import UnmaskLM  # noqa: F401 - makes the name known

    cli_evaluate()


if __name__ == "__main__":
    main()
