"""Messages of TensorRT reach the thread whose call caused them, with the real TensorRT-RTX."""

from __future__ import annotations

import threading

import tensorrt_rtx as trt

from vit_export.runtime.tensorrt.backend import Messages, load_backend


def test_each_thread_gets_its_own_messages() -> None:
    """Two threads fail at the same time, and leave in the order in which they came."""
    backend = load_backend("tensorrt-rtx")
    both_inside, first_left = threading.Barrier(2), threading.Event()
    collected: dict[str, Messages] = {}

    def work(name: str) -> None:
        with backend.collect_messages() as messages:
            both_inside.wait(10)
            backend.logger.log(trt.ILogger.Severity.ERROR, name)
            both_inside.wait(10)
            if name == "second":
                first_left.wait(10)
                backend.logger.log(trt.ILogger.Severity.ERROR, "late")
        collected[name] = messages
        first_left.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collected["first"].errors == ["first"]
    assert collected["second"].errors == ["second", "late"]
    assert backend.logger.collectors == []


def test_equal_messages_of_two_collectors_are_kept_apart() -> None:
    """The inner one ends first, and both have collected nothing."""
    backend = load_backend("tensorrt-rtx")
    outer, inner = backend.collect_messages(), backend.collect_messages()
    with outer as first:
        second = inner.__enter__()
        outer_is_first = backend.logger.collectors[0] is first
        inner.__exit__(None, None, None)
        assert outer_is_first
        assert backend.logger.collectors == [first]
        backend.logger.log(trt.ILogger.Severity.WARNING, "to the outer one")
    assert (first.warnings, second.warnings) == (["to the outer one"], [])


def test_an_error_of_the_real_parser_reaches_the_calling_thread_only() -> None:
    backend = load_backend("tensorrt-rtx")
    entered, parsed = threading.Event(), threading.Event()
    other: list[Messages] = []

    def wait() -> None:
        with backend.collect_messages() as messages:
            entered.set()
            parsed.wait(60)
        other.append(messages)

    thread = threading.Thread(target=wait)
    thread.start()
    assert entered.wait(10)
    with backend.collect_messages() as messages:
        builder = trt.Builder(backend.logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, backend.logger)
        assert not parser.parse(b"no model")
    parsed.set()
    thread.join()
    assert messages.errors
    assert other[0].errors == []


def test_what_a_thread_of_tensorrt_logs_reaches_every_caller() -> None:
    """Such a thread works for one of them, which is not known."""
    backend = load_backend("tensorrt-rtx")
    with backend.collect_messages() as messages:
        thread = threading.Thread(
            target=backend.logger.log, args=(trt.ILogger.Severity.ERROR, "from a worker")
        )
        thread.start()
        thread.join()
    assert messages.errors == ["from a worker"]
