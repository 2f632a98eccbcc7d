"""How the daemon logs: one line per event to standard error, for people or for collectors. Never a prompt, a key or an answer."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from daemon.config import LogConfig

_MAX_CHARACTERS = 500
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up_logs(config: LogConfig) -> None:
    """Configure structlog, and quieten what libraries log by themselves."""
    pretty = config.format == "pretty" or (config.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escaped,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Library records would bypass the format above and can carry a stranger's bytes.
    logging.getLogger().handlers = [logging.NullHandler()]
    logging.getLogger().setLevel(logging.CRITICAL)
    ours = logging.getLogger("daemon")
    ours.handlers, ours.propagate = [_ToStructlog()], False
    ours.setLevel(_LEVELS[config.level])


def _escaped(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Reasons and names are strangers' too: none of them moves a terminal's cursor or fills a line."""
    for name, said in event.items():
        if isinstance(said, str):
            event[name] = _shown(said)
    return event


def _shown(text: str) -> str:
    cut = text[:_MAX_CHARACTERS]
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")


class _ToStructlog(logging.Handler):
    """What our transport says by `logging`, in the one format; what a stranger may have put into it is escaped and cut."""

    def emit(self, record: logging.LogRecord) -> None:
        fault = f": {record.exc_info[1]!r}" if record.exc_info else ""
        structlog.get_logger().log(record.levelno, _shown(f"{record.getMessage()}{fault}"), logger=record.name)
