"""Fixtures shared with the tests of the door `quantize`."""

from reweighted import copied, massive_product, reweighted  # noqa: F401  (fixtures)
