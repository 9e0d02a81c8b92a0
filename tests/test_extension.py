"""`hf ci ...`: installed and called by the real hf, from a GitHub that answers on this machine.

The proxy ends TLS for every host with a certificate made for the occasion. Dependencies are not installed a second time:
pip is told so, and the tests' own are put on the path.
"""

import http.server
import io
import os
import shutil
import ssl
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hf_ci", "cards")
HOSTS = "DNS:github.com,DNS:raw.githubusercontent.com,DNS:codeload.github.com"


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for name in SOURCES:
            for path in [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    made.write(path, f"hf-ci-HEAD/{path.relative_to(ROOT).as_posix()}")
    return content.getvalue()


@pytest.fixture
def github(tmp_path):
    """The address of a proxy behind which someone/hf-ci exists, and the certificate to trust."""
    certificate, key, source = tmp_path / "cert.pem", tmp_path / "key.pem", archive()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=github.com"]
    made += ["-addext", f"subjectAltName={HOSTS}", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_response(200)
            self.end_headers()
            self.rfile.close()
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
            self.close_connection = False

        def finish(self):
            super().finish()
            self.connection.close()

        def do_GET(self):
            known = {"/someone/hf-ci": b"", "/someone/hf-ci/archive/HEAD.zip": source}
            content = known.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")
            self.wfile.flush()
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", str(certificate)
    server.shutdown()
    server.server_close()


def test_hf_installs_and_calls_it(github, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    proxy, certificate = github
    here = {"HOME": str(tmp_path), "PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    online = {"HTTPS_PROXY": proxy, "PIP_NO_DEPS": "1"}
    online |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), certificate)
    offline_build = {"PIP_NO_BUILD_ISOLATION": "0"}  # pip's spelling of "no isolation": what builds is here already
    hf = str(Path(sys.executable).parent / "hf")

    def call(*command, **env):
        return subprocess.run([hf, *command], env=os.environ | here | env, capture_output=True, text=True, cwd=tmp_path)

    installed = call("extensions", "install", "someone/hf-ci", **online, **offline_build)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    own = tmp_path / ".local/share/hf/extensions/hf-ci/venv"
    assert (own / "bin/hf-ci").is_file() and list(own.glob("lib/python*/site-packages/hf_ci/assets/clip/*.safetensors"))
    scanned = call("ci", "scan", "demo:frame", "--num-images", "32")
    assert scanned.returncode == 1 and "backdoored" in scanned.stdout, scanned.stdout + scanned.stderr
