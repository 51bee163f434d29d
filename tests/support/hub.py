"""A stand-in for the hub, on loopback: just enough of its API to create a repository, upload to it and download."""

import base64
import http.server
import json
import threading
import urllib.parse
from contextlib import contextmanager

COMMIT = "0" * 39 + "1"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def not_found(self, code="RepoNotFound"):
        self.answer({"error": "not found"}, 404, {"X-Error-Code": code})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        if path == "/api/repos/create":
            asked = json.loads(self.body())
            owner = asked.get("organization") or "me"
            repo = f"{owner}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.repos.setdefault(repo, {"private": private, "files": {}})
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            self.body()
            return self.answer({"errors": [], "warnings": []})
        parts = path.strip("/").split("/")  # api/models/owner/name/action/revision
        repo, action = "/".join(parts[2:4]), parts[4]
        if repo not in self.server.repos:
            return self.not_found()
        if action == "preupload":
            files = json.loads(self.body())["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [{"path": file["path"], **plain} for file in files]})
        if action == "commit":
            for line in self.body().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    file = entry["value"]
                    self.server.repos[repo]["files"][file["path"]] = base64.b64decode(file["content"])
            url = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
            return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True, "pullRequestUrl": None})
        return self.not_found("EntryNotFound")

    def do_GET(self):
        parts = urllib.parse.unquote(self.path.split("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            return self.answer({"name": "me", "type": "user", "orgs": []})
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.server.repos:
                return self.not_found()
            files = self.server.repos[repo]["files"]
            listing = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
            if "tree" in parts:
                return self.answer(listing)
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            return self.answer({"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if repo not in self.server.repos:
            return self.not_found()
        if name not in self.server.repos[repo]["files"]:
            return self.not_found("EntryNotFound")
        self.server.downloads.append(name)
        headers = {"ETag": f'"{name}-1"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return self.answer(self.server.repos[repo]["files"][name], headers=headers)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def serve(repos=None):
    """Yields (address, repos, downloads).

    ``repos`` maps "owner/name" to {"private": bool, "files": {path: bytes}}; ``downloads`` lists the files that were.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.repos, server.downloads = {} if repos is None else repos, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.repos, server.downloads
        server.shutdown()
