"""How the tests of the tools run one."""

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python tools/<name>.py arguments`, its output captured, whatever its status."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
