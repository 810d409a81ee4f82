"""`python -m unmask.evals`: lm-eval's command line with the model `unmask` registered."""

from __future__ import annotations

from unmask.errors import DependencyError


def main() -> None:
    """Run lm-eval with the arguments of this process. Raises DependencyError without lm-eval."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        raise DependencyError(
            "this is lm-eval's command line, and lm_eval is not installed; pip install 'unmask[eval]'"
        ) from None
    from unmask.evals.lm import UnmaskLM  # noqa: F401 - registers the model

    cli_evaluate()


if __name__ == "__main__":
    main()
