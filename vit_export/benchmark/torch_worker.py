"""The child that runs torch itself, eager or compiled, beside the artifacts of a benchmark."""

from __future__ import annotations

from vit_export.benchmark.torch_runner import TorchRunner
from vit_export.benchmark.worker import serve
from vit_export.host.child_process import Order


def main() -> None:
    """Serve the torch model of an artifact."""
    serve(load_torch)


def load_torch(order: Order) -> TorchRunner:
    """Build the model that an order names."""
    return TorchRunner(
        order["path"],
        weights=order["weights"],
        layout=order["layout"],
        provider=order["provider"],
        compiled=order["compiled"],
        threads=order["threads"],
    )
