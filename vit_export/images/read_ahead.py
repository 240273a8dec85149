"""Prepare images in threads, a bounded number ahead of their use."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import NoReturn, TypeAlias

import numpy as np

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ImageError
from vit_export.host.cpus import usable_cpus
from vit_export.images.decode import ImageSource, Pixels
from vit_export.images.folder import Images, iterate_images
from vit_export.images.prepare import resize_and_crop

MAX_THREADS = 8  # a thread prepares about 200 photographs a second
Prepared: TypeAlias = tuple[str, Pixels | ImageError]  # an image's name in parentheses, or ""
Task: TypeAlias = Callable[[], Prepared]


def read_ahead(images: Images, preprocess: Preprocess, ahead: int) -> Generator[Prepared]:
    """Yield images, prepared or the error that prevents it, in their order.

    Files, bytes, and arrays in a list are prepared in threads, at most `ahead` of them before they
    are asked for. What its producer may close or overwrite meanwhile is prepared at once: open
    files, Pillow images, and the arrays of a generator. One image alone starts no thread. Closing
    the iterator ends the threads. An error of the caller's generator is raised in its place.
    """
    tasks = _tasks(images, preprocess)
    head = [*islice(tasks, 1)]
    if head and head[0][0]:
        head += islice(tasks, 1)
        if len(head) == 1:
            yield head[0][1]()
            return
    tasks = chain(head, tasks)
    pending: deque[Task | Future[Prepared]] = deque()
    pool = ThreadPoolExecutor(min(MAX_THREADS, usable_cpus()), thread_name_prefix="read-ahead")
    try:
        while True:
            while len(pending) < ahead and (not pending or isinstance(pending[-1], Future)):
                if (item := next(tasks, None)) is None:
                    break
                can_wait, task = item
                pending.append(pool.submit(task) if can_wait else task)
            if not pending:
                return
            first = pending.popleft()
            yield first.result() if isinstance(first, Future) else first()
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(images: Images, preprocess: Preprocess) -> Iterator[tuple[bool, Task]]:
    """Yield whether each image can wait for a thread, and the call that returns it prepared."""
    stays = isinstance(images, list | tuple | np.ndarray)
    try:
        for source in iterate_images(images):
            is_content = isinstance(source, str | os.PathLike | bytes)
            if is_content or (stays and isinstance(source, np.ndarray)):
                yield True, partial(_prepare, source, preprocess)
            else:
                prepared = _prepare(source, preprocess)  # before the next image is asked for
                yield False, partial(_return, prepared)
    except Exception as error:  # noqa: BLE001 - the caller's, raised once it is its turn
        yield False, partial(_raise, error)


def _prepare(image: ImageSource, preprocess: Preprocess) -> Prepared:
    name = f" ({image})" if isinstance(image, str | os.PathLike) else ""
    try:
        return name, resize_and_crop(image, preprocess)
    except ImageError as error:
        return name, error


def _return(prepared: Prepared) -> Prepared:
    return prepared


def _raise(error: Exception) -> NoReturn:
    raise error
