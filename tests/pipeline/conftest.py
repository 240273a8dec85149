"""The original libraries, imported before the tests that need them."""

from massive import (  # noqa: F401  (fixtures)
    massive_bias,
    massive_product,
    shallow_massive_product,
)
from originals import compare, randomised  # noqa: F401  (fixtures)
