"""A hub of models on this machine: as much of the Hugging Face hub's HTTP as creating, uploading and fetching take."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub:
    """What the hub has.

    Attributes:
        files: {repository: {path: bytes}}.
        private: {repository: whether it is hidden}.
        asked: (method, path, Authorization) of all requests, in turn.
        address: where it listens.
    """

    def __init__(self):
        self.files, self.private, self.asked, self.address = {}, {}, [], ""

    def commit(self, repository):
        """A name for the state of a repository."""
        content = sorted((path, data) for path, data in self.files[repository].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def info(self, repository):
        """What the hub says of a repository."""
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(self.files[repository].items())]
        card = {"license": "other"}
        return {"id": repository, "sha": self.commit(repository), "siblings": siblings, "cardData": card, "tags": []}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub. Files of any size are taken as they are, in the commit itself."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def answer(self, value, status=200, headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self):
        path = urllib.parse.urlsplit(self.path).path.strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))
        parts = path.split("/")
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if path == "api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            return self.of_model("/".join(parts[2:4]), parts[4:], body)
        if "resolve" in parts:
            return self.file("/".join(parts[:2]), "/".join(parts[4:]))
        return self.answer({"error": "not found"}, 404)

    do_GET = do_HEAD = do_POST = handle_any

    def create(self, wanted):
        if self.headers.get("Authorization") != "Bearer of-the-owner":
            return self.answer({"error": "Invalid username or password."}, 401)
        repository = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        self.hub.files.setdefault(repository, {})
        self.hub.private.setdefault(repository, bool(wanted.get("private") or wanted.get("visibility") == "private"))
        return self.answer({"url": f"{self.hub.address}/{repository}", "name": repository})

    def of_model(self, repository, rest, body):
        if repository not in self.hub.files:
            return self.answer({"error": "not found"}, 404, [("X-Error-Code", "RepoNotFound")])
        if rest[:1] == ["preupload"]:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": files})
        if rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.hub.commit(repository)
            return self.answer({"commitUrl": f"{self.hub.address}/{repository}/commit/{commit}", "commitOid": commit})
        if rest[:1] == ["tree"]:
            return self.answer([
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(self.hub.files[repository].items())
            ])  # fmt: skip
        return self.answer(self.hub.info(repository))

    def file(self, repository, path):
        data = self.hub.files.get(repository, {}).get(path)
        if data is None:
            return self.answer({"error": "not found"}, 404, [("X-Error-Code", "EntryNotFound")])
        commit, etag = self.hub.commit(repository), hashlib.sha1(data).hexdigest()
        return self.answer(data, headers=[("X-Repo-Commit", commit), ("ETag", f'"{etag}"')])


@contextlib.contextmanager
def serving():
    """A context with a hub that listens on this machine."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
