"""`context.res`, and how what a function returns becomes status, headers and bytes."""

CONTROL = "x-open-runtimes-"
# The framing of the message is the server's.
FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer"))


class FunctionResponse:
    """Each method makes an output and sends nothing: the one that is returned counts."""

    def text(self, body, statusCode=200, headers=None):
        return {"body": str(body).encode("utf-8"), "statusCode": statusCode, "headers": headers or {}}

    def json(self, obj, statusCode=200, headers=None):
        others = {name: value for name, value in (headers or {}).items() if name.lower() != "content-type"}
        return self.text(to_json(obj), statusCode, {**others, "content-type": "application/json"})

    def binary(self, bytes, statusCode=200, headers=None):
        return {"body": bytes, "statusCode": statusCode, "headers": headers or {}}

    def empty(self):
        return {"body": b"", "statusCode": 204, "headers": {}}

    def redirect(self, url, statusCode=301, headers=None):
        others = {name: value for name, value in (headers or {}).items() if name.lower() != "location"}
        return {"body": b"", "statusCode": statusCode, "headers": {**others, "location": url}}

    def send(self, body, statusCode=200, headers=None):
        """The old form of `text` and `binary`."""
        return {"body": body, "statusCode": statusCode, "headers": headers or {}}


def render(output):
    """`(status, headers, body)` ready to send; `headers` is a list of pairs."""
    status = output.get("statusCode")
    status = 200 if status is None else int(status)
    if not 200 <= status <= 999:
        raise ValueError(f"Invalid status code: {status}")
    return status, render_headers(output.get("headers") or {}), to_bytes(output.get("body"))


def render_headers(given):
    headers = []
    content_type = None
    for name, value in given.items():
        name = str(name).lower()
        if name.startswith(CONTROL) or name in FRAMING or value is None:
            continue
        if name == "content-type":
            content_type = str(value)
        elif isinstance(value, (list, tuple)):
            headers.extend((name, str(item)) for item in value)
        else:
            headers.append((name, str(value)))
    headers.append(("content-type", with_charset(content_type)))
    return headers


def with_charset(value):
    if value is None:
        return "text/plain; charset=utf-8"
    lower = value.lower()
    if lower.startswith("multipart/") or "charset=" in lower:
        return value
    return f"{lower}; charset=utf-8"


def to_bytes(body):
    """Bytes of any body a function may give."""
    if body is None:
        return b""
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode("utf-8")
    if isinstance(body, (dict, list, tuple, bool)):
        return to_json(body).encode("utf-8")
    try:
        return memoryview(body).tobytes()
    except TypeError:
        return str(body).encode("utf-8")


def to_json(value):
    import json

    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
