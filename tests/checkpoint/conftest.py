"""The original libraries, imported before the tests that need them."""

from originals import compare, randomised  # noqa: F401  (fixtures)
