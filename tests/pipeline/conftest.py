"""The original libraries, imported before the tests that need them."""

from originals import compare, randomised  # noqa: F401  (fixtures)
from reweighted import (  # noqa: F401  (fixtures)
    copied,
    massive_bias,
    massive_product,
    reweighted,
)
