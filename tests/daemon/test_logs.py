"""What the transport says by `logging` comes out in the one format, from the level that is set; libraries stay silent."""

import json
import logging

import pytest
import structlog

from daemon.config import LogConfig
from daemon.logs import set_up_logs


@pytest.fixture
def logs(capsys):
    """Set up logs at a level; returns what was written since."""
    root, ours = logging.getLogger(), logging.getLogger("daemon")
    before = [(one, one.handlers, one.level, one.propagate) for one in (root, ours)]

    def at(level):
        set_up_logs(LogConfig(level=level, format="json"))
        return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield at
    structlog.reset_defaults()
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_the_transport_is_heard_from_the_level_on(logs):
    written, log = logs("info"), logging.getLogger("daemon.transport.relay_keep")
    log.debug("a dial failed")
    log.info("reserved a place at the relay %s", "12D3")
    (line,) = written()
    assert line | {"timestamp": ""} == {
        "event": "reserved a place at the relay 12D3", "level": "info", "logger": "daemon.transport.relay_keep", "timestamp": "",
    }  # fmt: skip


def test_libraries_stay_silent(logs):
    written = logs("debug")
    logging.getLogger("aioquic").error("a stranger's bytes")
    assert written() == []


def test_a_strangers_bytes_are_escaped_and_cut(logs):
    written = logs("debug")
    logging.getLogger("daemon.transport").debug("it said %s", "\x1b[2J\n" + "x" * 9000)
    (line,) = written()
    assert line["event"].startswith("it said \\x1b[2J\\nx")
    assert len(line["event"]) < 600


@pytest.mark.parametrize("said", ["\x1b[2Jgone", "left\rright", "a\u202eb"])
def test_a_strangers_reason_moves_no_cursor(logs, capsys, said):
    logs("info")
    set_up_logs(LogConfig(level="info", format="pretty"))
    structlog.get_logger().info("trying the next peer", reason=said)
    line = capsys.readouterr().err
    assert line.count("trying the next peer") == 1
    assert said not in line
    assert line.rstrip("\n").isprintable()


def test_a_fault_is_one_line_without_a_traceback(logs):
    written = logs("warning")
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("daemon.transport").warning("a heartbeat failed", exc_info=True)
    (line,) = written()
    assert line["event"] == "a heartbeat failed: ValueError('odd')"
