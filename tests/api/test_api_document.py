"""docs/api.md names every code that an error of the API can have."""

import re
from pathlib import Path

from protocol.wire.errors import Code

ROOT = Path(__file__).parents[2]


def test_every_code_of_an_error_is_documented() -> None:
    listed = (ROOT / "docs" / "api.md").read_text().partition("`code` is stable")[2].partition("\n\n")[0]
    sources = [path.read_text() for path in (ROOT / "daemon" / "api").glob("*.py")]
    raised = {code for source in sources for code in re.findall(r'ApiError\(\s*\d+,\s*"([a-z_]+)"', source)}
    assert len(raised) > 5
    remote = {str(code) for code in Code}
    assert raised | remote <= set(re.findall(r"`([a-z_]+)`", listed))
