"""What is delivered names its parts, and a part with a known vulnerability fails CI."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.supply.audit import audit, installed, judged
from tests.supply.sbom import bill

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bill of materials of the wheel that this checkout builds."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    first = bill(wheel)
    assert bill(wheel) == first, "equal wheels give equal bytes"
    return json.loads(first)


def test_the_bill_lists_what_the_wheel_brings_in_the_versions_here(parts: dict[str, Any]) -> None:
    found = {part["name"]: part["version"] for part in parts["components"]}
    for name in ("torch", "transformers", "pillow", "msgspec", "huggingface-hub"):  # the last: through another
        assert found[name] == version(name)
    assert all(part["purl"] == f"pkg:pypi/{part['name']}@{part['version'].replace('+', '%2B')}"
               for part in parts["components"])  # fmt: skip


def test_the_bill_leaves_out_what_only_extras_and_tests_need(parts: dict[str, Any]) -> None:
    assert not {"pytest", "hypothesis", "matplotlib", "peft", "openai"} & {part["name"] for part in parts["components"]}


def test_the_bill_says_who_needs_whom_and_seals_the_wheel(parts: dict[str, Any]) -> None:
    root = parts["metadata"]["component"]
    assert root["name"] == "vlmamba-eval"
    assert root["version"] == version("vlmamba-eval")
    assert [(one["alg"], len(one["content"])) for one in root["hashes"]] == [("SHA-256", 64)]
    needs = {item["ref"]: item.get("dependsOn", []) for item in parts["dependencies"]}
    direct = {ref.partition("==")[0] for ref in needs[root["bom-ref"]]}
    assert {"torch", "pillow", "httpx2"} <= direct
    assert "huggingface-hub" not in direct
    assert f"numpy=={version('numpy')}" in needs[f"pandas=={version('pandas')}"]


class Vulnerable(BaseHTTPRequestHandler):
    """OSV's interface: Jinja 2.10 has a vulnerability, everything else has none."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = asked["package"]["name"] == "jinja2" and asked["version"] == "2.10"
        span = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}
        affected = [{"package": {"name": "jinja2", "ecosystem": "PyPI"}, "ranges": [span]}]
        told = [{"id": "PYSEC-2019-217", "summary": "escape", "affected": affected}]
        answer = json.dumps({"vulns": told} if bad else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_known_vulnerability_fails_the_audit() -> None:
    """pip-audit itself, before a server that knows of one."""
    server = HTTPServer(("127.0.0.1", 0), Vulnerable)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}"]
        code, said = audit(["click==8.1.0", "jinja2==2.10"], options)
    finally:
        server.shutdown()
        server.server_close()
    assert code == 1
    assert said.splitlines()[1:] == ["jinja2 2.10: PYSEC-2019-217; mended in 2.10.1"]


def test_an_audit_without_an_answer_says_so_and_passes() -> None:
    assert judged("", "Traceback\nConnectionError: no route") == (
        0, "Dependencies were not audited: pip-audit got no answer (ConnectionError: no route).",
    )  # fmt: skip
    skipped = {"dependencies": [{"name": "a", "skip_reason": "not found"}]}
    assert judged(json.dumps(skipped))[1].startswith("Dependencies were not audited: the package index here")
    half = {"dependencies": [*skipped["dependencies"], {"name": "b", "version": "1", "vulns": []}]}
    assert judged(json.dumps(half)) == (
        0, "1 packages have no known vulnerability. Not on PyPI, so not audited: a.",
    )  # fmt: skip


def test_what_is_installed_is_audited_without_local_labels() -> None:
    found = installed()
    assert f"pillow=={version('pillow')}" in found
    assert f"torch=={version('torch').partition('+')[0]}" in found
    assert not [one for one in found if "+" in one or one.startswith("vlmamba")]
