"""`context.req`: the HTTP request as the function sees it."""

# What `hmac.compare_digest` is, without the cost of loading OpenSSL.
from _operator import _compare_digest

CONTROL = "x-open-runtimes-"


class Request:
    """The request of one execution; bodies are decoded when they are asked for."""

    def __init__(self, message, body, settings):
        target = origin_form(message.target)
        headers = message.headers
        self.method = message.method.upper()
        self.scheme = headers.get("x-forwarded-proto") or "http"
        self.host, self.port = authority(headers.get("host", ""), self.scheme)
        self.path, _, self.query_string = target.partition("?")
        self.query = parse_query(self.query_string)
        self.headers = function_headers(message, settings)
        port = "" if self.port == default_port(self.scheme) else f":{self.port}"
        query = f"?{self.query_string}" if self.query_string else ""
        self.url = f"{self.scheme}://{self.host}{port}{self.path}{query}"
        self._body = body

    @property
    def body_binary(self):
        return self._body

    @property
    def body_text(self):
        return self._body.decode("utf-8")

    @property
    def body_json(self):
        import json

        return json.loads(self.body_text)

    @property
    def body(self):
        content_type = self.headers.get("content-type", "text/plain").lower()
        if not content_type.startswith("application/json"):
            return self.body_text
        return self.body_json if self._body else {}

    @property
    def body_raw(self):
        """The old name of `body_text`."""
        return self.body_text


def origin_form(target):
    """`/path?query` also where a proxy sent the absolute form."""
    if target.startswith("/") or "://" not in target:
        return target
    slash = target.find("/", target.index("://") + 3)
    return "/" if slash < 0 else target[slash:]


def default_port(scheme):
    return 443 if scheme == "https" else 80


def authority(header, scheme):
    colon = header.find(":", header.find("]") + 1 if header.startswith("[") else 0)
    if colon < 0:
        return header, default_port(scheme)
    port = header[colon + 1 :]
    return header[:colon], int(port[:9]) if port.isascii() and port.isdigit() else default_port(scheme)


def parse_query(text):
    """Raw text, split at `&` and at the first `=`; the last of equal keys wins."""
    query = {}
    if text:
        for item in text.split("&"):
            key, _, value = item.partition("=")
            if key:
                query[key] = value
    return query


def function_headers(message, settings):
    """Without the runtime's own headers and the caller's own credential, below the enforced ones."""
    headers = {name: value for name, value in message.headers.items() if not name.startswith(CONTROL)}
    own = settings.own_credential
    if own and message.authorizations and message.authorizations[0] == own:
        del headers["authorization"]
        for value in message.authorizations:
            if value != own:
                headers["authorization"] = value
                break
    headers.update(settings.enforced_headers)
    return headers


def is_equal_secret(given, secret):
    """Takes the same time wherever the texts differ."""
    return _compare_digest(given.encode("latin-1"), secret.encode("utf-8"))
