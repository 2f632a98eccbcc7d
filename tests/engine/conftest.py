"""A llama model of a few kilobytes with random weights, written at test time: a real engine loads it and streams from it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import trio

from bench.random_model import TOOL_TEMPLATE, ModelShape, write_gguf
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.http_engine import HttpEngine


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 90 KB that answers at once and, in a context of 8192 tokens, for as long as a test asks."""
    return write_gguf(tmp_path_factory.mktemp("model") / "random-llama.gguf", ModelShape())


RunEngine = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """A short path: the socket below it must fit into 107 bytes."""
    with TemporaryDirectory(prefix="swarmd-") as folder:
        yield Path(folder)


@pytest.fixture
def running() -> RunEngine:
    """Runs an engine for the length of a block, which is entered once it is ready."""

    @asynccontextmanager
    async def run(engine: HttpEngine) -> AsyncIterator[HttpEngine]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            with trio.fail_after(30):
                await engine.wait_ready()
            yield engine
            nursery.cancel_scope.cancel()

    return run


@pytest.fixture
def tiny_engine(tiny_model: Path, run_folder: Path) -> HttpEngine:
    settings = EmbeddedSettings(tiny_model, slots=2, context_tokens=8192)
    return embedded_engine(settings, run_folder, Random(1))


@pytest.fixture
def tool_engine(tmp_path: Path, run_folder: Path) -> HttpEngine:
    """A model of random weights whose template knows tools: what it says is noise, but in the form that is asked for."""
    path = write_gguf(tmp_path / "tools.gguf", ModelShape(template=TOOL_TEMPLATE))
    return embedded_engine(EmbeddedSettings(path, slots=2, context_tokens=4096), run_folder, Random(1))


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Writes a model of another shape: `write_model(path, layers=..., context=..., name=...)`."""
    return lambda path, **shape: write_gguf(path, ModelShape(**shape))
