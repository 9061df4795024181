# In the place of a service on the Internet.
from http.server import BaseHTTPRequestHandler, HTTPServer


class Todo(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"userId": 13}' if self.path == "/todos/2" else b"{}")


HTTPServer(("127.0.0.1", 9999), Todo).serve_forever()
